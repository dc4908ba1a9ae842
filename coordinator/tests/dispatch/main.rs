//! Dispatch over a real ledger and the real embedded storage: packs, manifests, leases and the ops of rounds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod asks;
mod commits;
mod fuzz;
mod grants;
mod manifests;
mod packs;
mod sweep;
mod trouble;
mod world;
