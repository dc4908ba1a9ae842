//! How clients reach a server: TLS on every listener, and what others do to a listener that speaks it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod certificates;
mod hostile;
mod tls;
mod websocket;
