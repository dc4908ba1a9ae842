//! A storage that misbehaves: an HTTP proxy in front of a real one, which does to requests what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What becomes of requests that begin from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// The truth.
    None,
    /// It comes so much later.
    Slow(Duration),
    /// None is passed on; the answer is this status with this code of S3.
    Refuse(u16, &'static str),
    /// None is passed on; the answer is a refusal that was dated in 2020.
    LongAgo,
    /// As `Refuse`, of what is PUT or POSTed.
    RefuseWrites(u16, &'static str),
    /// What is PUT or POSTed is not passed on, and the answer is that all went well.
    Swallow,
    /// What is PUT is stored, and the answer names another ETag.
    WrongEtag,
}

/// The proxy. Dropped, it is gone.
pub struct Liar {
    address: SocketAddr,
    lie: watch::Sender<Lie>,
    calls: Arc<AtomicU64>,
    accept: JoinHandle<()>,
}

impl Liar {
    /// In front of that storage; it tells the truth.
    pub async fn before(storage: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (lie, told) = watch::channel(Lie::None);
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let accept = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (told, counted) = (told.clone(), Arc::clone(&counted));
                // Whoever goes away in the middle has its reasons.
                tokio::spawn(async move { serve(client, storage, &told, &counted).await.ok() });
            }
        });
        Self { address, lie, calls, accept }
    }

    /// Where clients connect to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this to what comes from now on.
    pub fn tell(&self, lie: Lie) {
        self.lie.send_replace(lie);
    }

    /// Requests so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// A head with its empty line.
async fn head(from: &mut BufReader<TcpStream>) -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn length(head: &[String]) -> u64 {
    let value =
        |line: &String| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
    head.iter().find_map(value).unwrap_or(0)
}

/// One request a connection.
async fn serve(
    client: TcpStream,
    storage: SocketAddr,
    told: &watch::Receiver<Lie>,
    calls: &AtomicU64,
) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut request = head(&mut client).await?;
    calls.fetch_add(1, Ordering::Relaxed);
    let lie = *told.borrow();
    let writes = request[0].starts_with("PUT ") || request[0].starts_with("POST ");
    let body = length(&request);
    if matches!(lie, Lie::Refuse(..) | Lie::LongAgo)
        || (writes && matches!(lie, Lie::RefuseWrites(..) | Lie::Swallow))
    {
        tokio::io::copy(&mut (&mut client).take(body), &mut tokio::io::sink()).await?;
        let (status, body) = match lie {
            Lie::Refuse(status, code) | Lie::RefuseWrites(status, code) => {
                (status, format!("<Error><Code>{code}</Code><Message>not now</Message></Error>"))
            }
            Lie::LongAgo => (403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>".to_owned()),
            _ => (200, String::new()),
        };
        let length = body.len();
        let mut etag = "etag: \"00000000000000000000000000000000\"".to_owned();
        if lie == Lie::LongAgo {
            etag += "\r\ndate: Wed, 01 Jan 2020 00:00:00 GMT";
        }
        let answer = format!(
            "HTTP/1.1 {status} Lie\r\n{etag}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        client.write_all(answer.as_bytes()).await?;
        return client.shutdown().await;
    }
    if let Lie::Slow(by) = lie {
        tokio::time::sleep(by).await;
    }
    request.push("connection: close\r\n\r\n".to_owned());
    let mut storage = BufReader::new(TcpStream::connect(storage).await?);
    storage.write_all(request.concat().as_bytes()).await?;
    tokio::io::copy(&mut (&mut client).take(body), &mut storage).await?;
    let mut answer = head(&mut storage).await?;
    if lie == Lie::WrongEtag && writes {
        answer.retain(|line| !line.to_ascii_lowercase().starts_with("etag:"));
        answer.push("etag: \"00000000000000000000000000000000\"\r\n".to_owned());
    }
    answer.push("\r\n".to_owned());
    client.write_all(answer.concat().as_bytes()).await?;
    tokio::io::copy(&mut storage, &mut client).await?;
    client.shutdown().await
}
