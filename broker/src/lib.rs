//! The gate: the only thing in Millpond that accepts MQTT connections.
//!
//! It signs clients in, authorises every topic, speaks MQTT 3.1.1 and 5 on one port, and knows the coordinator through
//! [`Backend`] alone. What members send is with the backend, and decided on, before it is acknowledged.
//!
//! | module | does |
//! |---|---|
//! | `gate` | start, accept loop, shutdown |
//! | `admission` | who signs in when: a turn for each address |
//! | `handshake` | CONNECT to session: version, credentials, take-over |
//! | `connection` | the task of one connection: all its I/O |
//! | `intake` | its incoming half: what is read, held, and due |
//! | `budget` | the bytes that all connections may hold |
//! | `rate` | how fast members and pools may send |
//! | `lookup` | a session's questions to the backend |
//! | `socket` | waiting for a socket in both directions |
//! | `session` | the protocol itself, without I/O |
//! | `codec` | bytes to packets and back |
//! | `registry` | sessions: who is connected, and who may come back |
//! | `hub` | who gets which live message: state, events, app topics |
//! | `bus` | one order for the live messages of everybody, by `rumqttd` |
//! | `handle` | the coordinator's way in |
//!
//! Metrics, all with the prefix `millpond_gate_`: gauges `connections`, `strangers`, `waiting`, `uncommitted_bytes`,
//! `router_queue`, `router_queue_peak`; counters `publishes_total`, `refusals_total{code}`, `bytes_in_total`, `bytes_out_total`,
//! `sign_ins_refused_total`, `connections_refused_total{limit}`, `throttled_total{limit}`, `stalled_total`,
//! `events_dropped_total`, `copies_dropped_total{limit}`, `wills_total`, `bus_lost_total`; histogram
//! `ack_seconds`, from receipt of a PUBLISH to its PUBACK or PUBREC.

mod admission;
#[cfg(feature = "alone")]
pub mod alone;
pub mod backend;
mod budget;
mod bus;
mod codec;
mod config;
mod connection;
mod gate;
mod handle;
mod handshake;
mod hub;
mod intake;
mod lookup;
mod rate;
mod registry;
mod session;
mod socket;

/// The server of the tests in `tests/gate`, for those that have to hold up what is inside.
#[cfg(test)]
#[path = "../tests/gate/support/mod.rs"]
#[allow(dead_code, reason = "few of them do")]
mod support;

#[cfg(test)]
extern crate self as millpond_broker;

pub use backend::{
    Backend, Credential, Incoming, KeptSession, LeftSession, MemberMessage, ReceiptRow, RefusedPublish,
    SignIn, SignInError, StateMessage, Subscription,
};
pub use config::GateConfig;
pub use gate::{Gate, GateError};
pub use handle::GateHandle;
pub use rate::Rate;
pub use registry::EndReason;
