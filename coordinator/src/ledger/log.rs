//! The write-ahead log, and when it is copied back into the file.
//!
//! Left to SQLite, the commit that finds the log long copies all of it back before it returns, and every acknowledgement of
//! its group and of those in line waits for that. Here a thread of its own copies the bulk while commits go on. It never
//! catches up with a writer that does not pause, and the log begins anew only when all of it is copied; so the writer
//! copies the rest, which is what a few groups wrote, once their answers are out.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use rusqlite::{Connection, ErrorCode};

/// Pages of a log that is long: 16 MiB. More means fewer syncs in a flood, and more to read again after a crash.
const LONG: i32 = 4_096;

/// The writer's side.
pub(super) struct Log {
    /// Pages in the log, as of the last commit.
    pages: Arc<AtomicI32>,
    /// How many there were when it was last copied: what is below need not be copied again.
    copied: i32,
    /// Whether the thread is at work.
    copying: bool,
    ask: Option<SyncSender<()>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Log {
    /// Takes over from SQLite's own checkpoints: `writer` is the connection that commits, `copier` another one.
    pub(super) fn start(writer: &mut Connection, copier: Connection) -> std::io::Result<Self> {
        let pages = Arc::new(AtomicI32::new(0));
        let seen = pages.clone();
        let hook = move |_: &mut rusqlite::hooks::Wal, pages| {
            seen.store(pages, Ordering::Relaxed);
            Ok(())
        };
        writer.wal_hook(Some(hook)).map_err(std::io::Error::other)?;
        let (ask, asked) = sync_channel::<()>(1);
        let (tell, done) = sync_channel(1);
        let run = move || {
            while asked.recv().is_ok() {
                copy(&copier, "bulk");
                if tell.send(()).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("ledger-log".into()).spawn(run)?;
        Ok(Self { pages, copied: 0, copying: false, ask: Some(ask), done, thread: Some(thread) })
    }

    /// A group is committed and its answers are out.
    pub(super) fn committed(&mut self, writer: &Connection) {
        let pages = self.pages.load(Ordering::Relaxed);
        if self.copying {
            if self.done.try_recv() == Err(TryRecvError::Empty) {
                return;
            }
            self.copying = false;
            copy(writer, "rest");
            self.copied = pages;
        }
        if pages < self.copied {
            // It has begun anew.
            self.copied = 0;
        }
        if pages - self.copied >= LONG {
            self.copying = self.ask.as_ref().is_some_and(|ask| ask.try_send(()).is_ok());
        }
    }
}

impl Drop for Log {
    /// Whoever opens the file next finds it closed.
    fn drop(&mut self) {
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            // It panicked, or it ended: it is gone either way.
            let _ = thread.join();
        }
    }
}

/// Copies what no reader still needs in the log. What fails is tried again when the log has grown further.
fn copy(sql: &Connection, part: &'static str) {
    let started = Instant::now();
    if let Err(error) = sql.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        die_if_unsynced(&error);
        tracing::warn!(%error, "ledger: the log cannot be copied back");
    }
    metrics::histogram!("millpond_checkpoint_seconds", "part" => part)
        .record(started.elapsed().as_secs_f64());
}

/// After a failed fsync nobody knows what is on disk, and a second one may lie: leave, and recover from the file.
pub(super) fn die_if_unsynced(error: &rusqlite::Error) {
    use rusqlite::ffi;
    let rusqlite::Error::SqliteFailure(failure, _) = error else { return };
    let fsync = [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC];
    if failure.code == ErrorCode::SystemIoFailure && fsync.contains(&failure.extended_code) {
        tracing::error!(%error, "ledger: fsync failed; the process ends, start it again to recover");
        std::process::exit(1);
    }
}
