//! The task of one connection: waits for whatever comes next, feeds it to the [`Session`], and writes what it says.
//!
//! One task owns socket, session, link and everything that is under way for them, so a slow client holds up nobody
//! else. Each turn of the loop first applies what is there (packets, effects), then waits once for all of: the mailbox,
//! outcomes, look-ups, the link, the budget, the socket in both directions, and the time.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use millpond_protocol::Refusal;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::codec::Bad;
use crate::codec::frame::{Framer, Next};
use crate::codec::{read, reason};
use crate::gate::Shared;
use crate::handshake::Welcome;
use crate::lookup::{Found, lookup};
use crate::registry::Registration;
use crate::router::{Attached, Link, Live, NoLink};
use crate::session::{Effect, End, Session};
use crate::socket::{Moved, linger, poll_io};

/// Bytes of the read buffer of an idle connection, and the most that it grows to for small packets.
const READ_MIN: usize = 2 << 10;
const READ_MAX: usize = 64 << 10;
/// How long what a client sent may take to be decided after it has gone.
const DRAIN: Duration = Duration::from_secs(60);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// Runs a connection until it ends.
pub(crate) async fn run<S>(io: S, welcome: Welcome, gate: Arc<Shared>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Welcome { session, registration, version, rest } = welcome;
    let mut connection = Connection {
        io,
        stream: rest,
        read_size: READ_MIN,
        framer: Framer::new(version, gate.config.read_past_max),
        session,
        takes: FuturesOrdered::new(),
        lookups: FuturesUnordered::new(),
        link: None,
        slot: None,
        charge: None,
        charging: None,
        wants_budget: 0,
        whole_by: None,
        moved: Instant::now(),
        read_at: Instant::now(),
        gate,
    };
    connection.serve(&registration, shutdown).await;
    connection.goodbye(registration).await;
}

struct Connection<S> {
    io: S,
    stream: BytesMut,
    read_size: usize,
    framer: Framer,
    session: Session,
    takes: FuturesOrdered<BoxFuture<'static, Result<(), Refusal>>>,
    lookups: FuturesUnordered<BoxFuture<'static, Found>>,
    link: Option<Link>,
    slot: Option<usize>,
    /// Bytes of the budget that this connection holds.
    charge: Option<OwnedSemaphorePermit>,
    charging: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    /// Bytes of the packet that is being read.
    wants_budget: usize,
    /// When it must be whole.
    whole_by: Option<Instant>,
    /// When the socket last took or gave a byte.
    moved: Instant,
    /// When it last gave one.
    read_at: Instant,
    gate: Arc<Shared>,
}

impl<S> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn serve(&mut self, registration: &Registration, shutdown: CancellationToken) {
        let mailbox = registration.mailbox.clone();
        let stopping = shutdown.cancelled_owned();
        tokio::pin!(stopping);
        let mut draining = false;
        let timer = tokio::time::sleep_until(self.deadline().into());
        tokio::pin!(timer);
        let mut outcomes = Vec::new();
        loop {
            if !draining {
                self.read_packets();
            }
            if draining && self.session.uncommitted() == 0 && self.session.end().is_none() {
                self.session.fail(Bad { code: reason::SHUTTING_DOWN, what: "the server is shutting down" });
            }
            self.apply();
            if self.session.end().is_some() {
                return;
            }
            let deadline = self.deadline().into();
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            let reads = !draining && self.charging.is_none() && self.session.has_room();
            let live = self.session.has_room_for_live();
            tokio::select! {
                biased;
                waiting = mailbox.take() => {
                    waiting.messages.into_iter().for_each(|message| self.session.member_message(message));
                    if waiting.receipts {
                        self.session.receipts_ready();
                    }
                    if let Some(reason) = waiting.end {
                        self.session.kick(reason);
                    }
                }
                () = next_outcomes(&mut self.takes, &mut outcomes), if !self.takes.is_empty() => {
                    self.settle(&mut outcomes);
                }
                Some(found) = self.lookups.next(), if !self.lookups.is_empty() => self.found(found),
                live = next_live(&mut self.link), if live && self.link.is_some() => match live {
                    Some(live) => self.session.live(live),
                    None => self.session.attached(Err(NoLink::Dead)),
                },
                permit = charged(&mut self.charging), if self.charging.is_some() => {
                    self.charging = None;
                    self.charge_with(permit);
                }
                moved = poll_fn(|cx| poll_io(
                    &mut self.io, &mut self.session.out, &mut self.stream, self.read_size, reads, cx,
                )) => match moved {
                    Ok(Moved::Read(0)) | Err(_) => return,
                    Ok(Moved::Read(n)) => self.was_read(n),
                    Ok(Moved::Wrote(n)) => self.was_written(n),
                },
                () = &mut timer => {
                    if self.on_timer() {
                        return;
                    }
                    timer.as_mut().reset(self.deadline().into());
                }
                () = &mut stopping, if !draining => draining = true,
            }
        }
    }

    /// Feeds the session every whole packet that it has room for.
    fn read_packets(&mut self) {
        let now = self.read_at;
        while self.charging.is_none() && self.session.has_room() {
            let session = &self.session;
            let next = self.framer.next(&mut self.stream, |head, payload| session.judge(head, payload));
            match next {
                Ok(Next::Packet(first, body)) => {
                    (self.wants_budget, self.whole_by) = (0, None);
                    match read::packet(self.framer.version(), first, body) {
                        Ok(packet) => self.session.packet(packet, now),
                        Err(bad) => self.session.fail(bad),
                    }
                }
                Ok(Next::ReadPast(head, refusal)) => self.session.read_past(head, refusal, now),
                Ok(Next::Bytes) => break,
                Ok(Next::Budget(bytes)) => self.ask_budget(bytes),
                Err(bad) => self.session.fail(bad),
            }
        }
        // What was read may have been decided on already.
        self.return_charge();
        if self.stream.is_empty() && self.stream.capacity() > READ_MIN && self.read_size <= READ_MIN {
            self.stream = BytesMut::new();
        }
    }

    fn ask_budget(&mut self, bytes: usize) {
        self.wants_budget = bytes;
        let n = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.gate.budget.clone().try_acquire_many_owned(n) {
            Ok(permit) => self.charge_with(Some(permit)),
            Err(_) => {
                let acquired = self.gate.budget.clone().acquire_many_owned(n);
                self.charging = Some(Box::pin(async move { acquired.await.ok() }));
            }
        }
    }

    fn charge_with(&mut self, permit: Option<OwnedSemaphorePermit>) {
        if let Some(permit) = permit {
            match &mut self.charge {
                Some(charge) => charge.merge(permit),
                None => self.charge = Some(permit),
            }
        }
        if self.wants_budget > READ_MAX {
            let time = Duration::from_secs((self.wants_budget / self.gate.config.rate_min.max(1)) as u64);
            self.whole_by = Some(Instant::now() + self.gate.config.stall_timeout + time);
        }
        self.framer.grant();
    }

    /// Gives back what neither the session nor the packet being read needs.
    fn return_charge(&mut self) {
        let needed = self.session.uncommitted_bytes() + self.wants_budget;
        if needed == 0 {
            self.charge = None;
        } else if let Some(charge) = &mut self.charge {
            let surplus = charge.num_permits().saturating_sub(needed);
            drop(charge.split(surplus));
        }
    }

    /// Carries out what the session decided, and has it encode what it may send.
    fn apply(&mut self) {
        self.session.pump();
        while let Some(effect) = self.session.effects.pop_front() {
            let (backend, who) = (&self.gate.backend, self.session.who());
            match effect {
                Effect::Take(message) => {
                    self.gate.publishes.increment(1);
                    self.takes.push_back(backend.take(who, message));
                }
                Effect::Refused { topic, refusal } => {
                    count_refusal(&refusal);
                    backend.refused(who, &topic, &refusal);
                }
                Effect::ReceiptsAcknowledged(seq) => backend.receipts_acknowledged(who, seq),
                Effect::Ask(question) => {
                    self.lookups.push(lookup(question, &self.gate, who, self.slot));
                }
            }
        }
        for received in self.session.acked.drain(..) {
            self.gate.ack_seconds.record(received.elapsed());
        }
    }

    fn settle(&mut self, outcomes: &mut Vec<Result<(), Refusal>>) {
        for outcome in outcomes.drain(..) {
            if let Err(refusal) = &outcome {
                count_refusal(refusal);
            }
            self.session.outcome(outcome);
        }
        self.return_charge();
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Attached(Ok(attached)) => {
                if let Attached::New(link) = attached {
                    self.slot = Some(link.slot());
                    self.link = Some(link);
                }
                self.session.attached(Ok(()));
            }
            Found::Attached(Err(error)) => self.session.attached(Err(error)),
            Found::State { replay, result } => self.session.state(replay, result),
            Found::Cursor(result) => self.session.cursor(result),
            Found::Receipts(result) => self.session.receipts(result),
        }
    }

    fn was_read(&mut self, n: usize) {
        let now = Instant::now();
        (self.moved, self.read_at) = (now, now);
        self.session.heard(now);
        self.gate.bytes_in.increment(n as u64);
        // Grow with a busy client, shrink with an idle one.
        self.read_size =
            if n >= self.read_size { (self.read_size * 4).min(READ_MAX) } else { (n * 2).max(READ_MIN) };
    }

    fn was_written(&mut self, n: usize) {
        self.gate.bytes_out.increment(n as u64);
        self.moved = Instant::now();
        self.session.wrote();
        self.session.out.shrink();
    }

    /// Whether a byte is due in one of the directions.
    fn is_waiting_for_socket(&self) -> bool {
        self.session.out.has_remaining()
            || (self.framer.is_inside(&self.stream) && self.charging.is_none() && self.session.has_room())
    }

    fn deadline(&self) -> Instant {
        let stall = self.moved + self.gate.config.stall_timeout;
        [self.session.deadline(), self.whole_by].into_iter().flatten().fold(stall, Instant::min)
    }

    /// Whether the connection has stalled.
    fn on_timer(&mut self) -> bool {
        let now = Instant::now();
        if self.whole_by.is_some_and(|due| now >= due) {
            // Not the client's fault where the gate itself stopped reading.
            if self.session.has_room() {
                return true;
            }
            self.whole_by = Some(now + self.gate.config.stall_timeout);
        }
        if now >= self.moved + self.gate.config.stall_timeout {
            if self.is_waiting_for_socket() {
                metrics::counter!("millpond_gate_stalled_total").increment(1);
                return true;
            }
            self.moved = now;
        }
        self.session.timer(now);
        false
    }

    /// Says the last words, and sees through what the client had sent.
    async fn goodbye(mut self, registration: Registration) {
        drop(registration);
        self.link = None;
        self.lookups.clear();
        self.apply_last();
        let last_words = async {
            if self.session.end() != Some(End::Client) {
                self.io.write_all_buf(&mut self.session.out).await?;
            }
            self.io.shutdown().await
        };
        // A client that is gone cannot be told.
        let told = tokio::time::timeout(GOODBYE, last_words).await;
        if matches!(told, Ok(Ok(()))) && self.session.end() != Some(End::Client) {
            linger(&mut self.io).await;
        }
        let drain = async {
            let mut outcomes = Vec::new();
            while !self.takes.is_empty() {
                next_outcomes(&mut self.takes, &mut outcomes).await;
                self.settle(&mut outcomes);
                self.apply_last();
            }
        };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!(member = %self.session.who().name, "messages of a closed connection are undecided");
        }
    }

    /// Of the effects, what still matters when nobody listens.
    fn apply_last(&mut self) {
        self.session.effects.retain(|effect| {
            matches!(effect, Effect::Take(_) | Effect::Refused { .. } | Effect::ReceiptsAcknowledged(_))
        });
        self.apply();
    }
}

fn count_refusal(refusal: &Refusal) {
    metrics::counter!("millpond_gate_refusals_total", "code" => refusal.code.as_str()).increment(1);
}

/// Waits for outcomes and appends all that are there. Safe to cancel.
async fn next_outcomes(
    takes: &mut FuturesOrdered<BoxFuture<'static, Result<(), Refusal>>>,
    outcomes: &mut Vec<Result<(), Refusal>>,
) {
    poll_fn(|cx| {
        while let Poll::Ready(Some(outcome)) = takes.poll_next_unpin(cx) {
            outcomes.push(outcome);
        }
        if outcomes.is_empty() && !takes.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

async fn next_live(link: &mut Option<Link>) -> Option<Live> {
    match link {
        Some(link) => link.next().await.ok(),
        None => std::future::pending().await,
    }
}

async fn charged(
    charging: &mut Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
) -> Option<OwnedSemaphorePermit> {
    match charging {
        Some(charging) => charging.await,
        None => std::future::pending().await,
    }
}
