//! A ledger in memory whose writer is a value and no thread: whoever holds it says when a group begins, which jobs are in it
//! and whether it commits. All the rest is the ledger that serves: jobs, savepoints, facts as rows, cores read again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use millpond_protocol::Timestamp;
use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, broadcast};

use super::readers::Readers;
use super::writer::{Fate, Job, Writer};
use super::{Inner, Ledger, OpenError, load, migrate};
use crate::rounds::{Event, Pool, RoundState};

/// Commits that a listener may be behind; few, for room for each is made at every start.
const NOTICES: usize = 64;

/// The database, and the writer while the process lives.
pub(crate) struct Stepped {
    /// They have a connection while somebody reads.
    readers: Readers,
    /// A COMMIT fails while this is set.
    refuses: Arc<AtomicBool>,
    /// What deletes all rows.
    tables: Vec<String>,
    life: Option<Life>,
    /// Groups that were begun, ever.
    pub(crate) groups: u64,
    /// The connection, between two lives.
    sql: Option<Connection>,
}

/// What a crash takes.
struct Life {
    writer: Writer,
    queue: mpsc::Receiver<Job>,
    waiting: VecDeque<Job>,
}

impl Stepped {
    /// An empty ledger.
    pub(crate) fn new() -> Self {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = || Connection::open_in_memory_with_flags(flags).unwrap();
        let mut sql = open();
        sql.set_prepared_statement_cache_capacity(1_024);
        sql.pragma_update(None, "foreign_keys", true).unwrap();
        sql.pragma_update(None, "temp_store", "MEMORY").unwrap();
        super::keep_plans(&sql).unwrap();
        // What a group changes is copied a page at a time, and rows are few.
        sql.pragma_update(None, "page_size", 1_024).unwrap();
        migrate::run(&mut sql, Path::new(":memory:")).unwrap();
        // A new schedule begins with an empty trail.
        sql.execute_batch("DROP TRIGGER audit_is_append_only_delete").unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let refuse = refuses.clone();
        sql.commit_hook(Some(move || refuse.load(Ordering::Relaxed))).unwrap();
        let tables = tables(&sql);
        Self { readers: Readers::here(open()), refuses, tables, life: None, groups: 0, sql: Some(sql) }
    }

    /// Begins a life with what is committed; that of before, if there is one, ends as by a crash.
    ///
    /// # Errors
    /// The rows contradict each other.
    pub(crate) fn start(&mut self) -> Result<Ledger, OpenError> {
        self.crash();
        let Some(sql) = self.sql.take() else { unreachable!("a connection between two lives") };
        let (jobs, queue) = mpsc::channel();
        let (commits, _) = broadcast::channel(NOTICES);
        let writer = Writer::load(sql, commits.clone())?;
        self.life = Some(Life { writer, queue, waiting: VecDeque::new() });
        Ok(Ledger(Arc::new(Inner {
            directory: std::env::temp_dir(),
            jobs,
            queued: Arc::default(),
            commits,
            readers: self.readers.clone(),
            lookers: self.readers.clone(),
            snapshots: Arc::new(Semaphore::new(1)),
            _lock: None,
        })))
    }

    /// All that is not committed is gone.
    pub(crate) fn crash(&mut self) {
        let Some(life) = self.life.take() else { return };
        let sql = life.writer.sql;
        if !sql.is_autocommit() {
            sql.execute_batch("ROLLBACK").unwrap();
        }
        self.sql = Some(sql);
    }

    /// Makes the ledger empty, as it was when it was new.
    pub(crate) fn clear(&mut self) {
        self.crash();
        self.refuses.store(false, Ordering::Relaxed);
        let Some(sql) = &self.sql else { unreachable!("a crash leaves the connection") };
        sql.execute_batch("BEGIN").unwrap();
        for delete in &self.tables {
            sql.prepare_cached(delete).unwrap().execute([]).unwrap();
        }
        sql.execute_batch("COMMIT").unwrap();
    }

    /// Lets `work` read. No group is under way then, so what is read and what is written goes through one connection, and
    /// nothing has to be brought from one to the other.
    pub(crate) fn reading<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let Some(life) = &mut self.life else { unreachable!("the ledger is started") };
        self.readers.exchange(&mut life.writer.sql);
        let done = work();
        self.readers.exchange(&mut life.writer.sql);
        done
    }

    /// How many jobs are in line.
    pub(crate) fn waiting(&mut self) -> usize {
        let life = self.life();
        life.waiting.extend(life.queue.try_iter());
        life.waiting.len()
    }

    /// Runs the first `jobs` in line, or what is due, as one group; whether it was kept.
    pub(crate) fn group(&mut self, jobs: usize, commits: bool) -> bool {
        self.waiting();
        self.groups += 1;
        self.refuses.store(!commits, Ordering::Relaxed);
        let life = self.life();
        let waiting = &mut life.waiting;
        let first = if jobs > 0 { waiting.pop_front() } else { None };
        let fate = life.writer.group(first, |before| (before < jobs).then(|| waiting.pop_front()).flatten());
        self.refuses.store(false, Ordering::Relaxed);
        fate == Fate::Committed
    }

    /// In what time a core wants to see the clock.
    pub(crate) fn next_due(&mut self) -> Option<std::time::Duration> {
        self.life().writer.next_due()
    }

    /// The cores' time, which never goes back.
    pub(crate) fn now(&mut self) -> Timestamp {
        self.life().writer.state.clock()
    }

    /// The writer's connection.
    pub(crate) fn sql(&self) -> &Connection {
        match (&self.life, &self.sql) {
            (Some(life), _) => &life.writer.sql,
            (None, Some(sql)) => sql,
            (None, None) => unreachable!("a connection is in a life or between two"),
        }
    }

    /// Every core in memory is what its rows say, save for the time that a start gives to leases and packing.
    ///
    /// # Errors
    /// What differs.
    pub(crate) fn compare_cores(&mut self) -> Result<(), String> {
        let life = self.life();
        let now = life.writer.state.clock();
        for (pool, entry) in &life.writer.state.pools {
            let (rows, facts) = load::pool(&life.writer.sql, *pool, now).map_err(|e| e.to_string())?;
            let (mut memory, mut read) = (entry.core.clone(), rows.core);
            let same = if facts.is_empty() {
                // What age has closed is forgotten when somebody looks.
                for core in [&mut memory, &mut read] {
                    core.apply(now, Event::Tick, &mut Vec::new()).map_err(|e| e.to_string())?;
                }
                memory == read
            } else {
                untimed(&memory) == untimed(&read)
            };
            if !same || rows.counters != entry.counters {
                return Err(format!("core and rows of pool {pool} differ: {memory:?} and {read:?}"));
            }
        }
        Ok(())
    }

    fn life(&mut self) -> &mut Life {
        let Some(life) = &mut self.life else { unreachable!("the ledger is started") };
        life
    }
}

/// Statements that delete all rows, those first that refer to others.
fn tables(sql: &Connection) -> Vec<String> {
    let mut names: Vec<String> = sql
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'proof'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    names.sort_by_key(|name| match name.as_str() {
        "pools" => 2,
        "members" => 1,
        _ => 0,
    });
    names.push("sqlite_sequence".into());
    names.iter().map(|name| format!("DELETE FROM {name}")).collect()
}

/// What of a core does not depend on when it was read.
fn untimed(pool: &Pool) -> impl PartialEq {
    let kind = |state: &RoundState| std::mem::discriminant(state);
    let rounds = pool.live_rounds();
    let rounds: Vec<_> =
        rounds.map(|it| (it.round, it.ready, kind(&it.state), it.attempt, it.spent, it.holder)).collect();
    (rounds, pool.open_batches().cloned().collect::<Vec<_>>(), pool.pointer())
}
