//! The session machine without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use millpond_protocol::{Principal, Refusal, Role};

use super::{Effect, End, Question, Session};
use crate::backend::{MemberMessage, ReceiptRow};
use crate::budget::Held;
use crate::codec::Version;
use crate::codec::packet::{
    Connect, Disconnect, Filter, Head, Packet, Publish, Replay, Subscribe, Unsubscribe,
};
use crate::config::GateConfig;
use crate::hub::message::Message;

pub(super) fn session(version: Version, now: Instant) -> Session {
    let who =
        Principal { pool: "p".parse().unwrap(), name: "m".parse().unwrap(), role: Role::Publisher, id: 1 };
    Session::new(who, &Connect::plain(version), Arc::new(GateConfig::default()), now, (1, None))
}

pub(super) fn publish(qos: u8, id: u16, upload: &str, bytes: usize) -> Packet {
    let head = Head { qos, id, topic: format!("mp/p/c/m/up/{upload}"), ..Head::default() };
    let packet = bytes + head.topic.len() + 5;
    Packet::Publish(Publish { head, payload: Bytes::from(vec![0; bytes]), packet })
}

fn plain(filter: &str) -> Filter {
    let (no_local, as_published) = (false, false);
    Filter { filter: filter.into(), qos: 1, no_local, as_published, replay: Replay::Always }
}

pub(super) fn subscribe(filter: &str) -> Packet {
    let filters = vec![plain(filter)];
    Packet::Subscribe(Subscribe { id: 1, filters, tag: None })
}

/// Takes off what the session has its owner do. The hub is one that knows of every subscription at once.
pub(super) fn effects(session: &mut Session) -> Vec<Effect> {
    let mut others = Vec::new();
    for effect in std::mem::take(&mut session.effects) {
        match effect {
            Effect::Subscribed(ack) => session.subscribed(ack),
            other => others.push(other),
        }
    }
    others
}

fn written(session: &mut Session) -> Vec<u8> {
    let others = effects(session);
    session.effects.extend(others);
    session.pump();
    let all = session.out.copy_to_bytes(session.out.remaining());
    session.wrote();
    all.to_vec()
}

pub(super) fn taken(session: &mut Session) -> usize {
    effects(session).iter().filter(|effect| matches!(effect, Effect::Take(_))).count()
}

pub(super) fn live(rank: u64) -> Arc<Message> {
    Arc::new(Message { rank, ..Message::event("mp/p/result".into(), Bytes::from(rank.to_string())) })
}

#[test]
fn each_large_message_waits_for_the_one_before_and_holds_what_follows() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    for (id, bytes) in [(1, 200_000), (2, 1), (3, 200_000), (4, 1), (5, 1)] {
        session.packet(publish(1, id, &format!("u{id}"), bytes), now);
    }
    assert_eq!(taken(&mut session), 1);
    session.outcome(Ok(()));
    assert_eq!(taken(&mut session), 2, "up to and including the next large one");
    session.outcome(Ok(()));
    assert_eq!(taken(&mut session), 0);
    session.outcome(Ok(()));
    assert_eq!(taken(&mut session), 2);
    assert_eq!((session.held().short, session.held().long), (2 * (1 + 14 + 5), 0));
    session.outcome(Ok(()));
    session.outcome(Ok(()));
    assert_eq!((session.uncommitted(), session.held()), (0, Held::default()));
}

#[test]
fn after_a_temporary_refusal_nothing_more_is_acknowledged_or_put_in_line() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    session.packet(publish(1, 1, "large", 200_000), now);
    session.packet(publish(1, 2, "held", 1), now);
    session.packet(publish(1, 3, "-bad", 1), now);
    taken(&mut session);
    session.outcome(Err(Refusal::unavailable("no disk")));
    assert_eq!(session.end(), Some(End::Gate(0x89)));
    assert_eq!(taken(&mut session), 0);
    let out = written(&mut session);
    assert_eq!(out[0], 0xE0, "DISCONNECT and no ack: {out:?}");
    assert_eq!((session.uncommitted(), session.held()), (0, Held::default()));
}

#[test]
fn what_was_sent_before_disconnect_is_still_put_in_line() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(publish(0, 0, "large", 200_000), now);
    session.packet(publish(0, 0, "held", 1), now);
    session.packet(Packet::Disconnect(Disconnect::default()), now);
    assert_eq!((session.end(), taken(&mut session)), (Some(End::Client), 1));
    session.outcome(Ok(()));
    assert_eq!(taken(&mut session), 1);
}

#[test]
fn keep_alive_ends_a_silent_client_but_not_one_that_is_not_read() {
    let now = Instant::now();
    let mut quiet = session(Version::V5, now);
    quiet.timer(now + Duration::from_secs(14), true);
    assert_eq!(quiet.end(), None);
    quiet.timer(now + Duration::from_secs(15), true);
    assert_eq!(quiet.end(), Some(End::Gate(0x8D)));

    let mut unread = session(Version::V5, now);
    unread.timer(now + Duration::from_secs(15), false);
    assert_eq!(unread.end(), None);
    unread.timer(now + Duration::from_secs(29), true);
    assert_eq!(unread.end(), None, "it could not be heard before");
    unread.timer(now + Duration::from_secs(30), true);
    assert_eq!(unread.end(), Some(End::Gate(0x8D)));
}

#[test]
fn a_connection_is_not_read_while_as_much_of_it_is_undecided_as_gains_anything() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    for id in 1..=5 {
        assert!(session.has_room());
        session.packet(publish(1, id, &format!("u{id}"), 1 << 20), now);
    }
    assert!(!session.has_room(), "more than the largest packet");
    session.outcome(Ok(()));
    for id in 11..=26 {
        assert!(session.has_room());
        session.packet(publish(1, id, &format!("u{id}"), 65_510), now);
    }
    session.packet(publish(1, 27, "u27", 100), now);
    assert!(!session.has_room(), "more than 1 MiB of short ones");
}

#[test]
fn a_connection_is_not_read_while_more_codes_wait_for_the_hub_than_it_may_have_filters() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    let mut filters = vec![plain("mp/p/pool")];
    filters.extend((0..50).map(|n| plain(&format!("nobody/may/{n}"))));
    for id in 1..=2 {
        assert!(session.has_room());
        session.packet(Packet::Subscribe(Subscribe { id, filters: filters.clone(), tag: None }), now);
    }
    assert!(!session.has_room(), "102 codes wait for two filters");
    effects(&mut session);
    assert!(session.has_room());
}

#[test]
fn state_is_asked_for_behind_the_subscription_to_its_changes() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/result"), now);
    session.packet(subscribe("mp/p/pool"), now);
    let all = effects(&mut session);
    let [Effect::Subscribe { filter: first, .. }, Effect::Ask(Question::States(topics)), then] = &all[..]
    else {
        panic!("{all:?}")
    };
    assert_eq!((&**first, &**topics), ("mp/p/result", &["mp/p/result".to_owned()][..]));
    assert!(
        matches!(then, Effect::Subscribe { filter, .. } if filter == "mp/p/pool"),
        "one question at a time"
    );
    session.states(Ok(vec![]));
    assert!(
        matches!(&effects(&mut session)[..], [Effect::Ask(Question::States(topics))] if topics == &["mp/p/pool"])
    );
}

#[test]
fn a_filter_that_a_packet_names_several_times_is_one_subscription_with_a_code_for_each() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    let asked = |qos, replay| Filter { qos, replay, ..plain("mp/p/pool") };
    let filters =
        vec![asked(1, Replay::IfNew), plain("mp/p/result"), asked(0, Replay::Never), asked(0, Replay::Never)];
    session.packet(Packet::Subscribe(Subscribe { id: 1, filters, tag: None }), now);
    let told: Vec<(String, u8, Replay)> = (effects(&mut session).into_iter())
        .filter_map(|effect| match effect {
            Effect::Subscribe { filter, options, replay } => Some((filter, options.qos, replay)),
            _ => None,
        })
        .collect();
    let result = ("mp/p/result".to_owned(), 1, Replay::Always);
    assert_eq!(told, [("mp/p/pool".to_owned(), 0, Replay::IfNew), result]);
    assert_eq!(written(&mut session), [0x90, 7, 0, 1, 0, 1, 1, 0, 0]);
}

#[test]
fn of_several_changes_that_wait_only_the_newest_is_sent() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/result"), now);
    written(&mut session);
    for rank in [5, 7, 6] {
        session.live(live(rank));
    }
    let out = written(&mut session);
    assert_eq!(out.last(), Some(&b'7'));
    assert_eq!(out.len(), 2 + 2 + "mp/p/result".len() + 2 + 1);
}

#[test]
fn a_pointer_goes_before_the_bytes_that_it_points_to() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    let topics = ["mp/p/result/data", "mp/p/result", "mp/p/pool", "mp/p/offer"];
    for topic in topics {
        session.packet(subscribe(topic), now);
    }
    written(&mut session);
    for topic in topics {
        session.live(Arc::new(Message::event(topic.into(), Bytes::from_static(b"1"))));
    }
    let out = String::from_utf8_lossy(&written(&mut session)).into_owned();
    let at = |what: &str| out.find(what).unwrap();
    assert!(at("mp/p/result") < at("mp/p/result/data"), "{out:?}");
}

#[test]
fn an_error_of_a_look_up_ends_the_session_for_a_retry() {
    let now = Instant::now();
    for apply in [
        (|session: &mut Session| session.states(Err(Refusal::unavailable("away")))) as fn(&mut Session),
        |session| session.cursor(Err(Refusal::unavailable("away"))),
        |session| session.receipts(0, Err(Refusal::unavailable("away"))),
    ] {
        let mut session = session(Version::V5, now);
        apply(&mut session);
        assert_eq!(session.end(), Some(End::Gate(0x89)));
    }
}

#[test]
fn a_subscription_to_receipts_is_granted_only_when_their_beginning_is_set() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/d/m/#"), now);
    session.packet(subscribe("mp/p/d/m/answer/#"), now);
    assert_eq!(written(&mut session), [0x90, 3, 0, 1, 1], "the second one has nothing to wait for");
    session.packet(subscribe("mp/p/d/m/receipt"), now);
    assert_eq!(written(&mut session), b"", "the third one waits for the same beginning");
    session.cursor(Ok(7));
    assert_eq!(written(&mut session), [0x90, 3, 0, 1, 1].repeat(2));
}

/// What the session asks, taken off its effects.
fn asked(session: &mut Session) -> Vec<Question> {
    effects(session)
        .into_iter()
        .filter_map(|effect| if let Effect::Ask(question) = effect { Some(question) } else { None })
        .collect()
}

#[test]
fn however_often_a_state_topic_is_subscribed_to_it_is_asked_for_once_at_a_time() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    let filters = vec![plain("mp/p/pool"); 5_000];
    let many = Packet::Subscribe(Subscribe { id: 1, filters, tag: None });
    session.packet(many.clone(), now);
    assert!(matches!(&asked(&mut session)[..], [Question::States(topics)] if topics == &["mp/p/pool"]));
    session.packet(many, now);
    assert!(asked(&mut session).is_empty(), "one question at a time");
    session.states(Ok(vec![]));
    assert!(matches!(&asked(&mut session)[..], [Question::States(topics)] if topics == &["mp/p/pool"]));
    session.states(Ok(vec![]));
    assert!(asked(&mut session).is_empty());
    let out = written(&mut session);
    assert_eq!(out[6..6 + 65], [&[1; 64][..], &[0x97]].concat(), "no more are granted than may be held");
}

#[test]
fn subscribing_to_receipts_again_and_again_asks_once_and_is_not_read_for_ever() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    let unsubscribe = Packet::Unsubscribe(Unsubscribe { id: 2, filters: vec!["mp/p/d/m/receipt".into()] });
    let mut questions = 0;
    for _ in 0..8 {
        assert!(session.has_room());
        session.packet(subscribe("mp/p/d/m/receipt"), now);
        session.packet(unsubscribe.clone(), now);
        questions += asked(&mut session).len();
    }
    assert_eq!(questions, 1);
    assert!(!session.has_room(), "eight SUBACKs wait");
    session.cursor(Ok(7));
    assert!(session.has_room());
    // A page that was asked for by an earlier subscription is not taken for another one.
    session.packet(subscribe("mp/p/d/m/receipt"), now);
    session.cursor(Ok(7));
    session.pump();
    assert!(matches!(asked(&mut session)[..], [Question::Cursor, Question::Receipts { after: 7, .. }]));
    session.packet(unsubscribe, now);
    session.packet(subscribe("mp/p/d/m/receipt"), now);
    session.cursor(Ok(9));
    session.pump();
    assert!(matches!(asked(&mut session)[..], [Question::Cursor]), "one page at a time");
    session.receipts(7, Ok(vec![ReceiptRow { seq: 8, payload: Bytes::from_static(b"{}") }]));
    session.pump();
    assert!(matches!(asked(&mut session)[..], [Question::Receipts { after: 9, .. }]));
}

/// Acknowledges the message with that id.
fn acknowledge(session: &mut Session, id: u16) {
    session.packet(Packet::PubAck(id), Instant::now());
}

#[test]
fn a_new_state_goes_ahead_of_whatever_waits_for_the_window() {
    let now = Instant::now();
    let connect = Connect { receive_max: Some(2), ..Connect::plain(Version::V4) };
    let who = session(Version::V4, now).who().clone();
    let mut session = Session::new(
        Principal { role: Role::Operator, ..who },
        &connect,
        Arc::new(GateConfig::default()),
        now,
        (1, None),
    );
    session.packet(subscribe("mp/p/event/#"), now);
    session.packet(subscribe("mp/p/result"), now);
    for _ in 0..10 {
        session.live(Arc::new(Message { topic: "mp/p/event/sealed".into(), ..Message::clone(&live(0)) }));
    }
    written(&mut session);
    session.live(live(7));
    assert_eq!(written(&mut session), b"", "the window is full");
    acknowledge(&mut session, 1);
    assert_eq!(written(&mut session).last(), Some(&b'7'));
}

#[test]
fn a_message_as_long_as_the_client_accepts_is_sent_and_one_byte_more_is_not() {
    let now = Instant::now();
    let connect = Connect { packet_max: Some(130), ..Connect::plain(Version::V4) };
    let who = session(Version::V4, now).who().clone();
    let mut session = Session::new(who, &connect, Arc::new(GateConfig::default()), now, (1, None));
    session.packet(subscribe("mp/p/d/m/x"), now);
    written(&mut session);
    // Beside the payload: two bytes of header, or three from 128 on, the topic behind its length, and the packet id.
    for (payload, sent) in [(113, 129), (114, 0)] {
        session.member_message(MemberMessage {
            topic: "mp/p/d/m/x".into(),
            payload: Bytes::from(vec![0; payload]),
            correlation_data: None,
        });
        assert_eq!(written(&mut session).len(), sent);
    }
}

#[test]
fn more_user_properties_than_are_kept_are_too_large_and_the_client_is_told() {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    let Packet::Publish(mut publish) = publish(1, 1, "u1", 2) else { unreachable!() };
    publish.head.has_too_many_properties = true;
    session.packet(Packet::Publish(publish), now);
    let out = written(&mut session);
    assert_eq!((out[0], out[4], session.end()), (0x40, 0x97, None));
}
