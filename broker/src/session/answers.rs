//! Tests of answers that nobody reads.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use millpond_protocol::{Code, limits};

use super::tests::{publish, session, subscribe, taken};
use super::{ANSWERS_MIN, Effect, End, Session};
use crate::backend::MemberMessage;
use crate::codec::packet::Packet;
use crate::codec::{Version, reason};
use crate::hub::message::Message;
use crate::hub::weight::{Sum, Weight};

/// A session that subscribes to its answers.
fn asker(all: &Arc<Sum>) -> Session {
    let now = Instant::now();
    let mut session = session(Version::V5, now);
    session.count_answers_in(all.clone());
    session.packet(subscribe("mp/p/d/m/#"), now);
    session.cursor(Ok(0));
    session
}

/// Leaves it an answer, of which it reads nothing.
fn answer(session: &mut Session, bytes: usize) {
    let (topic, payload) = ("mp/p/d/m/answer/time".to_owned(), Bytes::from(vec![0; bytes]));
    session.member_message(MemberMessage { topic, payload, correlation_data: None });
    session.pump();
}

#[test]
fn short_answers_count_for_what_they_take_in_memory() {
    let mut session = asker(&Arc::default());
    let mut answers = 0;
    while session.end().is_none() {
        answer(&mut session, 0);
        answers += 1;
        assert!(answers * size_of::<Message>() < limits::OUT_QUEUE_MAX, "{answers} answers wait");
    }
    assert_eq!(session.end(), Some(End::Gate(reason::QUOTA)));
}

#[test]
fn what_waits_for_all_is_bounded_and_who_has_little_waiting_stays() {
    let all = Arc::<Sum>::default();
    let mut modest = asker(&all);
    answer(&mut modest, 1_000);
    let mut others: Vec<Session> = (0..40).map(|_| asker(&all)).collect();
    // Five MiB each, if all stayed.
    for _ in 0..50 {
        for other in others.iter_mut().filter(|other| other.end().is_none()) {
            answer(other, 100_000);
        }
        // Whoever has ended is gone.
        others.retain(|other| other.end().is_none());
        assert!(all.bytes() <= limits::ANSWERS_WAITING_MAX + 40 * (ANSWERS_MIN + 101_000), "{}", all.bytes());
    }
    answer(&mut modest, 1_000);
    assert_eq!(modest.end(), None);
    drop((modest, others));
    assert_eq!(all.bytes(), 0);
}

#[test]
fn where_others_leave_little_an_ask_is_refused_for_half_of_what_is_left_and_one_who_has_less_waiting_asks_on()
{
    let (now, all) = (Instant::now(), Arc::<Sum>::default());
    let takes_ask = |session: &mut Session, id| {
        let Packet::Publish(mut publish) = publish(1, id, "u", 2) else { unreachable!() };
        publish.head.topic = "mp/p/c/m/ask/get".into();
        session.packet(Packet::Publish(publish), now);
        taken(session) == 1
    };
    let (mut much, mut little) = (asker(&all), asker(&all));
    // The output takes the first one.
    for session in [&mut much, &mut little] {
        answer(session, 300_000);
        answer(session, 100);
    }
    answer(&mut much, 200_000);
    assert!(takes_ask(&mut much, 1), "nobody else has anything waiting");
    let others = Weight::new(&all, limits::ANSWERS_WAITING_MAX - all.bytes() - 300_000);
    assert!(!takes_ask(&mut much, 2) && takes_ask(&mut little, 2));
    drop(others);
    assert!(takes_ask(&mut much, 3));
}

#[test]
fn an_ask_is_refused_while_the_answers_before_it_are_not_taken() {
    let (now, mut session) = (Instant::now(), asker(&Arc::default()));
    let ask = |id, topic: &str| {
        let Packet::Publish(mut publish) = publish(1, id, "u", 2) else { unreachable!() };
        publish.head.topic = topic.into();
        publish.head.details.response_topic = Some("mp/p/d/m/mine".into());
        publish.head.details.correlation_data = Some(Bytes::from_static(b"c7"));
        Packet::Publish(publish)
    };
    // The first 256 KiB and a little stand in the output, the others wait.
    let answer = MemberMessage {
        topic: "mp/p/d/m/answer/get".into(),
        payload: Bytes::from(vec![0; 256 << 10]),
        correlation_data: None,
    };
    for _ in 0..12 {
        session.member_message(answer.clone());
        session.pump();
    }
    session.packet(ask(1, "mp/p/c/m/ask/get"), now);
    let refused = session.effects.drain(..).find_map(|effect| match effect {
        Effect::Refused(refused) => Some(refused),
        _ => None,
    });
    let refused = refused.unwrap();
    assert_eq!((refused.refusal.code, refused.topic.as_str()), (Code::Quota, "mp/p/c/m/ask/get"));
    assert_eq!(refused.response_topic.as_deref(), Some("mp/p/d/m/mine"));
    assert_eq!(refused.correlation_data.as_deref(), Some(&b"c7"[..]));
    // Uploads are taken all the same, and the answers of all asks that were under way still fit.
    session.packet(publish(1, 2, "u2", 2), now);
    assert_eq!(taken(&mut session), 1);
    for _ in 0..16 {
        session.member_message(answer.clone());
    }
    assert_eq!(session.end(), None);
}
