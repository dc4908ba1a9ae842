//! MQTT 3.1.1 and 5 on the wire: bytes to packets and back, with nothing assumed about the bytes.
//!
//! Own code rather than `rumqttd::protocol`, because that cannot be fed what strangers send: it takes every reserved
//! bit, panics on packet types that only servers send, gives no access to the packet id and QoS of a PUBLISH, and
//! cannot read the head of a PUBLISH before its payload is there.

pub(crate) mod frame;
pub(crate) mod packet;
mod properties;
pub(crate) mod read;
pub(crate) mod write;

#[cfg(test)]
mod tests;

pub(crate) use packet::{Bad, Version};

/// Reason codes of MQTT 5 (OASIS MQTT 5, 2.4) that the gate itself uses.
pub(crate) mod reason {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SERVER_UNAVAILABLE: u8 = 0x88;
    pub(crate) const SERVER_BUSY: u8 = 0x89;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const BAD_AUTH_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE: u8 = 0x8D;
    pub(crate) const TAKEN_OVER: u8 = 0x8E;
    pub(crate) const FILTER_INVALID: u8 = 0x8F;
    pub(crate) const TOPIC_INVALID: u8 = 0x90;
    pub(crate) const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub(crate) const RECEIVE_MAX_EXCEEDED: u8 = 0x93;
    pub(crate) const ALIAS_INVALID: u8 = 0x94;
    pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
}
