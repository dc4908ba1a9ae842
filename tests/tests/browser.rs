//! Pages in a real browser with the URLs that they were given: what they may do is decided by the browser, from the headers of
//! storage's answers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, Refusal, Role, Sha256};
use millpond_tests::{Link, Place, Process, Server, browser, recent_hour};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Makes the requests that stand in place of `STEPS`.
const PAGE: &str = include_str!("browser.html");
/// Bytes of a file.
const SIZE: usize = 300_000;

/// An origin: it serves one page, and hears what that saw.
struct Site(TcpListener);

impl Site {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// As browsers name it.
    fn origin(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// Has a browser show the page, and answers what each of its requests came to.
    async fn sees(&self, steps: &[Value]) -> Vec<Value> {
        let page = PAGE.replace("STEPS", &json!(steps).to_string());
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("chromium");
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .arg(self.origin())
            .env("HOME", directory.path());
        let mut browser = Process::start(command, directory.path(), "chromium");
        let (tell, mut told) = mpsc::channel(1);
        let seen = async {
            loop {
                tokio::select! {
                    seen = told.recv() => return seen.unwrap(),
                    // A browser opens more connections than it uses.
                    visitor = self.0.accept() => {
                        tokio::spawn(serve(visitor.unwrap().0, page.clone(), tell.clone()));
                    }
                }
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(120), seen).await;
        browser.signal("TERM");
        browser.wait(Duration::from_secs(30)).await;
        let seen = seen.unwrap_or_else(|_| panic!("the page said nothing\n{}", browser.stderr()));
        serde_json::from_slice(&seen).unwrap()
    }
}

/// Answers one request.
async fn serve(stream: TcpStream, page: String, tell: mpsc::Sender<Vec<u8>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let (status, content) = match head[0].split(" HTTP").next() {
        Some("GET /") => ("200 OK", page),
        Some("POST /seen") => ("204 No Content", String::new()),
        _ => ("404 Not Found", String::new()),
    };
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: ");
    stream.write_all(format!("{head}{}\r\n\r\n{content}", content.len()).as_bytes()).await?;
    stream.shutdown().await?;
    if length > 0 {
        let _ = tell.send(body).await;
    }
    Ok(())
}

/// A publisher whose files are all one byte again and again.
struct Publisher(Link);

impl Publisher {
    async fn join(server: &Server) -> Self {
        Self(Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap())
    }

    async fn granted(&self, upload: &str, byte: u8) -> answer::PutTo {
        let ask = json!({ "id": upload, "upload": upload, "size": SIZE, "sha256": Sha256::of(&vec![byte; SIZE]),
            "event_time": recent_hour() });
        let put: answer::Put = self.0.ask(Op::Put, &ask).await.unwrap();
        put.to.unwrap()
    }

    async fn commit(&self, upload: &str) -> Result<Outcome, Code> {
        let ask = json!({ "id": "commit", "upload": upload, "wait_s": 30 });
        match self.0.ask::<answer::Commit>(Op::Commit, &ask).await {
            Ok(committed) => Ok(committed.uploads[0].outcome),
            Err(error) => Err(error.downcast::<Refusal>().unwrap().code),
        }
    }
}

fn put(to: &answer::PutTo, byte: u8) -> Value {
    json!({ "url": to.url, "method": "PUT", "headers": to.headers, "byte": byte, "size": SIZE })
}

/// Whether storage has refused, and the page could read why.
fn is_refused(seen: &Value) -> bool {
    let status = seen["status"].as_u64().unwrap_or_default();
    (400..500).contains(&status) && seen["text"].as_str().is_some_and(|text| text.contains("<Code>"))
}

#[tokio::test]
async fn a_page_uses_its_urls_and_another_one_cannot() {
    if !browser() {
        return;
    }
    let (ours, theirs) = (Site::new().await, Site::new().await);
    let origins = json!([ours.origin()]).to_string();
    let settings = [("MILLPOND__STORAGE__CORS_ORIGINS", origins.as_str())];
    pages(&Place::Here.server(&settings).await, &ours, &theirs).await;
}

async fn pages(server: &Server, ours: &Site, theirs: &Site) {
    let edge = Publisher::join(server).await;
    let there = edge.granted("there", b'a').await;
    assert_eq!(server.api().send(&there, vec![b'a'; SIZE]).await, 200);
    assert_eq!(edge.commit("there").await, Ok(Outcome::Stored));
    let got: Value = edge.0.ask(Op::Get, &json!({ "upload": "there" })).await.unwrap();
    let url = got["url"].as_str().unwrap();
    let get = json!({ "url": url, "headers": { "range": "bytes=100-199" } });
    let (film, map) = (edge.granted("film", b'f').await, edge.granted("map", b'm').await);

    let mut unhashed = put(&film, b'f');
    unhashed["headers"].as_object_mut().unwrap().remove("x-amz-checksum-sha256");
    let unsigned = json!({ "url": url.split_once('?').unwrap().0 });
    let steps = [get.clone(), put(&film, b'x'), unhashed, unsigned, put(&film, b'f')];
    let seen = ours.sees(&steps).await;
    let [part, other, unhashed, unsigned, sent] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((&part["status"], &part["text"]), (&json!(206), &json!("a".repeat(100))), "{part}");
    assert_eq!(part["headers"]["content-range"], format!("bytes 100-199/{SIZE}"), "{part}");
    assert!(part["headers"]["etag"].as_str().is_some_and(|tag| !tag.is_empty()), "{part}");
    assert!(part["headers"].get("content-disposition").is_none(), "it is not exposed: {part}");
    for refused in [other, unhashed, unsigned] {
        assert!(is_refused(refused), "{seen:?}");
    }
    assert_eq!((&sent["status"], &sent["type"]), (&json!(200), &json!("cors")), "{sent}");
    assert!(sent["headers"]["etag"].is_string(), "{sent}");
    assert_eq!(edge.commit("film").await, Ok(Outcome::Stored));

    // Another page reaches storage all the same, and may neither see an answer nor send.
    let blind = json!({ "url": url, "mode": "no-cors" });
    let seen = theirs.sees(&[blind, get, put(&map, b'm')]).await;
    let nothing = json!({ "error": "TypeError" });
    let opaque = json!({ "status": 0, "type": "opaque", "headers": {}, "text": "" });
    assert_eq!(seen, [opaque, nothing.clone(), nothing]);
    assert_eq!(edge.commit("map").await, Err(Code::NotFound));
}
