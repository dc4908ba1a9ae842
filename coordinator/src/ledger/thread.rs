//! The one thread that writes: when a group begins, and which jobs are in it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::OpenError;
use super::log::Log;
use super::writer::{Fate, Job, Writer};

/// Jobs of one group: bounds the time that the first one waits for the last one.
const GROUP_JOBS: usize = 4_096;
/// How long a group gathers at most while jobs keep coming.
const GROUP_TIME: Duration = Duration::from_millis(20);
/// The writer looks at the clock at least this often, so that a clock step is noticed.
const IDLE: Duration = Duration::from_secs(1);
/// Between a group that was lost and the next one.
const LOST_PAUSE: Duration = Duration::from_millis(50);

/// Starts the thread. The receiver resolves when the thread has ended.
pub(super) fn start(
    writer: Writer,
    log: Log,
    queue: Receiver<Job>,
) -> std::result::Result<oneshot::Receiver<()>, OpenError> {
    let (ended, end) = oneshot::channel();
    let work = move || {
        run(writer, log, &queue);
        drop(ended);
    };
    let spawned = std::thread::Builder::new().name("ledger".into()).spawn(work);
    spawned.map_err(|source| OpenError::Io { path: "thread".into(), source })?;
    Ok(end)
}

fn run(mut writer: Writer, mut log: Log, queue: &Receiver<Job>) {
    loop {
        // How long nothing can happen without a job.
        let idle = writer.next_due().unwrap_or(IDLE).min(IDLE);
        let first = match queue.recv_timeout(idle) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if first.is_none() && writer.next_due() != Some(Duration::ZERO) {
            continue;
        }
        let started = Instant::now();
        let more = |jobs| {
            let gathers = jobs < GROUP_JOBS && started.elapsed() < GROUP_TIME;
            gathers.then(|| queue.try_recv().ok()).flatten()
        };
        match writer.group(first, more) {
            Fate::Committed => log.committed(&writer.sql),
            // What is due stays due: without a pause a disk that refuses everything would be asked without end.
            Fate::Lost => std::thread::sleep(LOST_PAUSE),
        }
    }
}
