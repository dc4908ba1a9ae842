//! What the device's program takes: its size, its memory while it waits, and its start with a full spool.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond_edge::spool::{Entry, Limits, Spool};

use super::aims;
use super::server::{Server, prepare};

const SPOOLED: u64 = 100_000;
/// Starts, of which the median counts.
const STARTS: usize = 5;

pub async fn run() -> Result<()> {
    let program = program()?;
    println!("the edge client: {}", program.display());
    let bytes = std::fs::metadata(&program)?.len();
    println!("  the program       {:>9.2} MB   (stripped, of profile `small`: aim 8)", bytes as f64 / 1e6);
    aims::at_most("the edge client", bytes as f64 / 1e6, 8.0, "MB");
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 1, 1).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let work = tempfile::tempdir()?;
    let mqtt = server.addresses.mqtt;
    let command = |user: &str| {
        let mut command = Command::new(&program);
        command.current_dir(work.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("MILLPOND_MQTT_HOST", mqtt.ip().to_string());
        command.env("MILLPOND_MQTT_PORT", mqtt.port().to_string());
        command.env("MILLPOND_MQTT_USER", format!("p/{user}")).env("MILLPOND_MQTT_TOKEN", user);
        command.env("MILLPOND_SPOOL", work.path().join("spool"));
        command
    };
    // An idle spool: nobody empties it, and the listener beside it has nothing to fetch.
    let mut listener = command("lis0").args(["listen", "--dir", "results"]).spawn()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = resident(listener.id());
    listener.kill()?;
    listener.wait()?;
    let idle = idle?;
    println!("  resident, idle    {idle:>9.1} MB   (aim 12): `listen`, connected");
    aims::at_most("the edge client, idle", idle, 12.0, "MB");

    let spool = work.path().join("spool");
    drop(Spool::open(&spool, Limits::default())?);
    for n in 0..SPOOLED {
        let entry = Entry { key: 1_795_302_000_000 + n, size: 10, upload: format!("u-{n}").parse()? };
        std::fs::File::create(spool.join("ready").join(entry.to_string()))?;
    }
    std::fs::write(work.path().join("one"), "1")?;
    let mut took = Vec::new();
    for n in 0..STARTS {
        let id = format!("new-{n}");
        let begin = Instant::now();
        let files = (SPOOLED + 100).to_string();
        let arguments = ["--spool-files", &files, "push", "--offline", "--id", &id, "one"];
        ensure!(command("pub0").args(arguments).status()?.success(), "push");
        took.push(begin.elapsed().as_secs_f64());
    }
    took.sort_by(f64::total_cmp);
    let listing = Instant::now();
    let listed = std::fs::read_dir(spool.join("ready"))?.count() as u64;
    let listing = listing.elapsed().as_secs_f64();
    ensure!(listed == SPOOLED + STARTS as u64, "{listed}");
    let median = took.get(STARTS / 2).context("a start")?;
    println!(
        "  start with {SPOOLED} spooled files, one more pushed, synced, ended   {median:>6.3} s (aim 1)   {:.1} of reading the directory's names",
        median / listing
    );
    aims::at_most("its start with 100,000 spooled files", *median, 1.0, "s");
    Ok(())
}

/// What `MILLPOND_EDGE_BIN` names, else what cargo built beside this.
fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MILLPOND_EDGE_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own.parent().unwrap_or(Path::new(".")).join("millpond-edge-under-test");
    ensure!(beside.exists(), "{} is missing: name one in MILLPOND_EDGE_BIN", beside.display());
    Ok(beside)
}

/// Megabytes of a process that are in memory.
fn resident(id: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1_024.0 / 1e6)
}
