//! The bus: puts the live messages of everybody into one order, and hands them to the one reader that fans them out.
//!
//! It is the embedded router of rumqttd, and this folder alone knows it: two links, one fixed topic, and nothing that the
//! router would have to forget. What its behaviour imposes:
//!
//! - Its calls block, so one thread makes them, and everybody else leaves messages in the [`Outbox`].
//! - Its log keeps two segments and drops the oldest, silently for a reader that is slower. So no more than [`IN_FLIGHT`]
//!   bytes are between sender and reader, which is less than a segment; and each message has a number, so a loss is seen.
//! - It delivers nothing whose expiry has passed and stops there, so expiry travels inside the message.
//! - When its thread has died, every call fails: the process ends with an error, and its supervisor starts it again.

use std::collections::{HashMap, VecDeque};
use std::io::Error;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use millpond_protocol::Refusal;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::{Notification, RouterConfig};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::hub::message::{Message, from_bus, to_bus};
use crate::hub::{Fanned, Hub, wake};

/// The topic that everything goes by.
const TOPIC: &str = "live";
/// Messages that the router hands over at once.
const BATCH: u64 = 100;
/// Bytes that may be on the bus: as many again stay in its log.
pub(crate) const IN_FLIGHT: usize = 4 << 20;
/// Bytes of one segment of the log. With one message, which may be larger than the rest, more than is ever on its way.
const SEGMENT: usize = 2 * IN_FLIGHT;
/// Bytes that a message takes there beside its own.
const OVERHEAD: usize = 128;
/// Events that may wait for the bus; what comes then is dropped.
const EVENTS_MAX: usize = 10_000;

/// Whom to tell what became of a message.
type Told = oneshot::Sender<Result<Fanned, Refusal>>;

/// What waits for the bus. Bounded: one state message a topic, [`EVENTS_MAX`] events, and of members' messages what their
/// connections may have undecided.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    states: HashMap<String, Message>,
    events: usize,
    messages: VecDeque<(Message, Option<Told>)>,
    /// Sent and not yet fanned out, in order: number, bytes, and whom to tell.
    under_way: VecDeque<(u64, usize, Option<Told>)>,
    bytes: usize,
    stop: bool,
}

impl Outbox {
    /// Leaves a state message unless one of a higher rank waits already.
    pub(crate) fn state(&self, message: Message) {
        let mut waiting = self.lock();
        match waiting.states.get_mut(&message.topic) {
            Some(held) if held.rank > message.rank => return,
            Some(held) => *held = message,
            None => {
                waiting.states.insert(message.topic.clone(), message);
            }
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// Leaves an event. Of too many the newest is dropped.
    pub(crate) fn event(&self, message: Message) {
        let mut waiting = self.lock();
        if waiting.events >= EVENTS_MAX {
            metrics::counter!("millpond_gate_events_dropped_total").increment(1);
            return;
        }
        waiting.events += 1;
        waiting.messages.push_back((message, None));
        drop(waiting);
        self.wake.notify_one();
    }

    /// Leaves a member's message; `told` hears when it has been fanned out.
    pub(crate) fn message(&self, message: Message, told: Option<Told>) {
        self.lock().messages.push_back((message, told));
        self.wake.notify_one();
    }

    /// Messages that wait.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.states.len() + waiting.messages.len()
    }

    /// Ends the bus.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    /// The next message, to be sent under the number `seq`, when there is one and room for it; `None` at the end.
    fn next(&self, seq: u64) -> Option<Message> {
        let mut waiting = self.lock();
        loop {
            if waiting.stop {
                return None;
            }
            if waiting.bytes < IN_FLIGHT
                && let Some((message, told)) = waiting.pop()
            {
                let bytes = OVERHEAD + message.bytes();
                waiting.bytes += bytes;
                waiting.under_way.push_back((seq, bytes, told));
                return Some(message);
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The message `seq` came off the bus: whom to tell. Those before it that did not come are lost.
    fn arrived(&self, seq: u64) -> Option<Told> {
        let mut waiting = self.lock();
        let mut told = None;
        while waiting.under_way.front().is_some_and(|(sent, ..)| *sent <= seq)
            && let Some((sent, bytes, whom)) = waiting.under_way.pop_front()
        {
            waiting.bytes -= bytes;
            if sent == seq {
                told = whom;
            } else {
                // Whoever sent it is told by the drop of `whom`, and sends it again.
                tracing::error!(sent, "the message router has lost a message");
                metrics::counter!("millpond_gate_bus_lost_total").increment(1);
            }
        }
        drop(waiting);
        self.wake.notify_one();
        told
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<(Message, Option<Told>)> {
        let topic = self.states.keys().next().cloned();
        if let Some(state) = topic.and_then(|topic| self.states.remove(&topic)) {
            return Some((state, None));
        }
        let next = self.messages.pop_front()?;
        self.events -= usize::from(next.0.is_event());
        Some(next)
    }
}

/// Starts the router, the thread that sends and the task that fans out. The token is cancelled when one of them has ended.
///
/// # Errors
/// A thread cannot be started, or the router does not answer.
pub(crate) fn start(hub: &Arc<Hub>) -> Result<CancellationToken, std::io::Error> {
    let config = RouterConfig {
        max_connections: 4,
        max_outgoing_packet_count: BATCH,
        max_segment_size: SEGMENT,
        max_segment_count: 2,
        ..RouterConfig::default()
    };
    let router = rumqttd::Router::new(0, config).spawn();
    let (mut tx, _, _) = LinkBuilder::new("sender", router.clone()).build().map_err(Error::other)?;
    let (mut reader, rx, _) = LinkBuilder::new("reader", router).build().map_err(Error::other)?;
    reader.subscribe(TOPIC).map_err(Error::other)?;
    let dead = CancellationToken::new();
    let epoch = Instant::now();
    let (sending, guard) = (hub.clone(), dead.clone().drop_guard());
    std::thread::Builder::new().name("gate-bus".into()).spawn(move || {
        // Dropped however the thread ends.
        let _guard = guard;
        if let Err(error) = send_all(&sending, &mut tx, epoch) {
            tracing::error!(%error, "the message router has ended");
        }
    })?;
    let (hub, ended, guard) = (hub.clone(), dead.clone(), dead.clone().drop_guard());
    tokio::spawn(async move {
        let _guard = guard;
        // The link stays, or the router would take its reader for gone.
        let _reader = reader;
        tokio::select! {
            result = fan_out(&hub, rx, epoch) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the message router has ended");
                }
            }
            () = ended.cancelled() => {}
        }
    });
    Ok(dead)
}

fn send_all(hub: &Hub, tx: &mut LinkTx, epoch: Instant) -> std::io::Result<()> {
    let mut seq = 0;
    while let Some(message) = hub.outbox().next(seq) {
        tx.publish(TOPIC, to_bus(&message, seq, epoch)).map_err(Error::other)?;
        seq += 1;
    }
    Ok(())
}

/// Takes what has come and fans it out; then wakes everybody concerned, once.
async fn fan_out(hub: &Hub, mut rx: LinkRx, epoch: Instant) -> std::io::Result<()> {
    let (mut woken, mut told) = (Vec::new(), Vec::new());
    let mut is_asleep = false;
    loop {
        let mut next = if is_asleep { None } else { rx.next().now_or_never() };
        if next.is_none() {
            wake(&mut woken);
            for (whom, fanned) in told.drain(..) {
                let whom: Told = whom;
                // Whoever asked may have gone.
                let _ = whom.send(fanned);
            }
            if is_asleep {
                rx.wake().await.map_err(Error::other)?;
                is_asleep = false;
            }
            // Those who were woken may run on this thread.
            tokio::task::yield_now().await;
            next = Some(rx.next().await);
        }
        match next.transpose().map_err(Error::other)?.flatten() {
            Some(Notification::Forward(forward)) => {
                let Some((seq, message)) = from_bus(forward.publish.payload, epoch) else { continue };
                let fanned = hub.deliver(message, &mut woken);
                if let Some(whom) = hub.outbox().arrived(seq) {
                    told.push((whom, fanned));
                }
            }
            Some(Notification::Unschedule) => is_asleep = true,
            Some(_) | None => {}
        }
    }
}
