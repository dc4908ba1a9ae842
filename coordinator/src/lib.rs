//! The coordinator: groups uploads into batches, hands them to the external processor, and returns its result.

pub mod asks;
pub mod cli;
pub mod config;
pub mod http;
pub mod ledger;
pub mod logging;
pub mod rounds;
