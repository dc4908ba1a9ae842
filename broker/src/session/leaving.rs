//! How a connection ends, and what of its session outlives it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use millpond_protocol::limits;

use super::outbound::Outbound;
use super::unsent::Unsent;
use super::{End, Session};
use crate::backend::Subscription;
use crate::codec::packet::{Connect, Disconnect, Head, Will};
use crate::codec::{Bad, Version, reason};
use crate::hub::message::Message;
use crate::registry::Leaving;

/// What of a session outlives its connection.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) subscriptions: Vec<Subscription>,
    /// Packet ids of QoS 2 messages that were received and not released.
    pub(super) unreleased: HashSet<u16>,
    pub(super) unsent: Unsent,
}

impl Kept {
    /// What is known of a session after a restart.
    pub(crate) fn of(subscriptions: Vec<Subscription>) -> Self {
        Self { subscriptions, ..Self::default() }
    }

    /// Drops the newest of what was on its way until what is left takes no more than `room` bytes; what is left, and how
    /// many messages were dropped.
    pub(crate) fn shorten(&mut self, room: usize) -> (usize, u64) {
        self.unsent.shorten(room)
    }
}

impl Session {
    pub(super) fn on_disconnect(&mut self, said: Disconnect) {
        if let Some(seconds) = said.session_expiry {
            if self.expiry.is_zero() && seconds > 0 {
                self.fail(Bad::protocol("a session that was to end cannot be kept after all"));
                return;
            }
            self.expiry = Duration::from_secs(seconds.into()).min(limits::SESSION_EXPIRY_MAX);
        }
        if said.code == reason::SUCCESS {
            self.will = None;
        }
        self.end = Some(End::Client);
    }

    /// How long it is kept without a connection.
    pub(crate) fn expiry(&self) -> Duration {
        self.expiry
    }

    /// Whether it goes on with what an earlier connection left.
    pub(crate) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Whether it is kept without a connection.
    pub(crate) fn is_kept(&self) -> bool {
        !self.expiry.is_zero() && !self.is_revoked
    }

    /// What remains when the connection has ended.
    pub(crate) fn leaving(&mut self) -> Leaving {
        let will = self.will.take().filter(|_| !self.is_revoked).map(|will| {
            let delay = Duration::from_secs(will.delay.into());
            let Will { topic, payload, qos, retain, details, .. } = *will;
            let head = Head { topic, qos, retain, details, ..Head::default() };
            (delay, Box::new(Message::new(head, payload, (self.id, self.who.id), Instant::now())))
        });
        let outbound = std::mem::replace(&mut self.outbound, Outbound::new(1, 0, Unsent::default()));
        if self.is_kept() {
            self.inbound.forget_held(false);
        }
        let kept = Kept {
            subscriptions: self.subscriptions.list().to_vec(),
            unreleased: self.inbound.received(),
            unsent: outbound.into_unsent(),
        };
        let expiry = if self.is_revoked { Duration::ZERO } else { self.expiry };
        Leaving { expiry, kept, will }
    }
}

/// How long the session of a CONNECT is kept. Over 3.1.1 one that is not clean is kept for as long as may be.
pub(crate) fn expiry_of(connect: &Connect) -> Duration {
    let asked = match connect.version {
        Version::V4 if connect.clean => 0,
        Version::V4 => u32::MAX,
        Version::V5 => connect.session_expiry,
    };
    Duration::from_secs(asked.into()).min(limits::SESSION_EXPIRY_MAX)
}
