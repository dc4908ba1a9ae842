//! Taking up renewed files. Their bytes are compared, so it does not matter how they were replaced: written over, renamed,
//! or a symbolic link that points elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::files::{Bytes, Files, Loaded, WrongFile};
use super::{InUse, Tls, announce};

/// How often a certificate that is about to end is spoken of.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How long before its end that begins.
const SOON_S: i64 = 14 * 24 * 3600;

/// What the last look found, so that it is said once.
#[derive(Default)]
struct Seen {
    /// What was wrong at the last look. It is spoken of when the next one finds the same: of two files that are replaced
    /// one after the other, a look in between sees a pair that does not fit.
    wrong: Option<String>,
    told: bool,
}

pub(super) async fn run(tls: Tls, every: Duration, shutdown: CancellationToken) {
    let mut look = interval(every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut remind = interval(REMIND);
    let mut in_use = tls.read.clone();
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {
                let (files, old) = (tls.files.clone(), Arc::clone(&in_use));
                let Ok(found) = spawn_blocking(move || new_pair(&files, &old)).await else { continue };
                match found {
                    Ok(None) => seen = Seen::default(),
                    Ok(Some((bytes, loaded))) => match take_up(&tls, loaded) {
                        Ok(()) => {
                            in_use = Arc::new(bytes);
                            seen = Seen::default();
                        }
                        Err(wrong) => seen.tell(&wrong),
                    },
                    Err(wrong) => seen.tell(&wrong),
                }
            }
            _ = remind.tick() => remind_of(&in_use, &tls.files),
        }
    }
}

/// The pair in the files if it is another one.
fn new_pair(files: &Files, old: &Bytes) -> Result<Option<(Bytes, Loaded)>, Vec<WrongFile>> {
    let bytes = files.read()?;
    if bytes == *old {
        return Ok(None);
    }
    let loaded = bytes.check(files)?;
    Ok(Some((bytes, loaded)))
}

fn take_up(tls: &Tls, loaded: Loaded) -> Result<(), Vec<WrongFile>> {
    let expires = loaded.expires;
    let gauge = expires.as_second();
    let in_use = InUse::new(loaded, &tls.files)?;
    metrics::gauge!("millpond_tls_certificate_expires_seconds").set(gauge as f64);
    tls.current.send_replace(Arc::new(in_use));
    metrics::counter!("millpond_tls_reloads_total", "outcome" => "done").increment(1);
    tracing::info!(%expires, "renewed certificates are in use");
    Ok(())
}

fn remind_of(in_use: &Bytes, files: &Files) {
    match in_use.check(files) {
        Ok(loaded) => {
            announce(&loaded);
            let left = loaded.expires.as_second() - jiff::Timestamp::now().as_second();
            if left < SOON_S {
                tracing::warn!(expires = %loaded.expires, "the certificate ends soon: renew it");
            }
        }
        Err(wrong) => tracing::error!(why = %joined(&wrong), "the certificate in use is not good any more"),
    }
}

impl Seen {
    fn tell(&mut self, wrong: &[WrongFile]) {
        let why = joined(wrong);
        if self.wrong.as_deref() != Some(&why) {
            *self = Self { wrong: Some(why), told: false };
        } else if !self.told {
            self.told = true;
            metrics::counter!("millpond_tls_reloads_total", "outcome" => "refused").increment(1);
            tracing::error!(why, "the new certificate is not taken up, the old one stays in use");
        }
    }
}

fn joined(wrong: &[WrongFile]) -> String {
    wrong.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ")
}
