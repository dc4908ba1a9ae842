//! The coordinator: groups uploads into batches, hands them to the external processor, and returns its result.

pub mod rounds;
