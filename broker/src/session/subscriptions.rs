//! What a client subscribes to: who is told of it, and when it is acknowledged.

use std::collections::BTreeSet;

use millpond_protocol::access::may;
use millpond_protocol::{Action, PoolName, Refusal, app_topics, topic};

use super::effect::Suback;
use super::{Effect, Question, Session};
use crate::backend::Subscription;
use crate::codec::packet::{Replay, Subscribe, Unsubscribe};
use crate::codec::{Bad, Version, reason};
use crate::hub::trie::Options;

const SUBACK: u8 = 0x90;
const UNSUBACK: u8 = 0xB0;

/// The subscriptions of one session.
#[derive(Debug)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
    /// State topics whose current message is wanted. A set of four at most, however many filters match them.
    wanted: BTreeSet<String>,
    /// The same, where the client came back and did not ask: what it has already is not wanted.
    news: BTreeSet<String>,
    /// What the backend was asked for. One question at a time.
    asking: Option<Asking>,
    /// SUBACKs and UNSUBACKs that wait.
    acks: Vec<Ack>,
    /// Counts the changes that are to be kept, those that the backend was asked to keep, and those that it keeps.
    changes: u64,
    keeping: Option<u64>,
    kept: u64,
    /// Codes of acknowledgements that wait until the hub is told of their filters.
    on_their_way: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    Current,
    News,
}

/// An acknowledgement: sent when what it promises is so.
#[derive(Debug)]
struct Ack {
    first: u8,
    id: u16,
    codes: Vec<u8>,
    /// The beginning of the receipts must be set: what is published after the SUBACK has a receipt to come.
    of_receipts: bool,
    /// This change must be kept.
    change: u64,
    /// What the hub is told then.
    then: Vec<Effect>,
}

/// How a topic of the server is to be delivered: overlapping subscriptions deliver once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) qos: u8,
    pub(super) tags: Vec<u32>,
}

impl Subscriptions {
    pub(super) fn new(list: Vec<Subscription>) -> Self {
        Self {
            list,
            wanted: BTreeSet::new(),
            news: BTreeSet::new(),
            asking: None,
            acks: Vec::new(),
            changes: 0,
            keeping: None,
            kept: 0,
            on_their_way: 0,
        }
    }

    pub(super) fn list(&self) -> &[Subscription] {
        &self.list
    }

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

    /// Acknowledgements that wait.
    pub(super) fn waiting(&self) -> usize {
        self.acks.len()
    }

    /// Filters that are acknowledged once they are kept and the hub knows them; with those beside them that are refused, for each
    /// is a code that waits.
    pub(super) fn on_their_way(&self) -> usize {
        self.on_their_way + self.acks.iter().map(|ack| ack.codes.len()).sum::<usize>()
    }

    /// Whether the current messages that come next were asked for by the client.
    pub(super) fn is_asked(&self) -> bool {
        self.asking != Some(Asking::News)
    }

    /// Adds or replaces; tells whether the filter is new.
    fn add(&mut self, subscription: Subscription) -> bool {
        if let Some(held) = self.list.iter_mut().find(|held| held.filter == subscription.filter) {
            *held = subscription;
            return false;
        }
        self.list.push(subscription);
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
        let (mut of_receipts, mut is_change, mut then) = (false, false, Vec::new());
        for (n, asked) in subscribe.filters.into_iter().enumerate() {
            // No client has a use for more filters than it may hold, and each is work.
            let is_too_many = n >= self.config.subscriptions_max;
            let may = if is_too_many { Err(too_many()) } else { self.may_subscribe(&asked.filter) };
            if let Err(code) = may {
                codes.push(if self.version == Version::V5 { code } else { 0x80 });
                continue;
            }
            // What the server says comes at QoS 1 at most: its topics bring each message again, or once.
            let granted = if asked.filter.starts_with("mp/") { asked.qos.min(1) } else { asked.qos };
            codes.push(granted);
            let subscription = Subscription {
                filter: asked.filter,
                qos: granted,
                no_local: asked.no_local,
                as_published: asked.as_published,
                tag: subscribe.tag,
            };
            let filter = subscription.filter.clone();
            // Messages to one member do not go through the hub.
            if !filter.starts_with(&format!("mp/{}/d/", self.who.pool)) {
                subscribe_once(&mut then, &filter, Options::of(&subscription), asked.replay);
            }
            let is_new = self.subscriptions.add(subscription);
            is_change = true;
            let wanted = match asked.replay {
                Replay::Always => true,
                Replay::IfNew => is_new,
                Replay::Never => false,
            };
            if wanted {
                self.subscriptions.wanted.extend(states_of(&self.who.pool, &filter));
            }
            of_receipts |= topic::matches(&filter, self.receipts.topic());
        }
        self.follow_receipts();
        let ack = Ack { first: SUBACK, id: subscribe.id, codes, of_receipts, change: 0, then };
        self.acknowledge_when_so(ack, is_change);
    }

    pub(super) fn on_unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let (mut codes, mut is_change) = (Vec::new(), false);
        for filter in &unsubscribe.filters {
            let removed = self.subscriptions.remove(filter);
            if removed {
                // It must not follow with its acknowledgement, nor behind this one, or nothing would ever end it.
                let stays = |effect: &Effect| !matches!(effect, Effect::Subscribe { filter: held, .. } if held == filter);
                self.subscriptions.acks.iter_mut().for_each(|ack| ack.then.retain(stays));
                self.effects.retain(stays);
                self.effects.push_back(Effect::Unsubscribe(filter.clone()));
            }
            is_change |= removed;
            codes.push(if removed { reason::SUCCESS } else { reason::NO_SUBSCRIPTION_EXISTED });
        }
        if self.version == Version::V4 {
            codes.clear();
        }
        self.follow_receipts();
        let (then, of_receipts) = (Vec::new(), false);
        let ack = Ack { first: UNSUBACK, id: unsubscribe.id, codes, of_receipts, change: 0, then };
        self.acknowledge_when_so(ack, is_change);
    }

    fn acknowledge_when_so(&mut self, mut ack: Ack, is_change: bool) {
        if is_change && self.is_kept() {
            self.subscriptions.changes += 1;
            ack.change = self.subscriptions.changes;
        }
        self.subscriptions.acks.push(ack);
        self.keep();
        self.settle_subacks();
    }

    /// Sends the acknowledgements of what is so by now.
    pub(super) fn settle_subacks(&mut self) {
        let (is_starting, kept) = (self.receipts.is_starting(), self.subscriptions.kept);
        let acks = std::mem::take(&mut self.subscriptions.acks);
        for ack in acks {
            if (ack.of_receipts && is_starting) || ack.change > kept {
                self.subscriptions.acks.push(ack);
            } else if self.is_too_long(ack.codes.len() + 8) {
                self.fail(Bad { code: reason::PACKET_TOO_LARGE, what: "the answer is too large for you" });
            } else if ack.then.is_empty() {
                self.suback(ack.first, ack.id, &ack.codes);
            } else if self.end.is_none() {
                let filters = ack.codes.len();
                self.subscriptions.on_their_way += filters;
                self.effects.extend(ack.then);
                self.effects.push_back(Effect::Subscribed(Suback { id: ack.id, codes: ack.codes, filters }));
            }
        }
        self.ask_for_states();
    }

    /// The hub knows what that acknowledges.
    pub(crate) fn subscribed(&mut self, ack: Suback) {
        self.subscriptions.on_their_way -= ack.filters;
        self.suback(SUBACK, ack.id, &ack.codes);
    }

    fn suback(&mut self, first: u8, id: u16, codes: &[u8]) {
        if self.end.is_none() {
            self.out.suback(self.version, first, id, codes);
        }
    }

    /// Has the backend keep what changed. One question at a time.
    fn keep(&mut self) {
        let held = &mut self.subscriptions;
        if held.keeping.is_none() && held.changes > held.kept {
            held.keeping = Some(held.changes);
            let list = held.list.clone();
            self.effects.push_back(Effect::Ask(Question::Keep(list)));
        }
    }

    /// The backend keeps the subscriptions, or could not.
    pub(crate) fn kept(&mut self, result: Result<(), Refusal>) {
        match (result, self.subscriptions.keeping.take()) {
            (Ok(()), Some(kept)) => {
                self.subscriptions.kept = kept;
                self.settle_subacks();
                self.keep();
            }
            (Ok(()), None) => {}
            (Err(refusal), _) => self.refuse_for_now(&refusal),
        }
    }

    /// The client has come back: it gets what is new to it without asking.
    pub(super) fn resume(&mut self) {
        let pool = &self.who.pool;
        let news: Vec<String> =
            self.subscriptions.list.iter().flat_map(|held| states_of(pool, &held.filter)).collect();
        self.subscriptions.news.extend(news);
        self.ask_for_states();
        self.follow_receipts();
        // As one that has a connection: after a restart, its time runs from then on.
        if self.is_kept() {
            self.subscriptions.changes += 1;
            self.keep();
        }
    }

    fn ask_for_states(&mut self) {
        let held = &mut self.subscriptions;
        // Behind the subscription to its changes, or one between the two would be missed.
        if held.asking.is_some() || held.acks.iter().any(|ack| !ack.then.is_empty()) {
            return;
        }
        let (asking, topics) = if held.news.is_empty() {
            (Asking::Current, std::mem::take(&mut held.wanted))
        } else {
            (Asking::News, std::mem::take(&mut held.news))
        };
        if !topics.is_empty() {
            held.asking = Some(asking);
            self.effects.push_back(Effect::Ask(Question::States(topics.into_iter().collect())));
        }
    }

    pub(super) fn on_states(&mut self) {
        self.subscriptions.asking = None;
        self.ask_for_states();
    }

    fn follow_receipts(&mut self) {
        let wanted = self.subscriptions.of(self.receipts.topic()).is_some();
        if self.receipts.follow(wanted) {
            self.effects.push_back(Effect::Ask(Question::Cursor));
        }
    }

    fn may_subscribe(&self, filter: &str) -> Result<(), u8> {
        let is_well_formed = if filter.starts_with("$share/") {
            app_topics::shared(filter).is_some()
        } else {
            topic::is_filter(filter)
        };
        if !is_well_formed {
            return Err(reason::FILTER_INVALID);
        }
        if !may(&self.who, Action::Subscribe(filter, &self.config.app_topics)) {
            return Err(reason::NOT_AUTHORIZED);
        }
        // Of the server's own topics, too: each level is a node, and a step of a match.
        if !app_topics::is_within_limits(filter) {
            return Err(over("length", reason::FILTER_INVALID));
        }
        let held = &self.subscriptions.list;
        if held.len() >= self.config.subscriptions_max && held.iter().all(|held| held.filter != filter) {
            return Err(too_many());
        }
        Ok(())
    }
}

/// Adds a subscription to what the hub is told. Of one filter that a packet has several times the last one counts, and what
/// any of them wants of the retained messages comes once: each look at those is work.
fn subscribe_once(then: &mut Vec<Effect>, filter: &str, options: Options, replay: Replay) {
    for effect in then.iter_mut() {
        if let Effect::Subscribe { filter: held, options: last, replay: most } = effect
            && held == filter
        {
            (*last, *most) = (options, replay.max(*most));
            return;
        }
    }
    then.push(Effect::Subscribe { filter: filter.to_owned(), options, replay });
}

fn too_many() -> u8 {
    over("number", reason::QUOTA)
}

/// Counts a filter that is over a limit, and answers the code for it.
fn over(limit: &'static str, code: u8) -> u8 {
    metrics::counter!("millpond_gate_subscriptions_refused_total", "limit" => limit).increment(1);
    code
}

/// The state topics that `filter` matches.
fn states_of<'a>(pool: &PoolName, filter: &'a str) -> impl Iterator<Item = String> + use<'a> {
    [topic::card(pool), topic::result(pool), topic::result_data(pool), topic::offer(pool)]
        .into_iter()
        .filter(move |state| topic::matches(filter, state))
}
