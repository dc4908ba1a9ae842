//! The session machine without sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use millpond_protocol::{Code, Principal, Refusal, Role};
use proptest::prelude::*;

use super::{Effect, End, Question, Session};
use crate::backend::{MemberMessage, ReceiptRow, StateMessage};
use crate::budget::Held;
use crate::codec::frame::{Framer, Next};
use crate::codec::packet::{Connect, Filter, Head, Packet, Publish, Replay, Subscribe};
use crate::codec::{Version, read};
use crate::config::GateConfig;
use crate::router::{Live, NoLink};

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean: true,
        keep_alive: 10,
        client_id: "x".into(),
        will: false,
        user: None,
        password: None,
        session_expiry: 0,
        receive_max: None,
        packet_max: None,
        wants_response_information: false,
        wants_problem_information: true,
        auth_method: false,
    }
}

fn session(version: Version, now: Instant) -> Session {
    let who =
        Principal { pool: "p".parse().unwrap(), name: "m".parse().unwrap(), role: Role::Publisher, id: 1 };
    Session::new(who, &connect(version), Arc::new(GateConfig::default()), now)
}

fn publish(qos: u8, id: u16, upload: &str, bytes: usize) -> Packet {
    let head = Head {
        qos,
        id,
        topic: format!("mp/p/c/m/up/{upload}"),
        content_type: None,
        response_topic: None,
        correlation_data: None,
        user_properties: vec![],
    };
    let packet = bytes + head.topic.len() + 5;
    Packet::Publish(Publish { head, payload: Bytes::from(vec![0; bytes]), packet })
}

fn subscribe(filter: &str) -> Packet {
    let filters = vec![Filter { filter: filter.into(), qos: 1, replay: Replay::Always }];
    Packet::Subscribe(Subscribe { id: 1, filters, tag: None })
}

fn written(session: &mut Session) -> Vec<u8> {
    session.pump();
    let all = session.out.copy_to_bytes(session.out.remaining());
    session.wrote();
    all.to_vec()
}

fn taken(session: &mut Session) -> usize {
    let effects: Vec<Effect> = session.effects.drain(..).collect();
    effects.iter().filter(|effect| matches!(effect, Effect::Take(_))).count()
}

fn live(rank: u64, offset: u64) -> Live {
    Live {
        topic: "mp/p/result".into(),
        rank,
        payload: Bytes::from(rank.to_string()),
        user_properties: vec![],
        content_type: None,
        offset,
    }
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
    session.packet(Packet::Disconnect, now);
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
fn state_is_asked_for_behind_the_subscription_to_its_changes() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/result"), now);
    session.packet(subscribe("mp/p/pool"), now);
    let effects: Vec<Effect> = session.effects.drain(..).collect();
    assert!(
        matches!(&effects[..], [Effect::Ask(Question::Attach(filters))] if filters == &["mp/p/result"]),
        "{effects:?}"
    );
    session.attached(Ok(()));
    let effects: Vec<Effect> = session.effects.drain(..).collect();
    assert!(
        matches!(&effects[..], [Effect::Ask(Question::Attach(filters))] if filters == &["mp/p/pool"]),
        "{effects:?}"
    );
    session.attached(Ok(()));
    let effects: Vec<Effect> = session.effects.drain(..).collect();
    assert!(
        matches!(&effects[..], [Effect::Ask(Question::State { .. }), Effect::Ask(Question::State { .. })]),
        "{effects:?}"
    );
}

#[test]
fn a_jump_of_the_router_asks_for_what_is_current_now() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/result"), now);
    session.attached(Ok(()));
    session.effects.clear();
    session.live(live(1, 7));
    session.live(live(2, 8));
    assert!(session.effects.is_empty());
    session.live(live(4, 10));
    assert!(matches!(session.effects.pop_front(), Some(Effect::Ask(Question::State { replay: false, .. }))));
}

#[test]
fn of_several_changes_that_wait_only_the_newest_is_sent() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/result"), now);
    written(&mut session);
    for (rank, offset) in [(5, 1), (7, 2), (6, 3)] {
        session.live(live(rank, offset));
    }
    let out = written(&mut session);
    assert_eq!(out.last(), Some(&b'7'));
    assert_eq!(out.len(), 2 + 2 + "mp/p/result".len() + 2 + 1);
}

#[test]
fn an_error_of_a_look_up_ends_the_session_for_a_retry() {
    let now = Instant::now();
    for apply in [
        (|session: &mut Session| session.state(true, Err(Refusal::unavailable("away")))) as fn(&mut Session),
        |session| session.cursor(Err(Refusal::unavailable("away"))),
        |session| session.receipts(Err(Refusal::unavailable("away"))),
    ] {
        let mut session = session(Version::V5, now);
        apply(&mut session);
        assert_eq!(session.end(), Some(End::Gate(0x89)));
    }
    let mut session = session(Version::V5, now);
    session.attached(Err(NoLink::Full));
    assert_eq!(session.end(), Some(End::Gate(0x97)));
}

/// What can happen to a session.
#[derive(Debug, Clone)]
enum Event {
    Bytes(Vec<u8>),
    Outcome(Option<usize>),
    Attached,
    State(u64),
    Cursor,
    Receipts(u8),
    Ready,
    Live(u64, u64),
    Member(usize),
    Timer(u64, bool),
    Write(usize),
}

/// Bytes that are often nearly right.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..40);
    let framed = |(first, body): (u8, Vec<u8>)| [vec![first, body.len() as u8], body].concat();
    let text = |text: &str| [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat();
    prop_oneof![
        1 => body.clone(),
        3 => (any::<u8>(), body.clone()).prop_map(framed),
        3 => (0x30_u8..0x3F, 1_u8..5, body.clone()).prop_map(move |(first, id, rest)| {
            let topic = text(&format!("mp/p/c/m/up/u{id}"));
            framed((first, [topic, vec![0, id, 0], rest].concat()))
        }),
        2 => (1_u8..4).prop_map(move |id| framed((0x62, vec![0, id]))),
        2 => (1_u8..9).prop_map(move |id| framed((0x40, vec![0, id]))),
        2 => (prop_oneof![Just("mp/p/result"), Just("mp/p/d/m/#"), Just("mp/p/result/#"), Just("#")], 0_u8..3)
            .prop_map(move |(filter, qos)| framed((0x82, [vec![0, 1, 0], text(filter), vec![qos]].concat()))),
        1 => Just(framed((0xA2, [vec![0, 1, 0], text("mp/p/d/m/#")].concat()))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => stream().prop_map(Event::Bytes),
        3 => proptest::option::weighted(0.2, 0..Code::ALL.len()).prop_map(Event::Outcome),
        1 => Just(Event::Attached),
        1 => (0_u64..9).prop_map(Event::State),
        1 => Just(Event::Cursor),
        1 => (0_u8..70).prop_map(Event::Receipts),
        1 => Just(Event::Ready),
        1 => (0_u64..9, 0_u64..20).prop_map(|(rank, offset)| Event::Live(rank, offset)),
        1 => (0_usize..100_000).prop_map(Event::Member),
        1 => (0_u64..30, any::<bool>()).prop_map(|(s, listens)| Event::Timer(s, listens)),
        2 => (0_usize..9_000).prop_map(Event::Write),
    ]
}

/// As many cases as that, or as PROPTEST_CASES says.
fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases, ..config },
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_sequence_of_events_panics_or_breaks_what_always_holds(
        v5 in any::<bool>(),
        window in proptest::option::of(1_u16..5),
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let now = Instant::now();
        let version = if v5 { Version::V5 } else { Version::V4 };
        let mut session = session(version, now);
        if let Some(window) = window {
            let connect = Connect { receive_max: Some(window), ..connect(version) };
            session = Session::new(session.who().clone(), &connect, Arc::new(GateConfig::default()), now);
        }
        let (mut framer, mut stream) = (Framer::new(version, 1 << 20), BytesMut::new());
        let (mut in_line, mut seq, mut last_rank) = (0_usize, 0_i64, 0_u64);
        for event in events {
            match event {
                Event::Bytes(bytes) => {
                    stream.extend_from_slice(&bytes);
                    while session.has_room() {
                        match framer.next(&mut stream, |head, payload| session.judge(head, payload)) {
                            Ok(Next::Packet(first, body)) => match read::packet(version, first, body) {
                                Ok(packet) => session.packet(packet, now),
                                Err(bad) => session.fail(bad),
                            },
                            Ok(Next::ReadPast(head, refusal)) => session.read_past(head, refusal, now),
                            Ok(Next::Budget(_)) => framer.grant(),
                            Ok(Next::Bytes) => break,
                            Err(bad) => session.fail(bad),
                        }
                    }
                }
                Event::Outcome(code) if in_line > 0 => {
                    in_line -= 1;
                    session.outcome(code.map_or(Ok(()), |code| Err(Refusal::new(Code::ALL[code], "why"))));
                }
                Event::Outcome(_) => {}
                Event::Attached => session.attached(Ok(())),
                Event::State(rank) => {
                    let message = StateMessage {
                        topic: "mp/p/result".into(), payload: Bytes::from(rank.to_string()), rank,
                        user_properties: vec![], content_type: None,
                    };
                    session.state(true, Ok(vec![message]));
                }
                Event::Cursor => session.cursor(Ok(seq)),
                Event::Receipts(n) => {
                    let rows = (0..n).map(|_| {
                        seq += 1;
                        ReceiptRow { seq, payload: Bytes::from_static(b"{}") }
                    });
                    session.receipts(Ok(rows.collect()));
                }
                Event::Ready => session.receipts_ready(),
                Event::Live(rank, offset) => session.live(live(rank, offset)),
                Event::Member(bytes) => session.member_message(MemberMessage {
                    topic: "mp/p/d/m/answer/time".into(), payload: Bytes::from(vec![0; bytes]), correlation_data: None,
                }),
                Event::Timer(s, listens) => session.timer(now + Duration::from_secs(s), listens),
                Event::Write(n) => {
                    let n = n.min(session.out.remaining());
                    session.out.advance(n);
                    session.wrote();
                }
            }
            session.pump();
            in_line += taken(&mut session);
            prop_assert!(session.uncommitted() <= 64);
            prop_assert!(in_line <= session.uncommitted() || session.end().is_some());
            prop_assert!(session.outbound.in_flight_len() <= window.map_or(100, usize::from));
            if let Some(rank) = session.outbound.rank_of("mp/p/result") {
                prop_assert!(rank >= last_rank, "a lower rank after a higher one");
                last_rank = rank;
            }
        }
        // Whatever happened, every message that was put in line can still be settled.
        while in_line > 0 {
            in_line -= 1;
            session.outcome(Ok(()));
            in_line += taken(&mut session);
        }
        prop_assert_eq!((session.uncommitted(), session.held()), (0, Held::default()));
    }
}

#[test]
fn a_subscription_to_receipts_is_granted_only_when_their_beginning_is_set() {
    let now = Instant::now();
    let mut session = session(Version::V4, now);
    session.packet(subscribe("mp/p/d/m/#"), now);
    session.packet(subscribe("mp/p/d/m/answer/#"), now);
    assert_eq!(written(&mut session), [0x90, 3, 0, 1, 1], "the second one has nothing to wait for");
    session.cursor(Ok(7));
    assert_eq!(written(&mut session), [0x90, 3, 0, 1, 1]);
}
