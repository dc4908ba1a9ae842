//! The coordinator: groups uploads into batches, hands them to the external processor, and returns its result.

pub mod asks;
pub mod config;
pub mod ledger;
pub mod logging;
pub mod rounds;
