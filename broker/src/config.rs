//! What an operator may change about the gate. What is a limit of the protocol has its default from
//! [`millpond_protocol::limits`]; `keep_alive_max`, `stall_timeout` and `rate_min` are the gate's own.

use std::time::Duration;

use millpond_protocol::{AppTopics, limits};

use crate::codec::Version;
use crate::codec::packet::Connect;
use crate::rate::Rate;

/// Limits and time-outs of the gate.
#[derive(Debug, Clone)]
pub struct GateConfig {
    /// What members may publish and subscribe to among themselves.
    pub app_topics: AppTopics,
    /// Seconds of the longest keep-alive: an MQTT 5 client that wants a longer one, or none, is told to use this. 0: any.
    pub keep_alive_max: u16,
    /// Bytes of a file in an `up` or an inline `result`. Raising it lets slow links be held longer by one packet.
    pub publish_max: usize,
    /// Bytes of a bundle's payload.
    pub bundle_max: usize,
    /// Bytes of an `ask` or a `delivery`.
    pub ask_max: usize,
    /// Bytes of a PUBLISH that is read past and refused; a longer one ends the connection.
    pub read_past_max: usize,
    /// Bytes of CONNECT.
    pub connect_max: usize,
    /// How long a new connection has until its CONNECT is complete.
    pub connect_timeout: Duration,
    /// How long its sign-in may take after that, while it holds a place of `strangers_max`.
    pub sign_in_timeout: Duration,
    /// Connections that have not signed in yet. More wait, [`limits::WAITING_PER_STRANGER`] for each of these places, and
    /// what comes beyond that is closed at once.
    pub strangers_max: usize,
    /// The same from one address (an IPv6 network of /64 is one). Raising it helps fleets behind one address, and lets one
    /// address keep more others waiting.
    pub strangers_per_address: usize,
    /// Connections that have signed in; one more is refused.
    pub connections_max: usize,
    /// The same from one address.
    pub connections_per_address: usize,
    /// Connections of one member.
    pub connections_per_member: usize,
    /// Bytes read but not committed, over all connections; then the gate reads no further. A quarter is for packets of
    /// at most 64 KiB, the rest for longer ones, and each part holds at least one packet of its kind.
    pub uncommitted_bytes_max: usize,
    /// Messages of one connection that are not committed; then the gate does not read from it.
    pub uncommitted_per_connection: usize,
    /// What one member may send, over all its connections; over its rate none of them is read for a while.
    pub member_rate: Rate,
    /// The same of a pool: over its rate, those members are not read who are over their share of it.
    pub pool_rate: Rate,
    /// Messages to one connection that are not acknowledged; an MQTT 5 client may lower it.
    pub in_flight_out: usize,
    /// Bytes queued to one connection; one more message ends it, and it asks again.
    pub out_queue_max: usize,
    /// Bytes of messages on app topics that one pool may have in memory; beyond that its connections that hold most are ended.
    pub pool_bytes_max: usize,
    /// Subscriptions of one connection.
    pub subscriptions_max: usize,
    /// How long a connection may take no byte of what is to be written to it, or pause inside a packet.
    pub stall_timeout: Duration,
    /// Bytes a second at which a long packet comes in at least, beside `stall_timeout`: it holds its part of
    /// `uncommitted_bytes_max` meanwhile. Raising it cuts slow links off.
    pub rate_min: usize,
    /// How long [`crate::Gate::serve`] waits for acknowledgements after its shutdown began.
    pub shutdown_grace: Duration,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            publish_max: limits::PUBLISH_MAX,
            bundle_max: limits::BUNDLE_MAX,
            ask_max: limits::ASK_MAX,
            read_past_max: limits::READ_PAST_MAX,
            connect_max: limits::CONNECT_MAX,
            connect_timeout: limits::CONNECT_TIMEOUT,
            sign_in_timeout: limits::STORAGE_TIMEOUT,
            strangers_max: limits::STRANGERS_MAX,
            strangers_per_address: limits::STRANGERS_PER_ADDRESS,
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_address: limits::CONNECTIONS_PER_ADDRESS,
            connections_per_member: limits::CONNECTIONS_PER_MEMBER,
            app_topics: AppTopics::default(),
            keep_alive_max: 0,
            uncommitted_bytes_max: limits::UNCOMMITTED_BYTES_MAX,
            uncommitted_per_connection: limits::UNCOMMITTED_PER_CONNECTION,
            member_rate: Rate::default(),
            pool_rate: Rate::default(),
            in_flight_out: limits::IN_FLIGHT_OUT,
            out_queue_max: limits::OUT_QUEUE_MAX,
            pool_bytes_max: limits::APP_BYTES_PER_POOL,
            subscriptions_max: limits::SUBSCRIPTIONS_MAX,
            stall_timeout: Duration::from_secs(30),
            rate_min: 4 << 10,
            shutdown_grace: limits::SHUTDOWN_GRACE,
        }
    }
}

impl GateConfig {
    /// The keep-alive that a client has to use instead of its own. Over 3.1.1 it could not be told.
    pub(crate) fn keep_alive_of(&self, connect: &Connect) -> Option<u16> {
        let max = self.keep_alive_max;
        let is_longer = connect.keep_alive == 0 || connect.keep_alive > max;
        (max > 0 && is_longer && connect.version == Version::V5).then_some(max)
    }

    /// Bytes of the largest packet that the gate accepts after CONNECT, as announced to MQTT 5 clients.
    pub fn packet_max(&self) -> usize {
        self.bundle_max.max(self.publish_max).max(self.ask_max) + limits::PACKET_OVERHEAD
    }
}
