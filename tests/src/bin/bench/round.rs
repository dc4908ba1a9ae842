//! A whole round of large files: from the first `put` of eight clients until the last of them holds the result, checked.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use millpond::demo::{Credentials, Link};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::rounds::policy::Grouping;
use millpond_protocol::Sha256;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Lease, Pointer, answer};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::server::{Server, prepare};
use super::{aims, flower, median};

const CLIENTS: usize = 8;
const SIZE: usize = 10_000_000;
const ROUNDS: usize = 5;

pub async fn run() -> Result<()> {
    println!("round: {CLIENTS} clients × {SIZE} B up, {SIZE} B down to each, by presigned URL");
    let dir = tempfile::tempdir()?;
    let (seconds, [idle, peak]) = rounds(dir.path(), ROUNDS).await?;
    let bare = reference(dir.path())?;
    let middle = seconds[ROUNDS / 2];
    println!(
        "  {middle:.3} s (best {:.3}, worst {:.3})   {:.1} of {bare:.3} s for the same bytes by plain sockets and files, \
         synced, nothing hashed   memory {idle:.0}, peak {peak:.0} MiB",
        seconds[0],
        seconds[ROUNDS - 1],
        middle / bare
    );
    println!("  aim: under 1 s");
    aims::at_most("a whole round", middle, 1.0, "s");
    Ok(())
}

/// Beside Flower, where it is installed, a round of each in turns: with its polling and without.
pub async fn beside_flower() -> Result<()> {
    let Some(python) = flower::python() else {
        println!(
            "a whole round beside Flower: no Python here has it (MILLPOND_FLOWER_PYTHON names one that does)"
        );
        return Ok(());
    };
    println!("a whole round, {CLIENTS} × {SIZE} B each way, beside Flower {}", flower::version(&python)?);
    for impatient in [false, true] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            theirs.push(flower::round(&python, impatient)?);
            ours.extend(rounds(tempfile::tempdir()?.path(), 1).await?.0);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let how = if impatient { "with sleeps of 0.2 s at most" } else { "as it comes" };
        println!("  Millpond {ours:.2} s   Flower, {how}, {theirs:.2} s: {:.1} ×", theirs / ours);
        aims::at_least(format!("Flower, {how}, beside a whole round"), theirs / ours, 10.0, "×");
    }
    Ok(())
}

/// Seconds of so many rounds, the shortest first, and the server's memory: resident, and at its peak, in MiB.
async fn rounds(dir: &Path, count: usize) -> Result<(Vec<f64>, [f64; 2])> {
    let (ledger, ended) = Ledger::open(dir)?;
    let policy = Policy { grouping: Grouping::Count, count: 10_000_000, ..Policy::default() };
    prepare(&ledger, policy, CLIENTS, 0).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir).await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let link = connect(&server, &format!("pub{n}")).await?;
        link.subscribe("mp/p/result").await?;
        clients.push(link);
    }
    let mill = connect(&server, "proc").await?;
    let mut seconds = Vec::new();
    for round in 0..count {
        let files: Vec<Bytes> = (0..=CLIENTS).map(|n| content(round * 100 + n)).collect();
        let start = Instant::now();
        clients = one(clients, &mill, &http, round, files).await?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let (idle, peak) = server.memory()?;
    Ok((seconds, [idle, peak]))
}

/// Connects a member that [`prepare`] has made.
pub async fn connect(server: &Server, member: &str) -> Result<Link> {
    let who = Credentials {
        mqtt: server.addresses.mqtt,
        pool: "p".parse()?,
        member: member.parse()?,
        client_id: member.to_owned(),
        token: member.to_owned(),
    };
    Link::open(who).await
}

/// Bytes that no other file has.
fn content(seed: usize) -> Bytes {
    let mut state = seed as u64 + 1;
    let mut bytes = Vec::with_capacity(SIZE + 8);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(SIZE);
    bytes.into()
}

async fn one(
    clients: Vec<Link>,
    mill: &Link,
    http: &reqwest::Client,
    round: usize,
    mut files: Vec<Bytes>,
) -> Result<Vec<Link>> {
    let result = files.pop().context("the result")?;
    let mut uploads = JoinSet::new();
    for (link, file) in clients.into_iter().zip(files) {
        let http = http.clone();
        uploads.spawn(async move {
            let upload = format!("u{round}");
            let put = json!({ "id": format!("p{round}"), "upload": upload, "size": SIZE, "sha256": Sha256::of(&file) });
            send(&link, &http, put, file).await?;
            let commit = json!({ "id": format!("c{round}"), "upload": upload });
            link.ask::<answer::Commit>(Op::Commit, &commit).await?;
            anyhow::Ok(link)
        });
    }
    let mut clients = Vec::new();
    while let Some(link) = uploads.join_next().await {
        clients.push(link??);
    }

    let trigger = json!({ "id": format!("t{round}"), "which": "open", "take": true, "wait_s": 60 });
    let triggered: answer::Triggered = mill.ask(Op::Trigger, &trigger).await?;
    let lease: Lease = triggered.lease.context("no lease is free")?;
    ensure!(lease.ready && lease.files.len() == CLIENTS, "{lease:?}");
    let mut fetched = JoinSet::new();
    for file in lease.files {
        fetched.spawn(fetch(http.clone(), file.url, file.sha256));
    }
    while let Some(file) = fetched.join_next().await {
        file??;
    }
    let mut put = json!({ "id": format!("r{round}"), "round": lease.round, "attempt": lease.attempt });
    put["size"] = json!(SIZE);
    put["sha256"] = json!(Sha256::of(&result));
    send(mill, http, put, result).await?;
    let done = json!({ "id": format!("d{round}"), "round": lease.round, "attempt": lease.attempt });
    mill.ask::<Value>(Op::Done, &done).await?;

    let mut downloads = JoinSet::new();
    for mut link in clients {
        let http = http.clone();
        downloads.spawn(async move {
            loop {
                let message = link.next().await?;
                if message.topic != "mp/p/result" || message.payload.is_empty() {
                    continue;
                }
                let pointer: Pointer = serde_json::from_slice(&message.payload)?;
                if pointer.round == lease.round {
                    fetch(http, pointer.url, pointer.sha256).await?;
                    return anyhow::Ok(link);
                }
            }
        });
    }
    let mut clients = Vec::new();
    while let Some(link) = downloads.join_next().await {
        clients.push(link??);
    }
    Ok(clients)
}

pub async fn send(link: &Link, http: &reqwest::Client, put: Value, file: Bytes) -> Result<()> {
    let grant: answer::Put = link.ask(Op::Put, &put).await?;
    let to = grant.to.context("it is there already")?;
    let mut request = http.put(&to.url).body(file);
    for (name, value) in &to.headers {
        request = request.header(name, value);
    }
    request.send().await?.error_for_status()?;
    Ok(())
}

async fn fetch(http: reqwest::Client, url: String, sha256: Sha256) -> Result<()> {
    let bytes = http.get(url).send().await?.error_for_status()?.bytes().await?;
    ensure!(Sha256::of(&bytes) == sha256, "other bytes came");
    Ok(())
}

/// The reference: the same bytes through loopback sockets, those that are kept written to files that are synced.
fn reference(dir: &Path) -> Result<f64> {
    let bytes = vec![7; SIZE];
    let start = Instant::now();
    // The files come, the processor has them, its result comes, everybody has it.
    for (copies, kept) in [(CLIENTS, true), (CLIENTS, false), (1, true), (CLIENTS, false)] {
        std::thread::scope(|scope| {
            let copy = |n: usize| {
                let (bytes, file) = (&bytes, kept.then(|| dir.join(format!("reference-{n}"))));
                scope.spawn(move || copy_through(bytes, file))
            };
            let copies: Vec<_> = (0..copies).map(copy).collect();
            copies.into_iter().try_for_each(|copy| copy.join().unwrap_or_else(|_| bail!("a copy failed")))
        })?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Sends the bytes through a socket, into a file if one is named.
fn copy_through(bytes: &[u8], file: Option<std::path::PathBuf>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || TcpStream::connect(address)?.write_all(bytes));
        let (mut socket, _) = listener.accept()?;
        let mut received = Vec::with_capacity(bytes.len());
        socket.read_to_end(&mut received)?;
        if let Some(path) = file {
            let mut file = std::fs::File::create(path)?;
            file.write_all(&received)?;
            file.sync_data()?;
        }
        ensure!(sender.join().is_ok_and(|sent| sent.is_ok()), "the sender failed");
        Ok(())
    })
}
