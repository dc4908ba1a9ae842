//! Who is to be woken because of what was fanned out, and who is told that it was.
//!
//! A message to many wakes as many tasks, and each then writes to its socket. If all woke at once, whatever else the server has to
//! do would stand behind hundreds of them, at each of its steps. So they wake [`FEW`] at a time, in order, and others' tasks have
//! their turn in between, and other pools' receivers theirs. Its publisher is told when the last of them was woken, so it sends no
//! faster than that. Whom a message to few is for wakes at once.

use std::collections::VecDeque;
use std::sync::Arc;

use millpond_protocol::Refusal;

use super::Told;
use crate::hub::mailbox::Mailbox;
use crate::hub::{Fanned, wake};

/// Tasks that are woken before it is others' turn.
const FEW: usize = 16;

/// What became of a message.
type Outcome = Result<Fanned, Refusal>;

/// Those who wait for it: a line for each pool, which take turns.
#[derive(Debug, Default)]
pub(super) struct Waking(VecDeque<Line>);

#[derive(Debug)]
struct Line {
    pool: String,
    asleep: VecDeque<Arc<Mailbox>>,
    /// Behind how many of those who were ever put in line each is told.
    told: VecDeque<(u64, Told, Outcome)>,
    /// How many of those were woken.
    awake: u64,
}

impl Waking {
    /// A message of that pool was fanned out, for which `woken` are to be woken, and `whom` is to be told.
    pub(super) fn add(
        &mut self,
        pool: &str,
        woken: &mut Vec<Arc<Mailbox>>,
        whom: Option<Told>,
        outcome: Outcome,
    ) {
        let receivers = outcome.as_ref().map_or(0, |fanned| fanned.receivers);
        if receivers <= FEW {
            wake(woken);
            tell(whom, outcome);
            return;
        }
        let at = self.0.iter().position(|line| line.pool == pool).unwrap_or_else(|| {
            let (asleep, told) = (VecDeque::new(), VecDeque::new());
            self.0.push_back(Line { pool: pool.to_owned(), asleep, told, awake: 0 });
            self.0.len() - 1
        });
        let line = &mut self.0[at];
        line.asleep.extend(woken.drain(..));
        if let Some(whom) = whom {
            line.told.push_back((line.awake + line.asleep.len() as u64, whom, outcome));
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Wakes the next few of the pool whose turn it is, and tells those whose messages have nobody asleep any more.
    pub(super) fn next(&mut self) {
        let Some(mut line) = self.0.pop_front() else { return };
        let few = line.asleep.len().min(FEW);
        line.asleep.drain(..few).for_each(|mailbox| mailbox.wake());
        line.awake += few as u64;
        while line.told.front().is_some_and(|(behind, ..)| *behind <= line.awake)
            && let Some((_, whom, outcome)) = line.told.pop_front()
        {
            tell(Some(whom), outcome);
        }
        if !line.asleep.is_empty() {
            self.0.push_back(line);
        }
    }
}

fn tell(whom: Option<Told>, outcome: Outcome) {
    if let Some(whom) = whom {
        // Whoever asked may have gone.
        let _ = whom.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::hub::Hub;

    fn mailboxes(count: usize) -> Vec<Arc<Mailbox>> {
        let hub = Hub::default();
        (0..count).map(|_| hub.mailbox(&"p".parse().unwrap(), None)).collect()
    }

    fn fanned(receivers: usize) -> Outcome {
        Ok(Fanned { receivers, ..Fanned::default() })
    }

    fn awake(mailboxes: &[Arc<Mailbox>]) -> usize {
        mailboxes.iter().filter(|mailbox| mailbox.is_woken()).count()
    }

    #[test]
    fn many_wake_a_few_at_a_time_and_few_at_once() {
        let (many, few) = (mailboxes(3 * FEW), mailboxes(FEW));
        let mut waking = Waking::default();
        let (told, mut hears) = oneshot::channel();
        waking.add("p", &mut many.clone(), Some(told), fanned(many.len()));
        waking.next();
        assert_eq!(awake(&many), FEW);
        let (told, heard) = oneshot::channel();
        waking.add("p", &mut few.clone(), Some(told), fanned(few.len()));
        assert!(awake(&few) == FEW && heard.now_or_never().is_some(), "they wait for nobody");
        waking.next();
        assert!(hears.try_recv().is_err(), "somebody is asleep");
        waking.next();
        assert!(hears.try_recv().is_ok() && waking.is_empty());
        assert_eq!(awake(&many), 2 * FEW);
    }

    #[test]
    fn a_message_to_many_is_told_behind_those_before_it() {
        let many = mailboxes(2 * FEW);
        let mut waking = Waking::default();
        let (told, mut first) = oneshot::channel();
        waking.add("p", &mut many.clone(), Some(told), fanned(many.len()));
        // All of its receivers are asleep already.
        let (told, mut second) = oneshot::channel();
        waking.add("p", &mut Vec::new(), Some(told), fanned(many.len()));
        waking.next();
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        waking.next();
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
    }

    #[test]
    fn those_of_another_pool_wait_for_one_turn_of_each_and_not_for_all() {
        let (crowd, others) = (mailboxes(9 * FEW), mailboxes(FEW + 1));
        let mut waking = Waking::default();
        waking.add("crowd", &mut crowd.clone(), None, fanned(crowd.len()));
        waking.add("other", &mut others.clone(), None, fanned(others.len()));
        (0..4).for_each(|_| waking.next());
        assert_eq!((awake(&crowd), awake(&others)), (2 * FEW, FEW + 1));
    }
}
