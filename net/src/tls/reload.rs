//! Taking up renewed files. Their bytes are compared, so it does not matter how they were replaced: written over, renamed,
//! or a symbolic link that points elsewhere.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::files::{Bytes, Files, Loaded, WrongFile};
use super::{InUse, Tls};

/// How often a certificate that is about to end is spoken of.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How long telling of a renewal may take.
const TELLING: Duration = Duration::from_secs(5);
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

/// What became of files that were renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// They are in use: these are other ones, by their setting or by their name in the directory of what speaks for members.
    Done { changed: Vec<String> },
    /// They are not, and why. What was in use still is.
    Refused { why: String },
}

pub(super) async fn run<F: Future<Output = ()>>(
    tls: Tls,
    every: Duration,
    tell: impl Fn(Renewal) -> F,
    shutdown: CancellationToken,
) {
    let mut look = interval(every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut remind = interval(REMIND);
    let mut in_use = tls.read.clone();
    let mut seen = Seen::default();
    loop {
        let wrong = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => {
                let (files, old) = (tls.files.clone(), Arc::clone(&in_use));
                let Ok(found) = spawn_blocking(move || new_pair(&files, &old)).await else { continue };
                match found {
                    Ok(None) => None,
                    Ok(Some((bytes, loaded))) => match take_up(&tls, loaded) {
                        Ok(()) => {
                            let changed = bytes.changed(&in_use);
                            in_use = Arc::new(bytes);
                            told(tell(Renewal::Done { changed }), &shutdown).await;
                            None
                        }
                        Err(wrong) => Some(wrong),
                    },
                    Err(wrong) => Some(wrong),
                }
            }
            _ = remind.tick() => {
                remind_of(&tls, &in_use);
                continue;
            }
        };
        match wrong {
            None => seen = Seen::default(),
            Some(wrong) => {
                if let Some(why) = seen.news(&wrong) {
                    told(tell(Renewal::Refused { why }), &shutdown).await;
                }
            }
        }
    }
}

/// Whoever is told may be slow, and the next look is not to wait for that.
async fn told(telling: impl Future<Output = ()>, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = timeout(TELLING, telling) => {}
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
    let in_use = Arc::new(InUse::new(loaded, &tls.files)?);
    in_use.announce();
    metrics::counter!("millpond_tls_reloads_total", "outcome" => "done").increment(1);
    tracing::info!(expires = %in_use.expires, "renewed certificates are in use");
    tls.current.send_replace(in_use);
    Ok(())
}

fn remind_of(tls: &Tls, bytes: &Bytes) {
    let in_use = tls.current.borrow().clone();
    in_use.announce();
    match bytes.check(&tls.files) {
        Ok(_) if in_use.expires.as_second() - Timestamp::now().as_second() < SOON_S => {
            tracing::warn!(expires = %in_use.expires, "the certificate ends soon: renew it");
        }
        Ok(_) => {}
        Err(wrong) => tracing::error!(why = %joined(&wrong), "the certificate in use is not good any more"),
    }
}

impl Seen {
    /// What is wrong, when it is to be spoken of.
    fn news(&mut self, wrong: &[WrongFile]) -> Option<String> {
        let why = joined(wrong);
        if self.wrong.as_deref() != Some(&why) {
            *self = Self { wrong: Some(why), told: false };
            return None;
        }
        if self.told {
            return None;
        }
        self.told = true;
        metrics::counter!("millpond_tls_reloads_total", "outcome" => "refused").increment(1);
        tracing::error!(why, "renewed certificates or lists are not taken up, what was in use still is");
        Some(why)
    }
}

fn joined(wrong: &[WrongFile]) -> String {
    wrong.iter().map(|one| one.message.as_str()).collect::<Vec<_>>().join("; ")
}
