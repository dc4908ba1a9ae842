//! What a connection reads: when it may, what it holds of the budget meanwhile, and by when a packet must be whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use millpond_protocol::Principal;
use tokio::sync::OwnedSemaphorePermit;

use crate::budget::Share;
use crate::codec::frame::{Framer, LONG, Next};
use crate::codec::packet::Packet;
use crate::codec::{Version, read};
use crate::config::GateConfig;
use crate::gate::Shared;
use crate::rate::{Load, Meter};
use crate::session::Session;
use crate::socket::Due;

/// Bytes of the read buffer of an idle connection, and the most that it grows to for small packets.
const READ_MIN: usize = 2 << 10;
const READ_MAX: usize = 64 << 10;
/// How late a gate that does not stand still may look at what is due.
const PUNCTUAL: Duration = Duration::from_millis(100);
/// Packets of one connection in one go, after which it is others' turn: what was read at once may be thousands. Of a SUBSCRIBE
/// each filter counts as one.
const TURN: usize = 64;

/// The incoming half of a connection.
pub(crate) struct Intake {
    /// What was read, and is no whole packet yet.
    pub(crate) stream: BytesMut,
    /// The wait for the budget of the next packet.
    pub(crate) charging: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    framer: Framer,
    share: Share,
    /// Of its member's rate and its pool's, where there are some.
    meter: Option<Meter>,
    /// Bytes that were read and not charged yet.
    unpaid: usize,
    /// Nothing is read before then: the member, or the pool, is over its rate.
    paused: Option<Instant>,
    config: Arc<GateConfig>,
    read_size: usize,
    /// Bytes of the packet that is being read, once they were asked for.
    packet: usize,
    /// When it must be whole.
    whole_by: Option<Instant>,
    /// When the next byte of it must be there.
    byte_by: Due,
    read_at: Instant,
    /// The longest time between two reads of the packet that is being read.
    gap: Duration,
    stopped: bool,
}

impl Intake {
    /// Of a connection of `who`. `rest`: what came behind CONNECT.
    pub(crate) fn new(version: Version, rest: BytesMut, who: &Principal, gate: &Shared) -> Self {
        let config = gate.config.clone();
        // What is announced to clients is accepted, whatever is read past.
        let framer = Framer::new(version, config.read_past_max.max(config.packet_max()));
        let meter = gate.rates.meter(who);
        // Coming back is no way around a rate.
        let owed = meter.as_ref().and_then(|meter| meter.charge(Instant::now(), Load::default()));
        Self {
            unpaid: rest.len(),
            stream: rest,
            charging: None,
            framer,
            share: Share::new(gate.budget.clone()),
            meter,
            paused: owed.map(|pause| pause.until),
            config,
            read_size: READ_MIN,
            packet: 0,
            whole_by: None,
            byte_by: Due::default(),
            read_at: Instant::now(),
            gap: Duration::ZERO,
            stopped: false,
        }
    }

    /// Whether the gate reads from this connection: if not, it cannot blame the client for its silence.
    pub(crate) fn listens(&self, session: &Session) -> bool {
        !self.stopped && self.charging.is_none() && self.paused.is_none() && session.has_room()
    }

    /// Reads nothing more: what is half read, or waits for the budget, is given up.
    pub(crate) fn stop(&mut self, session: &Session) {
        // Nor is leaving in the middle of a packet.
        self.pay(0);
        self.stopped = true;
        self.charging = None;
        self.stream = BytesMut::new();
        (self.packet, self.whole_by) = (0, None);
        self.give_back(session);
    }

    /// Whether [`Intake::stop`] was called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Feeds the session whole packets that it has room for, at most [`TURN`]; whether there may be more.
    pub(crate) fn feed(&mut self, session: &mut Session) -> bool {
        self.go_on(session);
        let now = self.read_at;
        let mut fed = 0;
        while self.listens(session) && fed < TURN {
            fed += 1;
            match self.framer.next(&mut self.stream, |head, payload| session.judge(head, payload)) {
                Ok(Next::Packet(first, body)) => {
                    (self.packet, self.whole_by) = (0, None);
                    self.pay(u64::from(is_message(first)));
                    match read::packet(self.framer.version(), first, body) {
                        Ok(packet) => {
                            if let Packet::Subscribe(subscribe) = &packet {
                                fed += subscribe.filters.len();
                            }
                            session.packet(packet, now);
                        }
                        Err(bad) => session.fail(bad),
                    }
                }
                Ok(Next::ReadPast(refused)) => {
                    self.pay(1);
                    let (head, refusal) = *refused;
                    session.read_past(head, refusal, now);
                }
                Ok(Next::Bytes) => break,
                Ok(Next::Budget(packet)) => self.charge(packet),
                Err(bad) => session.fail(bad),
            }
        }
        // What was read may have been decided on already.
        self.give_back(session);
        if self.stream.is_empty() && self.stream.capacity() > READ_MIN && self.read_size <= READ_MIN {
            self.stream = BytesMut::new();
        }
        fed >= TURN && self.listens(session)
    }

    /// Charges what was read to the rates; over one of them, the connection is not read for a while.
    fn pay(&mut self, messages: u64) {
        let Some(meter) = &self.meter else { return };
        let bytes = std::mem::take(&mut self.unpaid) as u64;
        let pause = meter.charge(Instant::now(), Load { messages, bytes });
        if let Some(pause) = pause {
            metrics::counter!("millpond_gate_throttled_total", "limit" => pause.limit).increment(1);
        }
        self.paused = pause.map(|pause| pause.until);
    }

    /// Ends a pause whose time has come, unless others have used up what there was meanwhile.
    fn go_on(&mut self, session: &mut Session) {
        let now = Instant::now();
        if self.paused.is_some_and(|until| until <= now) {
            let again = self.meter.as_ref().and_then(|meter| meter.charge(now, Load::default()));
            self.paused = again.map(|pause| pause.until);
            // What it says now it may have said long ago.
            session.heard(now);
        }
    }

    fn charge(&mut self, packet: usize) {
        self.packet = packet;
        if self.share.try_reserve(packet) {
            self.granted();
        } else {
            self.charging = Some(self.share.reserve(packet));
        }
    }

    /// The budget that `charging` waited for is there.
    pub(crate) fn charged(&mut self, permit: Option<OwnedSemaphorePermit>) {
        self.charging = None;
        if let Some(permit) = permit {
            self.share.add(self.packet, permit);
        }
        self.granted();
    }

    fn granted(&mut self) {
        if self.packet > LONG {
            let time = Duration::from_secs((self.packet / self.config.rate_min.max(1)) as u64);
            // The wait for the budget was nobody's gap.
            self.read_at = Instant::now();
            self.whole_by = Some(self.read_at + self.config.stall_timeout + time);
            self.gap = Duration::ZERO;
        }
        self.framer.grant();
    }

    /// Gives back what neither the session nor the packet being read needs.
    pub(crate) fn give_back(&mut self, session: &Session) {
        let mut needed = session.held();
        if self.charging.is_none() {
            needed.add(self.packet);
        }
        self.share.keep(needed);
    }

    /// Whether more of a long packet is to come than has.
    pub(crate) fn is_short_of_long(&self) -> bool {
        self.packet > LONG && self.stream.len() < self.packet
    }

    /// Where the gate looks at a long packet later than it had to be whole, and read bytes of it after that time, it stood
    /// still: its client gets about the time that it lost. How fast a client sends is not for the gate to slow down.
    fn excuse(&mut self, now: Instant) {
        let stood_still = self.whole_by.is_some_and(|by| now > by + PUNCTUAL && self.read_at >= by);
        if stood_still {
            let lost = std::mem::take(&mut self.gap).min(self.config.stall_timeout);
            self.whole_by = Some(now + lost);
        }
    }

    /// Bytes for which there must be room in `stream` before it is read into.
    pub(crate) fn room(&self) -> usize {
        // For a long packet the framer has made exactly as much room as it needs.
        if self.packet > LONG { 1 } else { self.read_size }
    }

    /// The socket gave `n` bytes.
    pub(crate) fn was_read(&mut self, n: usize) -> Instant {
        let now = Instant::now();
        self.gap = self.gap.max(now.saturating_duration_since(self.read_at));
        self.read_at = now;
        self.unpaid += n;
        self.byte_by.moved();
        // Grow with a busy client, shrink with an idle one.
        self.read_size =
            if n >= self.read_size { (self.read_size * 4).min(READ_MAX) } else { (n * 2).max(READ_MIN) };
        self.read_at
    }

    /// When [`Intake::is_late`] is to be asked.
    pub(crate) fn deadline(&mut self, session: &Session) -> Option<Instant> {
        let is_due = self.listens(session) && self.framer.is_inside(&self.stream);
        let byte_by = self.byte_by.follow(is_due, self.config.stall_timeout);
        [byte_by, self.whole_by, self.paused].into_iter().flatten().min()
    }

    /// Whether the client has stalled inside a packet.
    pub(crate) fn is_late(&mut self, session: &Session, now: Instant) -> bool {
        self.excuse(now);
        if self.whole_by.is_some_and(|by| now >= by) {
            if self.listens(session) {
                return true;
            }
            self.whole_by = Some(now + self.config.stall_timeout);
        }
        self.byte_by.is_over(now)
    }
}

/// Whether a packet counts for the rates by number: those that acknowledge what the gate sent only do by bytes.
fn is_message(first: u8) -> bool {
    const PUBLISH: u8 = 3;
    const SUBSCRIBE: u8 = 8;
    const UNSUBSCRIBE: u8 = 10;
    const PINGREQ: u8 = 12;
    matches!(first >> 4, PUBLISH | SUBSCRIBE | UNSUBSCRIBE | PINGREQ)
}
