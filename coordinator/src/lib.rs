//! The coordinator: groups uploads into batches, hands them to the external processor, and returns its result.
//!
//! One module for each box of the bird's-eye view in ARCHITECTURE.md, wired in [`server`]; start with [`rounds`], the pure core.

pub mod asks;
pub mod authority;
pub mod backup;
pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod descriptors;
pub mod dispatch;
mod doors;
pub mod fanout;
pub mod grants;
pub mod http;
pub mod identity;
pub mod ingest;
pub mod ledger;
pub mod logging;
pub mod retention;
pub mod rounds;
pub mod secrets;
pub mod server;
#[cfg(test)]
mod simulation;
mod stopped;
mod store;
mod ustar;

pub use doors::Authority;
