//! From the gate into the ledger: every message of a member, taken before it is acknowledged.
//!
//! [`Ingest`] is what stands behind the gate. A small upload is hashed here and put in line at once; bytes above
//! 128 KiB go to storage first (`stage.rs`). The acknowledgement waits for the commit.

mod bundle;
mod delivery;
mod properties;
mod result;
pub(crate) mod stage;
mod up;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use millpond_broker::{
    Backend, GateHandle, Incoming, KeptSession, LeftSession, ReceiptRow, RefusedPublish, SignIn, SignInError,
    StateMessage,
};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::topic::Inbound;
use millpond_protocol::{Principal, Refusal};
use millpond_storage::Storage;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::asks::Asks;
use crate::asks::over_mqtt::MqttAsks;
use crate::fanout::receipts::{self, Cursors};
use crate::fanout::state::States;
use crate::identity::Identity;
use crate::ledger::{Ledger, now, sessions};

/// Receipts without a row on their way into the event feed, and how long each takes a place: at most 256 a second become
/// events, for a member can be refused as fast as it can send.
const FEEDING_MAX: usize = 256;
const FEED_PAUSE: Duration = Duration::from_secs(1);

/// What the ways in share.
#[derive(Clone)]
pub(crate) struct Ctx {
    pub ledger: Ledger,
    pub storage: Storage,
    pub gate: GateHandle,
    /// Receipts without a row that are on their way into the event feed.
    feeding: Arc<Semaphore>,
}

/// The coordinator behind the gate.
pub struct Ingest {
    ctx: Ctx,
    identity: Identity,
    asks: Arc<MqttAsks>,
    states: States,
    cursors: Cursors,
}

impl Ingest {
    /// Wires the gate's messages to the ledger, and what members ask to [`Asks`]; first forgets what an earlier run staged
    /// and never counted.
    ///
    /// # Errors
    /// The ledger cannot be used.
    pub async fn start(
        asks: Asks,
        identity: Identity,
        gate: GateHandle,
        states: States,
    ) -> Result<Self, Refusal> {
        stage::recover(&asks.ledger).await?;
        let cursors = Cursors::start(asks.ledger.clone());
        Ok(Self::new(asks, identity, gate, states, cursors))
    }

    /// The same with nothing done yet, and with cursors that somebody else writes.
    pub(crate) fn new(
        asks: Asks,
        identity: Identity,
        gate: GateHandle,
        states: States,
        cursors: Cursors,
    ) -> Self {
        let ctx = Ctx {
            ledger: asks.ledger.clone(),
            storage: asks.storage.clone(),
            gate: gate.clone(),
            feeding: Arc::new(Semaphore::new(FEEDING_MAX)),
        };
        Self { ctx, identity, asks: Arc::new(MqttAsks::new(asks, gate)), states, cursors }
    }
}

#[async_trait]
impl Backend for Ingest {
    async fn sign_in(&self, attempt: SignIn) -> Result<Principal, SignInError> {
        self.identity.member(attempt).await
    }

    fn sign_in_refused(&self, user: Option<&str>, from: SocketAddr, why: &'static str) {
        self.identity.refused(user, from.ip(), why);
    }

    fn take(
        &self,
        from: &Principal,
        at: SocketAddr,
        message: Incoming,
    ) -> BoxFuture<'static, Result<(), Refusal>> {
        let (ctx, who) = (self.ctx.clone(), from.clone());
        match message.to.clone() {
            Inbound::Up { upload, at } => up::take(ctx, who, upload, at, message),
            Inbound::Bundle { id } => bundle::take(ctx, who, id, message),
            Inbound::Result { round, attempt } => result::take(ctx, who, round, attempt, message),
            Inbound::Delivery { version } => delivery::take(&ctx, who, version, &message),
            Inbound::Ask(op) => Box::pin(std::future::ready(self.asks.start(who, at, op, message))),
        }
    }

    fn refused(&self, from: &Principal, refused: RefusedPublish) {
        let RefusedPublish { topic, refusal, .. } = &refused;
        // Only what would have been an upload, a bundle or a result is receipted; the others are answered or dropped.
        let id = match Inbound::parse(topic) {
            Ok((_, _, Inbound::Up { upload, .. })) => upload.to_string(),
            Ok((_, _, Inbound::Bundle { id })) => id.to_string(),
            Ok((_, _, Inbound::Result { round, attempt })) => format!("result/{round}/{attempt}"),
            Ok((_, _, Inbound::Ask(op))) => return self.asks.refuse(from, op, refused),
            Ok((_, _, Inbound::Delivery { .. })) => return,
            Err(_) => topic.rsplit('/').next().unwrap_or_default().chars().take(64).collect(),
        };
        self.ctx.tell_refusal(from, id, None, refusal);
    }

    async fn states(&self, who: &Principal, topics: &[String]) -> Result<Vec<StateMessage>, Refusal> {
        self.states.current(who, topics).await
    }

    async fn receipt_cursor(&self, who: &Principal) -> Result<i64, Refusal> {
        receipts::cursor(&self.ctx.ledger, who).await
    }

    async fn receipts(&self, who: &Principal, after: i64, max: usize) -> Result<Vec<ReceiptRow>, Refusal> {
        receipts::after(&self.ctx.ledger, who, after, max).await
    }

    async fn keep_session(&self, who: &Principal, session: KeptSession) -> Result<(), Refusal> {
        let who = who.clone();
        self.ctx.ledger.write(move |tx| tx.keep_session(&who, &session)).await
    }

    fn session_left(&self, who: &Principal, client_id: &str, left: Option<LeftSession>) {
        let (member, client_id) = (who.id, client_id.to_owned());
        // What fails is told again when it matters: at the next start the session has its whole time once more.
        drop(self.ctx.ledger.write(move |tx| tx.leave_session(member, &client_id, left.as_ref())));
    }

    async fn sessions(&self) -> Result<Vec<(Principal, KeptSession)>, Refusal> {
        self.ctx.ledger.write(|tx| tx.forget_sessions()).await?;
        self.ctx.ledger.look(|sql| sessions::all(sql, now())).await
    }

    fn receipts_acknowledged(&self, who: &Principal, seq: i64) {
        self.cursors.acknowledged(who.id, seq);
    }
}

impl Ctx {
    /// Sends a receipt that is no row of its own: to live connections, once.
    fn tell(&self, who: &Principal, receipt: &Receipt) {
        receipts::tell(&self.gate, who, receipt);
    }

    /// Says that something was refused without a row: to the member, and in the event feed.
    fn tell_refusal(&self, who: &Principal, upload: String, bundle: Option<String>, refusal: &Refusal) {
        metrics::counter!("millpond_refusals_total", "code" => refusal.code.as_str()).increment(1);
        if refusal.code.is_temporary() {
            return;
        }
        let receipt = Receipt {
            upload,
            outcome: Outcome::Refused,
            batch: None,
            event_time: None,
            late: false,
            clamped: false,
            sha256: None,
            bundle,
            error: Some(refusal.clone()),
        };
        self.tell(who, &receipt);
        self.feed(who, "refused", &receipt);
    }

    /// Puts a receipt without a row into the event feed. Whoever waits for the acknowledgement does not wait for this,
    /// and a flood of refusals is counted, not written.
    fn feed(&self, who: &Principal, kind: &'static str, receipt: &Receipt) {
        let Ok(permit) = self.feeding.clone().try_acquire_owned() else {
            metrics::counter!("millpond_feed_dropped_total").increment(1);
            return;
        };
        let body = json!({"member": who.name, "receipt": receipt});
        let who = who.clone();
        let told = self.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.event(pool, kind, &body)
        });
        tokio::spawn(async move {
            // It can fail only together with the ledger, which says so.
            let _ = told.await;
            tokio::time::sleep(FEED_PAUSE).await;
            drop(permit);
        });
    }
}
