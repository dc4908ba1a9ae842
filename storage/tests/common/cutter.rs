//! A network that breaks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_storage::{Storage, StorageConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Cuts every connection off after some bytes of the answer; counts them.
pub struct Cutter {
    pub storage: Storage,
    pub connections: Arc<AtomicUsize>,
    /// Where it holds, the first connection is cut only when this is notified.
    pub hold: Arc<Notify>,
}

/// Stands before the endpoint, or before the proxy where there is one.
pub async fn cutter(config: &StorageConfig, after: usize, holds: bool) -> Cutter {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let mut config = config.clone();
    let before = std::mem::replace(config.proxy.as_mut().unwrap_or(&mut config.endpoint), own);
    let to = before.socket_addrs(|| None).unwrap()[0];
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
