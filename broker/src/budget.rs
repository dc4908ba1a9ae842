//! The bytes of publications that all connections together may hold: read, and not committed.
//!
//! Long packets and short ones draw on reserves of their own, so asks, beats and deliveries never queue behind bundles
//! that come in slowly. A packet's bytes are reserved whole before they are read: if half-read packets could hold all
//! there is, none would ever be whole.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec::frame::LONG;

/// Bytes of publications, by reserve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Of packets of at most [`LONG`] bytes.
    pub(crate) short: usize,
    /// Of longer ones.
    pub(crate) long: usize,
}

impl Held {
    /// Adds a packet of so many bytes.
    pub(crate) fn add(&mut self, packet: usize) {
        *self.part(packet) += packet;
    }

    /// Takes such a packet away again.
    pub(crate) fn subtract(&mut self, packet: usize) {
        *self.part(packet) -= packet;
    }

    fn part(&mut self, packet: usize) -> &mut usize {
        if packet > LONG { &mut self.long } else { &mut self.short }
    }
}

/// What there is for all connections.
#[derive(Debug)]
pub(crate) struct Budget {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    max: usize,
}

impl Budget {
    /// A quarter of `bytes` for short packets, the rest for long ones; each at least what one packet needs.
    pub(crate) fn new(bytes: usize, packet_max: usize) -> Self {
        let short = (bytes / 4).clamp(LONG, Semaphore::MAX_PERMITS);
        let long = bytes.saturating_sub(short).max(packet_max).min(Semaphore::MAX_PERMITS);
        Self {
            short: Arc::new(Semaphore::new(short)),
            long: Arc::new(Semaphore::new(long)),
            max: short + long,
        }
    }

    /// Bytes that are held.
    pub(crate) fn used(&self) -> usize {
        self.max.saturating_sub(self.short.available_permits() + self.long.available_permits())
    }

    fn of(&self, packet: usize) -> &Arc<Semaphore> {
        if packet > LONG { &self.long } else { &self.short }
    }
}

/// What one connection holds of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    short: Option<OwnedSemaphorePermit>,
    long: Option<OwnedSemaphorePermit>,
}

impl Share {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, short: None, long: None }
    }

    /// Reserves a packet's bytes if they are there and nobody waits for them.
    pub(crate) fn try_reserve(&mut self, packet: usize) -> bool {
        let permit = self.budget.of(packet).clone().try_acquire_many_owned(permits(packet));
        permit.map(|permit| self.add(packet, permit)).is_ok()
    }

    /// Waits for a packet's bytes, in order of asking. What comes is for [`Share::add`]; `None`: never.
    pub(crate) fn reserve(&self, packet: usize) -> BoxFuture<'static, Option<OwnedSemaphorePermit>> {
        let acquired = self.budget.of(packet).clone().acquire_many_owned(permits(packet));
        Box::pin(async move { acquired.await.ok() })
    }

    /// Adds what was reserved for a packet.
    pub(crate) fn add(&mut self, packet: usize, permit: OwnedSemaphorePermit) {
        match if packet > LONG { &mut self.long } else { &mut self.short } {
            Some(held) => held.merge(permit),
            none => *none = Some(permit),
        }
    }

    /// Gives back what is not needed.
    pub(crate) fn keep(&mut self, needed: Held) {
        for (held, needed) in [(&mut self.short, needed.short), (&mut self.long, needed.long)] {
            if needed == 0 {
                *held = None;
            } else if let Some(held) = held {
                drop(held.split(held.num_permits().saturating_sub(needed)));
            }
        }
    }
}

/// A packet has less than 2^28 bytes.
fn permits(packet: usize) -> u32 {
    u32::try_from(packet).unwrap_or(u32::MAX)
}
