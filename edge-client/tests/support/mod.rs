//! A peer that speaks enough HTTP/1.1 to misbehave on purpose.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; not every test uses every one")]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the peer does with a request once it has read its head.
#[derive(Clone, Debug)]
pub enum Act {
    /// Reads the whole body and answers with this status line.
    Take(&'static str),
    /// Reads so many bytes of the body and closes.
    Cut(usize),
    /// Reads so many bytes of the body and then nothing more, ever.
    Hang(usize),
    /// Writes these header lines and this body, and closes.
    Give(String, Vec<u8>),
    /// Writes these header lines and this body, and holds the connection open.
    GiveAndHang(String, Vec<u8>),
}

/// A request as the peer saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Request line and headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Every request so far, in order of arrival.
pub type Log = Arc<Mutex<Vec<Seen>>>;

/// Starts a peer; `act` is asked with the number of the request (from 0) and its head. Answers the peer's base URL.
pub async fn peer(act: impl Fn(usize, &str) -> Act + Send + Sync + 'static) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (log, act) = (Log::default(), Arc::new(act));
    let seen = Arc::clone(&log);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&act)));
        }
    });
    (base, log)
}

async fn serve(mut stream: TcpStream, log: Log, act: Arc<impl Fn(usize, &str) -> Act>) {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let mut body = read.split_off(end);
    let seen = Seen { head: String::from_utf8(read).unwrap(), body: Vec::new() };
    let length: usize = seen.header("content-length").map_or(0, |text| text.parse().unwrap());
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let act = act(number, &seen.head);
    let want = match act {
        Act::Cut(n) | Act::Hang(n) => n,
        _ => length,
    };
    while body.len() < want && stream.read_buf(&mut body).await.unwrap_or(0) > 0 {}
    log.lock().unwrap()[number].body = body;
    match act {
        Act::Take(status) => {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
        Act::Cut(_) => {}
        Act::Hang(_) => std::future::pending().await,
        Act::Give(head, body) => {
            let _ =
                stream.write_all(format!("HTTP/1.1 {head}\r\nconnection: close\r\n\r\n").as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
        Act::GiveAndHang(head, body) => {
            let _ = stream.write_all(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).await;
            let _ = stream.write_all(&body).await;
            std::future::pending().await
        }
    }
}
