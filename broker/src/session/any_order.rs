//! The session machine under any sequence of events, drawn by proptest and by the fuzz target: what it writes is parsed, and held to
//! what always holds.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use millpond_protocol::{Code, Refusal};
use proptest::prelude::*;

use super::Session;
use super::tests::{live, session, taken};
use crate::backend::{MemberMessage, ReceiptRow, StateMessage};
use crate::budget::Held;
use crate::codec::frame::{Framer, Next, fixed_header};
use crate::codec::packet::{Connect, Head, Packet};
use crate::codec::{Version, read};
use crate::config::GateConfig;
use crate::hub::message::{Mail, Message};

/// Bytes that may wait to be written at the most: up to the mark, and the packets that are encoded at once.
const OUT_MAX: usize = 2 * super::OUT_HIGH;

/// What can happen to a session.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Bytes(Vec<u8>),
    Outcome(Option<usize>),
    Kept,
    Copies(u8, u8),
    State(u64),
    Cursor,
    Receipts(u8),
    Ready,
    Live(u64),
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
        2 => (1_u8..9, prop_oneof![Just(0x50_u8), Just(0x70)]).prop_map(move |(id, kind)| framed((kind, vec![0, id]))),
        1 => Just(framed((0xA2, [vec![0, 1, 0], text("mp/p/d/m/#")].concat()))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => stream().prop_map(Event::Bytes),
        3 => proptest::option::weighted(0.2, 0..Code::ALL.len()).prop_map(Event::Outcome),
        1 => Just(Event::Kept),
        2 => (0_u8..3, 0_u8..9).prop_map(|(qos, n)| Event::Copies(qos, n)),
        1 => (0_u64..9).prop_map(Event::State),
        1 => Just(Event::Cursor),
        1 => (0_u8..70).prop_map(Event::Receipts),
        1 => Just(Event::Ready),
        1 => (0_u64..9).prop_map(Event::Live),
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

/// The client's side: what it sent, and what it has been told.
struct Client {
    version: Version,
    window: usize,
    wire: BytesMut,
    /// Acknowledgements that are due, in order: the packet's type and id.
    due: VecDeque<(u8, u16)>,
    /// By id: the QoS, and whether PUBREC was sent.
    in_flight: HashMap<u16, (u8, bool)>,
    /// Ids that were acknowledged before they arrived, as only a broken client does: nothing is known of those.
    early: HashMap<u16, usize>,
    rank: Option<u64>,
    kinds: u16,
}

impl Client {
    fn sent(&mut self, packet: &Packet) {
        match packet {
            Packet::Publish(publish) => self.published(&publish.head),
            Packet::PubAck(id) => self.acknowledged(*id, 1),
            Packet::PubComp(id) => self.completed(*id),
            Packet::PubRec(id, code) => self.received(*id, *code),
            _ => {}
        }
    }

    fn published(&mut self, head: &Head) {
        if head.qos > 0 {
            self.due.push_back((3 + head.qos, head.id));
        }
    }

    fn acknowledged(&mut self, id: u16, qos: u8) {
        match self.in_flight.get(&id) {
            Some((of, _)) if *of == qos => drop(self.in_flight.remove(&id)),
            Some(_) => {}
            None => *self.early.entry(id).or_default() += 1,
        }
    }

    fn received(&mut self, id: u16, code: u8) {
        match self.in_flight.get_mut(&id) {
            Some((2, _)) if code >= 0x80 => drop(self.in_flight.remove(&id)),
            Some((2, is_received)) => *is_received = true,
            Some(_) => {}
            None => *self.early.entry(id).or_default() += 1,
        }
    }

    fn completed(&mut self, id: u16) {
        if self.in_flight.get(&id) == Some(&(2, true)) {
            self.in_flight.remove(&id);
        } else if !self.in_flight.contains_key(&id) {
            *self.early.entry(id).or_default() += 1;
        }
    }

    /// Takes what was written.
    fn reads(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
        while let Some((first, header, body)) = fixed_header(&self.wire, self.version).unwrap()
            && self.wire.len() >= header + body
        {
            self.wire.advance(header);
            let body = self.wire.split_to(body).freeze();
            self.kinds |= 1 << (first >> 4);
            match first >> 4 {
                kind @ (4 | 5) => {
                    let id = u16::from_be_bytes([body[0], body[1]]);
                    assert_eq!(self.due.pop_front(), Some((kind, id)), "acks in order of receipt");
                }
                3 => self.delivered(first, body),
                _ => {}
            }
        }
    }

    fn delivered(&mut self, first: u8, body: Bytes) {
        let Ok(Packet::Publish(publish)) = read::packet(self.version, first, body) else {
            panic!("no PUBLISH");
        };
        let early = self.early.get_mut(&publish.head.id).filter(|early| **early > 0);
        if let (Some(early), true) = (early, publish.head.qos > 0) {
            *early -= 1;
        } else if publish.head.qos > 0 {
            let flight = (publish.head.qos, false);
            assert!(
                self.in_flight.insert(publish.head.id, flight).is_none(),
                "an id that is still in flight"
            );
            assert!(self.in_flight.len() <= self.window, "more than the window");
        }
        if publish.head.topic == "mp/p/result" {
            let rank = std::str::from_utf8(&publish.payload).unwrap().parse().unwrap();
            let is_replay = first & 1 == 1;
            let is_right = self.rank.is_none_or(|last| rank > last || (is_replay && rank == last));
            assert!(is_right, "rank {rank} after {:?}", self.rank);
            self.rank = Some(rank);
        }
    }
}

/// What came of a run, in few words.
#[derive(Debug, Default, Hash)]
pub(super) struct Came {
    end: Option<String>,
    /// Why packets were refused.
    bad: Vec<&'static str>,
    /// Kinds of packets that the client got, a bit each.
    kinds: u16,
    in_flight: usize,
    most_in_line: usize,
}

/// Feeds the events to a session of a client with that window, and holds it to what always holds.
pub(super) fn run(version: Version, window: Option<u16>, events: impl IntoIterator<Item = Event>) -> Came {
    let now = Instant::now();
    let mut session = session(version, now);
    if let Some(window) = window {
        let connect = Connect { receive_max: Some(window), ..Connect::plain(version) };
        session =
            Session::new(session.who().clone(), &connect, Arc::new(GateConfig::default()), now, (1, None));
    }
    let (mut framer, mut stream) = (Framer::new(version, 1 << 20), BytesMut::new());
    let (mut in_line, mut seq) = (0_usize, 0_i64);
    let mut came = Came::default();
    let mut client = Client {
        version,
        window: window.map_or(100, usize::from),
        wire: BytesMut::new(),
        due: VecDeque::new(),
        in_flight: HashMap::new(),
        early: HashMap::new(),
        rank: None,
        kinds: 0,
    };
    for event in events {
        let had_ended = session.end();
        match event {
            Event::Bytes(bytes) => {
                stream.extend_from_slice(&bytes);
                while session.has_room() {
                    let bad = match framer.next(&mut stream, |head, payload| session.judge(head, payload)) {
                        Ok(Next::Packet(first, body)) => match read::packet(version, first, body) {
                            Ok(packet) => {
                                client.sent(&packet);
                                session.packet(packet, now);
                                continue;
                            }
                            Err(bad) => bad,
                        },
                        Ok(Next::ReadPast(refused)) => {
                            let (head, refusal) = *refused;
                            client.published(&head);
                            session.read_past(head, refusal, now);
                            continue;
                        }
                        Ok(Next::Budget(_)) => {
                            framer.grant();
                            continue;
                        }
                        Ok(Next::Bytes) => break,
                        Err(bad) => bad,
                    };
                    came.bad.push(bad.what);
                    session.fail(bad);
                    assert!(session.end().is_some(), "an error closes");
                }
            }
            Event::Outcome(code) if in_line > 0 => {
                in_line -= 1;
                session.outcome(code.map_or(Ok(()), |code| Err(Refusal::new(Code::ALL[code], "why"))));
            }
            Event::Outcome(_) => {}
            Event::Kept => session.kept(Ok(())),
            Event::Copies(qos, n) => {
                let n = session.wants().copies.min(n.into());
                let message = Message::event("app/p/x".into(), Bytes::from_static(b"7"));
                let mail =
                    Mail { message: Arc::new(message), qos, retain: false, replay: false, tags: vec![] };
                session.copies(vec![mail; n], now);
            }
            Event::State(rank) => {
                let message = StateMessage {
                    topic: "mp/p/result".into(),
                    payload: Bytes::from(rank.to_string()),
                    rank,
                    user_properties: vec![],
                    content_type: None,
                };
                session.states(Ok(vec![message]));
            }
            Event::Cursor => session.cursor(Ok(seq)),
            Event::Receipts(n) => {
                let after = seq;
                let rows = (0..n).map(|_| {
                    seq += 1;
                    ReceiptRow { seq, payload: Bytes::from_static(b"{}") }
                });
                session.receipts(after, Ok(rows.collect()));
            }
            Event::Ready => session.receipts_ready(),
            Event::Live(rank) => session.live(live(rank)),
            Event::Member(bytes) => session.member_message(MemberMessage {
                topic: "mp/p/d/m/answer/time".into(),
                payload: Bytes::from(vec![0; bytes]),
                correlation_data: None,
            }),
            Event::Timer(s, listens) => session.timer(now + Duration::from_secs(s), listens),
            Event::Write(n) => {
                let n = n.min(session.out.remaining());
                client.reads(&session.out.copy_to_bytes(n));
                session.wrote();
            }
        }
        session.pump();
        in_line += taken(&mut session);
        assert!(session.uncommitted() <= 64);
        assert!(in_line <= session.uncommitted() || session.end().is_some());
        assert!(session.out.remaining() <= OUT_MAX, "{} bytes wait to be written", session.out.remaining());
        assert!(had_ended.is_none() || session.end() == had_ended, "it ends once");
        came.most_in_line = came.most_in_line.max(in_line);
    }
    came.end = session.end().map(|end| format!("{end:?}"));
    // Whatever happened, every message that was put in line can still be settled.
    while in_line > 0 {
        in_line -= 1;
        session.outcome(Ok(()));
        in_line += taken(&mut session);
    }
    assert_eq!((session.uncommitted(), session.held()), (0, Held::default()));
    client.reads(&session.out.copy_to_bytes(session.out.remaining()));
    assert!(client.wire.is_empty(), "half a packet");
    assert!(client.due.is_empty() || session.end().is_some(), "{:?} were never acknowledged", client.due);
    came.kinds = client.kinds;
    came.in_flight = client.in_flight.len();
    came
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn no_sequence_of_events_panics_or_breaks_what_always_holds(
        v5 in any::<bool>(),
        window in proptest::option::of(1_u16..5),
        events in proptest::collection::vec(event(), 1..60),
    ) {
        run(if v5 { Version::V5 } else { Version::V4 }, window, events);
    }
}
