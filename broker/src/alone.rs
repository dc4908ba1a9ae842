//! The hub without a gate around it, for a benchmark that puts another router beside it: subscribers have a session's machine
//! each and no socket. Built with the feature `alone` only, which nothing that users run has.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use millpond_protocol::{PoolName, Principal, Refusal, Role};
use tokio_util::sync::CancellationToken;

use crate::bus;
use crate::codec::Version;
use crate::codec::packet::{Connect, Head, Packet, Replay};
use crate::config::GateConfig;
use crate::hub::Hub;
use crate::hub::mailbox::Mailbox;
use crate::hub::message::Message;
use crate::hub::trie::Options;
use crate::hub::turns::Work;
use crate::session::Session;

/// A hub on its bus, and one pool's subscribers.
pub struct Alone {
    hub: Arc<Hub>,
    pool: PoolName,
    publisher: Arc<Mailbox>,
    config: Arc<GateConfig>,
    _dead: CancellationToken,
}

/// One subscriber, at QoS 1 over MQTT 3.1.1.
pub struct Subscriber {
    mailbox: Arc<Mailbox>,
    session: Session,
}

impl Alone {
    /// Starts it, on the runtime that calls, for the app topics of `pool`.
    ///
    /// # Errors
    /// The router that is its bus cannot be started.
    pub fn start(pool: PoolName) -> std::io::Result<Self> {
        let hub = Arc::new(Hub::default());
        let dead = bus::start(&hub)?;
        let publisher = hub.mailbox(&pool, None);
        Ok(Self { hub, pool, publisher, config: Arc::new(GateConfig::default()), _dead: dead })
    }

    /// Adds member `id`, subscribed to `filter`.
    pub fn subscriber(&self, id: i64, filter: &str) -> Option<Subscriber> {
        let name = format!("m{id}").parse().ok()?;
        let who = Principal { pool: self.pool.clone(), name, role: Role::Listener, id };
        let mailbox = self.hub.mailbox(&self.pool, None);
        let (config, now) = (self.config.clone(), Instant::now());
        let session = Session::new(who, &Connect::plain(Version::V4), config, now, (mailbox.id(), None));
        let options = Options { qos: 1, ..Options::default() };
        self.hub.subscribe(&self.pool, &mailbox, filter, options, Replay::Never, &mut Work::default());
        Some(Subscriber { mailbox, session })
    }

    /// Publishes at QoS 1, as a session does for its client: the future resolves when that would be acknowledged.
    pub fn publish(
        &self,
        topic: &str,
        payload: Bytes,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let head = Head { topic: topic.to_owned(), qos: 1, ..Head::default() };
        self.hub.publish(Message::new(head, payload, (0, 0), Instant::now()), &self.publisher)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.hub.outbox().stop();
    }
}

impl Subscriber {
    /// Waits for packets to its client, which are to be taken off. None: it was too far behind, and is ended.
    pub async fn packets(&mut self) -> Option<impl Buf + '_> {
        self.session.out.shrink();
        self.session.pump();
        while !self.session.out.has_remaining() {
            self.mailbox.holds(self.session.app_bytes());
            let taken = self.mailbox.take(self.session.wants()).await;
            if taken.end.is_some() {
                return None;
            }
            self.session.copies(taken.copies, Instant::now());
            self.session.pump();
        }
        Some(&mut self.session.out)
    }

    /// Its client sends PUBACK for packet `id`.
    pub fn acknowledge(&mut self, id: u16) {
        self.session.packet(Packet::PubAck(id), Instant::now());
    }
}
