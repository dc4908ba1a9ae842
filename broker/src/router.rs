//! The embedded router, and the only file that knows `rumqttd`.
//!
//! It fans live pool-wide messages out: state topics and events. It may drop anything at any time, so a [`Link`] reports
//! jumps, and nothing that matters depends on it. What its behaviour imposes:
//!
//! - Its calls block, so one thread ([`Front`]) makes all of them; everybody else leaves work in the [`Outbox`].
//! - It never frees logs, filters or client ids: links subscribe to a few fixed filters of a pool (the session filters
//!   further), and client ids are slot numbers that are used again.
//! - An event for a link that it has already removed ends it. A [`Link`] is therefore closed by the front alone, after
//!   the last event of its owner.
//! - A link that was removed while it was scheduled can leave it waiting for any next event: the front's heartbeat is one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet, PingReq, Publish, PublishProperties};
use rumqttd::{Notification, RouterConfig};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::backend::StateMessage;

/// Events that may wait for the router; older ones are dropped.
const EVENTS_MAX: usize = 10_000;
/// Messages that the router hands to a link at once.
const BATCH: u64 = 100;
/// Bytes of one segment of a filter's log. Two are kept: a slow link can be that much behind before it loses messages.
const SEGMENT_BYTES: usize = 256 << 10;
/// How often the router hears something at least.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long its answer may take before it counts as dead.
const PONG_MAX: Duration = Duration::from_secs(30);

/// The router is gone: the process should end and be started again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RouterDead(String);

impl From<LinkError> for RouterDead {
    fn from(error: LinkError) -> Self {
        Self(error.to_string())
    }
}

/// Why a connection got no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLink {
    /// There are as many links as there may be.
    Full,
    /// The router is gone.
    Dead,
}

/// What waits for the front. Bounded: one state message a topic, [`EVENTS_MAX`] events, one request a connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    states: HashMap<String, StateMessage>,
    events: VecDeque<(String, Bytes)>,
    attach: Vec<Attach>,
    closed: Vec<usize>,
    stop: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.states.is_empty()
            && self.events.is_empty()
            && self.attach.is_empty()
            && self.closed.is_empty()
            && !self.stop
    }
}

#[derive(Debug)]
struct Attach {
    link: Option<usize>,
    filters: Vec<String>,
    reply: oneshot::Sender<Result<Attached, NoLink>>,
}

/// The answer to [`Outbox::attach`].
#[derive(Debug)]
pub(crate) enum Attached {
    /// A link of its own.
    New(Link),
    /// The link that it already has.
    Same,
}

impl Outbox {
    /// Leaves a state message for the router unless one of a higher rank waits already.
    pub(crate) fn state(&self, message: StateMessage) {
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

    /// Leaves an event for the router.
    pub(crate) fn event(&self, topic: String, payload: Bytes) {
        let mut waiting = self.lock();
        if waiting.events.len() >= EVENTS_MAX {
            waiting.events.pop_front();
            metrics::counter!("millpond_gate_events_dropped_total").increment(1);
        }
        waiting.events.push_back((topic, payload));
        drop(waiting);
        self.wake.notify_one();
    }

    /// Subscribes to fixed filters, with a new link or the one of slot `link`. When this returns, the router has the
    /// subscription ahead of whatever is published from then on.
    pub(crate) async fn attach(
        self: Arc<Self>,
        link: Option<usize>,
        filters: Vec<String>,
    ) -> Result<Attached, NoLink> {
        let (reply, answer) = oneshot::channel();
        self.lock().attach.push(Attach { link, filters, reply });
        self.wake.notify_one();
        answer.await.unwrap_or(Err(NoLink::Dead))
    }

    /// Ends the front.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    fn close(&self, slot: usize) {
        self.lock().closed.push(slot);
        self.wake.notify_one();
    }

    /// Everything that waits, after [`HEARTBEAT`] at the latest.
    fn take(&self) -> Waiting {
        let waiting = self.lock();
        let idle = |waiting: &mut Waiting| {
            waiting.states.is_empty()
                && waiting.events.is_empty()
                && waiting.attach.is_empty()
                && waiting.closed.is_empty()
                && !waiting.stop
        };
        let (mut waiting, _) =
            self.wake.wait_timeout_while(waiting, HEARTBEAT, idle).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut waiting)
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the router and its front. The token is cancelled when the router is gone.
///
/// # Errors
/// The front's thread cannot be started, or the router does not answer.
pub(crate) fn start(outbox: Arc<Outbox>, links_max: usize) -> Result<CancellationToken, std::io::Error> {
    let config = RouterConfig {
        max_connections: links_max + 1,
        max_outgoing_packet_count: BATCH,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: 2,
        ..RouterConfig::default()
    };
    let router = rumqttd::Router::new(0, config).spawn();
    // The sender's type cannot be named, hence the closure.
    let open = move |client_id: &str| -> Result<Opened, RouterDead> {
        Ok(LinkBuilder::new(client_id, router.clone()).build()?)
    };
    let (publisher, own, _) = open("publisher").map_err(std::io::Error::other)?;
    let dead = CancellationToken::new();
    let guard = dead.clone().drop_guard();
    std::thread::Builder::new().name("gate-router".into()).spawn(move || {
        // Dropped however the thread ends.
        let _guard = guard;
        let links = Links { open, links: HashMap::new(), free: Vec::new(), next: 0, max: links_max };
        let mut front = Front { outbox, publisher, own, links };
        if let Err(error) = front.run() {
            tracing::error!(%error, "the message router has ended");
        }
    })?;
    Ok(dead)
}

/// What opening a link gives.
type Opened = (LinkTx, LinkRx, Notification);

/// The thread that talks to the router.
struct Front<O> {
    outbox: Arc<Outbox>,
    publisher: LinkTx,
    own: LinkRx,
    links: Links<O>,
}

impl<O> Front<O>
where
    O: Fn(&str) -> Result<Opened, RouterDead>,
{
    fn run(&mut self) -> Result<(), RouterDead> {
        loop {
            let work = self.outbox.take();
            if work.stop {
                return Ok(());
            }
            let is_idle = work.is_empty();
            for slot in work.closed {
                self.links.close(slot)?;
            }
            for attach in work.attach {
                let answer = self.links.attach(&self.outbox, attach.link, attach.filters)?;
                // Whoever asked may have gone: a link that nobody takes closes itself.
                drop(attach.reply.send(answer));
            }
            for (topic, message) in work.states {
                let properties = PublishProperties {
                    user_properties: message.user_properties,
                    content_type: message.content_type,
                    ..PublishProperties::default()
                };
                self.publish(topic, message.rank, &message.payload, Some(properties))?;
            }
            for (topic, payload) in work.events {
                self.publish(topic, 0, &payload, None)?;
            }
            if is_idle {
                self.heartbeat()?;
            }
        }
    }

    /// One round trip.
    fn heartbeat(&mut self) -> Result<(), RouterDead> {
        send(&mut self.publisher, Packet::PingReq(PingReq))?;
        let deadline = Instant::now() + PONG_MAX;
        // A wake-up without a message is possible.
        while self.own.recv_deadline(deadline)?.is_none() {}
        Ok(())
    }

    fn publish(
        &mut self,
        topic: String,
        rank: u64,
        payload: &[u8],
        properties: Option<PublishProperties>,
    ) -> Result<(), RouterDead> {
        let mut ranked = BytesMut::with_capacity(8 + payload.len());
        ranked.put_u64(rank);
        ranked.put_slice(payload);
        let publish = Publish::new(Bytes::from(topic), ranked.freeze(), false);
        send(&mut self.publisher, Packet::Publish(publish, properties))
    }
}

/// The links that connections hold, by slot.
struct Links<O> {
    open: O,
    links: HashMap<usize, LinkTx>,
    free: Vec<usize>,
    next: usize,
    max: usize,
}

impl<O> Links<O>
where
    O: Fn(&str) -> Result<Opened, RouterDead>,
{
    fn attach(
        &mut self,
        outbox: &Arc<Outbox>,
        link: Option<usize>,
        filters: Vec<String>,
    ) -> Result<Result<Attached, NoLink>, RouterDead> {
        if let Some(slot) = link {
            self.subscribe(slot, filters)?;
            return Ok(Ok(Attached::Same));
        }
        if self.links.len() >= self.max {
            return Ok(Err(NoLink::Full));
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let (tx, rx, _) = (self.open)(&format!("link-{slot}"))?;
        self.links.insert(slot, tx);
        self.subscribe(slot, filters)?;
        let link = Link { slot, rx, outbox: outbox.clone(), must_wake: false };
        Ok(Ok(Attached::New(link)))
    }

    fn subscribe(&mut self, slot: usize, filters: Vec<String>) -> Result<(), RouterDead> {
        if let Some(tx) = self.links.get_mut(&slot) {
            for filter in filters {
                tx.subscribe(filter)?;
            }
        }
        Ok(())
    }

    fn close(&mut self, slot: usize) -> Result<(), RouterDead> {
        if let Some(mut tx) = self.links.remove(&slot) {
            let disconnect = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
            send(&mut tx, Packet::Disconnect(disconnect, None))?;
            self.free.push(slot);
        }
        Ok(())
    }
}

/// `LinkTx::send` is async in name only: it blocks on the router's channel and is ready at its first poll.
fn send(tx: &mut LinkTx, packet: Packet) -> Result<(), RouterDead> {
    use futures_util::FutureExt;
    match tx.send(packet).now_or_never() {
        Some(sent) => Ok(sent.map(|_| ())?),
        None => Err(RouterDead("a send did not block".to_owned())),
    }
}

/// A connection's way to live pool-wide messages. Closed when dropped.
pub(crate) struct Link {
    slot: usize,
    rx: LinkRx,
    outbox: Arc<Outbox>,
    must_wake: bool,
}

/// A live pool-wide message.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) topic: String,
    pub(crate) rank: u64,
    pub(crate) payload: Bytes,
    pub(crate) user_properties: Vec<(String, String)>,
    pub(crate) content_type: Option<String>,
    /// Its place in the log of the filter that brought it: a jump means loss.
    pub(crate) offset: u64,
}

impl Link {
    /// What names the link in [`Outbox::attach`].
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// The next message. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Live, RouterDead> {
        loop {
            if self.must_wake {
                self.rx.wake().await?;
                self.must_wake = false;
            }
            match self.rx.next().await? {
                Some(Notification::Forward(forward)) => {
                    let mut payload = forward.publish.payload;
                    let (Ok(topic), true) =
                        (String::from_utf8(forward.publish.topic.to_vec()), payload.len() >= 8)
                    else {
                        continue;
                    };
                    let rank = payload.get_u64();
                    let properties = forward.properties.unwrap_or_default();
                    return Ok(Live {
                        topic,
                        rank,
                        payload,
                        user_properties: properties.user_properties,
                        content_type: properties.content_type,
                        offset: forward.cursor.map_or(0, |cursor| cursor.1),
                    });
                }
                Some(Notification::Unschedule) => self.must_wake = true,
                Some(Notification::Disconnect(..)) => {
                    return Err(RouterDead("it disconnected a link".to_owned()));
                }
                Some(_) | None => {}
            }
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outbox.close(self.slot);
    }
}
