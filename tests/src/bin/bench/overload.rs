//! Others beside each attack: the 99th percentile of what they do, with and without it. It fails where an attack takes more
//! from them than [`allowed`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond_tests::overload::{Attack, Fared, Field, others};
use millpond_tests::wire::Who;
use tokio::runtime::Runtime;

use super::server::{Server, prepare, prepare_apart};
use super::{median, percentile};

const RUNS: usize = 5;
const FOR: Duration = Duration::from_secs(3);
/// From an attack's begin to the measurement, and from its end to the next.
const SETTLE: Duration = Duration::from_secs(1);
/// Things that each of the others does at least in a run.
const LEAST: usize = 20;
const GOOD: usize = 4;
const BAD: usize = 12;
/// Connections of the half-open attack: more than one address may have waiting.
const HALF_OPEN: usize = 4_000;
/// Members of another pool, who retain 10,000 messages, and subscribers among them.
const APART: usize = 100;
const FAN: usize = 400;
/// Connections of the attack on storage: fewer than one address may have.
const STORAGE: usize = 220;

pub async fn run(only: Option<&str>) -> Result<()> {
    println!("others' p99 in ms beside an attack, median of {RUNS} runs with and as many without, in turns");
    println!("  {:<15} {:<9} {:>9} {:>9} {:>6}", "attack", "others'", "without", "with", "ratio");
    let attacks = [
        Attack::SlowReaders,
        Attack::SlowWriters,
        Attack::HalfOpen(HALF_OPEN),
        Attack::Flood,
        Attack::NeverAcknowledge,
        Attack::UnreadAnswers(16),
        Attack::Subscribe,
        Attack::FanOut(FAN),
        Attack::Storage(STORAGE),
    ];
    let mut harmed = Vec::new();
    for attack in attacks.into_iter().filter(|attack| only.is_none_or(|name| attack.name() == name)) {
        harmed.extend(beside(attack).await?);
    }
    ensure!(harmed.is_empty(), "others were harmed: {}", harmed.join(", "));
    Ok(())
}

/// Milliseconds that somebody's p99 may have beside an attack: twice of what it is without, or what nobody notices.
pub fn allowed(without: f64) -> f64 {
    (2.0 * without).max(50.0)
}

/// The pool `p` in which everybody publishes; a member's token is its name.
pub async fn field(publishers: usize, listeners: usize) -> Result<(tempfile::TempDir, Server, Arc<Field>)> {
    let dir = tempfile::tempdir()?;
    let (server, field) = field_in(dir.path(), publishers, listeners).await?;
    Ok((dir, server, field))
}

/// The same in a directory that there is.
pub async fn field_in(dir: &Path, publishers: usize, listeners: usize) -> Result<(Server, Arc<Field>)> {
    let (ledger, ended) = Ledger::open(dir)?;
    prepare(&ledger, Policy::default(), publishers, listeners).await?;
    prepare_apart(&ledger, APART).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir).await?;
    let of = |pool: &str, name: String| Who { pool: pool.into(), member: name.clone(), token: name };
    let who = |n| of("p", format!("pub{n}"));
    let field = Field {
        mqtt: server.addresses.mqtt,
        http: server.addresses.http,
        storage: server.addresses.storage.context("there is no embedded storage")?,
        good: (0..GOOD).map(who).collect(),
        bad: (GOOD..publishers).map(who).collect(),
        apart: (0..APART).map(|n| of("apart", format!("apart{n}"))).collect(),
    };
    Ok((server, Arc::new(field)))
}

/// One kind of what the others did.
pub type Of = fn(&Fared) -> &[f64];

/// All that the others do.
pub const KINDS: [(&str, Of); 5] = [
    ("uploads", |fared| &fared.uploads),
    ("messages", |fared| &fared.messages),
    ("sign-ins", |fared| &fared.sign_ins),
    ("PUTs", |fared| &fared.puts),
    ("GETs", |fared| &fared.gets),
];

/// A thread for the crowd, or those who are measured would stand behind thousands of it in the load's own queue.
pub struct Apart(Option<Runtime>);

impl Apart {
    pub fn start() -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Ok(Self(Some(builder.worker_threads(1).thread_name("crowd").enable_all().build()?)))
    }

    /// What `begin` spawns runs there.
    pub fn within<T>(&self, begin: impl FnOnce() -> T) -> T {
        let _entered = self.0.as_ref().map(Runtime::enter);
        begin()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // It must not be waited for in an async context.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Who was harmed.
async fn beside(attack: Attack) -> Result<Vec<String>> {
    let (_dir, server, field) = field(GOOD + BAD, 0).await?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let apart = Apart::start()?;
    for run in 0..RUNS {
        without.push(others(&field, &format!("a{run}"), FOR, LEAST).await?);
        let attackers = apart.within(|| attack.begin(&field));
        tokio::time::sleep(SETTLE).await;
        with.push(others(&field, &format!("b{run}"), FOR, LEAST).await?);
        drop(attackers);
        tokio::time::sleep(SETTLE).await;
    }
    let mut harmed = Vec::new();
    for (kind, of) in KINDS {
        let (without, with) = (p99(&without, of), p99(&with, of));
        let is_harmed = with > allowed(without);
        let (name, mark) = (attack.name(), if is_harmed { "   over max(2 ×, 50 ms)" } else { "" });
        println!("  {name:<15} {kind:<9} {without:>9.2} {with:>9.2} {:>6.2}{mark}", with / without);
        harmed.extend(is_harmed.then(|| format!("{kind} beside {name}")));
    }
    println!("  {:<15} the server's memory at its peak: {:.0} MiB", "", server.memory()?.1);
    Ok(harmed)
}

/// The median of the 99th percentiles of the runs.
pub fn p99(runs: &[Fared], of: Of) -> f64 {
    let p99 = |fared| {
        let mut sorted = of(fared).to_vec();
        sorted.sort_by(f64::total_cmp);
        percentile(&sorted, 0.99)
    };
    median(runs.iter().map(p99).collect())
}
