//! One large result to a thousand members: from the processor's `done` to the last byte of the last of them, beside nginx
//! that serves the same file to as many.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millpond::demo::Link;
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond_protocol::Sha256;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Lease, Pointer, answer};
use serde_json::{Value, json};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use super::median;
use super::round::{connect, send};
use super::server::{Server, prepare};
use super::storage::Nginx;

const MEMBERS: usize = 1_000;
const SIZE: usize = 10_000_000;
const RUNS: usize = 5;
/// One member in so many hashes what it gets, as all of them would on machines of their own.
const HASHES: usize = 20;
/// Addresses that the members come from.
const ADDRESSES: usize = 50;

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 1, 1).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let nginx = Nginx::start(dir.path())?;
    let mut play = Play {
        publisher: connect(&server, "pub0").await?,
        mill: connect(&server, "proc").await?,
        listener: connect(&server, "lis0").await?,
        http: reqwest::Client::builder().no_proxy().build()?,
    };
    play.listener.subscribe("mp/p/result").await?;
    println!("one result of {SIZE} B to {MEMBERS} members, median of {RUNS}");
    let file = Bytes::from((0..SIZE).map(|n| (n * 31 % 251) as u8).collect::<Vec<_>>());
    std::fs::write(dir.path().join("plain"), &file)?;
    let sha256 = Sha256::of(&file);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let lease = play.lease(run, &file).await?;
        let began = Instant::now();
        let pointer = play.commit(run, &lease).await?;
        ensure!(pointer.sha256 == sha256, "another result: {pointer:?}");
        everybody(&pointer.url, sha256).await?;
        ours.push(began.elapsed().as_secs_f64());
        if let Some(nginx) = &nginx {
            let began = Instant::now();
            everybody(&format!("http://127.0.0.1:{}/plain", nginx.port), sha256).await?;
            theirs.push(began.elapsed().as_secs_f64());
        }
    }
    let speed = |seconds| (MEMBERS * SIZE) as f64 / 1e6 / median(seconds);
    let (ours, theirs) = (speed(ours), speed(theirs));
    print!("  {ours:.0} MB/s, memory at its peak {:.0} MiB", server.memory()?.1);
    match nginx {
        Some(_) => println!("   nginx {theirs:.0} MB/s: {:.2} of it", ours / theirs),
        None => println!("   (nginx is not installed)"),
    }
    Ok(())
}

struct Play {
    publisher: Link,
    mill: Link,
    listener: Link,
    http: reqwest::Client,
}

impl Play {
    /// A round that is leased, and its result in storage.
    async fn lease(&self, run: usize, file: &Bytes) -> Result<Lease> {
        self.publisher.publish(&format!("mp/p/c/pub0/up/u{run}"), "x", Default::default()).await?;
        let trigger = json!({ "id": format!("t{run}"), "which": "open", "take": true, "wait_s": 60 });
        let triggered: answer::Triggered = self.mill.ask(Op::Trigger, &trigger).await?;
        let lease = triggered.lease.context("no lease is free")?;
        let put = json!({
            "id": format!("r{run}"), "round": lease.round, "attempt": lease.attempt, "size": SIZE,
            "sha256": Sha256::of(file),
        });
        send(&self.mill, &self.http, put, file.clone()).await?;
        Ok(lease)
    }

    /// Closes the round, and waits for the pointer.
    async fn commit(&mut self, run: usize, lease: &Lease) -> Result<Pointer> {
        let done = json!({ "id": format!("d{run}"), "round": lease.round, "attempt": lease.attempt });
        self.mill.ask::<Value>(Op::Done, &done).await?;
        loop {
            let message = self.listener.next().await?;
            if message.topic == "mp/p/result"
                && let Ok(pointer) = serde_json::from_slice::<Pointer>(&message.payload)
                && pointer.round == lease.round
            {
                return Ok(pointer);
            }
        }
    }
}

/// Every member fetches a URL at once, over a connection of its own.
async fn everybody(url: &str, sha256: Sha256) -> Result<()> {
    let (start, _) = broadcast::channel(1);
    let mut members = JoinSet::new();
    for n in 0..MEMBERS {
        let (url, mut started) = (url.to_owned(), start.subscribe());
        members.spawn(async move {
            let _ = started.recv().await;
            let hash = n % HASHES == 0;
            let fetched = tokio::time::timeout(Duration::from_secs(120), fetch(n, &url, hash)).await;
            let hashed = fetched.with_context(|| format!("member {n} waits"))??;
            ensure!(hashed.is_none_or(|hashed| hashed == sha256), "member {n} has other bytes");
            anyhow::Ok(())
        });
    }
    start.send(())?;
    while let Some(member) = members.join_next().await {
        member??;
    }
    Ok(())
}

async fn fetch(n: usize, url: &str, hash: bool) -> Result<Option<Sha256>> {
    let rest = url.strip_prefix("http://").context("not http")?;
    let (host, target) = rest.split_at(rest.find('/').context("no path")?);
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("127.0.2.{}:0", n % ADDRESSES + 1).parse()?)?;
    let mut stream = socket.connect(host.parse()?).await?;
    stream
        .write_all(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let (mut buffer, mut head, mut body) = (vec![0; 256 << 10], Vec::new(), 0);
    let mut hasher = hash.then(sha2::Sha256::new);
    loop {
        let got = stream.read(&mut buffer).await?;
        ensure!(got > 0, "the body ends after {body} bytes: {}", String::from_utf8_lossy(&head));
        let mut bytes = &buffer[..got];
        if body == 0 {
            head.extend_from_slice(bytes);
            let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
            let from = got - (head.len() - end - 4);
            bytes = &buffer[from..got];
        }
        body += bytes.len();
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes);
        }
        if body >= SIZE {
            return Ok(hasher.map(|hasher| Sha256(hasher.finalize().into())));
        }
    }
}
