//! One pool: who subscribes to what, what is retained, and what all of it takes in memory.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use millpond_protocol::Refusal;

use super::Fanned;
use super::mailbox::{Holding, Mailbox};
use super::message::{Mail, Message};
use super::queue::Put;
use super::retained::Retained;
use super::trie::{Options, Trie};
use super::weight::{Sum, Weight};
use crate::codec::packet::Replay;

/// Subscribers of those that are behind that a publisher looks at.
const PACE_SAMPLE: usize = 16;

/// How often a pool that has too much in memory looks for who holds it: those who were ended need some time to go.
const RELIEF: Duration = Duration::from_millis(50);
/// Bytes that a session may hold whatever its pool has.
const HELD_MIN: usize = 256 << 10;

/// The state of one pool.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) trie: Trie<Arc<Mailbox>>,
    pub(super) retained: Retained,
    /// What its messages take, whoever holds them.
    bytes: Arc<Sum>,
    /// Everybody who ever subscribed and is still there, and the number at which those are looked for who are not.
    sessions: HashMap<u64, Weak<Mailbox>>,
    look_at: usize,
    relieved: Option<Instant>,
}

impl Pool {
    /// Whether there is nothing to remember of it.
    pub(super) fn is_empty(&self) -> bool {
        self.trie.is_empty() && self.retained.is_empty() && self.bytes.bytes() == 0
    }

    /// Adds or replaces a subscription, and leaves the retained messages that are wanted in the mailbox; whether it is to be
    /// woken. `is_first`: it had none.
    pub(super) fn subscribe(
        &mut self,
        mailbox: &Arc<Mailbox>,
        is_first: bool,
        (group, filter): (Option<&str>, &str),
        options: Options,
        replay: Replay,
    ) -> bool {
        if is_first {
            self.meet(mailbox);
        }
        let is_new = self.trie.insert(group, filter, mailbox.clone(), options);
        let is_wanted = match replay {
            Replay::Always => true,
            Replay::IfNew => is_new,
            Replay::Never => false,
        };
        let mut wakes = false;
        if is_wanted && group.is_none() {
            for message in self.retained.matching(filter, Instant::now()) {
                let qos = message.qos.min(options.qos);
                let tags = options.tag.into_iter().collect();
                let (put, is_woken) =
                    mailbox.put(Mail { message: message.clone(), qos, retain: true, replay: true, tags });
                wakes |= is_woken;
                if put == Put::Full {
                    break;
                }
            }
        }
        wakes
    }

    /// Retains a message if it is to be, and fans it out. `bytes_max` is what all may take in memory.
    pub(super) fn deliver(
        &mut self,
        message: Message,
        bytes_max: usize,
        now: Instant,
        woken: &mut Vec<Arc<Mailbox>>,
    ) -> Result<Fanned, Refusal> {
        let is_pool_wide = message.is_pool_wide();
        let weight =
            if is_pool_wide { Weight::default() } else { Weight::new(&self.bytes, message.footprint()) };
        let message = Arc::new(Message { weight, ..message });
        if message.retain && !is_pool_wide {
            self.retained.set(&message, now)?;
        }
        let over = self.bytes.bytes().saturating_sub(bytes_max);
        if over > 0 {
            self.relieve(over, now, woken);
        }
        Ok(self.fan_out(&message, over > 0, woken))
    }

    /// Remembers a session that may come to hold messages.
    fn meet(&mut self, mailbox: &Arc<Mailbox>) {
        if self.sessions.len() >= self.look_at {
            self.sessions.retain(|_, session| session.strong_count() > 0);
            self.look_at = 64.max(2 * self.sessions.len());
        }
        self.sessions.insert(mailbox.id(), Arc::downgrade(mailbox));
    }

    /// Ends the connections that hold most, until what they hold is `over` bytes. Whoever shares it with others frees
    /// nothing: then it is their turn next time.
    fn relieve(&mut self, mut over: usize, now: Instant, woken: &mut Vec<Arc<Mailbox>>) {
        if self.relieved.is_some_and(|at| now < at + RELIEF) {
            return;
        }
        self.relieved = Some(now);
        let mut holders = Vec::new();
        for mailbox in self.sessions.values().filter_map(Weak::upgrade) {
            match mailbox.holding() {
                // Ended by an earlier turn, and about to let it go.
                Holding::Leaving(held) => over = over.saturating_sub(held),
                Holding::Online(held) if held > HELD_MIN => holders.push((held, mailbox)),
                Holding::Online(_) | Holding::Away => {}
            }
        }
        holders.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
        for (held, mailbox) in holders {
            if over == 0 {
                return;
            }
            over = over.saturating_sub(held);
            mailbox.overflow();
            woken.push(mailbox);
        }
    }

    fn fan_out(&mut self, message: &Arc<Message>, is_pressed: bool, woken: &mut Vec<Arc<Mailbox>>) -> Fanned {
        let mut found: Vec<(&Arc<Mailbox>, Mail)> = Vec::new();
        self.trie.matches(&message.topic, &mut |mailbox, options| {
            if options.no_local && mailbox.id() == message.session {
                return;
            }
            let copy = Mail {
                message: message.clone(),
                qos: message.qos.min(options.qos),
                retain: message.retain && options.as_published,
                replay: false,
                tags: options.tag.into_iter().collect(),
            };
            found.push((mailbox, copy));
        });
        merge(&mut found);
        let receivers = found.len();
        let (mut fanned, mut behind) = (Fanned { receivers, ..Fanned::default() }, 0);
        for (mailbox, copy) in found {
            let (put, wakes) = mailbox.put_under(copy, is_pressed);
            if wakes {
                woken.push(mailbox.clone());
            }
            if put == Put::Behind {
                behind += 1;
                if fanned.behind.len() < PACE_SAMPLE {
                    fanned.behind.push(mailbox.clone());
                }
            }
        }
        if behind * 2 <= receivers {
            fanned.behind.clear();
        }
        fanned
    }
}

/// One copy for each session, at the highest QoS of its subscriptions and with the identifiers of all (OASIS MQTT 5, 3.3.4).
fn merge(found: &mut Vec<(&Arc<Mailbox>, Mail)>) {
    // Within one filter everybody is there once, and most topics match one.
    found.sort_by_key(|(mailbox, _)| mailbox.id());
    found.dedup_by(|(mailbox, copy), (kept, into)| {
        if mailbox.id() != kept.id() {
            return false;
        }
        into.qos = into.qos.max(copy.qos);
        into.retain |= copy.retain;
        into.tags.append(&mut copy.tags);
        true
    });
}
