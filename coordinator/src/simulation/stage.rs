//! What clients and the scheduler share: decisions, time, messages, and what clients know.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::{Principal, Refusal, Timestamp};
use serde_json::Value;
use tokio::sync::oneshot;

use super::book::Book;
use super::choices::Choices;
use super::net::{Net, Said, Wish};
use super::store::Store;
use crate::ledger::clock::simulated::{self, Time};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(90);
/// When schedules begin: the first of June 2026, noon.
const BEGIN: i64 = 1_780_315_200_000;

/// Shared by everyone on this thread.
#[derive(Clone)]
pub(super) struct Stage(Rc<Inner>);

struct Inner {
    choices: RefCell<Choices>,
    net: RefCell<Net>,
    book: RefCell<Book>,
    timers: RefCell<Vec<(Duration, oneshot::Sender<()>)>>,
    store: Store,
    /// The latest time that the clock on the wall showed when it was set.
    latest: Cell<Timestamp>,
    /// No more harm is done, and everything comes to its end.
    calm: Cell<bool>,
    /// Everything has come to its end.
    over: Cell<bool>,
    diary: RefCell<Option<Vec<String>>>,
}

impl Stage {
    /// Time begins. With a diary everything is written down in words.
    pub(super) fn new(store: Store, diary: bool) -> Self {
        simulated::set(Time { wall: Timestamp::clamped(BEGIN), running: Duration::ZERO });
        Self(Rc::new(Inner {
            choices: RefCell::default(),
            net: RefCell::default(),
            book: RefCell::default(),
            timers: RefCell::default(),
            store,
            latest: Cell::new(Timestamp::clamped(BEGIN)),
            calm: Cell::new(false),
            over: Cell::new(false),
            diary: RefCell::new(diary.then(Vec::new)),
        }))
    }

    pub(super) fn choices(&self) -> RefMut<'_, Choices> {
        self.0.choices.borrow_mut()
    }

    /// From now on that string decides, and harm may be done.
    pub(super) fn take_up(&self, string: &[u8]) {
        self.0.choices.replace(Choices::new(string.to_vec()));
        self.0.calm.set(false);
    }

    /// A decision: a number below `end`.
    pub(super) fn below(&self, end: usize) -> usize {
        self.choices().below(end)
    }

    /// A decision: true about `in_256` times of 256.
    pub(super) fn chance(&self, in_256: u8) -> bool {
        self.choices().chance(in_256)
    }

    /// A decision.
    pub(super) fn byte(&self) -> u8 {
        self.choices().byte()
    }

    pub(super) fn net(&self) -> RefMut<'_, Net> {
        self.0.net.borrow_mut()
    }

    pub(super) fn book(&self) -> RefMut<'_, Book> {
        self.0.book.borrow_mut()
    }

    pub(super) fn read_book(&self) -> Ref<'_, Book> {
        self.0.book.borrow()
    }

    pub(super) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(super) fn is_calm(&self) -> bool {
        self.0.calm.get()
    }

    pub(super) fn calm_down(&self) {
        self.0.calm.set(true);
    }

    pub(super) fn is_over(&self) -> bool {
        self.0.over.get()
    }

    pub(super) fn end(&self) {
        self.0.over.set(true);
    }

    /// What the clock on the wall shows.
    pub(super) fn now(&self) -> Timestamp {
        crate::ledger::now()
    }

    /// How long it runs.
    pub(super) fn running(&self) -> Duration {
        simulated::time().map_or(Duration::ZERO, |time| time.running)
    }

    /// Somebody sets the clock on the wall.
    pub(super) fn set_clock(&self, wall: Timestamp) {
        self.0.latest.set(self.now().max(self.0.latest.get()));
        simulated::set(Time { wall, running: self.running() });
    }

    /// How long until the clock on the wall shows a later time than ever before.
    pub(super) fn behind(&self) -> Duration {
        self.0.latest.get().since(self.now())
    }

    /// Time goes by.
    pub(super) fn pass(&self, by: Duration) {
        simulated::set(Time { wall: self.now().after(by), running: self.running() + by });
        let running = self.running();
        self.0.timers.borrow_mut().retain(|(at, _)| *at > running);
        self.net().lose_patience(running);
        self.0.store.catch_up(running);
    }

    /// In what time the next client wakes or gives up.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        let timers = self.0.timers.borrow().iter().map(|(at, _)| *at).min();
        let next = [timers, self.net().next_patience()].into_iter().flatten().min()?;
        Some(next.saturating_sub(self.running()))
    }

    /// Returns when that time has gone by.
    pub(super) async fn sleep(&self, time: Duration) {
        let (timer, woken) = oneshot::channel();
        self.0.timers.borrow_mut().push((self.running() + time, timer));
        // It is dropped when its time has come.
        let _ = woken.await;
    }

    /// Asks the server for something: nothing if no answer came.
    pub(super) async fn request(&self, from: &Principal, wish: Wish) -> Option<Said> {
        let patience = self.running() + PATIENCE;
        let answered = self.net().send(from.clone(), wish, patience);
        answered.await.ok()
    }

    /// Publishes, once: nothing if no acknowledgement came.
    pub(super) async fn publish(&self, from: &Principal, wish: Wish) -> Option<Result<(), Refusal>> {
        match self.request(from, wish).await? {
            // The gate closes the connection.
            Said::Acked(Err(refusal)) if refusal.code.is_temporary() => None,
            Said::Acked(acked) => Some(acked),
            _ => None,
        }
    }

    /// Asks until there is an answer, in the same words. Who asks once more, now or later, gets what was decided first.
    pub(super) async fn ask(&self, from: &Principal, op: Op, ask: Value) -> Result<Value, ErrorBody> {
        let answer = self.answer(from, op, &ask).await;
        if let (Ok(first), true, true) = (&answer, op.changes_state(), self.chance(32)) {
            let again = self.answer(from, op, &ask).await;
            self.book().check(again.as_ref().is_ok_and(|again| decided(again) == decided(first)), || {
                format!("{} asked {op} {ask} again and got {again:?} in place of {first}", from.name)
            });
        }
        answer
    }

    async fn answer(&self, from: &Principal, op: Op, ask: &Value) -> Result<Value, ErrorBody> {
        loop {
            match self.request(from, Wish::Ask(op, ask.clone())).await {
                Some(Said::Answered(Err(refused))) if refused.error.code.is_temporary() => {
                    self.sleep(Duration::from_secs(1)).await;
                }
                Some(Said::Answered(answer)) => return answer,
                _ => {}
            }
        }
    }

    /// Writes something down, if anybody reads it.
    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(diary) = &mut *self.0.diary.borrow_mut() {
            let line = format!("{:>10.3}  {}", self.running().as_secs_f64(), what());
            diary.push(line);
        }
    }

    pub(super) fn diary(&self) -> Vec<String> {
        self.0.diary.borrow_mut().take().unwrap_or_default()
    }
}

/// What of an answer was decided by the ask, and is not as of now.
fn decided(answer: &Value) -> [&Value; 5] {
    let lease = &answer["lease"];
    [&answer["round"], &answer["batch"], &answer["attempt"], &lease["round"], &lease["attempt"]]
}
