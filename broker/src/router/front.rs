//! The thread that makes every call to the router.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet, PingReq, Publish, PublishProperties};
use rumqttd::{Notification, RouterConfig};
use tokio_util::sync::CancellationToken;

use super::{Attached, Link, NoLink, Outbox, RouterDead};

/// Messages that the router hands to a link at once.
const BATCH: u64 = 100;
/// Bytes of one segment of a filter's log. Two are kept: a slow link can be that much behind before it loses messages.
const SEGMENT_BYTES: usize = 256 << 10;
/// How often the router hears something at least.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// The same for a while after it had work: that is when a link can be gone while it is scheduled.
const NUDGE: Duration = Duration::from_millis(5);
const NUDGES: u32 = 100;
/// How long it may take to answer before it counts as dead.
const PONG_MAX: Duration = Duration::from_secs(30);

/// What opening a link gives.
type Opened = (LinkTx, LinkRx, Notification);

/// Starts the router and its front. The token is cancelled when the router is gone.
///
/// # Errors
/// A thread cannot be started, or the router does not answer.
pub(crate) fn start(outbox: Arc<Outbox>, links_max: usize) -> Result<CancellationToken, std::io::Error> {
    let config = RouterConfig {
        max_connections: links_max + 2,
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
    let (publisher, _, _) = open("publisher").map_err(std::io::Error::other)?;
    let (control, pongs, _) = open("control").map_err(std::io::Error::other)?;
    let (ask, asked) = mpsc::channel::<String>();
    let (answer, opened) = mpsc::channel();
    std::thread::Builder::new().name("gate-links".into()).spawn(move || {
        // Ends when the front does.
        while let Ok(client_id) = asked.recv() {
            if answer.send(open(&client_id)).is_err() {
                return;
            }
        }
    })?;
    let dead = CancellationToken::new();
    let guard = dead.clone().drop_guard();
    std::thread::Builder::new().name("gate-router".into()).spawn(move || {
        // Dropped however the thread ends.
        let _guard = guard;
        let pings = Pings { control, pongs, sent: 0, received: 0 };
        let links = Links { ask, opened, links: HashMap::new(), free: Vec::new(), next: 0, max: links_max };
        if let Err(error) = (Front { outbox, publisher, pings, links }).run() {
            tracing::error!(%error, "the message router has ended");
        }
    })?;
    Ok(dead)
}

struct Front {
    outbox: Arc<Outbox>,
    publisher: LinkTx,
    pings: Pings,
    links: Links,
}

impl Front {
    fn run(&mut self) -> Result<(), RouterDead> {
        let mut nudges = NUDGES;
        loop {
            let work = self.outbox.take(if nudges > 0 { NUDGE } else { HEARTBEAT });
            if work.stop {
                return Ok(());
            }
            let is_idle = work.is_empty();
            nudges = if is_idle { nudges.saturating_sub(1) } else { NUDGES };
            for slot in work.closed {
                self.links.close(slot)?;
            }
            let mut answers = Vec::with_capacity(work.attach.len());
            for attach in work.attach {
                // Of a connection that has gone, the slot may be another's by now.
                if attach.reply.is_closed() {
                    continue;
                }
                let answer = self.links.attach(&mut self.pings, &self.outbox, attach.link, attach.filters)?;
                answers.push((attach.reply, answer));
            }
            if is_idle || !answers.is_empty() {
                self.pings.barrier()?;
            }
            for (reply, answer) in answers {
                // Whoever asked may have gone: a link that nobody takes closes itself.
                drop(reply.send(answer));
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
        }
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

/// Round trips over a link that is used for nothing else.
struct Pings {
    control: LinkTx,
    pongs: LinkRx,
    sent: u64,
    received: u64,
}

impl Pings {
    /// Waits until the router has handled everything that it was told so far.
    fn barrier(&mut self) -> Result<(), RouterDead> {
        // A ping that is still under way could carry the next one ahead of what it is to come after.
        self.settle()?;
        self.nudge()?;
        self.settle()
    }

    /// Gives the router an event.
    fn nudge(&mut self) -> Result<(), RouterDead> {
        self.sent += 1;
        send(&mut self.control, Packet::PingReq(PingReq))
    }

    fn settle(&mut self) -> Result<(), RouterDead> {
        let begun = Instant::now();
        while self.received < self.sent {
            match self.pongs.recv_deadline(Instant::now() + NUDGE) {
                Ok(Some(notification)) => {
                    let packet = Option::<Packet>::from(notification);
                    self.received += u64::from(matches!(packet, Some(Packet::PingResp(_))));
                }
                Ok(None) => {}
                Err(LinkError::RecvTimeout(_)) if begun.elapsed() < PONG_MAX => self.nudge()?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The links that connections hold, by slot.
struct Links {
    ask: Sender<String>,
    opened: Receiver<Result<Opened, RouterDead>>,
    links: HashMap<usize, LinkTx>,
    free: Vec<usize>,
    next: usize,
    max: usize,
}

impl Links {
    fn attach(
        &mut self,
        pings: &mut Pings,
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
        let (tx, rx, _) = self.open(pings, slot)?;
        self.links.insert(slot, tx);
        self.subscribe(slot, filters)?;
        let link = Link { slot, rx, outbox: outbox.clone(), must_wake: false };
        Ok(Ok(Attached::New(link)))
    }

    /// Opens a link on the other thread, because the router may have to be woken meanwhile.
    fn open(&mut self, pings: &mut Pings, slot: usize) -> Result<Opened, RouterDead> {
        let gone = || RouterDead("no link can be opened".to_owned());
        self.ask.send(format!("link-{slot}")).map_err(|_| gone())?;
        let begun = Instant::now();
        loop {
            match self.opened.recv_timeout(NUDGE) {
                Ok(opened) => return opened,
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < PONG_MAX => pings.nudge()?,
                Err(_) => return Err(gone()),
            }
        }
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
    match tx.send(packet).now_or_never() {
        Some(sent) => Ok(sent.map(|_| ())?),
        None => Err(RouterDead("a send did not block".to_owned())),
    }
}
