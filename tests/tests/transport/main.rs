//! How clients reach a server: TLS on every listener, and what others do to a listener that speaks it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod certificates;
mod client;
mod edge;
mod hostile;
mod identity;
mod lists;
mod resumed;
mod revoked;
mod tls;
mod websocket;
