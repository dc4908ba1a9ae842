//! Tests of answers that nobody reads.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use millpond_protocol::limits;

use super::tests::{session, subscribe};
use super::{ANSWERS_MIN, End, Session};
use crate::backend::MemberMessage;
use crate::codec::{Version, reason};
use crate::hub::message::Message;
use crate::hub::weight::Sum;

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
