//! Role × action × topic shape: the whole of the authorisation function, written out.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use millpond_protocol::access::{Action, Op, Principal, Role, may};
use millpond_protocol::{AppTopics, NO_APP_TOPICS};

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
        assert_eq!(allowed(Action::Publish(topic, &NO_APP_TOPICS)), *roles, "publish {topic}");
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
        assert_eq!(allowed(Action::Subscribe(filter, &NO_APP_TOPICS)), *roles, "subscribe {filter}");
    }
}

#[test]
fn app_topics_are_for_all_but_triggers_and_end_at_the_pool() {
    let open = AppTopics::new(&["app/+/#", "lab/+/x/+"]).unwrap();
    let members: &[Role] = &[Publisher, Listener, Processor, Operator];
    let table: &[(&str, &[Role], &[Role])] = &[
        // Topic or filter, who may publish to it, who may subscribe to it.
        ("app/p/x", members, members),
        ("app/p/x/y/z", members, members),
        ("app/p/$x", members, members),
        ("app/p//", members, members),
        ("lab/p/x/1", members, members),
        ("app/p/#", NONE, members),
        ("app/p/+/z", NONE, members),
        ("lab/p/x/+", NONE, members),
        ("$share/g/app/p/#", NONE, members),
        // Not opened, or wider than that.
        ("lab/p/y/1", NONE, NONE),
        ("lab/p/x/1/2", NONE, NONE),
        ("lab/p/#", NONE, NONE),
        ("app/p", NONE, NONE),
        ("app", NONE, NONE),
        ("app/#", NONE, NONE),
        ("#", NONE, NONE),
        ("+/p/x", NONE, NONE),
        ("$app/p/x", NONE, NONE),
        ("app/p/x#", NONE, NONE),
        ("app/p/\0", NONE, NONE),
        // Other pools, those with a name that begins alike too.
        ("app/q/x", NONE, NONE),
        ("app/pp/x", NONE, NONE),
        ("app/+/x", NONE, NONE),
        ("$share/g/app/q/#", NONE, NONE),
        ("$share/g/app/+/x", NONE, NONE),
        // Only app topics are shared, and only well.
        ("$share/g/mp/p/result", NONE, NONE),
        ("$share/g/mp/p/d/m/#", NONE, NONE),
        ("$share/g", NONE, NONE),
        ("$share//app/p/x", NONE, NONE),
        ("$share/+/app/p/x", NONE, NONE),
        ("$share/g/$share/g/app/p/x", NONE, NONE),
    ];
    for (topic, publish, subscribe) in table {
        assert_eq!(allowed(Action::Publish(topic, &open)), *publish, "publish {topic}");
        assert_eq!(allowed(Action::Subscribe(topic, &open)), *subscribe, "subscribe {topic}");
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
        assert_eq!(allowed(Action::Publish(&topic, &NO_APP_TOPICS)), roles, "{op} over MQTT");
    }
}

#[test]
fn only_operators_inspect_and_manage() {
    assert_eq!(allowed(Action::Inspect), [Operator]);
    assert_eq!(allowed(Action::Manage), [Operator]);
}
