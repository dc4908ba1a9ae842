//! What a client subscribes to, and which fixed filters of the router bring it.

use std::collections::{BTreeSet, HashSet};

use millpond_protocol::access::may;
use millpond_protocol::{Action, PoolName, topic};

use super::{Effect, Question, Session};
use crate::codec::packet::{Replay, Subscribe, Unsubscribe};
use crate::codec::{Version, reason};

/// The subscriptions of one connection.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
    /// Fixed filters that the router was asked for.
    channels: HashSet<String>,
    /// Whether a request to the router is under way. One at a time: the first brings the link for all others.
    attaching: bool,
    /// What the next request will ask for.
    to_attach: Vec<String>,
    /// State topics whose current message is wanted once the router has answered. A set of four at most, however many
    /// filters match them.
    wanted: BTreeSet<String>,
    /// Whether the backend was asked for some. One question at a time.
    asking: bool,
}

#[derive(Debug)]
struct Subscription {
    filter: String,
    qos: u8,
    tag: Option<u32>,
}

/// How a topic is to be delivered: overlapping subscriptions deliver once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) qos: u8,
    pub(super) tags: Vec<u32>,
}

impl Subscriptions {
    /// How `topic` is to be delivered, if anything subscribes to it.
    pub(super) fn of(&self, topic: &str) -> Option<Match> {
        let mut found: Option<Match> = None;
        for subscription in &self.list {
            if topic::matches(&subscription.filter, topic) {
                let found = found.get_or_insert(Match { qos: 0, tags: Vec::new() });
                found.qos = found.qos.max(subscription.qos);
                found.tags.extend(subscription.tag);
            }
        }
        found
    }

    /// Adds or replaces; tells whether the filter is new.
    fn add(&mut self, filter: &str, qos: u8, tag: Option<u32>) -> bool {
        if let Some(held) = self.list.iter_mut().find(|held| held.filter == filter) {
            (held.qos, held.tag) = (qos, tag);
            return false;
        }
        self.list.push(Subscription { filter: filter.to_owned(), qos, tag });
        true
    }

    fn remove(&mut self, filter: &str) -> bool {
        let before = self.list.len();
        self.list.retain(|held| held.filter != filter);
        self.list.len() < before
    }
}

impl Session {
    pub(super) fn on_subscribe(&mut self, subscribe: Subscribe) {
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut of_receipts = false;
        for (n, asked) in subscribe.filters.into_iter().enumerate() {
            // No client has a use for more filters than it may hold, and each is work.
            let is_too_many = n >= self.config.subscriptions_max;
            let may = if is_too_many { Err(reason::QUOTA) } else { self.may_subscribe(&asked.filter) };
            if let Err(code) = may {
                codes.push(if self.version == Version::V5 { code } else { 0x80 });
                continue;
            }
            let granted = asked.qos.min(1);
            codes.push(granted);
            let new = self.subscriptions.add(&asked.filter, granted, subscribe.tag);
            for channel in channels_of(&self.who.pool, &asked.filter) {
                if self.subscriptions.channels.insert(channel.clone()) {
                    self.subscriptions.to_attach.push(channel);
                }
            }
            let wanted = match asked.replay {
                Replay::Always => true,
                Replay::IfNew => new,
                Replay::Never => false,
            };
            if wanted {
                self.subscriptions.wanted.extend(states_of(&self.who.pool, &asked.filter));
            }
            of_receipts |= topic::matches(&asked.filter, self.receipts.topic());
        }
        self.attach_then_ask();
        self.follow_receipts();
        if of_receipts && self.receipts.is_starting() {
            // What is published after the SUBACK has a receipt to come, so the backend must have set the beginning first.
            self.receipts.subacks.push((subscribe.id, codes));
        } else {
            self.out.suback(self.version, 0x90, subscribe.id, &codes);
        }
    }

    pub(super) fn on_unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let mut codes = Vec::new();
        for filter in &unsubscribe.filters {
            let removed = self.subscriptions.remove(filter);
            codes.push(if removed { reason::SUCCESS } else { reason::NO_SUBSCRIPTION_EXISTED });
        }
        if self.version == Version::V4 {
            codes.clear();
        }
        self.out.suback(self.version, 0xB0, unsubscribe.id, &codes);
        self.follow_receipts();
    }

    pub(super) fn on_attached(&mut self) {
        self.subscriptions.attaching = false;
        self.attach_then_ask();
    }

    /// State is asked for behind the subscription to its changes, or a change between the two would be missed.
    fn attach_then_ask(&mut self) {
        if self.subscriptions.attaching {
            return;
        }
        let channels = std::mem::take(&mut self.subscriptions.to_attach);
        if !channels.is_empty() {
            self.subscriptions.attaching = true;
            self.effects.push_back(Effect::Ask(Question::Attach(channels)));
        } else {
            self.ask_for_states();
        }
    }

    fn ask_for_states(&mut self) {
        if !self.subscriptions.asking && !self.subscriptions.wanted.is_empty() {
            self.subscriptions.asking = true;
            let topics = std::mem::take(&mut self.subscriptions.wanted).into_iter().collect();
            self.effects.push_back(Effect::Ask(Question::States(topics)));
        }
    }

    pub(super) fn on_states(&mut self) {
        self.subscriptions.asking = false;
        self.attach_then_ask();
    }

    fn follow_receipts(&mut self) {
        let wanted = self.subscriptions.of(self.receipts.topic()).is_some();
        if self.receipts.follow(wanted) {
            self.effects.push_back(Effect::Ask(Question::Cursor));
        }
    }

    fn may_subscribe(&self, filter: &str) -> Result<(), u8> {
        if filter.starts_with("$share/") {
            return Err(reason::SHARED_NOT_SUPPORTED);
        }
        if !topic::is_filter(filter) {
            return Err(reason::FILTER_INVALID);
        }
        if !may(&self.who, Action::Subscribe(filter)) {
            return Err(reason::NOT_AUTHORIZED);
        }
        let held = &self.subscriptions.list;
        if held.len() >= self.config.subscriptions_max && held.iter().all(|held| held.filter != filter) {
            return Err(reason::QUOTA);
        }
        Ok(())
    }
}

/// Whether `topic` is of the event feed.
pub(super) fn is_event(pool: &PoolName, topic: &str) -> bool {
    let rest = topic.strip_prefix("mp/").and_then(|rest| rest.strip_prefix(pool.as_str()));
    rest.is_some_and(|rest| rest.starts_with("/event/"))
}

/// The one filter of the router for the whole event feed.
fn events(pool: &PoolName) -> String {
    topic::event(pool, "#")
}

/// The state topics that `filter` matches.
fn states_of<'a>(pool: &PoolName, filter: &'a str) -> impl Iterator<Item = String> + use<'a> {
    [topic::card(pool), topic::result(pool), topic::result_data(pool), topic::offer(pool)]
        .into_iter()
        .filter(move |state| topic::matches(filter, state))
}

/// The fixed filters of the router that together bring what `filter` matches.
fn channels_of(pool: &PoolName, filter: &str) -> Vec<String> {
    let mut channels: Vec<String> = states_of(pool, filter).collect();
    if is_event(pool, filter) {
        channels.push(events(pool));
    }
    channels
}
