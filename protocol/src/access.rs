//! Who may do what: one pure function, [`may`], for MQTT and HTTP alike. What it does not allow is denied.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::app_topics::{self, AppTopics};
use crate::ids::{MemberName, PoolName};
use crate::topic;

/// What a member is in its pool. An admin stands above pools and is no member, hence no role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uploads, and listens.
    Publisher,
    /// Receives results.
    Listener,
    /// The external server: triggers, leases rounds, returns results.
    Processor,
    /// May only trigger.
    Trigger,
    /// Reads everything through ops and events, and manages the pool.
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::Publisher, Self::Listener, Self::Processor, Self::Trigger, Self::Operator];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Listener => "listener",
            Self::Processor => "processor",
            Self::Trigger => "trigger",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            format!("{text:?} is no role: use publisher, listener, processor, trigger or operator")
        })
    }
}

/// A member as the gate and the HTTP API know it after sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    pub pool: PoolName,
    pub name: MemberName,
    pub role: Role,
    /// The internal id that the name stands for: a member that was removed and added again is a new one.
    pub id: i64,
}

/// The ops of `ask/{op}` and their HTTP twins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    Put,
    Commit,
    Abort,
    Status,
    History,
    Get,
    Latest,
    Time,
    Complete,
    Trigger,
    Claim,
    Beat,
    Files,
    Done,
    Fail,
}

impl Op {
    /// Every op.
    pub const ALL: [Self; 15] = [
        Self::Put,
        Self::Commit,
        Self::Abort,
        Self::Status,
        Self::History,
        Self::Get,
        Self::Latest,
        Self::Time,
        Self::Complete,
        Self::Trigger,
        Self::Claim,
        Self::Beat,
        Self::Files,
        Self::Done,
        Self::Fail,
    ];

    /// The word in the topic.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Commit => "commit",
            Self::Abort => "abort",
            Self::Status => "status",
            Self::History => "history",
            Self::Get => "get",
            Self::Latest => "latest",
            Self::Time => "time",
            Self::Complete => "complete",
            Self::Trigger => "trigger",
            Self::Claim => "claim",
            Self::Beat => "beat",
            Self::Files => "files",
            Self::Done => "done",
            Self::Fail => "fail",
        }
    }

    /// Whether the op changes state: it then needs an `id`, and a repeat gets the first answer.
    pub fn changes_state(self) -> bool {
        match self {
            Self::Put
            | Self::Commit
            | Self::Abort
            | Self::Complete
            | Self::Trigger
            | Self::Claim
            | Self::Beat
            | Self::Done
            | Self::Fail => true,
            Self::Status | Self::History | Self::Get | Self::Latest | Self::Time | Self::Files => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Op {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|op| op.as_str() == text).ok_or(())
    }
}

/// Something that a member wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// PUBLISH to this topic, a will's too, where these app topics are open.
    Publish(&'a str, &'a AppTopics),
    /// SUBSCRIBE to this filter, where these app topics are open. It must lie wholly inside what the member may read.
    Subscribe(&'a str, &'a AppTopics),
    /// An ask, over MQTT or HTTP.
    Op(Op),
    /// Read the pool's members, uploads, batches, rounds, results and events over HTTP.
    Inspect,
    /// Change the pool's policy, members or tokens; retry a round; roll a result back.
    Manage,
}

/// Whether `who` may do `action`. Topics of other pools and of other members are denied like topics that do not exist.
pub fn may(who: &Principal, action: Action<'_>) -> bool {
    match action {
        Action::Publish(topic, open) => match topic::Inbound::parse(topic) {
            Ok((pool, member, inbound)) => {
                pool == who.pool && member == who.name && may_publish(who.role, &inbound)
            }
            Err(_) => may_app(who, topic, open) && !topic.contains(['+', '#', '\0']),
        },
        Action::Subscribe(filter, open) => match filter.strip_prefix("$share/") {
            Some(_) => app_topics::shared(filter).is_some_and(|(_, filter)| may_app(who, filter, open)),
            None => {
                readable(who).iter().any(|outer| topic::contains(outer, filter))
                    || (topic::is_filter(filter) && may_app(who, filter, open))
            }
        },
        Action::Op(op) => may_ask(who.role, op),
        Action::Inspect | Action::Manage => who.role == Role::Operator,
    }
}

/// App topics are for all but those who may only trigger.
fn may_app(who: &Principal, topic: &str, open: &AppTopics) -> bool {
    who.role != Role::Trigger && open.contains(&who.pool, topic)
}

fn may_publish(role: Role, inbound: &topic::Inbound) -> bool {
    match inbound {
        topic::Inbound::Up { .. } | topic::Inbound::Bundle { .. } => role == Role::Publisher,
        topic::Inbound::Ask(op) => may_ask(role, *op),
        topic::Inbound::Result { .. } => role == Role::Processor,
        topic::Inbound::Delivery { .. } => matches!(role, Role::Publisher | Role::Listener),
    }
}

fn may_ask(role: Role, op: Op) -> bool {
    match op {
        Op::Put | Op::Abort => matches!(role, Role::Publisher | Role::Processor),
        Op::Commit | Op::Complete => role == Role::Publisher,
        Op::Trigger => matches!(role, Role::Processor | Role::Trigger | Role::Operator),
        Op::Claim | Op::Beat | Op::Files | Op::Done | Op::Fail => role == Role::Processor,
        // A trigger may only trigger, and read the clock that its `wait_s` runs on.
        Op::Status | Op::History | Op::Get | Op::Latest => role != Role::Trigger,
        Op::Time => true,
    }
}

/// The filters that together are everything `who` may read.
fn readable(who: &Principal) -> Vec<String> {
    let (p, m) = (&who.pool, &who.name);
    let mut filters = vec![format!("mp/{p}/d/{m}/#"), format!("mp/{p}/pool")];
    if who.role != Role::Trigger {
        filters.push(format!("mp/{p}/result"));
        filters.push(format!("mp/{p}/result/data"));
        // `result/#` matches exactly these two.
        filters.push(format!("mp/{p}/result/#"));
    }
    if matches!(who.role, Role::Processor | Role::Operator) {
        filters.push(format!("mp/{p}/offer"));
    }
    if who.role == Role::Operator {
        filters.push(format!("mp/{p}/event/#"));
    }
    filters
}
