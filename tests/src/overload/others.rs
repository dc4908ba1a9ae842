//! Those beside an attack: they upload, speak to each other, sign in, and send and fetch large files, and measure how long
//! each takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::AsyncWriteExt as _;
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

impl Fared {
    /// Takes what another stretch of time brought.
    pub fn add(&mut self, more: Self) {
        let Self { uploads, messages, sign_ins, puts, gets } = more;
        self.uploads.extend(uploads);
        self.messages.extend(messages);
        self.sign_ins.extend(sign_ins);
        self.puts.extend(puts);
        self.gets.extend(gets);
    }
}

/// Goes on for that time, and until everybody has done everything `least` times. `run` tells uploads apart.
///
/// # Errors
/// Somebody was refused, cut off, or has waited for too long.
pub async fn others(field: &Field, run: &str, time: Duration, least: usize) -> Result<Fared> {
    let until = Until { end: Instant::now() + time, least };
    let (one, two, messages, sign_ins, (puts, gets)) = tokio::try_join!(
        uploads(field, 0, run, until),
        uploads(field, 1, run, until),
        messages(field, 2, until),
        sign_ins(field, 3, until),
        transfers(field, 3, run, until),
    )?;
    Ok(Fared { uploads: [one, two].concat(), messages, sign_ins, puts, gets })
}

#[derive(Debug, Clone, Copy)]
struct Until {
    end: Instant,
    least: usize,
}

impl Until {
    fn goes_on(self, done: usize) -> bool {
        done < self.least || Instant::now() < self.end
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

async fn uploads(field: &Field, n: usize, run: &str, until: Until) -> Result<Vec<f64>> {
    let mut connection = field.good(n).await?;
    let (pool, member) = (field.pool(), &field.good[n].member);
    let mut took = Vec::new();
    while until.goes_on(took.len()) {
        let topic = format!("mp/{pool}/c/{member}/up/{run}-{}", took.len());
        let upload = async {
            connection.write.write_all(&publish(1, &topic, &[b'x'; 1_024])).await?;
            let (kind, _) = connection.receive().await?;
            ensure!(kind == 0x40, "packet {kind:#x} in place of PUBACK");
            Ok(())
        };
        took.push(timed("an upload", upload).await?);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

async fn messages(field: &Field, n: usize, until: Until) -> Result<Vec<f64>> {
    let mut connection = field.good(n).await?;
    let topic = format!("app/{}/good", field.pool());
    connection.subscribe(&topic).await?;
    let mut took = Vec::new();
    while until.goes_on(took.len()) {
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
        took.push(timed("a message", message).await?);
        sleep(Duration::from_millis(5)).await;
    }
    Ok(took)
}

async fn sign_ins(field: &Field, n: usize, until: Until) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    while until.goes_on(took.len()) {
        let sign_in = async { field.alone(n).await.map(drop) };
        took.push(timed("a sign-in", sign_in).await?);
        sleep(Duration::from_millis(20)).await;
    }
    Ok(took)
}

async fn transfers(field: &Field, n: usize, run: &str, until: Until) -> Result<(Vec<f64>, Vec<f64>)> {
    let who = &field.good[n];
    let (api, file) = (field.api(who, [127, 0, 0, 1]), vec![0; FILE]);
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    // Each is five requests.
    while until.goes_on(4 * gets.len()) {
        let upload = format!("{run}-t{}", gets.len());
        let to = granted(&api, who, &upload, FILE).await?;
        let put = async {
            let status = api.try_put(&to, file.clone()).await?;
            ensure!(status == 200, "a PUT: {status}");
            Ok(())
        };
        puts.push(timed("a PUT", put).await?);
        ask(&api, &who.pool, "commit", &json!({"id": format!("c{upload}"), "uploads": [upload]})).await?;
        let there = ask(&api, &who.pool, "get", &json!({ "upload": upload })).await?;
        let url = there["url"].as_str().context("no URL")?;
        let get = async {
            let bytes = api.try_fetch(url).await?;
            ensure!(bytes.len() == FILE, "a GET: {} bytes", bytes.len());
            Ok(())
        };
        gets.push(timed("a GET", get).await?);
        sleep(Duration::from_millis(5)).await;
    }
    Ok((puts, gets))
}
