//! An entry's file: its name and its footer. Pure.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use millpond_protocol::{FileName, Label, Sha256, Timestamp, UploadId};
use serde::{Deserialize, Serialize};

use crate::clock::Stamp;

/// The last eight bytes of an entry; the digit is the version of the format.
pub(super) const MAGIC: &[u8; 8] = b"MPSPOOL1";
/// Bytes after the description: its SHA-256, its length, the magic.
pub(super) const TRAILER: usize = 32 + 4 + MAGIC.len();
/// Bytes of a description: far more than its parts may have together.
pub(super) const ABOUT_MAX: usize = 64 << 10;

/// The largest key that fits its digits.
pub(super) const KEY_MAX: u64 = 999_999_999_999_999;

/// One file in the spool, as its name tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Milliseconds since 1970 that order the spool: the stated event time, else the wall clock at capture; where that clock was seen to be
    /// behind, what is known better.
    pub key: u64,
    /// Bytes of the file.
    pub size: u64,
    pub upload: UploadId,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.key, &self.upload, self.size).cmp(&(other.key, &other.upload, other.size))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:015}.{}.{}", self.key, self.size, self.upload)
    }
}

/// The name is not an entry's.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAnEntry;

impl FromStr for Entry {
    type Err = NotAnEntry;

    fn from_str(name: &str) -> Result<Self, NotAnEntry> {
        let mut parts = name.splitn(3, '.');
        let mut part = || parts.next().ok_or(NotAnEntry);
        let (key, size, upload) = (part()?, part()?, part()?);
        let entry = Self {
            key: key.parse().map_err(|_| NotAnEntry)?,
            size: size.parse().map_err(|_| NotAnEntry)?,
            upload: upload.parse().map_err(|_| NotAnEntry)?,
        };
        // One spelling for each entry: no sign, no other number of zeros.
        if entry.to_string() == name { Ok(entry) } else { Err(NotAnEntry) }
    }
}

/// What is known of a file beside its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub upload: UploadId,
    pub name: FileName,
    /// Stated by whoever pushed the file, in server time; without it, the capture counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<String>,
    /// When the file was pushed, by this machine's clocks.
    pub captured: Stamp,
}

/// The description in an entry's footer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    #[serde(flatten)]
    pub about: About,
    pub size: u64,
    pub sha256: Sha256,
    /// Its place in the order where that is not its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u64>,
}

impl Document {
    /// The name under which it lies in the spool.
    pub fn entry(&self) -> Entry {
        let time = self.about.event_time.map_or(self.about.captured.wall_ms, Timestamp::as_millis);
        let time = Timestamp::clamped(time).as_millis();
        let key = self.key.unwrap_or_else(|| u64::try_from(time).unwrap_or(0)).min(KEY_MAX);
        Entry { key, size: self.size, upload: self.about.upload.clone() }
    }

    /// What stands after the file's bytes. None if the description is longer than one may be.
    pub(super) fn footer(&self) -> Option<Vec<u8>> {
        let mut footer = serde_json::to_vec(self).ok().filter(|json| json.len() <= ABOUT_MAX)?;
        let length = u32::try_from(footer.len()).ok()?;
        let digest = Sha256::of(&footer);
        footer.extend_from_slice(&digest.0);
        footer.extend_from_slice(&length.to_le_bytes());
        footer.extend_from_slice(MAGIC);
        Some(footer)
    }

    /// Reads the end of an entry's file, at least its whole footer, of a file of `length` bytes.
    pub(super) fn read(end: &[u8], length: u64) -> Result<Self, &'static str> {
        let about = description_length(end)?;
        let begin = end.len().checked_sub(TRAILER + about).ok_or("the footer is cut")?;
        let (json, trailer) = end[begin..].split_at(about);
        if Sha256::of(json).0[..] != trailer[..32] {
            return Err("the footer's checksum does not match");
        }
        let document: Self = serde_json::from_slice(json).map_err(|_| "the footer is not understood")?;
        if document.size + (about + TRAILER) as u64 != length {
            return Err("the file has another length than its footer says");
        }
        Ok(document)
    }
}

/// Bytes of the description, from the end of a file.
pub(super) fn description_length(end: &[u8]) -> Result<usize, &'static str> {
    let trailer = end.len().checked_sub(TRAILER).map(|begin| &end[begin..]).ok_or("the file is too short")?;
    let (length, magic) = trailer[32..].split_at(4);
    if magic != MAGIC {
        return Err("it does not end like an entry of this version");
    }
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if length > ABOUT_MAX { Err("the footer is longer than one may be") } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document() -> impl Strategy<Value = Document> {
        let id = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";
        let time = proptest::option::of(0..253_370_764_799_999_i64);
        let key = proptest::option::of(any::<u64>());
        let meta = proptest::option::of("\\PC{0,40}");
        (id, time, any::<i64>(), 0..u64::MAX >> 16, any::<[u8; 32]>(), meta, key).prop_map(
            |(upload, time, wall_ms, size, sha256, meta, key)| Document {
                about: About {
                    upload: upload.parse().unwrap(),
                    name: "ü b.txt".parse().unwrap(),
                    event_time: time.map(Timestamp::clamped),
                    label: None,
                    content_type: None,
                    meta,
                    captured: Stamp { wall_ms, boot: None },
                },
                size,
                sha256: Sha256(sha256),
                key,
            },
        )
    }

    proptest! {
        #[test]
        fn names_and_footers_are_read_as_they_were_written(document in document()) {
            let entry = document.entry();
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
            let footer = document.footer().unwrap();
            let length = document.size + footer.len() as u64;
            prop_assert_eq!(Document::read(&footer, length), Ok(document));
        }

        #[test]
        fn a_damaged_footer_is_never_believed(document in document(), at in any::<proptest::sample::Index>(), bit in 0..8_u8) {
            let mut footer = document.footer().unwrap();
            let length = document.size + footer.len() as u64;
            let at = at.index(footer.len());
            footer[at] ^= 1 << bit;
            prop_assert!(Document::read(&footer, length).is_err());
        }

        #[test]
        fn arbitrary_bytes_and_names_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), name in "\\PC{0,60}") {
            let _ = Document::read(&bytes, bytes.len() as u64);
            let _ = name.parse::<Entry>();
        }
    }

    #[test]
    fn names_sort_by_time_and_have_one_spelling() {
        let old: Entry = "000000000000900.5.z".parse().unwrap();
        let new: Entry = "000000000001000.5.a".parse().unwrap();
        assert!(old < new && old.to_string() < new.to_string());
        for wrong in
            ["900.5.a", "000000000000900.05.a", "+00000000000900.5.a", "000000000000900.5", "x.why", ""]
        {
            assert_eq!(wrong.parse::<Entry>(), Err(NotAnEntry), "{wrong}");
        }
    }
}
