//! One attempt: inputs, command, result; and beats beside it.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::access::Op;
use millpond_protocol::message::{Lease, ask};
use millpond_protocol::{Code, limits};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::input::{self, Paths};
use super::log::Log;
use super::room::unless_full;
use super::{ASK, AttemptError, Options};
use crate::backoff::{Backoff, random};
use crate::exec::Running;
use crate::large::{self, LargeError};
use crate::session::{Properties, Session, SessionError};
use crate::transfer::{Meter, Transfer, TransferError, digest};

/// Begins the name of an attempt's directory.
pub(super) const DIRECTORY: &str = "attempt-";
/// Beats come at least so often while there is a log, or progress, to tell.
const TALK: Duration = Duration::from_secs(5);
/// How often to look whether there is more of it than one message takes: then the messages follow each other, so that a
/// command which writes much does not lose what it writes.
const GLANCE: Duration = Duration::from_millis(250);
/// Seconds that the server may let `done` wait for what it verifies.
const VERIFY_S: u64 = 45;
/// How long the output of a command is read on after it ended: a child of it may hold the pipe.
const REST: Duration = Duration::from_secs(1);
/// Before a result is sent again to a storage that had no room for it.
const FULL: Duration = Duration::from_secs(60);

/// What an attempt needs.
pub(super) struct Work {
    pub(super) session: Session,
    pub(super) transfer: Arc<Transfer>,
    pub(super) options: Options,
}

/// Works on a lease to its end. Dropped, it kills the command.
/// It says when the command has ended.
pub(super) async fn attempt(
    work: Work,
    lease: Lease,
    log: Log,
    is_over: Arc<AtomicBool>,
) -> Result<(), AttemptError> {
    let lease = ready(&work.session, lease).await?;
    let handed_over = AtomicBool::new(false);
    // The first of the two that ends takes the other with it.
    tokio::select! {
        done = work_on(&work, &lease, &log, &is_over, &handed_over) => {
            done.map_err(|error| unless_full(&work.options.directory, error))
        }
        lost = beats(&work, &lease, &log, &handed_over) => Err(lost),
    }
}

/// Waits until manifest and packs are written.
async fn ready(session: &Session, mut lease: Lease) -> Result<Lease, AttemptError> {
    while !lease.ready {
        lease = held(session, &lease, 30).await?;
    }
    Ok(lease)
}

/// The lease as it is now, with fresh URLs; one that is not ready yet as it is after so many seconds.
pub(super) async fn held(session: &Session, lease: &Lease, wait_s: u64) -> Result<Lease, AttemptError> {
    let (round, attempt) = (lease.round, lease.attempt);
    let beat = ask::Beat { round, attempt, progress: None, log: None, wait_s };
    session.ask(Op::Beat, &beat, ASK).await.map_err(lost)
}

/// Keeps the lease alive until it is lost.
async fn beats(work: &Work, lease: &Lease, log: &Log, handed_over: &AtomicBool) -> AttemptError {
    let term = Duration::from_secs(lease.term_s.max(3));
    loop {
        let begin = Instant::now();
        while begin.elapsed() < term / 3 && !log.is_long() && (log.is_empty() || begin.elapsed() < TALK) {
            tokio::time::sleep(GLANCE).await;
        }
        match beat(work, lease, log, term).await {
            // The lease of a round that is committed is none either: the result's own answer says which it is.
            Err(error) if is_lost(&error) && handed_over.load(Ordering::Relaxed) => {
                return std::future::pending().await;
            }
            Err(error) if is_lost(&error) || !error.is_temporary() => return lost(error),
            // A lease that has run out is good until somebody else has the round: that is for the server to say.
            Ok(()) | Err(_) => {}
        }
    }
}

/// One beat, with as much of the log as it takes.
async fn beat(work: &Work, lease: &Lease, log: &Log, within: Duration) -> Result<(), SessionError> {
    let _turn = log.turn().await;
    let (text, progress) = log.take();
    work.transfer.throttle().pass(text.as_ref().map_or(0, String::len)).await;
    let (round, attempt) = (lease.round, lease.attempt);
    let beat =
        ask::Beat { round, attempt, progress: progress.map(|p| json!(p)), log: text.clone(), wait_s: 0 };
    let told = work.session.ask::<Value>(Op::Beat, &beat, within).await.map(drop);
    if told.is_err() {
        log.put_back(text.as_deref().unwrap_or_default());
    }
    told
}

async fn work_on(
    work: &Work,
    lease: &Lease,
    log: &Log,
    is_over: &AtomicBool,
    handed_over: &AtomicBool,
) -> Result<(), AttemptError> {
    let made = make(work, lease, log, is_over).await;
    // After the result, or `fail`, nothing of it would be taken but what is in that message.
    while log.is_long() {
        match beat(work, lease, log, ASK).await.map_err(lost) {
            Ok(()) => {}
            Err(lost @ AttemptError::Lost(_)) => return Err(lost),
            Err(_) => break,
        }
    }
    let made = made?;
    reach(Point::ProcessMade);
    send(work, lease, &made, (log, handed_over)).await?;
    reach(Point::ProcessSent);
    finish(&work.session, lease, log).await
}

/// Fetches the files and runs the command; where its output is.
async fn make(work: &Work, lease: &Lease, log: &Log, is_over: &AtomicBool) -> Result<PathBuf, AttemptError> {
    // Never the same place twice: the command of a processor that was killed may still write to its own.
    let root = work.options.directory.join(format!("{DIRECTORY}{:016x}", random()));
    // What others send is nobody else's on this machine, whatever the modes below it.
    std::fs::DirBuilder::new().mode(0o700).create(&root)?;
    let root = std::path::absolute(&root)?;
    let paths = Paths::under(&root);
    input::fetch(&work.session, &work.transfer, &work.options, lease, &paths).await?;
    reach(Point::ProcessFetched);
    run(&work.options.exec, &root, lease, &paths, (log, is_over)).await?;
    Ok(paths.output)
}

/// Runs the command.
async fn run(
    line: &str,
    root: &Path,
    lease: &Lease,
    paths: &Paths,
    (log, is_over): (&Log, &AtomicBool),
) -> Result<(), AttemptError> {
    let json = |value: &Option<Value>| value.as_ref().map_or_else(|| "null".to_owned(), Value::to_string);
    let (reader, writer) = io::pipe()?;
    let output = writer.try_clone()?;
    // The command holds the writing ends of the pipe; with it they are closed on this side.
    let mut running = Running::start(line, |command| {
        command
            .current_dir(root)
            .env("MILLPOND_INPUT", &paths.input)
            .env("MILLPOND_MANIFEST", &paths.manifest)
            .env("MILLPOND_OUTPUT", &paths.output)
            .env("MILLPOND_ROUND", lease.round.to_string())
            .env("MILLPOND_ATTEMPT", lease.attempt.to_string())
            .env("MILLPOND_BATCH", lease.batch.to_string())
            .env("MILLPOND_PARAMS", json(&lease.params))
            .env("MILLPOND_REF", json(&lease.reference))
            .stdout(output)
            .stderr(writer);
    })?;
    reach(Point::ProcessRunning);
    let reading = log.clone();
    let read = tokio::task::spawn_blocking(move || reading.read(reader));
    let status = running.wait().await?;
    is_over.store(true, Ordering::Relaxed);
    let _ = tokio::time::timeout(REST, read).await;
    match status.code() {
        Some(0) => Ok(()),
        Some(75) => Err(AttemptError::Retry),
        _ => Err(AttemptError::Command(format!("the command ended with {status}"))),
    }
}

/// Returns the result: by PUBLISH, or by presigned PUT if it is too large for that.
async fn send(
    work: &Work,
    lease: &Lease,
    output: &Path,
    (log, handed_over): (&Log, &AtomicBool),
) -> Result<(), AttemptError> {
    let size = match std::fs::symlink_metadata(output) {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => metadata.len(),
        Ok(_) => {
            return Err(AttemptError::Command("the command left an output that is no file, or empty".into()));
        }
        Err(_) => return Err(AttemptError::Command("the command left no output".into())),
    };
    let path = output.to_owned();
    let digested = tokio::task::spawn_blocking(move || digest(&path, size, None)).await;
    let sha256 = digested.unwrap_or_else(|error| Err(io::Error::other(error)))?.sha256;
    let content_type = work.options.content_type.clone();
    // As the server says now: it may have changed since the lease was taken.
    let publish_max = work.session.card().map_or(limits::PUBLISH_MAX as u64, |card| card.limits.publish_max);
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    let throttle = work.transfer.throttle();
    if size > publish_max.min(work.session.inline()).min(throttle.message()) {
        let put = ask::Put {
            upload: None,
            round: Some(lease.round),
            attempt: Some(lease.attempt),
            name: None,
            size,
            sha256,
            event_time: None,
            label: None,
            content_type: content_type.clone(),
            meta: None,
            part_size: None,
            parts: Vec::new(),
            curl: false,
        };
        // The file is made: no outage is reason enough to throw it away while the lease holds, which is for the beats to say.
        loop {
            let meter = Meter::silent();
            let sent = large::send(&work.session, &work.transfer, output, &put, &meter, large::ASK).await;
            let Err(error) = sent else {
                handed_over.store(true, Ordering::Relaxed);
                return Ok(());
            };
            if size <= publish_max && error.is_of_the_way() {
                // It was only for the slow line, or the limit of the rate, that it went by URL.
                break;
            }
            if !error.is_temporary() {
                return Err(match error {
                    LargeError::Session(error) => lost(error),
                    error => error.into(),
                });
            }
            if matches!(error, LargeError::Transfer(TransferError::Full { .. })) {
                // Its bytes went in vain: not again every few seconds. Whoever looks at the round sees what it waits for.
                log.line(&format!("{error}: the result is sent again in {} s\n", FULL.as_secs()));
                tokio::time::sleep(FULL).await;
            }
            backoff.pause().await;
        }
    }
    handed_over.store(true, Ordering::Relaxed);
    let bytes = bytes::Bytes::from(std::fs::read(output)?);
    let properties = Properties { sha256: Some(sha256), content_type, ..Properties::default() };
    loop {
        throttle.pass(bytes.len()).await;
        let sent = work.session.result(lease.round, lease.attempt, bytes.clone(), properties.clone()).await;
        match sent {
            Ok(()) => return Ok(()),
            // A repeat of what was committed is acknowledged. The code says little; whether the lease holds, a beat does.
            Err(SessionError::Refused(code)) => match beat(work, lease, &Log::default(), ASK).await {
                Ok(_) => {
                    let why = format!("the server refuses the result (MQTT reason 0x{code:02x})");
                    return Err(AttemptError::Refused(why));
                }
                Err(error) if error.is_temporary() => backoff.pause().await,
                Err(error) => return Err(lost(error)),
            },
            Err(error) if error.is_temporary() => backoff.pause().await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Closes the round with the rest of the log. One whose result was PUT commits here, when the server has verified it.
async fn finish(session: &Session, lease: &Lease, log: &Log) -> Result<(), AttemptError> {
    let (round, attempt) = (lease.round, lease.attempt);
    let log = log.tail().await;
    let done = ask::Done { round, attempt, wait_s: VERIFY_S, log, warnings: Vec::new() };
    let id = format!("done-{round}-{attempt}");
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
    loop {
        match session.ask_as::<Value>(&id, Op::Done, &done, ASK).await {
            Ok(answer) if !answer["version"].is_null() => return Ok(()),
            // It is verified still, and a repeat asks how far that is.
            Ok(_) => {}
            Err(error) if error.is_temporary() => backoff.pause().await,
            Err(error) => return Err(lost(error)),
        }
    }
}

/// Whether the server says that the lease is one no more: another attempt holds the round, or nobody can.
fn is_lost(error: &SessionError) -> bool {
    let SessionError::Answer(refusal) = error else { return false };
    matches!(refusal.code, Code::Stale | Code::NotFound)
}

fn lost(error: SessionError) -> AttemptError {
    match error {
        error if is_lost(&error) => AttemptError::Lost(error.to_string()),
        // What it asked for will not be taken from another attempt either.
        SessionError::Answer(refusal)
            if matches!(refusal.code, Code::TooLarge | Code::Rejected | Code::Malformed) =>
        {
            AttemptError::Refused(refusal.to_string())
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Refusal;

    use super::*;

    #[test]
    fn only_a_lease_that_is_no_more_is_lost_and_any_other_refusal_ends_the_round_with_its_reason() {
        let refused = |code| lost(SessionError::Answer(Refusal::new(code, "why")));
        for code in [Code::Stale, Code::NotFound] {
            assert!(matches!(refused(code), AttemptError::Lost(_)), "{code}");
        }
        for code in [Code::TooLarge, Code::Rejected, Code::Malformed] {
            let error = refused(code);
            assert!(!error.is_retryable() && error.to_string().contains("why"), "{error}");
        }
        for code in [Code::Mismatch, Code::Unauthorized, Code::Unavailable, Code::Conflict] {
            let error = refused(code);
            assert!(error.is_retryable() && !matches!(error, AttemptError::Lost(_)), "{error}");
        }
    }
}
