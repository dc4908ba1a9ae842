//! App topics: plain MQTT among the members of a pool, under the filters that a server's configuration opens.
//!
//! An entry is a filter such as `app/+/#`: its first level is a literal other than `mp` and `$…`, its second level is
//! `+` and stands for the pool's own name, whoever asks. So no entry can reach from one pool into another.

use std::fmt;
use std::str::FromStr;

use crate::ids::PoolName;
use crate::limits;
use crate::topic;

/// One entry: `LITERAL/+/REST`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    literal: String,
    rest: String,
}

/// The app topics of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppTopics(Vec<Open>);

/// No app topics at all.
pub static NO_APP_TOPICS: AppTopics = AppTopics(Vec::new());

/// An entry that opens nothing that may be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} opens no app topics: write LITERAL/+/FILTER, such as app/+/#, where LITERAL is not mp and does not begin with $"
)]
pub struct BadAppTopics(String);

impl FromStr for Open {
    type Err = BadAppTopics;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadAppTopics(text.to_owned());
        let mut parts = text.splitn(3, '/');
        let (Some(literal), Some("+"), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        let is_literal = !literal.is_empty() && literal != "mp" && !literal.starts_with('$');
        if !is_literal || literal.contains(['+', '#', '\0']) || !topic::is_filter(rest) {
            return Err(bad());
        }
        Ok(Self { literal: literal.to_owned(), rest: rest.to_owned() })
    }
}

impl AppTopics {
    /// Reads the entries of a configuration.
    ///
    /// # Errors
    /// The first entry that opens nothing that may be opened.
    pub fn new<S: AsRef<str>>(entries: &[S]) -> Result<Self, BadAppTopics> {
        entries.iter().map(|entry| entry.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether `topic` is open to the members of `pool`: to be published to, or, as a filter, to be subscribed to with
    /// all that it matches.
    pub fn contains(&self, pool: &PoolName, topic: &str) -> bool {
        let mut parts = topic.splitn(3, '/');
        let (Some(literal), Some(of), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        of == pool.as_str()
            && self.0.iter().any(|open| open.literal == literal && topic::covers_levels(&open.rest, rest))
    }
}

impl fmt::Display for AppTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<String> =
            self.0.iter().map(|open| format!("{}/+/{}", open.literal, open.rest)).collect();
        f.write_str(&entries.join(", "))
    }
}

/// Whether a topic or filter is within the limits on app topics: each level is a step of every match.
pub fn is_within_limits(topic: &str) -> bool {
    topic.len() <= limits::APP_TOPIC_BYTES && topic.split('/').count() <= limits::APP_TOPIC_LEVELS
}

/// The group and the filter of a shared subscription `$share/{group}/{filter}`; `None` if it is not well-formed
/// (OASIS MQTT 5, 4.8.2).
pub fn shared(filter: &str) -> Option<(&str, &str)> {
    let (group, filter) = filter.strip_prefix("$share/")?.split_once('/')?;
    (!group.is_empty() && !group.contains(['+', '#']) && topic::is_filter(filter)).then_some((group, filter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_a_literal_of_its_own_and_leaves_the_pool_open() {
        for good in ["app/+/#", "app/+/x", "app/+/+/y", "é/+/#"] {
            let topics = AppTopics::new(&[good]).unwrap();
            assert_eq!(topics.to_string(), good);
        }
        for bad in [
            "", "app", "app/+", "app/p/#", "mp/+/#", "$SYS/+/#", "+/+/#", "#", "/+/#", "app/#", "app/+/x#",
            "app/+/",
        ] {
            assert!(AppTopics::new(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_lies_wholly_inside_ones_own_pool_is_open() {
        let topics = AppTopics::new(&["app/+/#", "lab/+/x/+"]).unwrap();
        let pool: PoolName = "p".parse().unwrap();
        for open in [
            "app/p/a",
            "app/p/a/b",
            "app/p/#",
            "app/p/+/#",
            "app/p/$a",
            "app/p//",
            "app/p/",
            "lab/p/x/1",
            "lab/p/x/+",
        ] {
            assert!(topics.contains(&pool, open), "{open}");
        }
        for closed in [
            "app/q/a",
            "app/+/a",
            "app/#",
            "+/p/a",
            "#",
            "app",
            "app/p",
            "app/pp/a",
            "lab/p/x",
            "lab/p/#",
            "lab/p/x/#",
            "lab/p/x/1/2",
            "apps/p/a",
            "$app/p/a",
            "mp/p/x",
            "",
        ] {
            assert!(!topics.contains(&pool, closed), "{closed}");
        }
    }

    #[test]
    fn a_shared_subscription_has_a_group_and_a_filter() {
        assert_eq!(shared("$share/g/app/p/#"), Some(("g", "app/p/#")));
        for bad in
            ["$share/g", "$share//x", "$share/g/", "$share/+/x", "$share/g#/x", "$share/g/x#", "share/g/x"]
        {
            assert_eq!(shared(bad), None, "{bad}");
        }
    }
}
