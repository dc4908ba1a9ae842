//! One member's MQTT 5 connection, kept open: it connects, subscribes, and after an end connects again, with pauses that
//! double and are random, so that a fleet does not come back all at once.
//!
//! [`open`] returns a [`Session`] to send with and an [`Inbox`] to read from; the connection lives as long as one of them, on
//! one task of the runtime. **Read the inbox while you wait for anything**: the server sends at most a hundred messages
//! that are not read.
//!
//! - An **ask** is repeated with its id over any number of connections until it is answered or its time is over: the server answers
//!   a repeat as it answered the first.
//! - A **publish** is never repeated by the session. If the connection ends before the acknowledgement, the error is
//!   [`SessionError::Cut`]: the bytes may have arrived. Ask `status`, or send again; twice is once. Where the server ended it because it
//!   does not take something now (a pool over its quota, a storage that is away), the error is [`SessionError::Later`]: wait, then send
//!   one thing and see.
//! - A **receipt** is acknowledged when its [`Ack`] is, and comes again on the next connection if it was not. Of the state
//!   topics the newest message counts; they are acknowledged when they are read.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use millpond_edge::session::{self, Config, Event, Token, Topic};
//! use millpond_protocol::{access::Op, message::answer};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! let config = Config::new(host, port, "demo".parse()?, "edge-7".parse()?, Token::new(token));
//! let (session, mut inbox) = session::open(config.topics([Topic::Receipts]));
//! let time: answer::Time = session.ask(Op::Time, &serde_json::json!({}), Duration::from_secs(30)).await?;
//! println!("the server's clock shows {}", time.time);
//! session.upload(&"hello-1".parse()?, &b"hello"[..], Default::default()).await?;
//! while let Some(event) = inbox.next().await {
//!     if let Event::Receipt(receipt, ack) = event {
//!         assert_eq!(receipt.upload, "hello-1");
//!         ack.done().await;
//!         break;
//!     }
//! }
//! session.close().await;
//! # Ok(()) }
//! ```

mod address;
mod ask;
mod book;
mod config;
mod driver;
mod inbox;
mod mqtt;
mod tls;
mod uplink;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::message::Card;
use millpond_protocol::{BundleId, Refusal, Timestamp, UploadId};
use tokio::sync::watch;
use tokio::time::Instant;

pub use address::{Address, Scheme};
pub(crate) use book::arriving;
pub use config::{Config, Token, Topic};
pub use inbox::{Ack, Event, Inbox};
pub use tls::Trust;
pub(crate) use uplink::RATE_MIN;

use book::{Book, Refused};
use mqtt::{Beside, Pipe};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a connection ended, or none came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The network, or the server for a while.
    #[error("{0}")]
    Lost(String),
    /// The server does not want this member: another attempt will not help, though the session goes on trying, rarely.
    #[error("{0}")]
    Refused(String),
    /// This side closed it.
    #[error("the session is closed")]
    Closed,
}

/// Why something was not sent, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection came about in time.
    #[error("no connection to the server: {0}")]
    Offline(Cause),
    /// The connection ended before the acknowledgement: whether the message arrived is unknown.
    #[error("the connection ended before the server acknowledged")]
    Cut,
    /// The same, and the server said why it ended it: something that it was sent it refuses for now.
    #[error("the server closed the connection: {0}")]
    Later(Refusal),
    /// The server refused the message with this reason code; a receipt says more.
    #[error("the server refused it (MQTT reason 0x{0:02x})")]
    Refused(u8),
    /// The server answered with a refusal.
    #[error(transparent)]
    Answer(#[from] Refusal),
    /// Nothing was answered in time.
    #[error("no answer within {0:?}")]
    Unanswered(Duration),
    /// The answer is not of the protocol.
    #[error("the answer to {0} is not understood: {1}")]
    Strange(Op, String),
}

impl SessionError {
    /// Whether the same can succeed later, without a change on this side.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Offline(Cause::Lost(_)) | Self::Cut | Self::Later(_) | Self::Unanswered(_) => true,
            Self::Answer(refusal) => refusal.code.is_temporary(),
            Self::Offline(Cause::Refused(_) | Cause::Closed) | Self::Refused(_) | Self::Strange(..) => false,
        }
    }
}

/// A message as it came.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) user_properties: Vec<(String, String)>,
    pub(crate) correlation: Option<Bytes>,
}

/// What goes beside the bytes of an upload or a result. All of it may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub name: Option<String>,
    pub event_time: Option<Timestamp>,
    pub label: Option<String>,
    pub sha256: Option<millpond_protocol::Sha256>,
    /// JSON.
    pub meta: Option<String>,
    pub content_type: Option<String>,
}

/// Whether there is a connection.
#[derive(Clone)]
enum Status {
    Offline(Cause),
    Online(Online),
}

#[derive(Clone)]
struct Online {
    pipe: Pipe,
    connection: u64,
}

/// Sends. Clones share the connection.
#[derive(Clone)]
pub struct Session {
    config: Arc<Config>,
    status: watch::Receiver<Status>,
    card: watch::Receiver<Option<(Card, Instant)>>,
    shared: Arc<Shared>,
}

/// What the sending side and the connection's task share.
#[derive(Default)]
struct Shared {
    book: Mutex<Book>,
    /// Held while a publish is handed over, so that the book has the order of the wire.
    order: tokio::sync::Mutex<()>,
    asks: AtomicU64,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a session. It connects on a task of its own, which ends when both halves are dropped.
pub fn open(config: Config) -> (Session, Inbox) {
    let config = Arc::new(config);
    let shared = Arc::new(Shared::default());
    let (announce, status) = watch::channel(Status::Offline(Cause::Lost("not connected yet".into())));
    let (show, card) = watch::channel(None);
    let (deliver, inbox) = inbox::channel(status.clone());
    tokio::spawn(driver::run(Arc::clone(&config), Arc::clone(&shared), (announce, show), deliver));
    (Session { config, status, card, shared }, inbox)
}

impl Session {
    /// Who this is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// `Offline` with the last cause when the time is over, or at once if the server refused the credentials.
    pub async fn connected(&self, within: Duration) -> Result<(), SessionError> {
        self.online(Instant::now() + within).await.map(|_| ())
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        matches!(*self.status.borrow(), Status::Online(_))
    }

    /// The pool's card as it came last; none before the first one, or if the session does not have the topic.
    pub fn card(&self) -> Option<Card> {
        self.card.borrow().as_ref().map(|(card, _)| card.clone())
    }

    /// What time it is by the server's clock, in milliseconds, as far as its card told.
    pub(crate) fn server_ms(&self) -> Option<i64> {
        let passed = |told: &Instant| i64::try_from(told.elapsed().as_millis()).unwrap_or(i64::MAX);
        let card = self.card.borrow();
        card.as_ref().map(|(card, told)| card.server_time.as_millis().saturating_add(passed(told)))
    }

    async fn online(&self, deadline: Instant) -> Result<Online, SessionError> {
        let mut status = self.status.clone();
        let decided = |status: &Status| !matches!(status, Status::Offline(Cause::Lost(_)));
        let waited = tokio::time::timeout_at(deadline, status.wait_for(decided)).await;
        let now = match waited {
            Ok(Ok(status)) => status.clone(),
            Ok(Err(_)) => Status::Offline(Cause::Closed),
            Err(_) => self.status.borrow().clone(),
        };
        match now {
            Status::Online(online) => Ok(online),
            Status::Offline(cause) => Err(SessionError::Offline(cause)),
        }
    }

    /// Publishes a file and waits for the acknowledgement: it is on the server's disk.
    ///
    /// # Errors
    /// `Offline` if there is no connection now, `Cut`, `Later` and `Refused` as they say.
    pub async fn upload(
        &self,
        id: &UploadId,
        bytes: impl Into<Bytes>,
        properties: Properties,
    ) -> Result<(), SessionError> {
        self.publish(&format!("up/{id}"), bytes.into(), beside(properties)).await
    }

    /// Publishes an encoded bundle and waits for the acknowledgement.
    ///
    /// # Errors
    /// As [`Session::upload`].
    pub async fn bundle(&self, id: &BundleId, bytes: impl Into<Bytes>) -> Result<(), SessionError> {
        self.publish(&format!("bundle/{id}"), bytes.into(), Beside::default()).await
    }

    /// Publishes the result of a lease and waits for the acknowledgement: it is committed.
    ///
    /// # Errors
    /// As [`Session::upload`].
    pub async fn result(
        &self,
        round: u64,
        attempt: u32,
        bytes: impl Into<Bytes>,
        properties: Properties,
    ) -> Result<(), SessionError> {
        self.publish(&format!("result/{round}/{attempt}"), bytes.into(), beside(properties)).await
    }

    /// Tells what became of a result here.
    ///
    /// # Errors
    /// As [`Session::upload`].
    pub async fn delivery(
        &self,
        version: u64,
        delivery: &millpond_protocol::message::Delivery,
    ) -> Result<(), SessionError> {
        let json = serde_json::to_vec(delivery).unwrap_or_default();
        self.publish(&format!("delivery/{version}"), json.into(), Beside::default()).await
    }

    /// Publishes under `mp/{pool}/c/{member}/`, once, on the connection that is there now. Dropped, the message may be sent all the same.
    async fn publish(&self, rest: &str, payload: Bytes, beside: Beside) -> Result<(), SessionError> {
        let online = self.online(Instant::now()).await?;
        self.publish_on(&online, rest, payload, beside).await
    }

    async fn publish_on(
        &self,
        online: &Online,
        rest: &str,
        payload: Bytes,
        beside: Beside,
    ) -> Result<(), SessionError> {
        let topic = format!("mp/{}/c/{}/{rest}", self.config.pool, self.config.member);
        let (shared, online) = (Arc::clone(&self.shared), online.clone());
        // On a task of its own: when whoever waits here is dropped, what is half handed over keeps its place in the book.
        let handed_over = tokio::spawn(async move {
            let _order = shared.order.lock().await;
            let verdict = shared.book().publish(online.connection, payload.len())?;
            if online.pipe.publish(&topic, payload, beside).await.is_err() {
                shared.book().publish_failed(online.connection);
                return None;
            }
            Some(verdict)
        });
        let verdict = handed_over.await.ok().flatten().ok_or(SessionError::Cut)?;
        verdict.await.map_err(|_| SessionError::Cut)?.map_err(|refused| match refused {
            Refused::Code(code) => SessionError::Refused(code),
            Refused::Later(refusal) => SessionError::Later(refusal),
        })
    }

    /// Says DISCONNECT. The session ends; what waits for it gets errors.
    pub async fn close(&self) {
        if let Ok(online) = self.online(Instant::now()).await {
            let mut status = self.status.clone();
            let closed = async {
                online.pipe.disconnect().await;
                let _ = status.wait_for(|status| !matches!(status, Status::Online(_))).await;
            };
            // Behind what a dead line does not take, nothing is said.
            let _ = tokio::time::timeout(GOODBYE, closed).await;
        }
    }

    /// Bytes that a message of several files should have, by what got through so far: as many as take a few seconds.
    pub(crate) fn message(&self) -> u64 {
        self.shared.book().uplink.message()
    }

    /// Bytes above which a file is better off by URL: as one message it would keep everything else waiting for half a minute.
    pub(crate) fn inline(&self) -> u64 {
        self.shared.book().uplink.inline()
    }

    /// Whether enough got through to know how fast the line is.
    pub(crate) fn is_measured(&self) -> bool {
        self.shared.book().uplink.is_known()
    }

    /// When the server was heard last.
    pub(crate) fn heard(&self) -> Instant {
        self.shared.book().last_heard()
    }

    /// Until when a server may be silent that was asked something within that time after it was heard last.
    pub(crate) fn silent_until(&self, within: Duration) -> Instant {
        self.shared.book().silent_until(within)
    }
}

fn beside(properties: Properties) -> Beside {
    let named = [
        ("name", properties.name),
        ("event-time", properties.event_time.map(|time| time.to_string())),
        ("label", properties.label),
        ("sha256", properties.sha256.map(|sha256| sha256.to_string())),
        ("meta", properties.meta),
    ];
    let user_properties =
        named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    Beside { user_properties, content_type: properties.content_type, response: None }
}
