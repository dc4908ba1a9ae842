//! A manifest on a line that is cut, whose URL runs out meanwhile.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use millpond_protocol::Role;
use millpond_tests::{Edge, Link, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::cast::{CONCATENATE, PATIENCE};

/// Bytes of the first answer that get through.
const GIVEN: usize = 400;

/// What is before storage: it cuts the first answer, refuses the second request as storage does when a URL has run out, and
/// is out of the way from then on.
struct Front {
    address: SocketAddr,
    /// The heads of requests, of each connection the first.
    asked: Arc<Mutex<Vec<String>>>,
    storage: Arc<OnceLock<SocketAddr>>,
}

impl Front {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, storage) = (Arc::new(Mutex::new(Vec::new())), Arc::new(OnceLock::new()));
        let (heads, target) = (Arc::clone(&asked), Arc::clone(&storage));
        tokio::spawn(async move {
            while let Ok((line, _)) = listener.accept().await {
                // The server looks whether storage is reached, before it has said where it is.
                let Some(target) = target.get() else { continue };
                tokio::spawn(serve(line, *target, Arc::clone(&heads)));
            }
        });
        Self { address, asked, storage }
    }
}

/// Reads the head of a message, and what came of its body with it.
async fn head(line: &mut TcpStream) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = read.split_off(end + 4);
            return Some((read, body));
        }
        if line.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

async fn serve(mut line: TcpStream, target: SocketAddr, asked: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let (request, _) = head(&mut line).await?;
    let number = {
        let mut asked = asked.lock().unwrap();
        asked.push(String::from_utf8_lossy(&request).to_ascii_lowercase());
        asked.len()
    };
    if number == 2 {
        let refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        return line.write_all(refusal).await.ok();
    }
    let mut storage = TcpStream::connect(target).await.ok()?;
    storage.write_all(&request).await.ok()?;
    if number == 1 {
        let (answer, mut body) = head(&mut storage).await?;
        while body.len() < GIVEN {
            storage.read_buf(&mut body).await.ok().filter(|n| *n > 0)?;
        }
        line.write_all(&[&answer, &body[..GIVEN]].concat()).await.ok()?;
        return line.shutdown().await.ok();
    }
    tokio::io::copy_bidirectional(&mut line, &mut storage).await.ok().map(drop)
}

#[tokio::test]
async fn a_manifest_whose_url_runs_out_goes_on_by_a_fresh_one_where_it_was_cut() {
    let front = Front::start().await;
    let public = format!("http://{}", front.address);
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    front.storage.set(server.ports().storage.unwrap()).unwrap();
    server.pool("demo", json!({ "grouping": "count", "count": 3 })).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    for id in ["a", "b", "c"] {
        let topic = format!("mp/demo/c/edge-1/up/{id}");
        link.publish(&topic, format!("{id}\n").into_bytes(), Default::default()).await.unwrap();
    }
    link.close().await;
    let edge = Edge::new(&server, server.member("demo", "mill", Role::Processor).await).await;
    let exec = format!(r#"cp "$MILLPOND_MANIFEST" ../../manifest; {CONCATENATE}"#);
    let mut process = edge.start("process", &["process", "--once", "--exec", &exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n", "in one attempt");
    let manifest = std::fs::read_to_string(edge.directory().join("manifest")).unwrap();
    assert_eq!(manifest.lines().count(), 4, "{manifest}");
    let asked = front.asked.lock().unwrap().clone();
    let range = format!("range: bytes={GIVEN}-");
    let ranges: Vec<_> = asked.iter().take(3).map(|head| head.contains(&range)).collect();
    assert_eq!(ranges, [false, true, true], "{asked:?}");
}
