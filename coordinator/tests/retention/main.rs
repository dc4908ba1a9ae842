//! Retention: what it never takes, what it takes in the end, and what members are told.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

mod collect;
mod planner;
mod stage;
#[path = "../dispatch/world.rs"]
#[allow(dead_code, reason = "shared with the tests of dispatch")]
mod world;
