//! What the gate needs from whoever stands behind it, and what it is handed to send.
//!
//! The gate knows the coordinator through [`Backend`] alone. The other direction is the gate's handle: messages to one
//! member, live pool-wide messages, and the end of sessions.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use millpond_protocol::topic::Inbound;
use millpond_protocol::{MemberName, PoolName, Principal, Refusal, Timestamp};

/// The coordinator, as the gate sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Checks the credentials of a CONNECT.
    async fn sign_in(&self, attempt: SignIn) -> Result<Principal, SignInError>;

    /// Learns that a CONNECT was refused, whether or not [`Self::sign_in`] was asked. `user` is what the client sent.
    fn sign_in_refused(&self, user: Option<&str>, from: SocketAddr, why: &'static str);

    /// Takes a message of a client at an address; it is authorised, within its size limit and whole. The call itself puts it
    /// in line, so the order of calls is the order of effect; the future resolves when the outcome is durable.
    ///
    /// A message above [`SMALL_MAX`](millpond_protocol::limits::SMALL_MAX) goes to storage before it is put in line:
    /// the gate calls again for the same connection only after that future resolved, so that order holds there too.
    ///
    /// # Errors
    /// A permanent refusal is acknowledged with its code; after a temporary one the gate closes the connection and the
    /// client sends again.
    fn take(
        &self,
        from: &Principal,
        at: SocketAddr,
        message: Incoming,
    ) -> BoxFuture<'static, Result<(), Refusal>>;

    /// Learns that the gate itself refused a PUBLISH, so that a receipt and an event, or an answer, say so.
    fn refused(&self, from: &Principal, refused: RefusedPublish);

    /// The current messages of those of the state topics that `who` may read; cleared ones are absent.
    async fn states(&self, who: &Principal, topics: &[String]) -> Result<Vec<StateMessage>, Refusal>;

    /// The sequence number after which `who` has receipts to come; the first call of a member sets it to "from now on".
    async fn receipt_cursor(&self, who: &Principal) -> Result<i64, Refusal>;

    /// At most `max` receipts with a sequence number above `after`, in order.
    async fn receipts(&self, who: &Principal, after: i64, max: usize) -> Result<Vec<ReceiptRow>, Refusal>;

    /// Keeps the subscriptions of a session, in the place of those kept before, until [`Backend::session_left`] or until
    /// it has been without a connection for so long. Resolves when that is durable.
    async fn keep_session(&self, who: &Principal, session: KeptSession) -> Result<(), Refusal>;

    /// The session has lost its connection, or is over (`None`). Like [`Backend::take`], the call itself puts that in line,
    /// ahead of what its next connection has to say: nobody signs in meanwhile, so it may not block.
    fn session_left(&self, who: &Principal, client_id: &str, left: Option<LeftSession>);

    /// All sessions that are kept and have not expired: asked for once, when the gate starts.
    async fn sessions(&self) -> Result<Vec<(Principal, KeptSession)>, Refusal>;

    /// A connection of `who` acknowledged every receipt up to `seq` (QoS 0: wrote it).
    fn receipts_acknowledged(&self, who: &Principal, seq: i64);
}

/// What of a session survives a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSession {
    pub client_id: String,
    /// How long it is kept without a connection; of one that has none, from now on.
    pub expiry: Duration,
    pub subscriptions: Vec<Subscription>,
    /// Those that alone signed it in, in DER, one after the other; none: a token did.
    pub certificates: Option<Bytes>,
}

/// What a session is while it waits for its client. Its connection may have ended before [`Backend::keep_session`] said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftSession {
    /// How long it is kept from now on.
    pub expiry: Duration,
    /// Those that alone signed its last connection in, as in [`KeptSession`].
    pub certificates: Option<Bytes>,
}

/// One subscription of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// As the client gave it, `$share/…` included.
    pub filter: String,
    /// At most at this QoS.
    pub qos: u8,
    pub no_local: bool,
    /// Retain As Published.
    pub as_published: bool,
    /// The subscription identifier.
    pub tag: Option<u32>,
}

/// The credentials of a CONNECT. `Debug` does not show the token.
#[derive(Clone)]
pub struct SignIn {
    pub pool: PoolName,
    pub member: MemberName,
    pub credential: Credential,
    pub from: SocketAddr,
}

/// What proves who it is.
#[derive(Clone)]
pub enum Credential {
    /// The password as sent.
    Token(Bytes),
    /// A certificate of this very member, which an authority of its pool signed, has not revoked, and has it hold from
    /// this time on.
    Certificate { issued: Timestamp },
}

impl std::fmt::Debug for SignIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignIn({}/{} from {})", self.pool, self.member, self.from)
    }
}

/// Why a CONNECT was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignInError {
    /// Unknown pool or member, wrong token, or revoked: the client is not told which.
    #[error("unknown user name or wrong password")]
    BadCredentials,
    /// The backend refuses further attempts from there for a while.
    #[error("too many failed attempts")]
    Quota,
    /// The ledger does not answer.
    #[error("the server cannot check credentials now")]
    Unavailable,
}

/// A message for the coordinator, with what a client may say beside the payload. Over MQTT 3.1.1 the properties are
/// empty.
#[derive(Debug, Clone)]
pub struct Incoming {
    pub to: Inbound,
    pub payload: Bytes,
    pub user_properties: Vec<(String, String)>,
    pub content_type: Option<String>,
    /// Of an ask: where to answer; inside the member's own space (the gate has checked it).
    pub response_topic: Option<String>,
    pub correlation_data: Option<Bytes>,
}

/// A PUBLISH that the gate refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPublish {
    pub topic: String,
    /// Of an ask: where to answer; inside the member's own space.
    pub response_topic: Option<String>,
    pub correlation_data: Option<Bytes>,
    pub refusal: Refusal,
}

/// The current message of a state topic. An empty payload says that the state was cleared.
#[derive(Debug, Clone)]
pub struct StateMessage {
    pub topic: String,
    pub payload: Bytes,
    /// Grows with every change of the topic: a connection never gets a lower rank after a higher one.
    pub rank: u64,
    /// For MQTT 5 copies.
    pub user_properties: Vec<(String, String)>,
    pub content_type: Option<String>,
}

/// A receipt of a committed upload.
#[derive(Debug, Clone)]
pub struct ReceiptRow {
    pub seq: i64,
    pub payload: Bytes,
}

/// A message to the live connections of one member that subscribe to its topic: an answer, or a receipt without a row.
#[derive(Debug, Clone)]
pub struct MemberMessage {
    pub topic: String,
    pub payload: Bytes,
    pub correlation_data: Option<Bytes>,
}
