//! What waits for the bus: a line for each pool, and turns among them by what each costs.
//!
//! Pure. A message costs the time that fanning it out takes. The next turn is the pool's for which least has been done, so one
//! whose members publish much, or to many, has as much waiting as it likes and keeps nobody else waiting. Who comes anew begins
//! where the last turn was: having been silent earns nothing. A line that is empty is remembered until the others have caught up
//! with it.
//!
//! Within a line state goes first, because only the newest counts; all else keeps its order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Publisher;
use crate::hub::message::Message;

/// Events that may wait for the bus, of which one pool may have half of what the others leave. What comes then is dropped.
const EVENTS_MAX: usize = 10_000;

/// The lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    // Pools are made by who runs the server, and few have something waiting at a time.
    lines: Vec<Line>,
    /// What had been done for the pool that had the last turn, when it came.
    done: u64,
    events: usize,
    len: usize,
    most: usize,
}

#[derive(Debug)]
struct Line {
    pool: Arc<str>,
    /// What has been done for it, in microseconds.
    done: u64,
    /// What one of its messages costs: the dearest of late.
    each: u64,
    /// The newest of each state topic.
    states: VecDeque<Message>,
    messages: VecDeque<(Message, Option<Publisher>)>,
    events: usize,
    /// Messages that had their turn and whose cost is not known yet.
    under_way: usize,
}

/// What has its turn.
#[derive(Debug)]
pub(super) struct Next {
    pub(super) pool: Arc<str>,
    pub(super) message: Message,
    pub(super) publisher: Option<Publisher>,
    /// What it will cost, perhaps.
    pub(super) cost: u64,
}

impl Lines {
    /// Adds a state message unless one of a higher rank waits already.
    pub(super) fn state(&mut self, message: Message) {
        let line = self.line(message.pool());
        match line.states.iter_mut().find(|held| held.topic == message.topic) {
            Some(held) if held.rank > message.rank => {}
            Some(held) => *held = message,
            None => {
                line.states.push_back(message);
                self.has_more();
            }
        }
    }

    /// Adds an event; whether there is room for it.
    pub(super) fn event(&mut self, message: Message) -> bool {
        let all = self.events;
        let line = self.line(message.pool());
        let others = all - line.events;
        if line.events >= (EVENTS_MAX - others).div_ceil(2) {
            return false;
        }
        line.events += 1;
        self.events += 1;
        self.message(message, None);
        true
    }

    /// Adds a message.
    pub(super) fn message(&mut self, message: Message, publisher: Option<Publisher>) {
        self.line(message.pool()).messages.push_back((message, publisher));
        self.has_more();
    }

    fn has_more(&mut self) {
        self.len += 1;
        self.most = self.most.max(self.len);
    }

    /// Messages that wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The most that ever waited at a time.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes the one whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Next> {
        let waiting = self.lines.iter_mut().filter(|line| !line.is_empty());
        let line = waiting.min_by_key(|line| line.done)?;
        self.done = line.done;
        line.done += 1;
        line.under_way += 1;
        let (pool, cost) = (line.pool.clone(), line.each);
        let (message, publisher) = match line.states.pop_front() {
            Some(state) => (state, None),
            None => line.messages.pop_front()?,
        };
        let is_event = usize::from(message.is_event());
        line.events -= is_event;
        self.events -= is_event;
        self.len -= 1;
        let done = self.done;
        self.lines.retain(|line| !line.is_empty() || line.under_way > 0 || line.done > done);
        Some(Next { pool, message, publisher, cost })
    }

    /// A message of that pool, which had its turn, has cost so much.
    pub(super) fn has_cost(&mut self, pool: &str, cost: u64) {
        if let Some(line) = self.had_turn(pool) {
            line.done += cost;
            line.each = cost.max(line.each - line.each.div_ceil(8));
        }
    }

    /// One has cost nothing: it went nowhere.
    pub(super) fn went_nowhere(&mut self, pool: &str) {
        self.had_turn(pool);
    }

    fn had_turn(&mut self, pool: &str) -> Option<&mut Line> {
        let line = self.lines.iter_mut().find(|line| &*line.pool == pool)?;
        line.under_way = line.under_way.saturating_sub(1);
        Some(line)
    }

    fn line(&mut self, pool: &str) -> &mut Line {
        let at = self.lines.iter().position(|line| &*line.pool == pool).unwrap_or_else(|| {
            self.lines.push(Line {
                pool: pool.into(),
                done: self.done,
                each: 0,
                states: VecDeque::new(),
                messages: VecDeque::new(),
                events: 0,
                under_way: 0,
            });
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn message(pool: &str, text: &str) -> Message {
        Message::event(format!("app/{pool}/x"), Bytes::copy_from_slice(text.as_bytes()))
    }

    fn state(pool: &str, topic: &str, rank: u64) -> Message {
        Message { rank, ..Message::event(format!("mp/{pool}/{topic}"), Bytes::from(rank.to_string())) }
    }

    fn event(pool: &str) -> Message {
        Message::event(format!("mp/{pool}/event/x"), Bytes::new())
    }

    /// The next so many, each of which costs what is said for its pool.
    fn turns(lines: &mut Lines, turns: usize, cost: impl Fn(&str) -> u64) -> Vec<String> {
        let next = (0..turns).map_while(|_| {
            let next = lines.pop()?;
            lines.has_cost(&next.pool, cost(&next.pool));
            Some(format!("{} {}", next.pool, String::from_utf8_lossy(&next.message.payload)))
        });
        next.collect()
    }

    #[test]
    fn a_pool_with_much_waiting_keeps_no_other_pool_waiting_and_each_keeps_its_order() {
        let mut lines = Lines::default();
        for n in 0..1_000 {
            lines.message(message("flood", &n.to_string()), None);
        }
        turns(&mut lines, 100, |_| 10);
        for n in 0..3 {
            lines.message(message("quiet", &n.to_string()), None);
        }
        let all = turns(&mut lines, 6, |_| 10);
        assert_eq!(all, ["quiet 0", "flood 100", "quiet 1", "flood 101", "quiet 2", "flood 102"]);
        assert_eq!(lines.len(), 1_000 - 103);
    }

    #[test]
    fn turns_are_by_what_a_message_costs_and_neither_silence_nor_an_empty_line_earns_any() {
        let mut lines = Lines::default();
        let cost = |pool: &str| if pool == "dear" { 99 } else { 9 };
        for n in 0..100 {
            lines.message(message("dear", &n.to_string()), None);
        }
        for n in 0..100 {
            lines.message(message("cheap", &n.to_string()), None);
        }
        let all = turns(&mut lines, 55, cost);
        assert_eq!(all.iter().filter(|one| one.starts_with("dear")).count(), 5);
        // It has one waiting at a time, and is not the newcomer again with each.
        let mut now_and_then = 0;
        for n in 0..55 {
            if !lines.lines.iter().any(|line| &*line.pool == "sly" && !line.is_empty()) {
                lines.message(message("sly", &n.to_string()), None);
            }
            now_and_then += usize::from(turns(&mut lines, 1, |_| 99)[0].starts_with("sly"));
        }
        assert!((15..=20).contains(&now_and_then), "a third of the turns, not {now_and_then}");
    }

    #[test]
    fn what_a_message_cost_counts_also_when_it_is_known_long_after_its_line_is_empty() {
        let (mut lines, mut under_way) = (Lines::default(), VecDeque::new());
        let (mut flood, mut bursts) = (0, 0);
        for _ in 0..20_000 {
            lines.message(message("flood", ""), None);
            if !lines.lines.iter().any(|line| &*line.pool == "bursts" && !line.is_empty()) {
                (0..8).for_each(|_| lines.message(message("bursts", ""), None));
            }
            under_way.push_back(lines.pop().unwrap().pool);
            if under_way.len() > 32 {
                let pool = under_way.pop_front().unwrap();
                let (sum, cost) = if &*pool == "flood" { (&mut flood, 10) } else { (&mut bursts, 500) };
                *sum += cost;
                lines.has_cost(&pool, cost);
            }
        }
        assert!(bursts < 2 * flood, "{bursts} for bursts and {flood} for what waits all the time");
    }

    #[test]
    fn of_state_the_newest_goes_first_and_only_within_its_pool() {
        let mut lines = Lines::default();
        lines.message(message("p", "message"), None);
        for rank in [2, 3, 1] {
            lines.state(state("p", "result", rank));
            lines.state(state("q", "result", rank));
        }
        lines.state(state("p", "pool", 7));
        assert_eq!(lines.len(), 4);
        assert_eq!(turns(&mut lines, 9, |_| 5), ["p 3", "q 3", "p 7", "p message"]);
    }

    #[test]
    fn events_of_one_pool_leave_room_for_those_of_others() {
        let mut lines = Lines::default();
        let flood = (0..EVENTS_MAX).take_while(|_| lines.event(event("flood"))).count();
        let other = (0..EVENTS_MAX).take_while(|_| lines.event(event("other"))).count();
        assert_eq!((flood, other), (EVENTS_MAX / 2, EVENTS_MAX / 4));
        while lines.pop().is_some() {}
        assert_eq!((lines.events, lines.len()), (0, 0));
        assert!(lines.event(event("flood")));
    }

    #[test]
    fn what_a_message_will_cost_is_what_the_dearest_of_late_did() {
        let mut lines = Lines::default();
        let mut expected = |cost| {
            lines.message(message("p", ""), None);
            let next = lines.pop().unwrap();
            lines.has_cost("p", cost);
            next.cost
        };
        let found: Vec<u64> = [800, 1, 1, 1, 900].into_iter().map(&mut expected).collect();
        assert_eq!(found, [0, 800, 700, 612, 535]);
        for _ in 0..40 {
            expected(1);
        }
        assert_eq!(expected(1), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nobody_waits_for_more_than_its_turn(
            steps in proptest::collection::vec((0_usize..4, 0_u64..50, any::<bool>()), 1..300),
        ) {
            let mut lines = Lines::default();
            let (mut pushed, mut popped, mut most) = ([0_u64; 4], [0_u64; 4], 0);
            for (pool, cost, is_push) in steps {
                if is_push {
                    lines.message(message(&pool.to_string(), &pushed[pool].to_string()), None);
                    pushed[pool] += 1;
                } else if let Some(next) = lines.pop() {
                    let pool: usize = next.pool.parse().unwrap();
                    let expected = message(&next.pool, &popped[pool].to_string());
                    prop_assert_eq!(&next.message, &expected);
                    popped[pool] += 1;
                    lines.has_cost(&next.pool, cost);
                    let least = (0..4).filter(|n| pushed[*n] > popped[*n]).map(|n| {
                        lines.lines.iter().find(|line| *line.pool == *n.to_string()).unwrap().done
                    });
                    // No line is ahead of one that waits by more than one message.
                    if let Some(least) = least.min() {
                        prop_assert!(lines.done <= least);
                    }
                }
                prop_assert_eq!(lines.len() as u64, pushed.iter().sum::<u64>() - popped.iter().sum::<u64>());
                most = most.max(lines.len());
                prop_assert_eq!(lines.most(), most);
            }
        }
    }
}
