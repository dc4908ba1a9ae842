//! What somebody can do to the server who was given a URL, and what not.
//!
//! Embedded only: what it reads of a refused body, for how long it waits, and whose URLs it heeds. What URLs do
//! is in `contract/urls.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{MINUTE, Server, bytes, embedded_config, http, now, object, refusal};
use millpond_protocol::Sha256;
use millpond_storage::{PresignedPut, Storage, embedded};
use reqwest::header::HeaderValue;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The head of a PUT as it stands on the wire, for a client that the test plays itself.
fn raw_put(server: &Server, put: PresignedPut, more: &str) -> String {
    let (host, target) = put.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    assert_eq!(format!("http://{host}/"), server.config.endpoint.as_str());
    let headers: String = put.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("PUT /{target} HTTP/1.1\r\nhost: {host}\r\n{headers}{more}\r\n")
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.config.endpoint.socket_addrs(|| None).unwrap()[0]).await.unwrap()
}

#[tokio::test]
async fn a_refused_client_that_writes_before_it_reads_still_sees_why() {
    let server = Server::start().await;
    let body = bytes(8 << 20);
    let long_ago = now().before(MINUTE * 60);
    let put =
        server.storage.presign_put(&object("k"), body.len() as u64, Sha256::of(&body), MINUTE, long_ago);
    let mut stream = connect(&server).await;
    stream.write_all(raw_put(&server, put, "").as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn what_is_read_of_a_refused_body_ends_by_its_bytes_and_by_its_time() {
    const LONG: Duration = Duration::from_secs(3_600);
    for (bytes_read, time, sent) in
        [(1 << 20, LONG, (1 << 20) + 1), (1 << 30, Duration::from_millis(300), 10)]
    {
        let server = Server::start_with(|config| {
            (config.drain_bytes, config.drain_time) = (bytes_read, time);
            config.stall_timeout = LONG;
        })
        .await;
        let body = bytes(8 << 20);
        let long_ago = now().before(MINUTE * 60);
        let (size, sha256) = (body.len() as u64, Sha256::of(&body));
        let put = server.storage.presign_put(&object("k"), size, sha256, MINUTE, long_ago);
        let mut stream = connect(&server).await;
        stream.write_all(raw_put(&server, put, "").as_bytes()).await.unwrap();
        stream.write_all(&body[..sent]).await.unwrap();
        // The rest never comes, and nobody waits for it.
        let mut answer = String::new();
        let read = tokio::time::timeout(MINUTE, stream.read_to_string(&mut answer)).await;
        read.expect("it is read for ever").unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let server = Server::start_with(|config| config.stall_timeout = Duration::from_millis(200)).await;
    let declared = bytes(1000);
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    sender.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
    let body = futures_util::stream::unfold(receiver, |mut from| async { Some((from.recv().await?, from)) });
    let put = server.put_request("k", &declared, reqwest::Body::wrap_stream(body)).send();
    let started = std::time::Instant::now();
    assert_eq!(refusal(put.await.unwrap()).await, (400, "RequestTimeout".into()));
    assert!(started.elapsed() < Duration::from_secs(5), "nobody waits for the rest of it");
    server.settles_at(0).await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_nothing_gets_a_connection_of_its_own() {
    let server = Server::start().await;
    let put = server.storage.presign_put(&object("k"), 0, Sha256::of(b""), MINUTE, now());
    let mut stream = connect(&server).await;
    stream.write_all(raw_put(&server, put, "expect: 100-continue\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_url_that_says_whom_it_was_made_for_is_good_while_that_one_may_use_it() {
    let may = Arc::new(Mutex::new(None));
    let dir = tempfile::tempdir().unwrap();
    let answer = Arc::clone(&may);
    let embedded = embedded::open(dir.path(), embedded_config()).unwrap().asking(Arc::new(move |holder| {
        let known = (holder == "7.publisher").then(|| *answer.lock().unwrap()).flatten();
        Box::pin(async move { known })
    }));
    let server = Server::serve(dir, embedded).await;
    let mut config = server.config.clone();
    config.names_holders = true;
    let held = Storage::new(&config).unwrap().held_by("7.publisher");
    let body = Bytes::from_static(b"bytes");
    let get = held.presign_get(&object("k"), MINUTE, now()).url;
    let put = held.presign_put(&object("k"), body.len() as u64, Sha256::of(&body), MINUTE, now());
    let say = |known| *may.lock().unwrap() = known;
    let send = async || {
        let request = http().put(&put.url).body(body.clone());
        let request = put.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let sent = request.send().await.unwrap();
        let (kept, status) = (sent.headers()["cache-control"].clone(), sent.status());
        assert_eq!(kept, "private, no-cache");
        let read = http().get(&get).send().await.unwrap();
        if status == 200 {
            assert!(read.bytes().await.unwrap() == body);
            return (200, String::new());
        }
        let refused = refusal(sent).await;
        assert_eq!(refusal(read).await, refused);
        refused
    };
    say(Some(true));
    assert_eq!(send().await.0, 200);
    say(Some(false));
    assert_eq!(send().await, (403, "AccessDenied".into()));
    // Nobody can be asked now: whoever comes again may be let in.
    say(None);
    assert_eq!(send().await, (503, "ServiceUnavailable".into()));
    say(Some(true));
    assert_eq!(send().await.0, 200);
    // The server's own calls, and what is made for everybody, ask nobody.
    say(None);
    let kept = HeaderValue::from_static("private, no-cache");
    let read = http().get(server.get_url("k")).send().await.unwrap();
    assert_eq!((read.status().as_u16(), &read.headers()["cache-control"]), (200, &kept));
    // Some caches keep such an answer too, unless they are told.
    let none = http().get(server.get_url("none")).send().await.unwrap();
    assert_eq!((none.status().as_u16(), &none.headers()["cache-control"]), (404, &kept));
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
}
