//! Role × action × topic shape: the whole of the authorisation function, written out.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use millpond_protocol::access::{Action, Op, Principal, Role, may};

fn member(role: Role) -> Principal {
    Principal { pool: "p".parse().unwrap(), name: "m".parse().unwrap(), role, id: 1 }
}

fn allowed(action: Action<'_>) -> Vec<Role> {
    Role::ALL.into_iter().filter(|role| may(&member(*role), action)).collect()
}

const NONE: &[Role] = &[];
const ALL: &[Role] = &Role::ALL;
use Role::{Listener, Operator, Processor, Publisher, Trigger};

#[test]
fn who_may_publish_where() {
    let table: &[(&str, &[Role])] = &[
        ("mp/p/c/m/up/u1", &[Publisher]),
        ("mp/p/c/m/up/u1/1700000000000", &[Publisher]),
        ("mp/p/c/m/bundle/b1", &[Publisher]),
        ("mp/p/c/m/result/1/1", &[Processor]),
        ("mp/p/c/m/delivery/1", &[Publisher, Listener]),
        ("mp/p/c/m/ask/time", ALL),
        // Another member, another pool.
        ("mp/p/c/other/up/u1", NONE),
        ("mp/q/c/m/up/u1", NONE),
        ("mp/q/c/m/ask/time", NONE),
        // What the server says.
        ("mp/p/d/m/receipt", NONE),
        ("mp/p/d/m/answer/time", NONE),
        ("mp/p/pool", NONE),
        ("mp/p/result", NONE),
        ("mp/p/result/data", NONE),
        ("mp/p/offer", NONE),
        ("mp/p/event/uploads", NONE),
        // What is no message at all.
        ("mp/p/c/m", NONE),
        ("mp/p/c/m/up", NONE),
        ("mp/p/c/m/up/u1/1/2", NONE),
        ("mp/p/c/m/ask/unknown", NONE),
        ("mp/p/c/m/up/+", NONE),
        ("app/p/x", NONE),
        ("$SYS/broker", NONE),
        ("", NONE),
    ];
    for (topic, roles) in table {
        assert_eq!(allowed(Action::Publish(topic)), *roles, "publish {topic}");
    }
}

#[test]
fn who_may_subscribe_to_what() {
    let reads_results: &[Role] = &[Publisher, Listener, Processor, Operator];
    let table: &[(&str, &[Role])] = &[
        ("mp/p/d/m/receipt", ALL),
        ("mp/p/d/m/answer/+", ALL),
        ("mp/p/d/m/#", ALL),
        ("mp/p/d/m/+/time", ALL),
        ("mp/p/pool", ALL),
        ("mp/p/result", reads_results),
        ("mp/p/result/data", reads_results),
        ("mp/p/result/+", reads_results),
        ("mp/p/result/#", reads_results),
        ("mp/p/offer", &[Processor, Operator]),
        ("mp/p/event/uploads", &[Operator]),
        ("mp/p/event/+", &[Operator]),
        ("mp/p/event/#", &[Operator]),
        // Wider than what one may read, or not one's own.
        ("#", NONE),
        ("+/p/pool", NONE),
        ("mp/#", NONE),
        ("mp/+/pool", NONE),
        ("mp/p/#", NONE),
        ("mp/p/+", NONE),
        ("mp/p/d/+/receipt", NONE),
        ("mp/p/d/#", NONE),
        ("mp/p/d/other/receipt", NONE),
        ("mp/p/c/m/#", NONE),
        ("mp/p/c/m/up/u1", NONE),
        ("mp/q/pool", NONE),
        ("mp/q/d/m/receipt", NONE),
        ("$share/g/mp/p/result", NONE),
        ("$SYS/#", NONE),
        ("app/p/x", NONE),
        ("mp/p/d/m/#/x", NONE),
        ("", NONE),
    ];
    for (filter, roles) in table {
        assert_eq!(allowed(Action::Subscribe(filter)), *roles, "subscribe {filter}");
    }
}

#[test]
fn who_may_ask_what() {
    let reads: &[Role] = &[Publisher, Listener, Processor, Operator];
    for op in Op::ALL {
        let roles: &[Role] = match op {
            Op::Put | Op::Abort => &[Publisher, Processor],
            Op::Commit | Op::Complete => &[Publisher],
            Op::Trigger => &[Processor, Trigger, Operator],
            Op::Claim | Op::Beat | Op::Files | Op::Done | Op::Fail => &[Processor],
            Op::Status | Op::History | Op::Get | Op::Latest => reads,
            Op::Time => ALL,
        };
        assert_eq!(allowed(Action::Op(op)), roles, "{op} over HTTP");
        let topic = format!("mp/p/c/m/ask/{op}");
        assert_eq!(allowed(Action::Publish(&topic)), roles, "{op} over MQTT");
    }
}

#[test]
fn only_operators_inspect_and_manage() {
    assert_eq!(allowed(Action::Inspect), [Operator]);
    assert_eq!(allowed(Action::Manage), [Operator]);
}
