//! Sends what is in the spool: today's files before the backlog, small ones together, and each until its receipt.
//!
//! A file leaves the spool when the server has said what became of it: `stored`, or refused for good (then it lies in the
//! spool's `refused/`, with the reason). A connection that ends leaves doubt, not loss: `status` is asked for every file that may
//! have arrived before any is sent again, also of what an earlier process left in doubt, so bytes go twice only where nobody can know.
//! Files are read and removed beside the work with messages. A receipt is acknowledged when it is understood: should the process die
//! before the file is removed, that is one of those in doubt.
//!
//! What the server refuses for now (a pool over its quota, a storage that is away) makes everything wait, as long as the server says
//! and longer each time; then one file goes, and more when that was taken. The pause is noted in the spool: another process keeps to
//! it. One that is longer than [`Options::patience`] ends the sending with [`SendError::Resting`].
//!
//! A statement of completion ([`crate::spool::Spool::complete`]) is told when every file that it speaks of has been receipted, or
//! with the bundle that carries the last of them.
//!
//! [`flush`] reads the session's inbox while it runs. The spool's operations block for as long as the disk takes. The [page of the
//! library](crate) shows it at work.

mod awaited;
mod begin;
mod by_url;
mod complete;
mod outcome;
mod overdue;
mod pace;
mod queue;
mod run;
mod ship;
mod shipment;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::message::Receipt;
use millpond_protocol::{Refusal, UploadId};

use crate::large::LargeError;
use crate::session::{Cause, SessionError, Topic};
use crate::spool::{Entry, SpoolError, Statement};
use crate::transfer::{Meters, Transfer};

pub use run::flush;

/// The topics that a session for [`flush`] needs.
pub const TOPICS: [Topic; 2] = [Topic::Receipts, Topic::Card];

/// How the spool is sent.
#[derive(Debug, Clone)]
pub struct Options {
    /// These go before everything else.
    pub first: HashSet<UploadId>,
    /// Returns when the first ones are settled and leaves the rest.
    pub only_first: bool,
    /// These are left alone, as what does not get through is for the rest of a run.
    pub alone: HashSet<UploadId>,
    /// How long to be without a connection, or without a word of the server on it, or to wait for a server that takes nothing now,
    /// before giving up. What is on its way has its time beside that.
    pub patience: Duration,
    /// Bytes of content in one bundle at the most, about; on a slow line it is what takes a few seconds.
    pub bundle: u64,
    /// Sends large files; its limit of the rate holds for all others too.
    pub transfer: Arc<Transfer>,
    /// Shows how far each large file is.
    pub meters: Meters,
}

impl Default for Options {
    /// Everything, 30 s without a connection, bundles of 1 MiB, no limit of the rate.
    fn default() -> Self {
        Self {
            first: HashSet::new(),
            only_first: false,
            alone: HashSet::new(),
            patience: Duration::from_secs(30),
            bundle: 1 << 20,
            transfer: Arc::new(Transfer::new(crate::transfer::Options::default())),
            meters: Meters::default(),
        }
    }
}

/// What became of one file.
#[derive(Debug)]
pub enum Report<'a> {
    /// It is stored, and has left the spool.
    Stored(&'a Entry, &'a Receipt),
    /// The server refuses it for good; it lies in `refused/`.
    Refused(&'a Entry, &'a Refusal),
    /// It was damaged in the spool and lies in `damaged/`.
    Damaged(&'a Entry, &'a str),
    /// A large file did not get through, or the disk does not give a file, or not let it go that is stored; it waits in the spool
    /// for another time.
    Left(&'a Entry, &'a LargeError),
    /// The server refused something for now: nothing is sent for so long.
    Resting(&'a Refusal, Duration),
    /// The server knows that there is nothing more.
    Told(&'a Statement),
    /// It does not want to know: there is no such label, say.
    NotTold(&'a Statement, &'a Refusal),
}

/// What [`flush`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub stored: u64,
    pub refused: u64,
    pub damaged: u64,
    /// Files that wait still: of a push that leaves the backlog, and large ones that did not get through now.
    pub left: u64,
    /// Messages with several files.
    pub bundles: u64,
    /// Bytes of files that were sent, repeats included; of large files those that got through, without the parts that were there.
    pub bytes: u64,
}

/// Why the spool was not sent to its end. What is not settled waits in it.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("no connection to the server: {0}")]
    Offline(Cause),
    /// This member may not upload: nothing was put aside for it.
    #[error("the server does not take uploads of this member: {0}")]
    NotAllowed(Refusal),
    /// The server takes nothing now; what was refused, and how long it is to be left alone.
    #[error("the server takes nothing now ({why}); it is left alone for {} s", .pause.as_secs())]
    Resting { why: Refusal, pause: Duration },
    /// Connected, and nothing gets through.
    #[error("nothing was settled for {0:?}")]
    Stuck(Duration),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}
