//! One life of the server: the coordinator's own parts over the stepped ledger and the scheduler's storage.
//!
//! What is the coordinator's: the gate's `Backend`, the ops of asks, the work of dispatch, the sweep, state messages, and the
//! whole ledger. What stands here in place of its loops of `select!`, which the scheduler is: which notice is looked at when.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use millpond_broker::{Backend as _, GateHandle};
use millpond_protocol::{PoolName, Principal, Refusal, topic};
use millpond_storage::Storage;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use super::net::{Request, Said, Wish};
use super::stage::Stage;
use crate::asks::Asks;
use crate::dispatch::{Dispatch, Trouble, sweep};
use crate::fanout::receipts::Cursors;
use crate::fanout::state::{Shown, States};
use crate::grants::Grants;
use crate::identity::Identity;
use crate::ingest::{Ingest, stage as staging};
use crate::ledger::{Commit, Ledger, PoolId, Tx};

/// A pause of dispatch after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// Rows of receipts in one look, so that there are several.
const PAGE: usize = 2;

/// A server that serves, or is about to.
#[derive(Clone)]
pub(super) struct Server(Rc<Inner>);

struct Inner {
    stage: Stage,
    pool: (PoolId, PoolName),
    ledger: Ledger,
    storage: Storage,
    ingest: Ingest,
    asks: Asks,
    states: States,
    dispatch: Dispatch,
    cursors: Cursors,
    notices: RefCell<broadcast::Receiver<Arc<Commit>>>,
    /// What an earlier life left is put in order, and the gate is open.
    serves: Cell<bool>,
    /// The pool is to be looked at.
    dirty: Cell<bool>,
    /// Dispatch is at work, or pauses.
    busy: Cell<bool>,
    /// How often fan-out has still to tell what is so now.
    to_tell: Cell<usize>,
    telling: Cell<bool>,
}

impl Server {
    pub(super) fn new(stage: &Stage, pool: (PoolId, PoolName), ledger: Ledger, storage: Storage) -> Self {
        let shown = Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: String::new() };
        let states = States::new(ledger.clone(), storage.clone(), shown);
        let grants = Grants::new(ledger.clone(), storage.clone(), Duration::from_secs(86_400));
        let asks = Asks { ledger: ledger.clone(), storage: storage.clone(), states: states.clone(), grants };
        let (identity, cursors) = (Identity::new(ledger.clone(), 10, 10), Cursors::default());
        let ingest = Ingest::new(asks.clone(), identity, GateHandle::new(), states.clone(), cursors.clone());
        Self(Rc::new(Inner {
            stage: stage.clone(),
            pool,
            ingest,
            asks,
            states,
            dispatch: Dispatch::new(ledger.clone(), storage.clone()),
            cursors,
            notices: RefCell::new(ledger.commits()),
            ledger,
            storage,
            serves: Cell::new(false),
            dirty: Cell::new(true),
            busy: Cell::new(false),
            to_tell: Cell::new(0),
            telling: Cell::new(false),
        }))
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    pub(super) fn serves(&self) -> bool {
        self.0.serves.get()
    }

    /// What a start does before it serves.
    pub(super) async fn recover(self) {
        // Storage that is away or a commit that fails keeps it from nothing: it is tried again.
        while staging::recover(&self.0.ledger).await.is_err() || self.0.dispatch.recover().await.is_err() {
            self.0.stage.sleep(PAUSE).await;
        }
        self.0.serves.set(true);
    }

    /// Takes a message that has arrived, and answers it.
    pub(super) fn take(&self, request: Request) -> impl Future<Output = ()> + 'static {
        let (server, Request { id, from, wish }) = (self.clone(), request);
        // A PUBLISH takes its place in the ledger's queue in this very call.
        let taken = match wish {
            Wish::Publish(message) => {
                Ok(self.0.ingest.take(&from, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), *message))
            }
            other => Err(other),
        };
        async move {
            let said = match taken {
                Ok(taken) => Some(Said::Acked(taken.await)),
                Err(wish) => server.answer(&from, wish).await.ok(),
            };
            if let Some(said) = said {
                server.0.stage.net().answer(id, said);
            }
        }
    }

    /// What fails closes the connection: there is no answer.
    async fn answer(&self, from: &Principal, wish: Wish) -> Result<Said, Refusal> {
        let Inner { ingest, asks, .. } = &*self.0;
        Ok(match wish {
            Wish::Publish(_) => Said::Noted,
            Wish::Ask(op, ask) => {
                Said::Answered(asks.answer(from, "simulation", op, ask.to_string().as_bytes()).await)
            }
            Wish::Listen => Said::States(ingest.states(from, &[topic::result(&from.pool)]).await?),
            Wish::Receipts(None) => Said::Receipts(ingest.receipt_cursor(from).await?, Vec::new()),
            Wish::Receipts(Some(after)) => Said::Receipts(after, ingest.receipts(from, after, PAGE).await?),
            Wish::Acknowledge(seq) => {
                ingest.receipts_acknowledged(from, seq);
                Said::Noted
            }
        })
    }

    /// Takes notice of one commit; whether there was one. `lagged` misses it and all that came after it, as a listener does
    /// that is too slow.
    pub(super) fn notice(&self, lagged: bool) -> bool {
        let mut notices = self.0.notices.borrow_mut();
        match notices.try_recv() {
            Ok(commit) if !lagged => {
                let change = commit.pools.get(&self.0.pool.0);
                if change.is_some_and(|change| change.pack || change.rounds) {
                    self.0.dirty.set(true);
                }
                if change.is_some_and(|change| change.pointer) {
                    self.0.to_tell.update(|tellings| tellings + 1);
                }
                true
            }
            Ok(_) | Err(TryRecvError::Lagged(_)) => {
                *notices = notices.resubscribe();
                // Dispatch looks at every pool, fan-out ends every session: whoever comes back is told the state.
                self.0.dirty.set(true);
                self.0.stage.net().disconnect_listeners();
                true
            }
            Err(TryRecvError::Empty | TryRecvError::Closed) => false,
        }
    }

    pub(super) fn has_notice(&self) -> bool {
        !self.0.notices.borrow().is_empty()
    }

    /// The work of dispatch, if there is any to begin.
    pub(super) fn work(&self) -> Option<impl Future<Output = ()> + 'static> {
        if !self.serves() || self.0.busy.get() || !self.0.dirty.replace(false) {
            return None;
        }
        self.0.busy.set(true);
        let server = self.clone();
        Some(async move {
            let Inner { dispatch, stage, dirty, busy, pool, .. } = &*server.0;
            match dispatch.work(pool.0).await {
                // Other pools have their turn first.
                Ok(true) => dirty.set(true),
                Ok(false) => {}
                Err(trouble) => {
                    server.judge(&trouble);
                    stage.sleep(PAUSE).await;
                    dirty.set(true);
                }
            }
            busy.set(false);
        })
    }

    /// Trouble that passes is no fault.
    fn judge(&self, trouble: &Trouble) {
        let words = trouble.to_string();
        let wrong = matches!(trouble, Trouble::Corrupt(_) | Trouble::Bug(_)) || words.contains("contradict");
        self.0.stage.book().check(!wrong, || words);
    }

    /// What fan-out tells next.
    pub(super) fn tell(&self) -> Option<impl Future<Output = ()> + 'static> {
        let tellings = self.0.to_tell.get();
        if self.0.telling.get() || tellings == 0 {
            return None;
        }
        self.0.to_tell.set(tellings - 1);
        self.0.telling.set(true);
        let server = self.clone();
        Some(async move {
            let Inner { states, stage, telling, to_tell, pool, .. } = &*server.0;
            match states.result(&pool.1).await {
                Ok(messages) => stage.net().push(&messages[0]),
                // Told at the next tick.
                Err(_) => to_tell.update(|tellings| tellings + 1),
            }
            telling.set(false);
        })
    }

    /// Cursors of receipts that have gathered are written.
    pub(super) fn write_cursors(&self) -> impl Future<Output = ()> + 'static {
        let (cursors, ledger) = (self.0.cursors.clone(), self.0.ledger.clone());
        async move { cursors.advance(&ledger).await }
    }

    /// One pass of the sweep.
    pub(super) fn sweep(&self) -> impl Future<Output = ()> + 'static {
        let (ledger, storage, now) = (self.0.ledger.clone(), self.0.storage.clone(), self.0.stage.now());
        async move {
            // What it could not delete is left for the next one.
            let _ = sweep::sweep(&ledger, &storage, now, None).await;
        }
    }

    /// An operator gives failed rounds another chance, or publishes an old version again.
    pub(super) fn operate(&self, what: usize) -> impl Future<Output = ()> + 'static {
        let (ledger, pool) = (self.0.ledger.clone(), self.0.pool.0);
        let back = (what / 2) as u64;
        async move {
            // One of the newest; what there is not is not found.
            let of = move |tx: &Tx<'_>, counter: &str| -> crate::ledger::Result<u64> {
                let query = format!("SELECT {counter} FROM pools WHERE id = ?1");
                let newest: u64 = tx.sql().query_row(&query, [pool], |row| row.get(0))?;
                Ok(newest.saturating_sub(back))
            };
            let _ = if what.is_multiple_of(2) {
                ledger
                    .write(move |tx| of(tx, "rounds").and_then(|round| tx.retry_round(pool, round).map(drop)))
                    .await
            } else {
                ledger
                    .write(move |tx| of(tx, "versions").and_then(|old| tx.roll_back(pool, old).map(drop)))
                    .await
            };
        }
    }
}
