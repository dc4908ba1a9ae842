//! Files that wait to be sent, in a directory that survives kill -9, power loss and a full disk, and that several processes may use
//! at once.
//!
//! # The format, version 2
//!
//! ```text
//! SPOOL/                mode 0700; every file below 0600
//!   version             the text "millpond-spool 2\n"; a spool of version 1 is made one of version 2, and another one is not opened.
//!                       Written, as version.new, when the directories are synced
//!   lock                flock, exclusive, around every change below; its first 8 bytes count the changes (little endian)
//!   sending             flock, exclusive, held by the process that sends
//!   ready/NAME          an entry that waits
//!   refused/NAME        an entry that the server refused for good
//!   refusals/NAME       why, as the JSON of an error, in a line with its checksum
//!   damaged/NAME        an entry whose checksum did not match; here and in refused/ lie at most 1,000 each, and a tenth of the
//!                       spool's bytes or one entry: the oldest go
//!   damaged/complete    lines of `complete` that were damaged; at most 1 MiB, then begun anew
//!   staging/ID.…        entries that are being written, by the process that has reserved/ID; without that they are removed
//!   reserved/ID         what a process has staged, under an exclusive flock of its own: files, and bytes (two u64, little endian)
//!   in-flight           names of entries that may have been sent, one a line with its checksum
//!   rest                why nothing is sent for a while, and until when, as the JSON of a [`Rest`], in a line with its checksum;
//!                       absent while there is no reason
//!   anchors             clock anchors, one JSON object a line with its checksum, the newest last; at most 16
//!   complete            statements that nothing more comes, one JSON object a line with its checksum:
//!                       { id, complete: { through | now | label } }; at most 1,000
//!   dropped.log         what went unsent, for want of room or because somebody discarded it, one JSON object a line; at most 1 MiB,
//!                       then begun anew
//!   dropping            lines that dropped.log is to have once what they speak of is gone, each with its checksum; absent while
//!                       nothing goes
//! ```
//!
//! NAME is `{key}.{size}.{upload}`: 15 digits of milliseconds since 1970 (the stated event time, else the wall clock at capture,
//! unless the description has a `key`: where the clock was behind the anchor of its boot, or, without one, behind the newest
//! entry), the file's size, and its upload id. So a listing alone tells what there is, in order, without opening a file.
//!
//! An entry's file is the bytes of the file, then its description ([`Document`]) as JSON, the SHA-256 of that JSON (32 bytes), its
//! length (u32, little endian), and `MPSPOOL1`. The description holds the SHA-256 of the bytes.
//!
//! A line with its checksum is the SHA-256 of a text as 64 hex digits, a blank, the text, and a line feed.
//!
//! # What holds
//!
//! An entry is written under `staging/`, synced, and renamed to `ready/`, and `ready/` is synced: from then on it is there after a
//! power cut, and before then it is whole or not there at all. Up to 32 entries that are added together are synced at the same
//! time, further ones when they are staged, and `ready/` once for all. An entry leaves when [`Spool::remove`], [`Spool::refuse`] or [`Spool::discard`] says so, or when a full
//! spool was told to drop the oldest. A file under `staging/` without a reservation was left by a process that died, and is removed. A
//! power cut can bring back entries that had left, [`crate::sender`]'s last thousand at the most: they are sent again, and the
//! server knows them.
//!
//! What does not match its checksum is never believed, and keeps nothing else from its work. An entry goes to `damaged/` when it is
//! read; a line of a note is no part of it, and leaves it when the spool is opened, which tells of it ([`Spool::damaged_notes`]), or when
//! whoever has it open for long looks for such ([`Spool::mend_notes`]).
//! Damaged statements lie in `damaged/complete` then, for somebody has to make them again; the other notes are learnt again.
//!
//! `complete` is synced before it is promised. A statement leaves when the server has answered it; it may be told twice, under the same id.
//!
//! `in-flight` is a hint for not sending twice, `rest` one for not sending in vain, `anchors` one for better times: they are not
//! synced, and may be lost.
//!
//! `dropped.log` names what is gone, and nothing that is there. A process that is killed between the one and the other leaves
//! `dropping`, and whoever opens the spool then, or adds to it or takes from it, logs what of that is gone first. Neither is synced:
//! after a power cut lines may be missing.
//!
//! # An example
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use millpond_edge::clock::Stamp;
//! use millpond_edge::spool::{About, Entry, Limits, Place, Spool, WhenFull};
//!
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path().join("spool");
//! let limits = Limits { files: 1_000, bytes: 1 << 30, when_full: WhenFull::DropOldest };
//! let mut spool = Spool::open(&directory, limits)?;
//! let staged = spool.stage(&b"21.5 degrees\n"[..], |sha256| About {
//!     upload: format!("reading-{}", &sha256.to_string()[..16]).parse().expect("an id"),
//!     name: "reading.txt".parse().expect("a name"),
//!     event_time: None,
//!     label: None,
//!     content_type: None,
//!     meta: None,
//!     captured: Stamp::now(),
//! })?;
//! spool.add(vec![staged])?;
//! // From here on it survives kill -9 and the loss of power; another process, or the next one, finds it.
//! let mut another = Spool::open(&directory, limits)?;
//! let entries: Vec<Entry> = another.entries()?.cloned().collect();
//! let (document, bytes) = another.load(&entries[0])?;
//! assert_eq!((document.about.name.as_str(), bytes.as_slice()), ("reading.txt", &b"21.5 degrees\n"[..]));
//! another.discard(Place::Waiting, &entries)?;
//! assert_eq!(spool.entries()?.count(), 0);
//! # Ok(()) }
//! ```

mod add;
mod aside;
mod disk;
mod dropped;
mod entry;
mod leave;
mod mend;
mod notes;
mod open;
mod read;
mod reserve;
mod room;
mod seal;
mod stage;
mod statements;
mod store;
mod together;

pub use add::Added;
pub(crate) use disk::{
    directories, directory as make_directory, open as open_private, private_directories, replace,
    write_synced,
};
pub use entry::{About, Document, Entry};
pub use leave::Place;
pub(crate) use leave::Removal;
pub use mend::DamagedNote;
pub use notes::Rest;
pub(crate) use read::{Reader, Unread};
pub use room::{Limits, WhenFull};
pub use stage::Staged;
pub use statements::{Complete, Statement};
pub use store::{Sending, Spool};

use std::io;
use std::path::{Path, PathBuf};

use millpond_protocol::UploadId;
use open::VERSION;

/// Why the spool did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Over the limits, and it was not told to drop, or dropping would not help.
    #[error("the spool is full: {files} files with {bytes} bytes of at most {max_files} with {max_bytes}")]
    Full { files: u64, bytes: u64, max_files: u64, max_bytes: u64 },
    /// The id is taken by other bytes.
    #[error("upload {0} is in the spool with other bytes: use another id")]
    Conflict(UploadId),
    /// The directory is something else, or of a later version, or its version is damaged.
    #[error(
        "{}: its file `version` does not hold the line \"{}\". Either a later millpond-edge made this spool, or it is none; or that file is damaged: write this line into it then, or \"millpond-spool 1\" if an older millpond-edge used the spool last",
        .0.display(),
        VERSION
    )]
    Foreign(PathBuf),
    /// What was written is not what is read: the entry went to `damaged/`.
    #[error("{entry} is damaged: {why}")]
    Damaged { entry: Entry, why: String },
    /// The entry has left the spool meanwhile.
    #[error("{0} is not in the spool any more")]
    Gone(Entry),
    /// So many statements wait that no other one can.
    #[error("{0} statements of completion wait for the server already")]
    TooMany(usize),
    /// The description of a file is too long.
    #[error("name, label, content type and meta of {0} are too long together")]
    TooLong(UploadId),
    /// What the system said.
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl SpoolError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
