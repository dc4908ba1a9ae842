//! The gate over real sockets: the behaviour that members and the coordinator rely on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "what the modules share needs no finer visibility")]

mod app;
mod budget;
mod clients;
mod connect;
mod deliver;
mod hostile;
mod places;
mod pressure;
mod publish;
mod rate;
mod revoked;
mod sessions;
mod soak;
mod standard;
mod support;
