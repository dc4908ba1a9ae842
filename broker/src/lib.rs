//! The gate: the only thing in Millpond that accepts MQTT connections.

#![allow(dead_code, reason = "the session machine that uses the rest follows")]

pub mod backend;
mod config;
mod gate;
mod handle;
mod registry;
mod router;

pub use backend::{Backend, Incoming, MemberMessage, ReceiptRow, SignIn, SignInError, StateMessage};
pub use config::GateConfig;
pub use gate::{Gate, GateError};
pub use handle::GateHandle;
pub use registry::EndReason;
