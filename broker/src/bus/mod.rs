//! The bus: puts the live messages of everybody into one order, and hands them to the one reader that fans them out.
//!
//! It is the embedded router of rumqttd, and this folder alone knows it: two links, one fixed topic, and nothing that the
//! router would have to forget. What its behaviour imposes:
//!
//! - Its calls block, so one thread makes them, and everybody else leaves messages in the [`Outbox`].
//! - Its log keeps two segments and drops the oldest, silently for a reader that is slower. So no more than [`IN_FLIGHT`]
//!   bytes are between sender and reader, which is less than a segment; and each message has a number, so a loss is seen.
//! - It is one queue for all pools. So there is little in it at a time ([`UNDER_WAY`], [`WORK`]), and the rest waits in [`lines`].
//! - It delivers nothing whose expiry has passed and stops there, so expiry travels inside the message.
//! - When its thread has died, every call fails: the process ends with an error, and its supervisor starts it again.

mod lines;
mod waking;

use std::collections::VecDeque;
use std::io::Error;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use millpond_protocol::{Code, Refusal};
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::{Notification, RouterConfig};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::lines::{Lines, Next};
use self::waking::Waking;
use crate::hub::mailbox::Mailbox;
use crate::hub::message::{Message, from_bus, to_bus};
use crate::hub::{Fanned, Hub};

/// The topic that everything goes by.
const TOPIC: &str = "live";
/// Messages that the router hands over at once.
const HANDED_OVER: u64 = 100;
/// Bytes that may be on the bus: as many again stay in its log.
pub(crate) const IN_FLIGHT: usize = 4 << 20;
/// Bytes of one segment of the log. With one message, which may be larger than the rest, more than is ever on its way.
const SEGMENT: usize = 2 * IN_FLIGHT;
/// Bytes that a message takes there beside its own.
const OVERHEAD: usize = 128;
/// Messages that may be on the bus: enough that neither end waits for the other, few enough for whoever waits behind them.
const UNDER_WAY: usize = 32;
/// Microseconds of fan-out that may be on the bus, and one message more.
const WORK: u64 = 2_000;
/// How long messages are fanned out before others' tasks have their turn.
const SLICE: Duration = Duration::from_millis(1);

/// Who published a message, and is told what became of it.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Of its session.
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) told: Told,
}

/// Whom to tell what became of a message.
type Told = oneshot::Sender<Result<Fanned, Refusal>>;

/// What waits for the bus. Bounded: one state message a topic, so many events, and of members' messages what their
/// connections may have undecided.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Lines,
    /// Sent and not yet fanned out, in order.
    under_way: VecDeque<Sent>,
    bytes: usize,
    /// What these will cost, perhaps.
    work: u64,
    stop: bool,
}

#[derive(Debug)]
struct Sent {
    seq: u64,
    pool: Arc<str>,
    bytes: usize,
    cost: u64,
    publisher: Option<Publisher>,
}

impl Outbox {
    /// Leaves a state message unless one of a higher rank waits already.
    pub(crate) fn state(&self, message: Message) {
        self.lock().lines.state(message);
        self.wake.notify_one();
    }

    /// Leaves an event. Of too many the newest is dropped.
    pub(crate) fn event(&self, message: Message) {
        if !self.lock().lines.event(message) {
            metrics::counter!("millpond_gate_events_dropped_total").increment(1);
        }
        self.wake.notify_one();
    }

    /// Leaves a member's message; `publisher` hears when it has been fanned out.
    pub(crate) fn message(&self, message: Message, publisher: Option<Publisher>) {
        self.lock().lines.message(message, publisher);
        self.wake.notify_one();
    }

    /// Messages that wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().lines.len()
    }

    /// The most that ever waited at a time.
    pub(crate) fn most(&self) -> usize {
        self.lock().lines.most()
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
            if waiting.has_room()
                && let Some(Next { pool, message, publisher, cost }) = waiting.lines.pop()
            {
                if publisher.as_ref().is_some_and(|publisher| publisher.mailbox.is_revoked()) {
                    revoked(publisher);
                    waiting.lines.went_nowhere(&pool);
                    continue;
                }
                let bytes = OVERHEAD + message.bytes();
                waiting.bytes += bytes;
                waiting.work += cost;
                waiting.under_way.push_back(Sent { seq, pool, bytes, cost, publisher });
                return Some(message);
            }
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the right by which the message `seq` was published has ended while it was on the bus.
    fn is_revoked(&self, seq: u64) -> bool {
        let waiting = self.lock();
        let sent = waiting.under_way.iter().find(|sent| sent.seq == seq);
        sent.and_then(|sent| sent.publisher.as_ref()).is_some_and(|publisher| publisher.mailbox.is_revoked())
    }

    /// The message `seq` came off the bus and has cost so many microseconds: whom to tell. Those before it that did not come
    /// are lost.
    fn arrived(&self, seq: u64, cost: u64) -> Option<Told> {
        let mut waiting = self.lock();
        let mut told = None;
        while waiting.under_way.front().is_some_and(|sent| sent.seq <= seq)
            && let Some(sent) = waiting.under_way.pop_front()
        {
            waiting.bytes -= sent.bytes;
            waiting.work -= sent.cost;
            if sent.seq == seq {
                waiting.lines.has_cost(&sent.pool, cost);
                told = sent.publisher.map(|publisher| publisher.told);
            } else {
                waiting.lines.went_nowhere(&sent.pool);
                // Whoever sent it is told by the drop of `publisher`, and sends it again.
                tracing::error!(sent = sent.seq, "the message router has lost a message");
                metrics::counter!("millpond_gate_bus_lost_total").increment(1);
            }
        }
        // The thread that sends fills it up again in one go.
        let is_low = waiting.under_way.len() <= UNDER_WAY / 2;
        drop(waiting);
        if is_low {
            self.wake.notify_one();
        }
        told
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.bytes < IN_FLIGHT && self.under_way.len() < UNDER_WAY && self.work < WORK
    }
}

/// What was published under a right that has ended goes to nobody.
fn revoked(publisher: Option<Publisher>) {
    if let Some(publisher) = publisher {
        // Its connection has gone, perhaps.
        let _ = publisher.told.send(Err(right_has_ended()));
    }
}

fn right_has_ended() -> Refusal {
    Refusal::new(Code::Unauthorized, "the credentials are no longer valid")
}

/// Starts the router, the thread that sends and the task that fans out. The token is cancelled when one of them has ended.
///
/// # Errors
/// A thread cannot be started, or the router does not answer.
pub(crate) fn start(hub: &Arc<Hub>) -> Result<CancellationToken, std::io::Error> {
    let config = RouterConfig {
        max_connections: 4,
        max_outgoing_packet_count: HANDED_OVER,
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

/// Takes what has come and fans it out, and wakes everybody concerned, in turns with others' tasks.
async fn fan_out(hub: &Hub, mut rx: LinkRx, epoch: Instant) -> std::io::Result<()> {
    let (mut waking, mut woken) = (Waking::default(), Vec::new());
    loop {
        let mut next = if waking.is_empty() { Some(rx.next().await) } else { rx.next().now_or_never() };
        let mut slice = Duration::ZERO;
        while let Some(notification) = next {
            match notification.map_err(Error::other)? {
                Some(Notification::Forward(forward)) => {
                    slice += fan_out_one(hub, forward.publish.payload, epoch, &mut waking, &mut woken);
                }
                // What there was has been taken.
                Some(Notification::Unschedule) => rx.wake().await.map_err(Error::other)?,
                Some(_) | None => {}
            }
            // There may always be more.
            next = if slice < SLICE { rx.next().now_or_never() } else { None };
        }
        waking.next();
        // Those who were woken may run on this thread.
        tokio::task::yield_now().await;
    }
}

/// Fans out one message, and how long that took.
fn fan_out_one(
    hub: &Hub,
    payload: Bytes,
    epoch: Instant,
    waking: &mut Waking,
    woken: &mut Vec<Arc<Mailbox>>,
) -> Duration {
    let Some((seq, message)) = from_bus(payload, epoch) else { return Duration::ZERO };
    let pool = message.pool().to_owned();
    let begun = Instant::now();
    let fanned = if hub.outbox().is_revoked(seq) {
        Err(right_has_ended())
    } else {
        hub.deliver(message, begun, woken)
    };
    let cost = begun.elapsed();
    let whom = hub.outbox().arrived(seq, cost.as_micros() as u64);
    waking.add(&pool, woken, whom, fanned);
    cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::EndReason;

    fn message(text: &'static str) -> Message {
        Message::event("app/p/x".into(), Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn what_waits_for_the_bus_goes_nowhere_once_its_publisher_was_revoked() {
        let (outbox, mailbox) = (Outbox::default(), Hub::default().mailbox(&"p".parse().unwrap(), None));
        let (told, mut hears) = oneshot::channel();
        let (no_more, _) = oneshot::channel();
        outbox.message(message("on the bus"), Some(Publisher { mailbox: mailbox.clone(), told: no_more }));
        outbox.message(message("stolen"), Some(Publisher { mailbox: mailbox.clone(), told }));
        outbox.message(message("others'"), None);
        assert_eq!(outbox.next(0), Some(message("on the bus")));
        assert!(!outbox.is_revoked(0));
        mailbox.end(EndReason::Revoked);
        assert!(outbox.is_revoked(0));
        assert_eq!(outbox.next(1), Some(message("others'")));
        assert!(!outbox.is_revoked(1));
        let refused = hears.try_recv().unwrap().map(drop);
        assert_eq!(refused.map_err(|refusal| refusal.code), Err(Code::Unauthorized));
    }

    #[test]
    fn what_is_dear_waits_in_line_and_not_on_the_bus() {
        let outbox = Outbox::default();
        let sent = |seq| {
            let has_room = outbox.lock().has_room();
            has_room.then(|| outbox.next(seq))
        };
        let mut seq = 0;
        let mut send_all = || {
            let first = seq;
            while sent(seq).is_some() {
                seq += 1;
            }
            first..seq
        };
        (0..200).for_each(|_| outbox.message(message(""), None));
        let cheap = send_all();
        assert_eq!(cheap.clone().count(), UNDER_WAY);
        cheap.for_each(|seq| drop(outbox.arrived(seq, WORK / 2)));
        let dear = send_all();
        assert_eq!(dear.clone().count(), 2);
        dear.for_each(|seq| drop(outbox.arrived(seq, 3 * WORK)));
        assert_eq!(send_all().count(), 1, "one always has room");
    }
}
