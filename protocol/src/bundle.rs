//! Bundle v1: one message with several uploads, each with its own event time.
//!
//! The four bytes `MPB1`, then [`Bundle`] in bincode's standard (varint) layout, so that any language can write it in
//! thirty lines: an unsigned integer is one byte below 251, else `251` + u16, `252` + u32 or `253` + u64, little endian;
//! a signed one is zigzag-coded first; a string or vector is its length, then its content; an option is one byte 0 or 1,
//! then its value; a struct is its fields in order; `[u8; 32]` is its 32 bytes.
//!
//! An integer may be written longer than needed, so a bundle has no canonical form: hash the bytes received.

use wincode::config::Configuration;
use wincode::len::UseIntLen;
use wincode::{ReadError, SchemaRead, SchemaWrite};

use crate::error::{Code, Refusal};
use crate::limits;

/// The first four bytes.
pub const MAGIC: &[u8; 4] = b"MPB1";

/// A decoded bundle; texts and data are borrowed from the message.
#[derive(Debug, Clone, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Bundle<'a> {
    /// Server time less the client's clock, in milliseconds, as the client measured it; for the record only.
    pub clock_offset_ms: Option<i64>,
    /// A `complete` statement that takes effect after the entries: nothing more up to this time.
    pub complete_through_ms: Option<i64>,
    /// At most [`limits::BUNDLE_ENTRIES_MAX`].
    pub entries: Vec<Entry<'a>>,
}

/// One upload of a bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Entry<'a> {
    pub upload: &'a str,
    /// Milliseconds since 1970 in server time.
    pub event_time_ms: i64,
    /// The file's name for people; empty means the upload id.
    pub name: &'a str,
    pub content_type: Option<&'a str>,
    pub label: Option<&'a str>,
    pub sha256: Option<[u8; 32]>,
    /// JSON, at most [`limits::META_MAX`] bytes.
    pub meta: Option<&'a str>,
    pub data: &'a [u8],
}

/// bincode's `standard()`: varint integers and lengths.
macro_rules! layout {
    () => {
        Configuration::default()
            .with_varint_encoding()
            .with_length_encoding::<UseIntLen<u64>>()
            .with_tag_encoding::<u32>()
    };
}

/// Reads a bundle. Ids, names and times inside are still the client's words.
///
/// # Errors
/// `malformed` if the bytes are no bundle v1 (trailing bytes included), `too_large` with more entries than allowed.
pub fn decode(message: &[u8]) -> Result<Bundle<'_>, Refusal> {
    let malformed = |why: String| {
        Refusal::new(Code::Malformed, format!("not a bundle: {why}"))
            .hint("MPB1, then bincode's standard layout; see docs/protocol.md")
    };
    let body = message.strip_prefix(MAGIC).ok_or_else(|| malformed("it does not begin with MPB1".into()))?;
    let too_large = || {
        let message = format!("the bundle has more than {} entries", limits::BUNDLE_ENTRIES_MAX);
        Refusal::new(Code::TooLarge, message)
            .limit(limits::BUNDLE_ENTRIES_MAX as u64)
            .hint("send several bundles")
    };
    match wincode::config::deserialize_exact::<Bundle<'_>, _>(body, layout!()) {
        Ok(bundle) if bundle.entries.len() > limits::BUNDLE_ENTRIES_MAX => Err(too_large()),
        Ok(bundle) => Ok(bundle),
        // The number of entries is all that memory is set aside for; texts and data are borrowed.
        Err(ReadError::PreallocationSizeLimit { .. }) => Err(too_large()),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Writes a bundle.
///
/// # Errors
/// `too_large` if it has more entries than allowed.
pub fn encode(bundle: &Bundle<'_>) -> Result<Vec<u8>, Refusal> {
    if bundle.entries.len() > limits::BUNDLE_ENTRIES_MAX {
        return Err(Refusal::new(Code::TooLarge, "too many entries").limit(limits::BUNDLE_ENTRIES_MAX as u64));
    }
    let mut message = MAGIC.to_vec();
    wincode::config::serialize_into(&mut message, bundle, layout!())
        .map_err(|e| Refusal::new(Code::Malformed, e.to_string()))?;
    Ok(message)
}
