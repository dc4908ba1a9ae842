//! The coordinator's way to the connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use millpond_protocol::{MemberName, PoolName, limits};

use crate::backend::{MemberMessage, StateMessage};
use crate::hub::Hub;
use crate::hub::message::Message;
use crate::registry::{EndReason, Registry};

/// Sends to connections. Cheap to clone; no call blocks or waits. It exists before the gate, so that the coordinator
/// can be built with it; what is sent before [`Gate::start`](crate::Gate::start) reaches nobody.
#[derive(Debug, Clone, Default)]
pub struct GateHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Arc<Registry>,
    hub: Arc<Hub>,
    /// Bytes that may wait for one connection: configuration, known when the gate starts.
    bytes_max: AtomicUsize,
}

impl Default for Shared {
    fn default() -> Self {
        let hub = Arc::<Hub>::default();
        Self {
            registry: Arc::new(Registry::new(hub.clone())),
            hub,
            bytes_max: AtomicUsize::new(limits::OUT_QUEUE_MAX),
        }
    }
}

impl GateHandle {
    /// A handle to a gate that is still to be started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends to the live connections of `member` that subscribe to the message's topic. A connection whose queue is full
    /// is ended.
    pub fn to_member(&self, pool: &PoolName, member: &MemberName, message: MemberMessage) {
        let bytes_max = self.shared.bytes_max.load(Ordering::Relaxed);
        self.shared.registry.send(pool, member, &message, bytes_max);
    }

    /// Publishes the new current message of a state topic to the live connections of the pool. Of several that wait to
    /// be sent, the one with the highest rank is.
    pub fn publish_state(&self, message: StateMessage) {
        self.shared.hub.outbox().state(message.into());
    }

    /// Publishes to the live connections of the pool that subscribe to `topic`. May be lost under load.
    pub fn publish_event(&self, topic: impl Into<String>, payload: impl Into<Bytes>) {
        self.shared.hub.outbox().event(Message::event(topic.into(), payload.into()));
    }

    /// New receipt rows of `member` exist: its connections that subscribe to receipts fetch them.
    pub fn receipts_ready(&self, pool: &PoolName, member: &MemberName) {
        self.shared.registry.receipts_ready(pool, member);
    }

    /// Ends the connections of `member`, and has a sign-in that is under way checked again.
    pub fn disconnect_member(&self, pool: &PoolName, member: &MemberName, reason: EndReason) {
        self.shared.registry.end(pool, member, reason);
    }

    /// Ends every connection, so that each signs in again and is told everything as it stands.
    pub fn disconnect_all(&self) {
        self.shared.registry.end_all(EndReason::Behind);
    }

    /// Forgets the retained messages of a pool: it was removed, or another has its name.
    pub fn forget_retained(&self, pool: &PoolName) {
        self.shared.hub.forget_retained(pool);
    }

    /// How many connections have signed in.
    pub fn connections(&self) -> usize {
        self.shared.registry.count()
    }

    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.shared.hub
    }

    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        self.shared.bytes_max.store(bytes_max, Ordering::Relaxed);
    }
}
