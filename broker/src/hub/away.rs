//! How much of memory the messages take that wait for sessions without a connection: of a pool, and of one member.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millpond_protocol::limits;

/// What waits for sessions that have no connection: all those of a pool, or of one member.
#[derive(Debug, Default)]
pub(crate) struct AwayBytes(AtomicUsize);

/// What a session counts for while it is away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Away {
    pub(crate) pool: Arc<AwayBytes>,
    pub(crate) member: Arc<AwayBytes>,
}

impl Away {
    /// Bytes that there is room for, and which limit says so.
    pub(super) fn room(&self) -> (usize, &'static str) {
        let left = |sum: &AwayBytes, max: usize| max.saturating_sub(sum.0.load(Ordering::Relaxed));
        let member = (left(&self.member, limits::AWAY_BYTES_PER_MEMBER), "member");
        member.min((left(&self.pool, limits::AWAY_BYTES_PER_POOL), "pool"))
    }

    pub(super) fn change(&self, before: usize, after: usize) {
        for sum in [&self.pool, &self.member] {
            // Wraps where it became less, and so does the sum.
            sum.0.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::mailbox::Mailbox;
    use super::super::message::{Mail, Message};
    use super::super::queue::Put;
    use super::*;

    fn copy(bytes: usize) -> Mail {
        let large = Message::event("app/p/x".into(), Bytes::from(vec![0; bytes]));
        Mail { message: Arc::new(large), qos: 1, retain: false, replay: false, tags: vec![] }
    }

    fn nothing(_room: usize) -> (usize, u64) {
        (0, 0)
    }

    #[test]
    fn what_was_on_its_way_counts_until_the_session_is_back() {
        let away = Away::default();
        let leaves = Mailbox::new(1, away.clone());
        leaves.go_offline(|room| (room, 0));
        let other = Mailbox::new(2, away.clone());
        other.go_offline(nothing);
        assert_eq!(other.put(copy(1_000)).0, Put::Dropped);
        leaves.go_online();
        assert_ne!(other.put(copy(1_000)).0, Put::Dropped);
        drop((leaves, other));
        assert_eq!(away.member.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_waits_for_all_who_are_away_is_bounded_and_who_comes_back_makes_room() {
        let pool = Arc::<AwayBytes>::default();
        // Each of a member of its own.
        let mailbox = |id| Mailbox::new(id, Away { pool: pool.clone(), ..Away::default() });
        let copy = copy(limits::AWAY_BYTES_PER_POOL / 20);
        let mut sessions: Vec<Mailbox> = (0..19).map(mailbox).collect();
        for mailbox in &sessions {
            // What came before it left counts too.
            assert_eq!(mailbox.put(copy.clone()).0, Put::Behind);
            mailbox.go_offline(nothing);
        }
        let (last, here) = (mailbox(20), mailbox(21));
        last.go_offline(nothing);
        assert_eq!(last.put(copy.clone()).0, Put::Dropped);
        assert_eq!(here.put(copy.clone()).0, Put::Behind, "who has a connection is not concerned");
        sessions[0].go_online();
        assert_eq!(last.put(copy.clone()).0, Put::Behind);
        let more = mailbox(22);
        more.go_offline(nothing);
        assert_eq!(more.put(copy.clone()).0, Put::Dropped);
        drop(sessions.pop());
        assert_eq!(more.put(copy).0, Put::Behind);
        drop((sessions, last, here, more));
        assert_eq!(pool.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn while_the_pool_has_too_much_qos_0_is_for_who_has_nothing_waiting() {
        let mailbox = Mailbox::new(1, Away::default());
        let light = || Mail { qos: 0, ..copy(1_000) };
        assert_eq!(mailbox.put_under(light(), true).0, Put::Kept);
        assert_eq!(mailbox.put_under(light(), true).0, Put::Dropped);
        assert_eq!(mailbox.put_under(light(), false).0, Put::Kept);
        assert_eq!(mailbox.put_under(copy(1_000), true).0, Put::Kept);
    }

    #[test]
    fn the_sessions_of_one_member_leave_room_for_what_waits_for_others() {
        let away = Away::default();
        let copy = copy(limits::SESSION_QUEUE_BYTES - 1_000);
        let of_one: Vec<Mailbox> =
            (0..limits::SESSIONS_PER_MEMBER as u64).map(|id| Mailbox::new(id, away.clone())).collect();
        of_one.iter().for_each(|mailbox| mailbox.go_offline(nothing));
        let kept = of_one.iter().filter(|mailbox| mailbox.put(copy.clone()).0 != Put::Dropped).count();
        assert_eq!(kept, limits::AWAY_BYTES_PER_MEMBER / limits::SESSION_QUEUE_BYTES);
        // What waited for it while it was connected is no way around that.
        let leaves = Mailbox::new(98, away.clone());
        assert_eq!(leaves.put(copy.clone()).0, Put::Behind);
        let before = away.pool.0.load(Ordering::Relaxed);
        leaves.go_offline(nothing);
        assert_eq!(away.pool.0.load(Ordering::Relaxed), before);
        let other = Mailbox::new(99, Away { pool: away.pool.clone(), ..Away::default() });
        other.go_offline(nothing);
        assert_eq!(other.put(copy.clone()).0, Put::Behind);
        drop((of_one, leaves));
        assert_eq!(away.member.0.load(Ordering::Relaxed), 0);
    }
}
