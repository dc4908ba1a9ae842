//! Those beside an attack: they upload, speak to each other, sign in, and send and fetch large files, and measure how long
//! each takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use serde_json::json;

use super::Field;
use super::storage::{FILE, ask, granted};
use crate::wire::{parse_publish, puback, publish};

/// Longest time for one thing; whoever waits for longer is harmed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Milliseconds that each thing took.
#[derive(Debug, Default)]
pub struct Fared {
    /// From an upload's PUBLISH to its PUBACK.
    pub uploads: Vec<f64>,
    /// From a message on an app topic to its delivery.
    pub messages: Vec<f64>,
    /// From the TCP connection to CONNACK.
    pub sign_ins: Vec<f64>,
    /// A PUT of 200 KB to storage.
    pub puts: Vec<f64>,
    /// A GET of the same.
    pub gets: Vec<f64>,
}

/// Goes on for that time, and until everybody has done everything `least` times. `run` tells uploads apart.
///
/// # Errors
/// Somebody was refused, cut off, or has waited for too long.
pub async fn others(field: &Field, run: &str, time: Duration, least: usize) -> Result<Fared> {
    let watch = Watch::new(least);
    watch.count();
    watch.end_at(Instant::now() + time);
    others_watched(field, run, &watch).await
}

/// The same for as long as `watch` says, and what it counts.
///
/// # Errors
/// The same.
pub async fn others_watched(field: &Field, run: &str, watch: &Watch) -> Result<Fared> {
    let all = tokio::try_join!(
        uploads(field, 0, run, watch),
        uploads(field, 1, run, watch),
        messages(field, 2, watch),
        sign_ins(field, 3, watch),
        transfers(field, 3, run, watch),
    );
    // Nobody waits for them any more.
    watch.at_work.close();
    let (one, two, messages, sign_ins, (puts, gets)) = all?;
    Ok(Fared { uploads: [one, two].concat(), messages, sign_ins, puts, gets })
}

/// Kinds of things that are done beside each other.
const KINDS: u32 = 5;

/// From when on what is done counts, and until when it is done. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Watch {
    least: usize,
    counts: Arc<AtomicBool>,
    end: Arc<OnceLock<Instant>>,
    at_work: Arc<Semaphore>,
}

impl Watch {
    /// Nothing counts yet, and there is no end.
    pub fn new(least: usize) -> Self {
        let at_work = Arc::new(Semaphore::new(0));
        Self { least, counts: Arc::default(), end: Arc::default(), at_work }
    }

    /// Waits until everybody does what it does.
    ///
    /// # Errors
    /// Somebody failed before that.
    pub async fn all_at_work(&self) -> Result<()> {
        self.at_work.acquire_many(KINDS).await?.forget();
        Ok(())
    }

    /// Counts what ends from now on.
    pub fn count(&self) {
        self.counts.store(true, Ordering::SeqCst);
    }

    /// Nothing begins from then on, if everything was done and counted often enough.
    pub fn end_at(&self, end: Instant) {
        // Only the first one holds.
        let _ = self.end.set(end);
    }

    fn goes_on(&self, done: usize) -> bool {
        done < self.least || self.end.get().is_none_or(|end| Instant::now() < *end)
    }

    fn add(&self, took: f64, to: &mut Vec<f64>) {
        if self.counts.load(Ordering::SeqCst) {
            to.push(took);
        }
    }
}

/// Does a thing in time, and how long it took.
async fn timed(what: &str, thing: impl Future<Output = Result<()>>) -> Result<f64> {
    let begun = Instant::now();
    match timeout(PATIENCE, thing).await {
        Ok(done) => done.map(|()| begun.elapsed().as_secs_f64() * 1e3),
        Err(_) => bail!("{what} takes longer than {PATIENCE:?}"),
    }
}

async fn uploads(field: &Field, n: usize, run: &str, watch: &Watch) -> Result<Vec<f64>> {
    let mut connection = field.good(n).await?;
    let (pool, member) = (field.pool(), &field.good[n].member);
    let mut took = Vec::new();
    watch.at_work.add_permits(1);
    let mut sent = 0;
    while watch.goes_on(took.len()) {
        let topic = format!("mp/{pool}/c/{member}/up/{run}-{sent}");
        let upload = async {
            connection.write.write_all(&publish(1, &topic, &[b'x'; 1_024])).await?;
            let (kind, _) = connection.receive().await?;
            ensure!(kind == 0x40, "packet {kind:#x} in place of PUBACK");
            Ok(())
        };
        watch.add(timed("an upload", upload).await?, &mut took);
        sent += 1;
        sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

async fn messages(field: &Field, n: usize, watch: &Watch) -> Result<Vec<f64>> {
    let mut connection = field.good(n).await?;
    let topic = format!("app/{}/good", field.pool());
    connection.subscribe(&topic).await?;
    let mut took = Vec::new();
    watch.at_work.add_permits(1);
    while watch.goes_on(took.len()) {
        let message = async {
            connection.write.write_all(&publish(1, &topic, &[b'x'; 1_024])).await?;
            let (mut acknowledged, mut delivered) = (false, false);
            while !(acknowledged && delivered) {
                let (kind, body) = connection.receive().await?;
                acknowledged |= kind == 0x40;
                if let Some((_, Some(id), _)) = (kind >> 4 == 3).then(|| parse_publish(kind, &body)).flatten()
                {
                    delivered = true;
                    connection.write.write_all(&puback(id)).await?;
                }
            }
            Ok(())
        };
        watch.add(timed("a message", message).await?, &mut took);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

async fn sign_ins(field: &Field, n: usize, watch: &Watch) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    watch.at_work.add_permits(1);
    while watch.goes_on(took.len()) {
        let sign_in = async { field.alone(n).await.map(drop) };
        watch.add(timed("a sign-in", sign_in).await?, &mut took);
        sleep(Duration::from_millis(20)).await;
    }
    Ok(took)
}

async fn transfers(field: &Field, n: usize, run: &str, watch: &Watch) -> Result<(Vec<f64>, Vec<f64>)> {
    let who = &field.good[n];
    let (api, file) = (field.api(who, [127, 0, 0, 1]), vec![0; FILE]);
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    watch.at_work.add_permits(1);
    // Each is five requests.
    let mut sent = 0;
    while watch.goes_on(4 * gets.len()) {
        let upload = format!("{run}-t{sent}");
        let to = granted(&api, who, &upload, FILE).await?;
        let put = async {
            let status = api.try_put(&to, file.clone()).await?;
            ensure!(status == 200, "a PUT: {status}");
            Ok(())
        };
        watch.add(timed("a PUT", put).await?, &mut puts);
        ask(&api, &who.pool, "commit", &json!({"id": format!("c{upload}"), "uploads": [upload]})).await?;
        let there = ask(&api, &who.pool, "get", &json!({ "upload": upload })).await?;
        let url = there["url"].as_str().context("no URL")?;
        let get = async {
            let bytes = api.try_fetch(url).await?;
            ensure!(bytes.len() == FILE, "a GET: {} bytes", bytes.len());
            Ok(())
        };
        watch.add(timed("a GET", get).await?, &mut gets);
        sent += 1;
        sleep(Duration::from_millis(5)).await;
    }
    Ok((puts, gets))
}
