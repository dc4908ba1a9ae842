//! Names and ids, each a type of its own that can only hold a valid value.
//!
//! The rules keep `+`, `#`, `/` and control characters out once, here, so that no name can change the meaning of a topic,
//! a path or an object key further in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a name or an id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {rule}")]
pub struct BadName {
    what: &'static str,
    rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text as it stands on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                match $rule(text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(rule) => Err(BadName { what: $what, rule }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(
    /// A pool: `[a-z0-9][a-z0-9-]{0,39}`.
    PoolName, "a pool name", pool_rule
);
name_type!(
    /// A member of a pool: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    MemberName, "a member name", id_rule
);
name_type!(
    /// The member's own key for an upload, `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`: with the member, the idempotency key.
    UploadId, "an upload id", id_rule
);
name_type!(
    /// Names a batch in a pool that groups by label: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    Label, "a label", id_rule
);
name_type!(
    /// A bundle, as its sender calls it: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    BundleId, "a bundle id", id_rule
);
name_type!(
    /// An ask, as its sender calls it, remembered for 24 h: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    AskId, "an ask id", id_rule
);
name_type!(
    /// A file's name for people: 1–255 bytes of UTF-8 without `/`, `\` or control characters, and not `.` or `..`.
    FileName, "a file name", file_name_rule
);

impl From<&UploadId> for FileName {
    /// An upload without a name is called by its id; every id is a valid file name.
    fn from(id: &UploadId) -> Self {
        Self(id.0.clone())
    }
}

fn pool_rule(text: &str) -> Result<(), &'static str> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=40).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') {
        Ok(())
    } else {
        Err("is 1–40 of a–z, 0–9 and -, and does not start with -")
    }
}

fn id_rule(text: &str) -> Result<(), &'static str> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(good) && text.as_bytes()[0].is_ascii_alphanumeric()
    {
        Ok(())
    } else {
        Err("is 1–64 of A–Z, a–z, 0–9, . _ and -, and starts with a letter or digit")
    }
}

fn file_name_rule(text: &str) -> Result<(), &'static str> {
    let bad = |c: char| c == '/' || c == '\\' || c.is_control();
    if (1..=255).contains(&text.len()) && !text.contains(bad) && text != "." && text != ".." {
        Ok(())
    } else {
        Err("is 1–255 bytes of UTF-8 without /, \\ or control characters, and not . or ..")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_change_the_meaning_of_a_topic_or_path_are_refused() {
        for bad in ["", "a/b", "a+", "#", "-a", ".hidden", "ä", "a b", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<MemberName>().is_err(), "{bad:?}");
        }
        for bad in ["", "A", "-a", "a_b", "a.b", &"x".repeat(41)] {
            assert!(bad.parse::<PoolName>().is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{85}", &"x".repeat(256)] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_at_their_limits_are_kept_as_they_are() {
        let id = "A1._-".repeat(12) + "last";
        assert_eq!(id.parse::<UploadId>().unwrap().as_str(), id);
        assert_eq!("0".repeat(40).parse::<PoolName>().unwrap().as_str().len(), 40);
        assert_eq!("ü b.txt".parse::<FileName>().unwrap().as_str(), "ü b.txt");
    }

    #[test]
    fn json_applies_the_same_rule() {
        assert!(serde_json::from_str::<Label>("\"a/b\"").is_err());
        assert_eq!(serde_json::from_str::<Label>("\"a\\u002db\"").unwrap().as_str(), "a-b");
    }
}
