//! The gate: the only thing in Millpond that accepts MQTT connections.

pub mod backend;

pub use backend::{Backend, Incoming, MemberMessage, ReceiptRow, SignIn, SignInError, StateMessage};
