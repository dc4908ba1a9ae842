//! Fan-out: what members hear of a commit. State topics, receipts and the event feed are read from the ledger; the
//! gate carries them. Everything live is a hint: whoever missed it finds the same in the ledger.

pub mod feed;
pub mod live;
pub mod receipts;
pub mod state;
