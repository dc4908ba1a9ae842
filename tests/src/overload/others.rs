//! Those beside an attack: they upload, speak to each other, and sign in, and measure how long each takes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{sleep, timeout};

use super::Field;
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
}

/// Goes on for that time, and until everybody has done everything `least` times. `run` tells uploads apart.
///
/// # Errors
/// Somebody was refused, cut off, or has waited for too long.
pub async fn others(field: &Field, run: &str, time: Duration, least: usize) -> Result<Fared> {
    let until = Until { end: Instant::now() + time, least };
    let (one, two, messages, sign_ins) = tokio::try_join!(
        uploads(field, 0, run, until),
        uploads(field, 1, run, until),
        messages(field, 2, until),
        sign_ins(field, 3, until),
    )?;
    Ok(Fared { uploads: [one, two].concat(), messages, sign_ins })
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
        let sign_in = async { field.good(n).await.map(drop) };
        took.push(timed("a sign-in", sign_in).await?);
        sleep(Duration::from_millis(20)).await;
    }
    Ok(took)
}
