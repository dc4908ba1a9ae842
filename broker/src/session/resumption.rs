//! The session machine where a session outlives its connection, and where much is under way at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use millpond_protocol::{AppTopics, Code, Principal, Refusal, Role, limits};

use super::tests::effects;
use super::{Effect, End, Kept, Question, Session};
use crate::backend::Subscription;
use crate::budget::Held;
use crate::codec::Version;
use crate::codec::packet::{
    Connect, Disconnect, Filter, Head, Packet, Publish, Replay, Subscribe, Unsubscribe,
};
use crate::config::GateConfig;
use crate::hub::message::{Mail, Message};
use crate::registry::EndReason;

/// A session of MQTT 5 that is kept for an hour.
fn kept(config: GateConfig, kept: Option<Kept>, now: Instant) -> Session {
    let who =
        Principal { pool: "p".parse().unwrap(), name: "m".parse().unwrap(), role: Role::Publisher, id: 1 };
    let config = GateConfig { app_topics: AppTopics::new(&["app/+/#"]).unwrap(), ..config };
    let connect = Connect { clean: false, session_expiry: 3_600, ..Connect::plain(Version::V5) };
    Session::new(who, &connect, Arc::new(config), now, (1, kept))
}

fn publish(id: u16, topic: &str, bytes: usize) -> Packet {
    let head = Head { qos: 2, id, topic: topic.to_owned(), ..Head::default() };
    Packet::Publish(Publish { head, payload: Bytes::from(vec![0; bytes]), packet: bytes + 20 })
}

fn written(session: &mut Session) -> Vec<u8> {
    session.pump();
    session.out.copy_to_bytes(session.out.remaining()).to_vec()
}

#[test]
fn what_waits_behind_a_large_upload_when_the_connection_ends_is_taken_when_it_is_sent_again() {
    let now = Instant::now();
    let mut before = kept(GateConfig::default(), None, now);
    before.packet(publish(1, "mp/p/c/m/up/large", 200_000), now);
    before.packet(publish(2, "app/p/x", 3), now);
    assert_eq!(effects(&mut before).len(), 1, "the second one is held");
    let left = before.leaving();
    before.outcome(Ok(()));
    assert!(effects(&mut before).is_empty(), "the client sends it again, so it must not be published twice");
    let mut after = kept(GateConfig::default(), Some(left.kept), now);
    effects(&mut after);
    after.packet(publish(2, "app/p/x", 3), now);
    assert!(matches!(&effects(&mut after)[..], [Effect::Publish(_)]));
}

#[test]
fn of_what_waits_behind_a_large_upload_nothing_goes_out_to_others_after_a_revocation() {
    let now = Instant::now();
    for expiry in [0, 3_600] {
        // Ended by that, or while it was seen through what was sent before.
        for ended in [None, Some(Packet::Disconnect(Disconnect::default()))] {
            let mut session = kept(GateConfig::default(), None, now);
            session.expiry = Duration::from_secs(expiry);
            session.packet(publish(1, "mp/p/c/m/up/large", 200_000), now);
            for (qos, id) in [(0, 0), (1, 2), (2, 3)] {
                let head = Head { qos, id, topic: "app/p/x".into(), retain: true, ..Head::default() };
                let publish = Publish { head, payload: Bytes::from_static(b"cmd"), packet: 20 };
                session.packet(Packet::Publish(publish), now);
            }
            session.packet(publish(4, "mp/p/c/m/up/small", 3), now);
            assert_eq!(effects(&mut session).len(), 1, "the others are held");
            if let Some(packet) = ended {
                session.packet(packet, now);
                session.leaving();
            }
            session.kick(EndReason::Revoked);
            session.outcome(Err(Refusal::new(Code::Unauthorized, "revoked")));
            assert!(matches!(&effects(&mut session)[..], [Effect::Take(_)]));
            session.outcome(Ok(()));
            assert_eq!((session.uncommitted(), session.held()), (0, Held::default()));
        }
    }
}

#[test]
fn a_subscription_that_ends_before_it_is_acknowledged_does_not_reach_the_hub() {
    let now = Instant::now();
    let mut session = kept(GateConfig::default(), None, now);
    let filter = |filter: &str| Filter {
        filter: filter.to_owned(),
        qos: 1,
        no_local: false,
        as_published: false,
        replay: Replay::Always,
    };
    let filters = vec![filter("app/p/x"), filter("app/p/y")];
    session.packet(Packet::Subscribe(Subscribe { id: 1, filters, tag: None }), now);
    session.packet(Packet::Unsubscribe(Unsubscribe { id: 2, filters: vec!["app/p/x".into()] }), now);
    let mut all = effects(&mut session);
    for _ in 0..2 {
        session.kept(Ok(()));
        all.extend(effects(&mut session));
    }
    let mut held: Vec<&str> = Vec::new();
    for effect in &all {
        match effect {
            Effect::Subscribe { filter, .. } => held.push(filter),
            Effect::Unsubscribe(filter) => held.retain(|held| held != filter),
            _ => {}
        }
    }
    assert_eq!(held, ["app/p/y"]);
    assert_eq!(written(&mut session), [0x90, 5, 0, 1, 0, 1, 1, 0xB0, 4, 0, 2, 0, 0]);
}

#[test]
fn a_session_that_is_taken_up_again_is_written_as_connected() {
    let subscription =
        Subscription { filter: "app/p/x".into(), qos: 1, no_local: false, as_published: false, tag: None };
    let left = Kept::of(vec![subscription.clone()]);
    let mut session = kept(GateConfig::default(), Some(left), Instant::now());
    let asked = effects(&mut session);
    let [Effect::Ask(Question::Keep(list))] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(list, &[subscription]);
    session.kept(Ok(()));
    assert!(effects(&mut session).is_empty() && session.end().is_none());
}

#[test]
fn a_copy_that_expires_while_the_window_is_full_is_not_sent() {
    let now = Instant::now();
    let mut session = kept(GateConfig::default(), None, now);
    let copy = |text: &'static str, expires| {
        let message = Message::event("app/p/x".into(), Bytes::from_static(text.as_bytes()));
        let message = Arc::new(Message { expires, ..message });
        Mail { message, qos: 1, retain: false, replay: false, tags: vec![] }
    };
    let copies = vec![copy("old", Some(now)), copy("new", Some(now + Duration::from_secs(1)))];
    session.copies(copies, now);
    let out = written(&mut session);
    assert!(out.ends_with(b"new"), "{out:?}");
    assert!(!out.windows(3).any(|part| part == b"old"), "{out:?}");
}

#[test]
fn a_message_that_is_sent_again_before_its_release_counts_once() {
    let now = Instant::now();
    let config = GateConfig { uncommitted_per_connection: 2, ..GateConfig::default() };
    let mut session = kept(config, None, now);
    session.packet(publish(1, "mp/p/c/m/up/a", 3), now);
    session.outcome(Ok(()));
    // Its PUBREC did not arrive, perhaps. One packet id of two is in use, and the next one is the second.
    session.packet(publish(1, "mp/p/c/m/up/a", 3), now);
    session.packet(publish(2, "mp/p/c/m/up/b", 3), now);
    assert_eq!(session.end(), None);
    session.packet(publish(3, "mp/p/c/m/up/c", 3), now);
    assert_eq!(session.end(), Some(End::Gate(0x93)));
    session.outcome(Err(Refusal::unavailable("over")));
}

#[test]
fn a_client_that_acknowledges_nothing_has_a_few_large_messages_under_way_and_no_more() {
    let now = Instant::now();
    let mut session = kept(GateConfig::default(), None, now);
    let message = Message::event("app/p/x".into(), Bytes::from(vec![0; 200 << 10]));
    let (each, message) = (message.bytes(), Arc::new(message));
    let mut sent = 0;
    while session.wants().copies > 0 {
        let copy = Mail { message: message.clone(), qos: 1, retain: false, replay: false, tags: vec![] };
        session.copies(vec![copy], now);
        written(&mut session);
        sent += 1;
    }
    assert_eq!(sent, limits::IN_FLIGHT_BYTES.div_ceil(each));
    session.packet(Packet::PubAck(1), now);
    assert!(session.wants().copies > 0, "an acknowledgement makes room");
}

#[test]
fn of_what_was_under_way_the_newest_goes_where_there_is_no_room_for_it() {
    let now = Instant::now();
    let mut before = kept(GateConfig::default(), None, now);
    let copies = ["oldest", "middle", "newest"].map(|text| {
        let message = Arc::new(Message::event("app/p/x".into(), Bytes::from_static(text.as_bytes())));
        Mail { message, qos: 1, retain: false, replay: false, tags: vec![] }
    });
    before.copies(copies.to_vec(), now);
    written(&mut before);
    let mut left = before.leaving().kept;
    let (whole, dropped) = left.shorten(usize::MAX);
    assert_eq!(dropped, 0);
    assert_eq!(left.shorten(whole - 1), (whole / 3 * 2, 1));
    let out = written(&mut kept(GateConfig::default(), Some(left), now));
    let position = |text: &str| out.windows(text.len()).position(|part| part == text.as_bytes());
    assert!(position("oldest") < position("middle") && position("oldest").is_some(), "{out:?}");
    assert_eq!(position("newest"), None);
}
