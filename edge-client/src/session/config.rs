//! Who connects, where to, and what for.

use std::fmt;
use std::time::Duration;

use millpond_protocol::{MemberName, PoolName, topic};

use super::address::Address;
use super::tls::Trust;
use crate::backoff::{Backoff, random};

/// A device token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// From the text that the hand-out names (`mpd_…`).
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A kind of message that a session subscribes to. Answers to its own asks always come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// What became of this member's uploads.
    Receipts,
    /// Where the newest result is.
    Result,
    /// Its bytes where they are small.
    ResultData,
    /// The pool's card.
    Card,
    /// The oldest round that waits for a processor.
    Offer,
}

/// How a session connects.
#[derive(Debug, Clone)]
pub struct Config {
    pub address: Address,
    /// Where the address is encrypted; none: the public authorities.
    pub trust: Option<Trust>,
    pub pool: PoolName,
    pub member: MemberName,
    /// None: the certificate in `trust` says who it is.
    pub token: Option<Token>,
    /// Two sessions of one member with one client id take over from each other.
    pub client_id: String,
    pub topics: Vec<Topic>,
    /// Pauses between attempts to connect.
    pub backoff: Backoff,
    /// How often the server is asked whether it is there, at least 5 s; it is gone if it says nothing for one and a half times as
    /// long. Raising it saves bytes where they cost something, unless something on the way forgets connections that are silent.
    pub keep_alive: Duration,
}

impl Config {
    /// Over plain MQTT, with a client id of its own, no topics, pauses of at most a minute, and a keep-alive of 30 s.
    pub fn new(host: impl Into<String>, port: u16, pool: PoolName, member: MemberName, token: Token) -> Self {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let client_id = format!("edge-{:016x}", random());
        let (address, token) = (Address::plain(host, port), Some(token));
        let topics = Vec::new();
        let keep_alive = Duration::from_secs(30);
        Self { address, trust: None, pool, member, token, client_id, topics, backoff, keep_alive }
    }

    /// With these topics.
    #[must_use]
    pub fn topics(mut self, topics: impl Into<Vec<Topic>>) -> Self {
        self.topics = topics.into();
        self
    }

    /// What is subscribed to, the answers first.
    pub(super) fn filters(&self) -> Vec<String> {
        let answers = format!("mp/{}/d/{}/answer/#", self.pool, self.member);
        let named = self.topics.iter().map(|topic| match topic {
            Topic::Receipts => topic::receipt(&self.pool, &self.member),
            Topic::Result => topic::result(&self.pool),
            Topic::ResultData => topic::result_data(&self.pool),
            Topic::Card => topic::card(&self.pool),
            Topic::Offer => topic::offer(&self.pool),
        });
        std::iter::once(answers).chain(named).collect()
    }
}
