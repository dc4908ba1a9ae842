//! How clients reach a server: TLS on every listener, and what others do to a listener that speaks it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod certificates;
mod edge;
mod hostile;
mod identity;
mod tls;
mod websocket;
