//! Who is to be woken because of what was fanned out, and who is told that it was.
//!
//! A message to many wakes as many tasks, and each then writes to its socket. If all woke at once, whatever else the server has to
//! do would stand behind hundreds of them, at each of its steps. So they wake [`FEW`] at a time, in order, and others' tasks have
//! their turn in between. Its publisher is told when the last of them was woken, so it sends no faster than that. Whom a message to
//! few is for wakes at once.

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

/// Those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Waking {
    asleep: VecDeque<Arc<Mailbox>>,
    /// Behind how many of those who were ever put in line each is told.
    told: VecDeque<(u64, Told, Outcome)>,
    /// How many of those were woken.
    awake: u64,
}

impl Waking {
    /// A message was fanned out, for which `woken` are to be woken, and `whom` is to be told.
    pub(super) fn add(&mut self, woken: &mut Vec<Arc<Mailbox>>, whom: Option<Told>, outcome: Outcome) {
        let receivers = outcome.as_ref().map_or(0, |fanned| fanned.receivers);
        if receivers <= FEW {
            wake(woken);
            tell(whom, outcome);
            return;
        }
        self.asleep.extend(woken.drain(..));
        if let Some(whom) = whom {
            self.told.push_back((self.awake + self.asleep.len() as u64, whom, outcome));
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.asleep.is_empty() && self.told.is_empty()
    }

    /// Wakes the next few, and tells those whose messages have nobody asleep any more.
    pub(super) fn next(&mut self) {
        let few = self.asleep.len().min(FEW);
        self.asleep.drain(..few).for_each(|mailbox| mailbox.wake());
        self.awake += few as u64;
        while self.told.front().is_some_and(|(behind, ..)| *behind <= self.awake)
            && let Some((_, whom, outcome)) = self.told.pop_front()
        {
            tell(Some(whom), outcome);
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
        waking.add(&mut many.clone(), Some(told), fanned(many.len()));
        waking.next();
        assert_eq!(awake(&many), FEW);
        let (told, heard) = oneshot::channel();
        waking.add(&mut few.clone(), Some(told), fanned(few.len()));
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
        waking.add(&mut many.clone(), Some(told), fanned(many.len()));
        // All of its receivers are asleep already.
        let (told, mut second) = oneshot::channel();
        waking.add(&mut Vec::new(), Some(told), fanned(many.len()));
        waking.next();
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        waking.next();
        assert!(first.try_recv().is_ok() && second.try_recv().is_ok());
    }
}
