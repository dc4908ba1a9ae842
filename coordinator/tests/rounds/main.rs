//! The rules of batches and rounds, as a specification: one test for each sentence, and properties that hold always.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod grouping;
mod leases;
mod policy;
mod properties;
mod results;
mod rows;
mod sealing;
mod shell;
