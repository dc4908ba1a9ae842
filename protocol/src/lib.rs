//! What crosses a process boundary of Millpond: names, topics, messages, the bundle format, limits and errors.
//!
//! Nothing here does I/O, reads a clock or is async, so a client, the gate and the coordinator share one definition
//! of every rule. Start with [`topic`] for the shape of the MQTT contract and [`access`] for who may do what.

pub mod access;
pub mod app_topics;
pub mod bundle;
pub mod error;
pub mod hash;
pub mod ids;
pub mod limits;
pub mod message;
pub mod span;
pub mod time;
pub mod topic;

pub use access::{Action, Principal, Role};
pub use app_topics::{AppTopics, NO_APP_TOPICS};
pub use error::{Code, Refusal};
pub use hash::Sha256;
pub use ids::{AskId, BundleId, FileName, Label, MemberName, PoolName, UploadId};
pub use span::Span;
pub use time::Timestamp;
