//! The embedded router, and the only folder that knows `rumqttd`.
//!
//! It fans live pool-wide messages out: state topics and events. A link that falls behind loses the oldest of a filter's
//! log and never the newest, so a state topic, with a filter of its own, ends with what is current; lost events are for
//! the feed over HTTP to bring. What its behaviour imposes:
//!
//! - Its calls block, so one thread (`front`) makes all of them; everybody else leaves work in the [`Outbox`].
//! - It never frees logs, filters or client ids: links subscribe to a few fixed filters of a pool (the session filters
//!   further), and client ids are slot numbers that are used again.
//! - An event for a link that it has already removed ends it. A [`Link`] is therefore closed by the front alone, after
//!   the last event of its owner.
//! - It takes all packets of a link at the first event of that link, so a packet can overtake those of other links: a
//!   publish that is sent after a subscription can be handled before it. The front's pings come in between (`Pings::barrier`).
//! - A link that was removed while it was scheduled can leave it asleep until any next event, although others have
//!   messages to get: the front sends it pings, while it opens links too.

mod front;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rumqttd::Notification;
use rumqttd::local::{LinkError, LinkRx};
use tokio::sync::oneshot;

pub(crate) use self::front::start;
use crate::backend::StateMessage;

/// Events that may wait for the router; older ones are dropped.
const EVENTS_MAX: usize = 10_000;

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

    /// Messages that wait for the router.
    pub(crate) fn len(&self) -> usize {
        let waiting = self.lock();
        waiting.states.len() + waiting.events.len()
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

    /// Everything that waits, after `timeout` at the latest.
    fn take(&self, timeout: Duration) -> Waiting {
        let waiting = self.lock();
        let (mut waiting, _) = self
            .wake
            .wait_timeout_while(waiting, timeout, |waiting| waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut waiting)
    }

    /// Nothing panics under this lock, so a poisoned one still holds a consistent value.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
