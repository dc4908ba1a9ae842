//! Reading an object through SHA-256 over a network that breaks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::{Server, bytes, object};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Storage, limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Cuts every connection off after some bytes of the answer; counts them.
struct Cutter {
    storage: Storage,
    connections: Arc<AtomicUsize>,
    /// Where it holds, the first connection is cut only when this is notified.
    hold: Arc<Notify>,
}

async fn cutter(server: &Server, after: usize, holds: bool) -> Cutter {
    let to = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = server.config.clone();
    config.endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let hold = Arc::new(Notify::new());
    let (counted, held) = (connections.clone(), hold.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            let held = held.clone();
            tokio::spawn(async move {
                let client = cut(client, to, after).await;
                if holds && first {
                    held.notified().await;
                }
                drop(client);
            });
        }
    });
    Cutter { storage: Storage::new(&config).unwrap(), connections, hold }
}

async fn cut(mut client: TcpStream, to: SocketAddr, after: usize) -> TcpStream {
    let mut server = TcpStream::connect(to).await.unwrap();
    let mut request = vec![0; 8192];
    let read = client.read(&mut request).await.unwrap();
    server.write_all(&request[..read]).await.unwrap();
    let (mut chunk, mut left) = (vec![0; 16 << 10], after);
    while left > 0 {
        let most = left.min(chunk.len());
        let read = server.read(&mut chunk[..most]).await.unwrap();
        if read == 0 || client.write_all(&chunk[..read]).await.is_err() {
            break;
        }
        left -= read;
    }
    client
}

async fn stored(server: &Server, key: &str, size: usize) -> Bytes {
    let body = Bytes::from(bytes(size));
    server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    body
}

#[tokio::test]
async fn a_broken_connection_is_resumed_where_it_broke() {
    let server = Server::start().await;
    let body = stored(&server, "k", 5 << 20).await;
    let cutter = cutter(&server, 1 << 20, false).await;
    let mut heard = 0;
    let progress = |read| {
        assert!(read > heard, "{read} after {heard}");
        heard = read;
    };
    let hashed = cutter.storage.hash(&object("k"), progress).await;
    assert_eq!(hashed, Ok((5 << 20, Sha256::of(&body))));
    assert_eq!(heard, 5 << 20);
    // Heads of answers are cut off as well, so five times 1 MiB are not enough.
    assert_eq!(cutter.connections.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn attempts_that_bring_nothing_end_it() {
    let server = Server::start().await;
    stored(&server, "k", 1 << 20).await;
    let cutter = cutter(&server, 10, false).await;
    let hashed = cutter.storage.hash(&object("k"), |_| panic!("nothing came")).await;
    assert!(hashed.unwrap_err().is_temporary());
    assert_eq!(cutter.connections.load(Ordering::SeqCst), limits::ATTEMPTS as usize);
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_not_hashed_half_and_half() {
    let server = Server::start().await;
    stored(&server, "k", 2 << 20).await;
    let cutter = cutter(&server, 1 << 20, true).await;
    let storage = cutter.storage.clone();
    let (begun, mut first) = tokio::sync::mpsc::unbounded_channel();
    let hashing = tokio::spawn(async move {
        storage
            .hash(&object("k"), |read| {
                let _ = begun.send(read);
            })
            .await
    });
    first.recv().await.unwrap();
    let other = Bytes::from(vec![7; 2 << 20]);
    server.storage.put(&object("k"), other.clone(), Sha256::of(&other)).await.unwrap();
    cutter.hold.notify_one();
    let hashed = hashing.await.unwrap();
    assert!(matches!(&hashed, Err(Error::Mismatch(why)) if why.contains("replaced")), "{hashed:?}");
}
