//! A large file's way: the grant, the bytes, and the word that counts it.
//!
//! Up to [`SINGLE`] bytes it is one PUT; above, parts, of which the server says which it has: whoever is interrupted, also by the
//! death of its process, sends the others. URLs are asked for a few parts at a time, so none expires while it waits.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use millpond_edge::large;
//! use millpond_edge::session::{self, Config, Token};
//! use millpond_edge::transfer::{self, Meter, Options, Transfer};
//! use millpond_protocol::message::Outcome;
//! use serde_json::json;
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! let file = directory.join("map.bin");
//! std::fs::write(&file, vec![7; 20_000_000])?;
//! let sha256 = transfer::digest(&file, 20_000_000, None)?.sha256;
//! let config = Config::new(host, port, "demo".parse()?, "edge-7".parse()?, Token::new(token));
//! let (session, _inbox) = session::open(config);
//! let transfer = Transfer::new(Options::default());
//! let put = serde_json::from_value(json!({ "name": "map.bin", "size": 20_000_000, "sha256": sha256 }))?;
//! let (meter, patience) = (Meter::silent(), Duration::from_secs(30));
//! let receipt =
//!     large::upload(&session, &transfer, &file, &"map-1".parse()?, put, &meter, patience).await?;
//! assert_eq!((receipt.outcome, large::part_size(20_000_000)), (Outcome::Stored, Some(8 << 20)));
//! # Ok(()) }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Receipt, answer, ask};
use millpond_protocol::{Code, Refusal, UploadId, limits};
use serde_json::{Value, json};

use crate::session::{Session, SessionError};
use crate::transfer::{Digests, Meter, Put, Transfer, TransferError, digest};

/// Bytes up to which a file is one PUT: what is sent again at the most after an interruption.
pub const SINGLE: u64 = 16 << 20;
/// Bytes of a part, unless the file would have too many of them.
pub const PART: u64 = 8 << 20;
/// Parts whose URLs are asked for at once.
const WANTED: usize = 8;
/// How long one ask may take, over all connections.
pub(crate) const ASK: Duration = Duration::from_secs(120);
/// Seconds that the server may let a `commit` wait for what it verifies.
const VERIFY_S: u64 = 45;
/// How often a grant is renewed without a byte more being there.
const RENEWALS: u32 = 5;

/// Why a large file is not there.
#[derive(Debug, thiserror::Error)]
pub enum LargeError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The file is not what it was when its grant was asked for.
    #[error("{} has changed", .0.display())]
    Changed(PathBuf),
    /// Granted, sent, and still not there.
    #[error("the server keeps granting what was sent: {0}")]
    Lost(String),
}

impl LargeError {
    /// The server's refusal that no repetition changes.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Session(SessionError::Answer(refusal)) if !refusal.code.is_temporary() => Some(refusal),
            _ => None,
        }
    }

    /// Whether the way by URL leads nowhere now, so that a file which is not too large for that may get there as a message. Not where
    /// storage has no room, or the server takes nothing now: those bytes would go in vain.
    pub(crate) fn is_of_the_way(&self) -> bool {
        match self {
            Self::Transfer(error) => match error {
                TransferError::Expired { .. }
                | TransferError::Refused { .. }
                | TransferError::Stuck { .. } => true,
                TransferError::Full { .. }
                | TransferError::Mismatch { .. }
                | TransferError::TooLong { .. }
                | TransferError::Local { .. } => false,
            },
            Self::Lost(_) => true,
            Self::Session(_) | Self::Changed(_) => false,
        }
    }

    /// Whether the same call can succeed later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Session(error) => error.is_temporary(),
            Self::Transfer(error) => error.is_temporary(),
            Self::Changed(_) | Self::Lost(_) => false,
        }
    }
}

/// Bytes of a part of a file of that size; none where it goes as a whole.
pub fn part_size(size: u64) -> Option<u64> {
    let least = size.div_ceil(limits::PARTS_MAX).next_multiple_of(1 << 20);
    (size > SINGLE).then(|| least.clamp(PART, limits::PART_MAX))
}

/// Sends a file under an upload id and has it counted. `put` says what it is; its part size and parts are filled in here. What the
/// server refuses for now is asked for again as long as `patience`, two minutes at the most.
///
/// # Errors
/// As [`LargeError`] says. The same call again goes on where this one ended.
pub async fn upload(
    session: &Session,
    transfer: &Transfer,
    file: &Path,
    upload: &UploadId,
    put: ask::Put,
    meter: &Meter,
    patience: Duration,
) -> Result<Receipt, LargeError> {
    let put = ask::Put { upload: Some(upload.clone()), ..put };
    let mut differed = false;
    for _ in 0..RENEWALS {
        let there = send(session, transfer, file, &put, meter, patience).await?;
        if let Some(receipt) = there.receipt {
            return Ok(receipt);
        }
        reach(Point::LargeSent);
        match commit(session, upload, patience).await {
            Ok(receipt) => {
                reach(Point::LargeCounted);
                return Ok(receipt);
            }
            // The grant ended, or storage lost what it had: once more.
            Err(SessionError::Answer(refusal)) if refusal.code == Code::NotFound => {}
            // A part that lay there can be of other bytes. A new grant begins without parts, so once more is enough to know.
            Err(SessionError::Answer(refusal)) if refusal.code == Code::Mismatch && !differed => {
                differed = true
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(LargeError::Lost(upload.to_string()))
}

/// Has what was sent counted.
pub(crate) async fn commit(
    session: &Session,
    upload: &UploadId,
    patience: Duration,
) -> Result<Receipt, SessionError> {
    let ask = ask::Commit { upload: Some(upload.clone()), uploads: Vec::new(), wait_s: VERIFY_S };
    loop {
        let answer: answer::Commit = session.ask_patiently(Op::Commit, &ask, ASK, patience).await?;
        let receipt = answer.uploads.into_iter().next();
        let receipt =
            receipt.ok_or_else(|| SessionError::Strange(Op::Commit, "it holds no receipt".to_owned()))?;
        if receipt.outcome != Outcome::Pending {
            return Ok(receipt);
        }
    }
}

/// How a file is cut, and which of its parts storage has.
struct Plan {
    /// None: it goes as a whole.
    part_size: Option<u64>,
    digests: Digests,
    /// Learnt part by part: the list in an answer may be cut.
    there: Vec<bool>,
}

impl Plan {
    async fn of(file: &Path, put: &ask::Put, part_size: Option<u64>) -> Result<Self, LargeError> {
        let digests = digests(file, put, part_size).await?;
        Ok(Self { part_size, there: vec![false; digests.parts.len()], digests })
    }

    /// The ask for what is not there yet.
    fn ask(&self, put: &ask::Put) -> ask::Put {
        let parts = missing(&self.there, &self.digests);
        ask::Put { part_size: self.part_size, parts, ..put.clone() }
    }

    fn count(&self) -> usize {
        self.there.iter().filter(|there| **there).count()
    }
}

/// Sends what `put` describes until storage has all of it; what the last answer said. Nothing is counted yet, unless that answer says
/// so. `patience` as for [`upload`].
///
/// # Errors
/// As [`LargeError`] says.
pub async fn send(
    session: &Session,
    transfer: &Transfer,
    file: &Path,
    put: &ask::Put,
    meter: &Meter,
    patience: Duration,
) -> Result<answer::Put, LargeError> {
    let mut plan = Plan::of(file, put, part_size(put.size)).await?;
    let mut in_vain = 0;
    loop {
        let wanted = wide(&plan.ask(put))?;
        let answer: answer::Put = session.ask_patiently(Op::Put, &wanted, ASK, patience).await?;
        if answer.outcome != Outcome::Granted {
            return Ok(answer);
        }
        if answer.part_size != plan.part_size {
            // What was granted stands, and another release may have asked for it: its parts are gone on with.
            in_vain += 1;
            if in_vain > RENEWALS {
                return Err(LargeError::Lost(file.display().to_string()));
            }
            plan = Plan::of(file, put, granted(&answer, put.size)?).await?;
            continue;
        }
        let before = plan.count();
        let puts = match (plan.part_size, &answer.to) {
            (Some(part_size), _) => {
                note(&mut plan.there, &answer);
                let wanted = answer.parts.iter();
                wanted.filter_map(|part| part_put(part, &plan.digests, part_size)).collect()
            }
            (None, Some(to)) => vec![single(to, put.size)],
            // Storage has the file, and only its commit is missing.
            (None, None) => return Ok(answer),
        };
        let sent = transfer.send(file, &puts, meter).await;
        if sent.is_ok() {
            answer.parts.iter().for_each(|part| mark(&mut plan.there, part.n, part.n));
            if plan.there.iter().all(|there| *there) {
                return Ok(answer);
            }
        }
        in_vain = if plan.count() > before { 0 } else { in_vain + 1 };
        match sent {
            Err(TransferError::Expired { .. }) | Ok(()) if in_vain <= RENEWALS => {}
            Ok(()) => return Err(LargeError::Lost(file.display().to_string())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The length of the parts that were granted, if it can be one.
fn granted(answer: &answer::Put, size: u64) -> Result<Option<u64>, LargeError> {
    let fits = |part: u64| {
        (limits::PART_MIN..=limits::PART_MAX).contains(&part) && size.div_ceil(part) <= limits::PARTS_MAX
    };
    match answer.part_size {
        Some(part) if !fits(part) => Err(strange(&format!("parts of {part} bytes of a file of {size}"))),
        part => Ok(part),
    }
}

/// Which parts the server says it has.
fn note(there: &mut [bool], answer: &answer::Put) {
    for (first, last) in &answer.there {
        mark(there, *first, *last);
    }
    for part in answer.parts.iter().filter(|part| part.to.is_none()) {
        mark(there, part.n, part.n);
    }
}

/// Parts are counted from 1; numbers that no part has say nothing.
fn mark(there: &mut [bool], first: u32, last: u32) {
    let range = (first.max(1) - 1) as usize..last as usize;
    there.get_mut(range).unwrap_or_default().fill(true);
}

/// Hashes the parts, and sees that the file is still the one that was described.
async fn digests(file: &Path, put: &ask::Put, part_size: Option<u64>) -> Result<Digests, LargeError> {
    let (path, size) = (file.to_owned(), put.size);
    let digested = tokio::task::spawn_blocking(move || digest(&path, size, part_size)).await;
    let digested = digested.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let digests = digested.map_err(|source| TransferError::Local { path: file.to_owned(), source })?;
    if digests.sha256 == put.sha256 { Ok(digests) } else { Err(LargeError::Changed(file.to_owned())) }
}

/// The next parts that are not there.
fn missing(there: &[bool], digests: &Digests) -> Vec<ask::WantedPart> {
    let parts = (1_u32..).zip(there).zip(&digests.parts).filter(|((_, there), _)| !**there);
    parts.take(WANTED).map(|((n, _), sha256)| ask::WantedPart { n, sha256: *sha256 }).collect()
}

fn single(to: &answer::PutTo, size: u64) -> Put {
    let headers = to.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    Put { url: to.url.clone(), headers, offset: 0, size }
}

/// The request for a part; none if it is there.
fn part_put(part: &answer::PutPart, digests: &Digests, part_size: u64) -> Option<Put> {
    let to = part.to.as_ref()?;
    let offset = u64::from(part.n.saturating_sub(1)) * part_size;
    let size = digests.size.saturating_sub(offset).min(part_size);
    Some(Put { offset, ..single(to, size) })
}

/// The ask with room for many URLs in the answer.
fn wide(put: &ask::Put) -> Result<Value, LargeError> {
    let mut ask = serde_json::to_value(put).map_err(|error| strange(&error.to_string()))?;
    ask["max_answer"] = json!(64 << 10);
    Ok(ask)
}

fn strange(what: &str) -> LargeError {
    LargeError::Session(SessionError::Strange(Op::Put, what.to_owned()))
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Sha256;

    use super::*;

    fn nothing_granted() -> answer::Put {
        answer::Put {
            upload: None,
            round: None,
            attempt: None,
            outcome: Outcome::Granted,
            receipt: None,
            version: None,
            expires: None,
            to: None,
            part_size: None,
            part_count: None,
            there: Vec::new(),
            parts: Vec::new(),
        }
    }

    #[test]
    fn files_go_whole_up_to_a_limit_and_never_in_too_many_parts() {
        assert_eq!(part_size(SINGLE), None);
        assert_eq!(part_size(SINGLE + 1), Some(PART));
        for size in [1 << 30, 100 << 30, 5 << 40, limits::UPLOAD_MAX] {
            let part = part_size(size).unwrap();
            assert!(size.div_ceil(part) <= limits::PARTS_MAX && part <= limits::PART_MAX, "{size}: {part}");
        }
    }

    #[test]
    fn parts_that_no_server_grants_are_not_cut() {
        let answer = |part_size| answer::Put { part_size, ..nothing_granted() };
        let size = 1 << 40;
        assert_eq!(granted(&answer(None), size).unwrap(), None);
        assert_eq!(granted(&answer(Some(1 << 30)), size).unwrap(), Some(1 << 30));
        for bad in [0, 1, limits::PART_MIN - 1, limits::PART_MIN, limits::PART_MAX + 1] {
            assert!(granted(&answer(Some(bad)), size).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_server_says_it_has_is_not_sent() {
        let digests = Digests { size: 5, sha256: Sha256::of(b""), parts: vec![Sha256::of(b"x"); 5] };
        let part = |n, to| answer::PutPart { n, to };
        let to = answer::PutTo {
            url: "http://x/".into(),
            headers: [("content-length".to_owned(), "1".to_owned())].into(),
            url_expires: millpond_protocol::Timestamp::EPOCH,
            curl: None,
        };
        let answer = answer::Put {
            part_size: Some(1),
            part_count: Some(5),
            there: vec![(1, 1), (4, 4), (9, 12), (0, 0)],
            parts: vec![part(3, None), part(5, Some(to))],
            ..nothing_granted()
        };
        let mut there = vec![false; 5];
        note(&mut there, &answer);
        assert_eq!(there, [true, false, true, true, false]);
        assert_eq!(missing(&there, &digests).iter().map(|part| part.n).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(part_put(&answer.parts[0], &digests, 1), None);
        let put = part_put(&answer.parts[1], &digests, 1).unwrap();
        assert_eq!((put.offset, put.size, put.headers.len()), (4, 1, 1));
    }
}
