//! The MQTT topics of protocol version 1: what members send, what they may receive, and filter containment.
//!
//! From a member `mp/{pool}/c/{member}/…`, to a member `mp/{pool}/d/{member}/…`, to the pool everything else under
//! `mp/{pool}/`.

use crate::access::Op;
use crate::error::{Code, Refusal};
use crate::ids::{BundleId, MemberName, PoolName, UploadId};

/// What a member can send, parsed from a topic `mp/{pool}/c/{member}/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// `up/{upload}[/{t}]`: one file. `at` is the last level as it stands: an event time, or a label in a pool that
    /// groups by label.
    Up { upload: UploadId, at: Option<String> },
    /// `bundle/{id}`: several files with their own event times.
    Bundle { id: BundleId },
    /// `ask/{op}`.
    Ask(Op),
    /// `result/{round}/{attempt}`: the result's bytes.
    Result { round: u64, attempt: u32 },
    /// `delivery/{version}`.
    Delivery { version: u64 },
}

impl Inbound {
    /// Reads a topic that a member publishes to.
    ///
    /// # Errors
    /// `unauthorized` if it lies outside `mp/{pool}/c/{member}/`, `malformed` if what follows is no message of the
    /// protocol; the hint says what would have been right.
    pub fn parse(topic: &str) -> Result<(PoolName, MemberName, Self), Refusal> {
        let mut levels = topic.split('/');
        let (Some("mp"), Some(pool), Some("c"), Some(member)) =
            (levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return Err(Refusal::new(
                Code::Unauthorized,
                format!("topic {} is not yours to publish to", shown(topic)),
            )
            .hint("publish to mp/{pool}/c/{member}/…"));
        };
        let (pool, member) = (pool.parse()?, member.parse()?);
        let rest: Vec<&str> = levels.take(4).collect();
        Ok((pool, member, Self::parse_message(topic, &rest)?))
    }

    fn parse_message(topic: &str, levels: &[&str]) -> Result<Self, Refusal> {
        let message = match levels {
            ["up", upload] => Self::Up { upload: upload.parse()?, at: None },
            ["up", upload, at] => Self::Up { upload: upload.parse()?, at: Some((*at).to_owned()) },
            ["bundle", id] => Self::Bundle { id: id.parse()? },
            ["ask", op] => Self::Ask(op.parse().map_err(|()| {
                let ops: Vec<&str> = Op::ALL.iter().map(|op| op.as_str()).collect();
                Refusal::new(Code::Malformed, format!("there is no op {}", shown(op))).hint(ops.join(", "))
            })?),
            ["result", round, attempt] => {
                Self::Result { round: number(round, "round")?, attempt: number(attempt, "attempt")? }
            }
            ["delivery", version] => Self::Delivery { version: number(version, "version")? },
            _ => {
                return Err(Refusal::new(Code::Malformed, format!("topic {} is no message", shown(topic))).hint(
                    "up/{upload}[/{t}], bundle/{id}, ask/{op}, result/{round}/{attempt} or delivery/{version} \
                     after mp/{pool}/c/{member}/",
                ));
            }
        };
        Ok(message)
    }
}

/// A positive decimal number below 2^63 without sign or leading zeros, so that each number has one spelling.
fn number<N: TryFrom<i64>>(text: &str, what: &str) -> Result<N, Refusal> {
    let value = text.parse::<i64>().ok().filter(|value| *value > 0 && value.to_string() == text);
    let value = value.and_then(|value| N::try_from(value).ok());
    value.ok_or_else(|| Refusal::new(Code::Malformed, format!("{} is no {what}: use 1, 2, 3 …", shown(text))))
}

/// A client's text, short enough for an error message.
fn shown(text: &str) -> String {
    if text.chars().count() <= 64 {
        format!("{text:?}")
    } else {
        format!("{:?}…", text.chars().take(64).collect::<String>())
    }
}

/// `mp/{p}/pool`: the pool's card.
pub fn card(pool: &PoolName) -> String {
    format!("mp/{pool}/pool")
}

/// `mp/{p}/result`: the pointer to the newest result.
pub fn result(pool: &PoolName) -> String {
    format!("mp/{pool}/result")
}

/// `mp/{p}/result/data`: the newest result's bytes where they are small.
pub fn result_data(pool: &PoolName) -> String {
    format!("mp/{pool}/result/data")
}

/// `mp/{p}/offer`: the oldest round that waits for a processor.
pub fn offer(pool: &PoolName) -> String {
    format!("mp/{pool}/offer")
}

/// `mp/{p}/event/{type}`: the event feed.
pub fn event(pool: &PoolName, kind: &str) -> String {
    format!("mp/{pool}/event/{kind}")
}

/// `mp/{p}/d/{m}/receipt`.
pub fn receipt(pool: &PoolName, member: &MemberName) -> String {
    format!("mp/{pool}/d/{member}/receipt")
}

/// `mp/{p}/d/{m}/answer/{op}`: where an ask is answered that names no response topic.
pub fn answer(pool: &PoolName, member: &MemberName, op: Op) -> String {
    format!("mp/{pool}/d/{member}/answer/{op}")
}

/// Whether a response topic lies inside `mp/{p}/d/{m}/` and is a topic name at all.
pub fn is_own_response(pool: &PoolName, member: &MemberName, topic: &str) -> bool {
    let inside = topic.strip_prefix(&format!("mp/{pool}/d/{member}/"));
    inside.is_some_and(|rest| !rest.is_empty()) && !topic.contains(['+', '#', '\0'])
}

/// Whether a filter is well-formed (OASIS MQTT 5, 4.7.1): `+` and `#` alone in their level, `#` only at the end.
pub fn is_filter(filter: &str) -> bool {
    let body = filter.strip_suffix("/#").unwrap_or(if filter == "#" { "" } else { filter });
    !filter.is_empty()
        && !filter.contains('\0')
        && body.split('/').all(|level| level == "+" || !level.contains(['+', '#']))
}

/// Whether every topic that `inner` matches is matched by `outer`. False if either is not a filter.
pub fn contains(outer: &str, inner: &str) -> bool {
    is_filter(outer) && is_filter(inner) && covers(outer, inner)
}

/// [`contains`] for what are filters.
fn covers(outer: &str, inner: &str) -> bool {
    // A wildcard at the start does not match `$…` (4.7.2).
    if inner.starts_with('$') && outer.starts_with(['+', '#']) {
        return false;
    }
    covers_levels(outer, inner)
}

/// [`contains`] level by level, for what does not begin a filter or is known not to begin with `$`.
pub(crate) fn covers_levels(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('/'), inner.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether `filter` matches the topic name `topic`. Both are taken to be well-formed: this is asked for every delivery
/// and subscription, and [`is_filter`] once, when the subscription is made.
pub fn matches(filter: &str, topic: &str) -> bool {
    !topic.contains(['+', '#']) && covers(filter, topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<Inbound, Code> {
        let (pool, member, inbound) = Inbound::parse(&format!("mp/p/c/m/{rest}")).map_err(|r| r.code)?;
        assert_eq!((pool.as_str(), member.as_str()), ("p", "m"));
        Ok(inbound)
    }

    #[test]
    fn every_message_of_the_protocol_is_recognised() {
        let upload: UploadId = "u1".parse().unwrap();
        assert_eq!(parse("up/u1"), Ok(Inbound::Up { upload: upload.clone(), at: None }));
        assert_eq!(parse("up/u1/17"), Ok(Inbound::Up { upload, at: Some("17".into()) }));
        assert_eq!(parse("bundle/b"), Ok(Inbound::Bundle { id: "b".parse().unwrap() }));
        assert_eq!(parse("ask/time"), Ok(Inbound::Ask(Op::Time)));
        assert_eq!(parse("result/3/1"), Ok(Inbound::Result { round: 3, attempt: 1 }));
        assert_eq!(parse("delivery/9"), Ok(Inbound::Delivery { version: 9 }));
    }

    #[test]
    fn other_shapes_under_the_member_are_malformed() {
        for rest in [
            "",
            "up",
            "up/",
            "up/u/1/2",
            "up/é",
            "ask/nothing",
            "ask/time/now",
            "result/0/1",
            "result/01/1",
            "result/+1/1",
            "result/1",
            "delivery/-1",
            "delivery/99999999999999999999",
            "delivery/9223372036854775808",
            "down/u1",
        ] {
            assert_eq!(parse(rest), Err(Code::Malformed), "{rest:?}");
        }
    }

    #[test]
    fn topics_outside_the_members_space_are_unauthorized() {
        for topic in ["", "mp", "mp/p/d/m/receipt", "mp/p/result", "app/p/x", "$SYS/x", "/mp/p/c/m/up/u"] {
            assert_eq!(Inbound::parse(topic).map_err(|r| r.code), Err(Code::Unauthorized), "{topic:?}");
        }
    }

    #[test]
    fn containment_needs_every_topic_of_the_inner_filter() {
        for (outer, inner) in [
            ("a/#", "a"),
            ("a/#", "a/b/c"),
            ("a/#", "a/+/c"),
            ("a/#", "a/#"),
            ("a/+", "a/+"),
            ("a/+", "a/b"),
            ("#", "a/#"),
        ] {
            assert!(contains(outer, inner), "{outer} ⊇ {inner}");
        }
        for (outer, inner) in [
            ("a/+", "a/#"),
            ("a/b", "a/+"),
            ("a/#", "+/b"),
            ("a/#", "#"),
            ("a", "a/b"),
            ("a/+", "a"),
            ("#", "$SYS/x"),
            ("a/#", "a/b#"),
            ("a/b#", "a/b#"),
        ] {
            assert!(!contains(outer, inner), "{outer} ⊉ {inner}");
        }
    }

    #[test]
    fn a_response_topic_must_lie_inside_the_members_own_space() {
        let (pool, member): (PoolName, MemberName) = ("p".parse().unwrap(), "m".parse().unwrap());
        assert!(is_own_response(&pool, &member, "mp/p/d/m/answer/x"));
        for foreign in ["mp/p/d/m", "mp/p/d/m/", "mp/p/d/m2/x", "mp/q/d/m/x", "mp/p/d/m/#", "x"] {
            assert!(!is_own_response(&pool, &member, foreign), "{foreign}");
        }
    }
}
