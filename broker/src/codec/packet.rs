//! Packets as the gate knows them, the same for both versions of the protocol.

use std::fmt;

use bytes::Bytes;

use super::reason;

/// The versions that the gate speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1 (level 4).
    V4,
    /// 5.0 (level 5).
    V5,
}

/// A packet, or a sequence of packets, that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bad {
    /// The MQTT 5 reason code.
    pub(crate) code: u8,
    pub(crate) what: &'static str,
}

impl Bad {
    pub(crate) fn malformed(what: &'static str) -> Self {
        Self { code: reason::MALFORMED, what }
    }

    pub(crate) fn protocol(what: &'static str) -> Self {
        Self { code: reason::PROTOCOL_ERROR, what }
    }
}

/// What a client sends after CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Packet {
    Publish(Publish),
    PubAck(u16),
    /// With the reason code: from 0x80 on the exchange has ended.
    PubRec(u16, u8),
    PubRel(u16),
    PubComp(u16),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    PingReq,
    Disconnect(Disconnect),
}

/// How a client says goodbye.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// The reason code: only 0 takes the will back.
    pub(crate) code: u8,
    /// Seconds, where the client changes what its CONNECT said.
    pub(crate) session_expiry: Option<u32>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    /// Clean session, or clean start.
    pub(crate) clean: bool,
    /// Seconds; 0 is none.
    pub(crate) keep_alive: u16,
    pub(crate) client_id: String,
    pub(crate) will: Option<Box<Will>>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Bytes>,
    /// What follows is empty over 3.1.1.
    pub(crate) session_expiry: u32,
    pub(crate) receive_max: Option<u16>,
    pub(crate) packet_max: Option<u32>,
    /// Topic aliases that the client accepts.
    pub(crate) alias_max: u16,
    pub(crate) wants_response_information: bool,
    pub(crate) wants_problem_information: bool,
    pub(crate) auth_method: bool,
}

// Its password gets into no log.
impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Connect");
        shown.field("version", &self.version).field("client_id", &self.client_id).field("user", &self.user);
        shown.field("clean", &self.clean).field("keep_alive", &self.keep_alive).finish_non_exhaustive()
    }
}

#[cfg(any(test, feature = "alone"))]
impl Connect {
    /// That of a client which wants nothing special.
    pub(crate) fn plain(version: Version) -> Self {
        Self {
            version,
            clean: true,
            keep_alive: 10,
            client_id: "x".into(),
            will: None,
            user: None,
            password: None,
            session_expiry: 0,
            receive_max: None,
            packet_max: None,
            alias_max: 0,
            wants_response_information: false,
            wants_problem_information: true,
            auth_method: false,
        }
    }
}

/// What is published for a client that goes without saying goodbye.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Seconds.
    pub(crate) delay: u32,
    pub(crate) details: Details,
    /// There were more user properties than are kept.
    pub(crate) has_too_many_properties: bool,
}

/// What a message says beside its topic and payload, handed on as it is: the properties of a PUBLISH of MQTT 5.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Details {
    /// The payload is UTF-8, by its sender's word.
    pub(crate) is_text: bool,
    /// Seconds.
    pub(crate) expiry: Option<u32>,
    pub(crate) content_type: Option<String>,
    pub(crate) response_topic: Option<String>,
    pub(crate) correlation_data: Option<Bytes>,
    pub(crate) user_properties: Vec<(String, String)>,
}

/// What stands before the payload of a PUBLISH.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) qos: u8,
    /// 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) retain: bool,
    /// Empty where `alias` stands for it.
    pub(crate) topic: String,
    pub(crate) alias: Option<u16>,
    pub(crate) details: Details,
    /// There were more of them than are kept.
    pub(crate) has_too_many_properties: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) head: Head,
    /// Where it is small, a copy: a slice would keep all that was read with it.
    pub(crate) payload: Bytes,
    /// Bytes after the fixed header.
    pub(crate) packet: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscribe {
    pub(crate) id: u16,
    pub(crate) filters: Vec<Filter>,
    /// The subscription identifier.
    pub(crate) tag: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) filter: String,
    pub(crate) qos: u8,
    pub(crate) no_local: bool,
    pub(crate) as_published: bool,
    pub(crate) replay: Replay,
}

/// Retain Handling: whether retained messages and current state are wanted at SUBSCRIBE. What brings more of them is greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Replay {
    Never,
    IfNew,
    #[default]
    Always,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsubscribe {
    pub(crate) id: u16,
    pub(crate) filters: Vec<String>,
}
