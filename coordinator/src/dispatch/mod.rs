//! Dispatch: what a sealed batch needs before a processor can work on it, and what is told of the round afterwards.
//!
//! One loop listens to what commits and looks at the pools concerned; one task a pool takes one step after the other
//! until nothing is left (`step`). Every step is found from committed rows and ends in one ledger job, so a crash at
//! any point repeats a step and never loses one:
//!
//! | step | file |
//! |---|---|
//! | a sealed batch has no manifest: write its packs and manifest, tell the core `Ready` | `seal` |
//! | a round was offered anew and its manifest exists: tell the core `Ready` | `step` |
//! | the payloads of a pack are still in the ledger: delete them | `pack` |
//! | an open batch has a pack's worth of small files: write the pack ahead | `pack` |
//! | a round has ended: write `round.json` | `story` |
//!
//! Bytes go to storage before they count: a `granted` row, the PUT (compared by its SHA-256), then `live` in the job that
//! makes them count (`object`). What did not come to count is doomed, and [`sweep`] deletes it.

mod buffer;
mod manifest;
mod object;
mod pack;
mod read;
mod rebuild;
mod seal;
mod select;
mod sorter;
mod step;
mod story;
pub mod sweep;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::Refusal;
use millpond_storage::Storage;
use rusqlite::Connection;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{Commit, Ledger, PoolId};

pub use read::read_small;
pub use rebuild::rebuild_manifest;
pub use trouble::Trouble;

/// Pools that are worked on at once. Each holds a pack and the entries of a manifest that are being sorted in memory.
const POOLS: usize = 2;
/// Long reads at once, of packs and manifests. The ledger has four readers, and whoever asks something finds one free.
const READS: usize = 2;
/// The first pause after a failure; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: storage that is back is noticed within half a minute.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What steps work with.
#[derive(Clone)]
struct Context {
    ledger: Ledger,
    storage: Storage,
    reading: Arc<Semaphore>,
}

impl Context {
    /// Runs a long read, when fewer than [`READS`] others are under way.
    async fn read<T, F>(&self, job: F) -> std::result::Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> crate::ledger::Result<T> + Send + 'static,
    {
        let _turn = self.reading.acquire().await;
        self.ledger.read(job).await
    }
}

/// Runs the dispatcher and the sweep until `stop` is cancelled. A step that is under way then is repeated after the
/// next start.
pub async fn run(ledger: Ledger, storage: Storage, stop: CancellationToken) {
    Dispatch::new(ledger, storage).run(stop).await;
}

/// The pools whose work does not get on, and why. It is tried again for ever.
pub type Troubles = BTreeMap<PoolId, String>;

/// The dispatcher.
pub struct Dispatch {
    dispatcher: Dispatcher,
}

impl Dispatch {
    /// A dispatcher that has not begun.
    pub fn new(ledger: Ledger, storage: Storage) -> Self {
        let dispatcher = Dispatcher {
            context: Context { ledger, storage, reading: Arc::new(Semaphore::new(READS)) },
            tell: watch::Sender::new(Troubles::new()),
            dirty: Dirty::default(),
            paused: HashMap::new(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            look: Some(Instant::now()),
        };
        Self { dispatcher }
    }

    /// Does what is to be done for a pool now, as [`run`](Self::run) does after a commit.
    #[cfg(test)]
    pub(crate) fn work(&self, pool: PoolId) -> impl Future<Output = Result<bool, Trouble>> + Send + use<> {
        step::work(self.dispatcher.context.clone(), pool)
    }

    /// What [`run`](Self::run) begins with.
    #[cfg(test)]
    pub(crate) async fn recover(&self) -> Result<usize, Refusal> {
        object::doom_left_over(&self.dispatcher.context.ledger).await
    }

    /// The pools whose work does not get on, as it changes.
    pub fn troubles(&self) -> watch::Receiver<Troubles> {
        self.dispatcher.tell.subscribe()
    }

    /// Runs until `stop` is cancelled, see [`run`].
    pub async fn run(self, stop: CancellationToken) {
        let sweep =
            sweep::run(self.dispatcher.context.ledger.clone(), self.dispatcher.context.storage.clone());
        // Whatever is under way is dropped then: its object stays `granted` and is doomed after the next start.
        let work = async { tokio::join!(self.dispatcher.run(), sweep) };
        stop.run_until_cancelled(work).await;
    }
}

/// Pools to look at. Each has its turn, however busy the others are.
#[derive(Default)]
struct Dirty {
    pools: BTreeSet<PoolId>,
    /// Whose turn it was last.
    last: PoolId,
}

impl Dirty {
    /// The next pool, of those that may run.
    fn take(&mut self, may: impl Fn(PoolId) -> bool) -> Option<PoolId> {
        let behind = self.pools.range(self.last + 1..).chain(self.pools.range(..=self.last));
        let pool = behind.copied().find(|pool| may(*pool))?;
        self.pools.remove(&pool);
        self.last = pool;
        Some(pool)
    }
}

struct Dispatcher {
    context: Context,
    tell: watch::Sender<Troubles>,
    dirty: Dirty,
    /// Pools that failed: how often in a row, and until when they wait.
    paused: HashMap<PoolId, (u32, Instant)>,
    running: HashMap<Id, PoolId>,
    tasks: JoinSet<Result<bool, Trouble>>,
    /// When to look at every pool.
    look: Option<Instant>,
}

impl Dispatcher {
    async fn run(mut self) {
        let mut commits = self.context.ledger.commits();
        self.recover().await;
        loop {
            self.look_at_everything().await;
            self.start_tasks();
            let wake = self.wake();
            tokio::select! {
                commit = commits.recv() => match commit {
                    Ok(commit) => self.note(&commit),
                    Err(RecvError::Lagged(_)) => self.look = Some(Instant::now()),
                    Err(RecvError::Closed) => return,
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Objects that an earlier run of the process was about to write never came to count.
    async fn recover(&mut self) {
        loop {
            match object::doom_left_over(&self.context.ledger).await {
                Ok(0) => return,
                Ok(doomed) => {
                    return tracing::info!(doomed, "dispatch: objects of an earlier run are removed");
                }
                Err(error) => tracing::error!(%error, "dispatch: objects of an earlier run cannot be listed"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn note(&mut self, commit: &Commit) {
        let concerned = commit.pools.iter().filter(|(_, change)| change.pack || change.rounds);
        self.dirty.pools.extend(concerned.map(|(pool, _)| *pool));
    }

    async fn look_at_everything(&mut self) {
        if self.look.is_none_or(|at| at > Instant::now()) {
            return;
        }
        match step::pools(&self.context.ledger).await {
            Ok(pools) => {
                self.dirty.pools.extend(pools);
                self.look = None;
            }
            Err(error) => {
                tracing::error!(%error, "dispatch: the pools cannot be listed");
                self.look = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// When something can be started that cannot be started now. What only waits for its turn starts when a task ends.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let pauses = self.paused.values().map(|(_, until)| *until).filter(|until| *until > now);
        pauses.chain(self.look).min().unwrap_or_else(|| now + PAUSE_MAX)
    }

    fn start_tasks(&mut self) {
        let now = Instant::now();
        let runs = |pool: &PoolId| self.running.values().any(|running| running == pool);
        let due = self.paused.iter().filter(|(pool, (_, until))| *until <= now && !runs(pool));
        self.dirty.pools.extend(due.map(|(pool, _)| *pool));
        let may =
            |pool: PoolId| !runs(&pool) && self.paused.get(&pool).is_none_or(|(_, until)| *until <= now);
        let room = POOLS.saturating_sub(self.running.len());
        let ready: Vec<_> = std::iter::from_fn(|| self.dirty.take(may)).take(room).collect();
        for pool in ready {
            let task = self.tasks.spawn(step::work(self.context.clone(), pool));
            self.running.insert(task.id(), pool);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<bool, Trouble>), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(error) => (error.id(), Err(Trouble::Bug(error.to_string()))),
        };
        let Some(pool) = self.running.remove(&id) else { return };
        match outcome {
            Ok(more) => {
                if more {
                    self.dirty.pools.insert(pool);
                }
                if self.paused.remove(&pool).is_some() {
                    self.tell.send_modify(|troubles| drop(troubles.remove(&pool)));
                }
            }
            Err(trouble) => self.pause(pool, &trouble),
        }
    }

    fn pause(&mut self, pool: PoolId, trouble: &Trouble) {
        let failures = self.paused.get(&pool).map_or(0, |(failures, _)| *failures) + 1;
        let pause = PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(PAUSE_MAX);
        self.paused.insert(pool, (failures, Instant::now() + pause));
        metrics::counter!("millpond_dispatch_failures_total", "cause" => trouble.word()).increment(1);
        tracing::warn!(pool, failures, %trouble, "dispatch: a pool's work does not get on; it is tried again");
        self.tell.send_modify(|troubles| drop(troubles.insert(pool, trouble.to_string())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_that_always_have_more_to_do_let_the_others_have_their_turn() {
        let mut dirty = Dirty::default();
        let mut served = Vec::new();
        for _ in 0..6 {
            // Whoever was served has more to do at once.
            dirty.pools.extend([1, 2, 7]);
            served.extend(dirty.take(|_| true));
        }
        assert_eq!(served, [1, 2, 7, 1, 2, 7]);
        assert_eq!(dirty.take(|pool| pool == 2), Some(2), "the others may not run");
        assert_eq!(dirty.take(|pool| pool == 2), None);
    }
}
