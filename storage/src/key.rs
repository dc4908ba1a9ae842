//! The key of an object.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits::KEY_MAX;

/// The key of an object of ours: segments of `[A-Za-z0-9][A-Za-z0-9._-]*` joined by `/`, up to 256 bytes in all.
///
/// Such a key means the same in a URL, a path and a signature, on every server: nothing in it is ever escaped, and no
/// segment is empty, `.` or `..`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<str>);

/// The text is no key of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an object key is up to {KEY_MAX} bytes of A–Z, a–z, 0–9, . _ - and /, and each segment starts with a letter or digit"
)]
pub struct BadKey;

impl ObjectKey {
    /// The text as it stands in URLs and rows.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let segment = |s: &str| s.bytes().all(good) && s.starts_with(|c: char| c.is_ascii_alphanumeric());
        if text.len() <= KEY_MAX && text.split('/').all(segment) {
            Ok(Self(text.into()))
        } else {
            Err(BadKey)
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_mean_something_else_as_a_path_or_a_url_are_refused() {
        let long = "x".repeat(257);
        for bad in [
            "", "/", "/a", "a/", "a//b", "..", "a/../b", "a/.", "a b", "a%2fb", "ä", "a\\b", "a?b", "a\0",
            &long,
        ] {
            assert_eq!(bad.parse::<ObjectKey>(), Err(BadKey), "{bad:?}");
        }
    }

    #[test]
    fn keys_at_their_limits_are_kept_as_they_are() {
        for good in ["a", "pools/7/Zz09._-", "a..b/c", &"x".repeat(256)] {
            assert_eq!(good.parse::<ObjectKey>().unwrap().as_str(), good);
        }
    }
}
