//! How a connection ends: its session is handed back, what its client sent is seen through, and the last words are said.

use std::time::Duration;

use bytes::Buf as _;
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::MutexGuard;

use super::{Connection, next_outcomes};
use crate::backend::LeftSession;
use crate::codec::write::Out;
use crate::gate::Shared;
use crate::hub::turns::Work;
use crate::registry::{EndReason, Registration};
use crate::session::{Effect, End};
use crate::socket::last_words;

/// How long what a client sent may take to be decided after it has gone.
const DRAIN: Duration = Duration::from_secs(60);
/// How long the subscriptions of one that has gone wait for their turn: whoever takes its session over waits for them.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long a connection waits at most until others have left.
const LINE: Duration = Duration::from_secs(20);
/// Bytes of last words for which there is always room.
const SHORT_WORDS: usize = 4 << 10;

impl Connection {
    /// Says the last words, and sees through what the client had sent.
    pub(super) async fn goodbye<S>(mut self, mut io: S, registration: Registration)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // By a task of its own, because this one looks at other things from now on, and its session may outlive it.
        let mut judged = self.lost.take().map(|lost| registration.judge(lost));
        let (who, client_id) = (self.session.who().clone(), registration.client_id.clone());
        // What it subscribes to outlives the connection.
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        while self.session.is_kept() && self.apply() {
            tokio::select! {
                () = self.subscribing.turn() => {}
                // From then on by what is free, with others' turns in between.
                () = &mut patience => {
                    self.subscribing = Work::impatient();
                    tokio::task::yield_now().await;
                }
            }
        }
        // Nobody looks from now on, and who has a place in any line would keep others from it.
        self.subscribing = Work::default();
        self.lookups.clear();
        self.intake.stop(&self.session);
        let gate = self.gate.clone();
        let parting = match self.session.end() {
            Some(End::Gate(_)) => None,
            Some(End::Client) | None => self.turn_to_leave(&gate).await,
        };
        // Whatever ends its right meanwhile.
        let _drain = (self.session.uncommitted() > 0).then(|| registration.drain());
        let leaving = self.session.leaving();
        let left = LeftSession { expiry: leaving.expiry, certificates: self.identity.certificates.clone() };
        registration.leave(leaving, &mut judged, |is_kept| {
            if self.was_kept {
                self.gate.backend.session_left(&who, &client_id, is_kept.then_some(left));
            }
        });
        self.intake.give_back(&self.session);
        self.apply_last();
        if let Some(End::Gate(code)) = self.session.end() {
            metrics::counter!("millpond_gate_ended_total", "code" => format!("{code:#04x}")).increment(1);
        }
        let (is_over, has_gone) = (self.session.end() == Some(End::Client), self.has_gone);
        let mut out = std::mem::take(&mut self.session.out);
        // Who took nothing for so long is not waited for where many are.
        let long = (out.remaining() > SHORT_WORDS).then(|| gate.farewells.try_acquire());
        if matches!(long, Some(Err(_))) {
            out = Out::default();
        }
        if has_gone && !out.has_remaining() && self.takes.is_empty() {
            // Nobody is waited for, where there is room for what TLS or WebSocket has to say.
            if tokio::task::unconstrained(io.shutdown()).now_or_never().is_some() {
                drop((io, self));
                return;
            }
        }
        drop(parting);
        let drain = async {
            let mut outcomes = Vec::new();
            while !self.takes.is_empty() {
                next_outcomes(&mut self.takes, &mut outcomes).await;
                self.settle(&mut outcomes);
                self.apply_last();
            }
        };
        let (drained, ()) =
            tokio::join!(tokio::time::timeout(DRAIN, drain), last_words(io, out, is_over, has_gone));
        if drained.is_err() {
            tracing::warn!(member = %self.session.who().name, "messages of a closed connection are undecided");
        }
    }

    /// Waits until those who have gone before have left: others' tasks would be behind thousands that go in one moment. Whoever
    /// takes the session over, or ends it, waits for nobody. What was sent is seen through meanwhile.
    async fn turn_to_leave<'a>(&mut self, gate: &'a Shared) -> Option<MutexGuard<'a, ()>> {
        let mailbox = self.mailbox.clone();
        let mut outcomes = Vec::new();
        let parting = tokio::time::timeout(LINE, gate.handle.registry().parting.lock());
        tokio::pin!(parting);
        loop {
            tokio::select! {
                biased;
                () = mailbox.ended() => return None,
                parting = &mut parting => return parting.ok(),
                () = next_outcomes(&mut self.takes, &mut outcomes), if !self.takes.is_empty() => {
                    self.settle(&mut outcomes);
                }
            }
        }
    }

    /// Of the effects, what still matters when nobody listens.
    fn apply_last(&mut self) {
        if self.mailbox.is_revoked() {
            self.session.kick(EndReason::Revoked);
        }
        self.session.effects.retain(|effect| {
            let lasts = matches!(effect, Effect::Take(_) | Effect::Publish(_));
            lasts || matches!(effect, Effect::Refused(_) | Effect::ReceiptsAcknowledged(_))
        });
        self.apply();
    }
}
