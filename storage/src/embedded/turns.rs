//! Whose turn it is to send a body.
//!
//! Keys that are alike up to their last `/` have one *owner* (of Millpond's keys: a member, or the server's packs of a pool),
//! and those alike up to their second `/` one *group* (a pool's uploads). An owner gets another turn while it holds less than
//! half of those that are free, a group while it holds less than are free. So an owner that takes what it can
//! holds a third, a group half, and what is left is shared in the same way: whoever comes next finds a turn, also of a group that has
//! its half, until three quarters are taken. Who may not have one waits, in order of arrival, and holds up nobody behind it who may.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::receive::Refused;
use crate::limits::embedded as limits;

/// The part of all turns that no newcomer of a crowded group takes from other groups.
const RESERVE: usize = 4;

/// All turns that there are.
pub(super) struct Turns(Mutex<State>);

#[derive(Default)]
struct State {
    total: usize,
    free: usize,
    /// Bodies that are on their way or wait for a turn, by key.
    keys: HashMap<String, usize>,
    /// Turns that are held, by owner and by group.
    owners: HashMap<String, usize>,
    groups: HashMap<String, usize>,
    waiting: VecDeque<Waiting>,
    next: u64,
}

struct Waiting {
    id: u64,
    key: String,
    granted: Option<oneshot::Sender<()>>,
}

/// A turn, or a place among those that wait for one. Dropping it gives it back.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    key: &'a str,
    id: u64,
}

impl Turns {
    pub(super) fn new(uploads: usize) -> Self {
        Self(Mutex::new(State { total: uploads, free: uploads, ..State::default() }))
    }

    /// A turn for a body of `key`, of which there may be `most` at once: whoever has one URL does not get all of its owner's.
    pub(super) async fn turn<'a>(&'a self, key: &'a str, most: usize) -> Result<Turn<'a>, Refused> {
        let (turn, granted) = self.queue(key, most)?;
        match timeout(limits::UPLOAD_WAIT, granted).await {
            Ok(Ok(())) => Ok(turn),
            Ok(Err(_)) | Err(_) => Err(Refused::Busy),
        }
    }

    fn queue<'a>(&'a self, key: &'a str, most: usize) -> Result<(Turn<'a>, oneshot::Receiver<()>), Refused> {
        let mut state = self.state();
        let count = state.keys.entry(key.to_owned()).or_default();
        if *count >= most {
            return Err(Refused::Crowded);
        }
        *count += 1;
        let (granted, grant) = oneshot::channel();
        let id = state.next;
        state.next += 1;
        state.waiting.push_back(Waiting { id, key: key.to_owned(), granted: Some(granted) });
        state.admit();
        Ok((Turn { turns: self, key, id }, grant))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state();
        less(&mut state.keys, self.key);
        if let Some(at) = state.waiting.iter().position(|waiting| waiting.id == self.id) {
            state.waiting.remove(at);
            return;
        }
        less(&mut state.owners, owner(self.key));
        less(&mut state.groups, group(self.key));
        state.free += 1;
        state.admit();
    }
}

impl State {
    /// Gives turns to those who wait and may have one.
    fn admit(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|next| {
            let (owner, group) = (owner(&next.key), group(&next.key));
            let held = |of: &HashMap<String, usize>, who: &str| of.get(who).copied().unwrap_or(0);
            let is_crowded = held(&self.groups, group) >= self.free;
            let is_first = held(&self.owners, owner) == 0 && self.free > self.total / RESERVE;
            if held(&self.owners, owner) * 2 >= self.free || (is_crowded && !is_first) {
                return true;
            }
            self.free -= 1;
            *self.owners.entry(owner.to_owned()).or_default() += 1;
            *self.groups.entry(group.to_owned()).or_default() += 1;
            // Whoever is gone gives it back when its turn is dropped.
            let _ = next.granted.take().map(|granted| granted.send(()));
            false
        });
        self.waiting = waiting;
    }
}

fn less(counts: &mut HashMap<String, usize>, of: &str) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

fn owner(key: &str) -> &str {
    key.rfind('/').map_or("", |at| &key[..=at])
}

fn group(key: &str) -> &str {
    key.match_indices('/').nth(1).map_or_else(|| owner(key), |(at, _)| &key[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many turns as `owner` gets, one for each key.
    async fn greedy<'a>(turns: &'a Turns, keys: &'a [String]) -> Vec<Turn<'a>> {
        let mut held = Vec::new();
        for key in keys {
            let (turn, mut granted) = turns.queue(key, 1).ok().unwrap();
            if granted.try_recv().is_ok() {
                held.push(turn);
            }
        }
        held
    }

    fn keys(owner: &str) -> Vec<String> {
        (0..300).map(|n| format!("{owner}{n}")).collect()
    }

    #[tokio::test]
    async fn who_takes_every_turn_that_it_can_leaves_turns_to_its_pool_and_more_to_others() {
        let turns = Turns::new(256);
        let (one, two, pack, other) =
            (keys("1/upload/7/"), keys("1/upload/8/"), keys("1/pack/"), keys("2/upload/9/"));
        let first = greedy(&turns, &one).await;
        assert_eq!(first.len(), 86);
        let second = greedy(&turns, &two).await;
        assert_eq!(second.len(), 42, "the group has half");
        assert_eq!(
            greedy(&turns, &keys("1/upload/9/")).await.len(),
            1,
            "who has nothing gets one all the same"
        );
        assert_eq!(greedy(&turns, &other).await.len(), 43);
        let packs = greedy(&turns, &pack).await;
        assert_eq!(packs.len(), 43);
        drop((first, second, packs));
        assert_eq!(greedy(&turns, &one).await.len(), 86);
    }

    #[tokio::test]
    async fn who_waits_for_its_share_holds_up_nobody_and_is_next() {
        let turns = Turns::new(3);
        let first = turns.turn("1/upload/7/a", 1).await.ok().unwrap();
        let (waiting, mut granted) = turns.queue("1/upload/7/b", 1).ok().unwrap();
        let (gone, _) = turns.queue("1/upload/7/c", 1).ok().unwrap();
        assert!(granted.try_recv().is_err());
        let other = turns.turn("2/upload/9/a", 1).await.ok().unwrap();
        drop((gone, first));
        granted.await.unwrap();
        drop((waiting, other));
        let state = turns.state();
        assert!(
            state.free == 3 && state.keys.is_empty() && state.owners.is_empty() && state.groups.is_empty()
        );
    }

    #[tokio::test]
    async fn newcomers_of_a_crowded_pool_leave_a_quarter_to_others() {
        let turns = Turns::new(16);
        let crowd: Vec<String> = (0..20).map(|member| format!("1/upload/{member}/x")).collect();
        let held = greedy(&turns, &crowd).await;
        assert_eq!(held.len(), 12);
        assert_eq!(greedy(&turns, &keys("2/upload/7/")).await.len(), 2);
    }

    #[tokio::test]
    async fn of_those_who_may_have_a_turn_the_first_to_come_is_next() {
        let turns = Turns::new(1);
        let held = turns.turn("1/upload/7/a", 1).await.ok().unwrap();
        let (first, mut granted) = turns.queue("2/upload/8/a", 1).ok().unwrap();
        let (second, mut later) = turns.queue("3/upload/9/a", 1).ok().unwrap();
        drop(held);
        assert!(granted.try_recv().is_ok() && later.try_recv().is_err());
        drop(first);
        assert!(later.try_recv().is_ok());
        drop(second);
    }
}
