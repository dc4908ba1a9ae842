//! What becomes of a TCP connection before anybody speaks MQTT, HTTP or S3 on it, for all listeners alike.
//!
//! A [`Listener`] accepts; the [`Arrival`] that it hands out becomes a [`Stream`] in the task that serves it, so that one
//! client's TLS handshake, or its silence, never holds up another's. Each way in has a time:
//!
//! | module | does |
//! |---|---|
//! | `places` | how many connections may come, in all and from one address, and whose turn it is for a place |
//! | `entrance` | a place for whoever comes, or a room to wait for one |
//! | `listener` | accepts, and makes a stream of what arrived: plain, or TLS after a handshake within its time |
//! | `moving` | ends a connection whose peer takes no byte for too long, below TLS |
//! | `stream` | plain or TLS, as one type |
//! | `tls` | certificate and key: read, checked, renewed while running. rustls with ring, TLS 1.2 and 1.3 |
//! | `websocket` | MQTT's bytes in binary messages, none of which is waited for whole |
//! | `http` | connections of an HTTP server: how many, how long, how they end |
//!
//! Metrics, with the prefix `millpond_tls_`: counters `handshakes_total{listener,outcome}` (`done`, `failed`, `late`) and
//! `reloads_total{outcome}` (`done`, `refused`); gauge `certificate_expires_seconds`, when the certificate in use ends. And
//! the counter `millpond_turned_away_total{listener,limit}` (`all`, `address`).

mod entrance;
mod http;
mod listener;
mod moving;
mod places;
mod stream;
pub mod tls;
pub mod websocket;

pub use entrance::Entrance;
pub use http::Connections;
pub use listener::{Arrival, Door, Entered, Handover, Listener, Outside, Shown};
pub use places::{Full, Place, Places, network};
pub use stream::Stream;
pub use tls::{Certified, Standing, Tls};
