//! The task of one connection: waits for whatever comes next, feeds it to the [`Session`], and writes what it says.
//!
//! One task owns socket, session and everything that is under way for them, so a slow client holds up nobody
//! else. Each turn of the loop first applies what is there (packets, effects), then waits once for all of: the mailbox,
//! outcomes, look-ups, the budget, the socket in both directions, and the time.

mod parting;
#[cfg(test)]
mod tests;
mod time;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use millpond_protocol::Refusal;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::codec::{Bad, reason};
use crate::gate::Shared;
use crate::handshake::Welcome;
use crate::hub::mailbox::{Mailbox, Taken};
use crate::hub::turns::Work;
use crate::intake::Intake;
use crate::lookup::{Found, Identity, lookup};
use crate::registry::EndReason;
use crate::session::{Effect, Session};
use crate::socket::{Due, Moved, poll_io};

/// Runs a connection until it ends.
pub(crate) async fn run<S>(mut io: S, welcome: Welcome, gate: Arc<Shared>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Welcome { session, from, registration, version, rest, standing } = welcome;
    let was_kept = session.is_kept() || session.is_resumed();
    let mut connection = Connection {
        from,
        was_kept,
        intake: Intake::new(version, rest, session.who(), &gate),
        session,
        takes: FuturesOrdered::new(),
        lookups: FuturesUnordered::new(),
        mailbox: registration.mailbox.clone(),
        identity: Identity::of(&registration, standing.as_ref()),
        write_by: Due::default(),
        subscribing: Work::default(),
        lost: standing.map(|standing| standing.lost().boxed()),
        has_gone: false,
        gate,
    };
    connection.serve(&mut io, shutdown).await;
    connection.goodbye(io, registration).await;
}

type Takes = FuturesOrdered<BoxFuture<'static, Result<(), Refusal>>>;

struct Connection {
    session: Session,
    /// The client's address.
    from: SocketAddr,
    intake: Intake,
    takes: Takes,
    lookups: FuturesUnordered<BoxFuture<'static, Found>>,
    mailbox: Arc<Mailbox>,
    identity: Identity,
    /// Whether the backend keeps the session, or did.
    was_kept: bool,
    /// When the socket must have taken a byte of what is to be written.
    write_by: Due,
    subscribing: Work,
    /// Resolves when the certificate that signed it in is good no more.
    lost: Option<BoxFuture<'static, ()>>,
    /// Nothing more comes from the client: its side of the socket is closed, or broken.
    has_gone: bool,
    gate: Arc<Shared>,
}

impl Connection {
    async fn serve<S>(&mut self, io: &mut S, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mailbox = self.mailbox.clone();
        let stopping = shutdown.cancelled_owned();
        tokio::pin!(stopping);
        let timer = tokio::time::sleep_until(self.deadline().into());
        tokio::pin!(timer);
        let mut outcomes = Vec::new();
        loop {
            let has_more = self.intake.feed(&mut self.session);
            let is_draining = self.intake.is_stopped();
            if is_draining && self.session.uncommitted() == 0 && self.session.end().is_none() {
                self.session.fail(Bad { code: reason::SHUTTING_DOWN, what: "the server is shutting down" });
            }
            self.apply();
            self.mailbox.holds(self.session.app_bytes());
            if self.session.end().is_some() {
                return;
            }
            let deadline = self.deadline().into();
            if deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            let listens = self.intake.listens(&self.session);
            let wants = self.session.wants();
            let room = self.intake.room();
            if has_more {
                // Before whatever is ready here: others have their turn.
                tokio::task::yield_now().await;
            }
            tokio::select! {
                biased;
                // First, because what follows may always be ready.
                () = &mut stopping, if !is_draining => self.intake.stop(&self.session),
                () = &mut timer => {
                    // Whatever the server did meanwhile, what the client has said or taken by now is in time.
                    if !self.move_at_once(io, listens).await {
                        return;
                    }
                    self.intake.feed(&mut self.session);
                    if self.is_late() {
                        metrics::counter!("millpond_gate_stalled_total").increment(1);
                        return;
                    }
                    timer.as_mut().reset(self.deadline().into());
                }
                // Who has a place in line and does not look keeps everybody from a turn.
                () = self.subscribing.turn() => {}
                () = or_never(&mut self.lost), if self.lost.is_some() => self.certificate_lost(),
                taken = mailbox.take(wants) => self.took(taken),
                () = next_outcomes(&mut self.takes, &mut outcomes), if !self.takes.is_empty() => {
                    self.settle(&mut outcomes);
                }
                Some(found) = self.lookups.next(), if !self.lookups.is_empty() => self.found(found),
                permit = or_never(&mut self.intake.charging), if self.intake.charging.is_some() => {
                    self.intake.charged(permit);
                }
                () = std::future::ready(()), if has_more => {}
                moved = poll_fn(|cx| poll_io(
                    io, &mut self.session.out, &mut self.intake.stream, room, listens, cx,
                )), if !has_more => if !self.moved(moved) {
                    return;
                },
            }
        }
    }

    /// Writes what the socket takes, and reads what is there, of a long packet all of it. Answers whether the connection
    /// goes on.
    async fn move_at_once<S>(&mut self, io: &mut S, reads: bool) -> bool
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let room = self.intake.room();
            let (out, stream) = (&mut self.session.out, &mut self.intake.stream);
            let moving = poll_fn(|cx| Poll::Ready(poll_io(io, out, stream, room, reads, cx)));
            // Whatever this task has done since it last rested.
            let Poll::Ready(moved) = tokio::task::unconstrained(moving).await else { return true };
            let has_read = matches!(moved, Ok(Moved::Read(_)));
            if !self.moved(moved) {
                return false;
            }
            if has_read && !self.intake.is_short_of_long() {
                return true;
            }
        }
    }

    /// Takes note of what the socket did. Answers whether the connection goes on.
    fn moved(&mut self, moved: std::io::Result<Moved>) -> bool {
        match moved {
            Ok(Moved::Read(0)) => {
                self.has_gone = true;
                return false;
            }
            Err(error) => {
                // Below MQTT it said what makes no sense, and is told.
                self.has_gone = error.kind() != std::io::ErrorKind::InvalidData;
                // The stream itself has waited for as long as `write_by` would, below TLS.
                if error.kind() == std::io::ErrorKind::TimedOut {
                    metrics::counter!("millpond_gate_stalled_total").increment(1);
                }
                return false;
            }
            Ok(Moved::Read(n)) => {
                self.gate.bytes_in.increment(n as u64);
                self.session.heard(self.intake.was_read(n));
            }
            Ok(Moved::Wrote(n)) => {
                self.gate.bytes_out.increment(n as u64);
                self.write_by.moved();
                self.session.wrote();
                self.session.out.shrink();
            }
        }
        true
    }

    fn took(&mut self, taken: Taken) {
        taken.messages.into_iter().for_each(|message| self.session.member_message(message));
        taken.live.into_iter().for_each(|mail| self.session.live(mail.message));
        if !taken.copies.is_empty() {
            self.session.copies(taken.copies, Instant::now());
        }
        if taken.receipts {
            self.session.receipts_ready();
        }
        if let Some(reason) = taken.end {
            self.session.kick(reason);
        }
    }

    /// The certificate that signed it in was taken back.
    fn certificate_lost(&mut self) {
        self.lost = None;
        self.mailbox.end(EndReason::Revoked);
    }

    /// Carries out what the session decided, and has it encode what it may send. Answers whether something is left, because
    /// it is others' turn.
    fn apply(&mut self) -> bool {
        self.session.pump();
        while let Some(effect) = self.next_effect() {
            let (backend, who) = (&self.gate.backend, self.session.who());
            match effect {
                Effect::Take(message) => {
                    self.gate.publishes.increment(1);
                    self.takes.push_back(backend.take(who, self.from, message));
                }
                Effect::Refused(refused) => {
                    count_refusal(&refused.refusal);
                    backend.refused(who, refused);
                }
                Effect::ReceiptsAcknowledged(seq) => backend.receipts_acknowledged(who, seq),
                Effect::Publish(message) => {
                    self.gate.publishes.increment(1);
                    let published = self.gate.handle.hub().publish(*message, &self.mailbox);
                    self.takes.push_back(Box::pin(published));
                }
                Effect::Subscribe { filter, options, replay } => {
                    let (hub, work) = (self.gate.handle.hub(), &mut self.subscribing);
                    hub.subscribe(&who.pool, &self.mailbox, &filter, options, replay, work);
                }
                Effect::Subscribed(ack) => self.session.subscribed(ack),
                Effect::Unsubscribe(filter) => {
                    self.gate.handle.hub().unsubscribe(&who.pool, &self.mailbox, &filter);
                }
                Effect::Ask(question) => {
                    let session = (&self.identity, self.session.expiry());
                    self.lookups.push(lookup(question, &self.gate, who, session));
                }
            }
        }
        self.subscribing.rest();
        for received in self.session.acked.drain(..) {
            self.gate.ack_seconds.record(received.elapsed());
        }
        !self.session.effects.is_empty()
    }

    /// What is next of what the session decided. Of subscriptions nothing while it is others' turn; all else goes on.
    fn next_effect(&mut self) -> Option<Effect> {
        if let Some(Effect::Subscribe { filter, replay, .. }) = self.session.effects.front() {
            let (hub, pool) = (self.gate.handle.hub(), &self.session.who().pool);
            if !hub.may_subscribe(pool, (filter, *replay), &mut self.subscribing) {
                let at = self.session.effects.iter().position(|effect| !effect.follows_subscriptions())?;
                return self.session.effects.remove(at);
            }
        }
        self.session.effects.pop_front()
    }

    fn settle(&mut self, outcomes: &mut Vec<Result<(), Refusal>>) {
        for outcome in outcomes.drain(..) {
            if let Err(refusal) = &outcome {
                count_refusal(refusal);
            }
            self.session.outcome(outcome);
        }
        self.intake.give_back(&self.session);
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Kept(result) => self.session.kept(result),
            Found::States(result) => self.session.states(result),
            Found::Cursor(result) => self.session.cursor(result),
            Found::Receipts { after, result } => self.session.receipts(after, result),
        }
    }
}

fn count_refusal(refusal: &Refusal) {
    metrics::counter!("millpond_gate_refusals_total", "code" => refusal.code.as_str()).increment(1);
}

/// Waits for outcomes and appends all that are there. Safe to cancel.
async fn next_outcomes(takes: &mut Takes, outcomes: &mut Vec<Result<(), Refusal>>) {
    poll_fn(|cx| {
        while let Poll::Ready(Some(outcome)) = takes.poll_next_unpin(cx) {
            outcomes.push(outcome);
        }
        if outcomes.is_empty() && !takes.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Waits for what there may be to wait for.
async fn or_never<T>(there: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(there) = there else { return std::future::pending().await };
    there.await
}
