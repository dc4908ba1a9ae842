//! The harness of the end-to-end tests: the real binary as a child process, on ports that the system picks, in a directory of
//! its own; MQTT and HTTP clients; and the tools that transcripts need.
//!
//! A test starts a [`Server`], makes a pool and members over `/v1`, and speaks MQTT through [`Link`] (MQTT 5) or
//! [`Plain`] (3.1.1). Readiness is what `/readyz` says; SIGTERM and SIGKILL are ordinary steps.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "this crate is nothing but tests")]

mod api;
mod dice;
mod edge;
mod external;
mod liar;
mod mill;
pub mod openssl;
pub mod overload;
mod place;
mod plain;
mod power;
mod process;
mod relay;
mod seaweedfs;
mod server;
mod shim;
mod tools;
mod trace;
pub mod wire;

pub use api::Api;
pub use dice::Dice;
pub use edge::Edge;
pub use liar::{Liar, Lie};
pub use mill::{Leased, Mill};
pub use millpond::demo::{Beside, Credentials, Link, Message};
pub use place::{Apart, Place, listed};
pub use plain::Plain;
pub use power::{Disk, Loss, Taken};
pub use process::{Process, was_killed};
pub use relay::{Relay, Shape};
pub use seaweedfs::SeaweedFs;
pub use server::{Ports, Server};
pub use shim::Shim;
pub use tools::{
    NOBODY, binary, browser, edge_binary, is_root, mqtt_js, python, recent_hour, repository, skip, tool,
    until,
};
pub use trace::{STEPS, Trace, killed_at, may_trace};
