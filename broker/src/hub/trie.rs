//! Who subscribes to a topic: the subscriptions of one pool, by the levels of their filters.
//!
//! Pure. A node stands for the levels on the way to it; `here` are the filters that end there, `below` those that go on
//! with `/#`. A match visits, level by level, the child of that name and the child of `+`, so its cost is that of the topic's
//! levels and of what it finds, whatever the number of subscriptions.
//!
//! Subscribers of a filter stand in a list; of each there is one subscription a filter, and the last one counts. A share
//! group (`$share/{group}/{filter}`) takes turns, and passes over those who are away while somebody is there.

use std::collections::HashMap;

use crate::backend::Subscription;

/// What a subscriber is to the trie.
pub(crate) trait Subscriber: Clone {
    /// Names it.
    fn id(&self) -> u64;
    /// Whether it has a connection: others of its share group go first otherwise.
    fn is_online(&self) -> bool;
}

/// How a subscription wants its copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) qos: u8,
    /// Nothing that the same session published.
    pub(crate) no_local: bool,
    /// With the retain flag as it was published.
    pub(crate) as_published: bool,
    /// The subscription identifier.
    pub(crate) tag: Option<u32>,
}

impl Options {
    /// Those of a subscription.
    pub(crate) fn of(subscription: &Subscription) -> Self {
        let Subscription { qos, no_local, as_published, tag, .. } = *subscription;
        Self { qos, no_local, as_published, tag }
    }
}

/// The subscriptions of one pool.
#[derive(Debug)]
pub(crate) struct Trie<S> {
    root: Node<S>,
}

#[derive(Debug)]
struct Node<S> {
    children: HashMap<Box<str>, Node<S>>,
    any: Option<Box<Node<S>>>,
    here: Leaf<S>,
    below: Leaf<S>,
}

#[derive(Debug)]
struct Leaf<S> {
    plain: Vec<(S, Options)>,
    groups: Vec<Group<S>>,
}

#[derive(Debug)]
struct Group<S> {
    name: Box<str>,
    members: Vec<(S, Options)>,
    next: usize,
}

impl<S> Default for Trie<S> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<S> Default for Node<S> {
    fn default() -> Self {
        Self { children: HashMap::new(), any: None, here: Leaf::default(), below: Leaf::default() }
    }
}

impl<S> Default for Leaf<S> {
    fn default() -> Self {
        Self { plain: Vec::new(), groups: Vec::new() }
    }
}

impl<S> Leaf<S> {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_empty()
    }
}

/// Splits the last level off a filter if it is `#`.
fn levels(filter: &str) -> (Option<&str>, bool) {
    match filter.strip_suffix('#') {
        Some("") => (None, true),
        Some(front) => (Some(front.strip_suffix('/').unwrap_or(front)), true),
        None => (Some(filter), false),
    }
}

impl<S: Subscriber> Trie<S> {
    /// Adds a subscription, or replaces the one to the same filter (and group). Tells whether there was none.
    pub(crate) fn insert(
        &mut self,
        group: Option<&str>,
        filter: &str,
        subscriber: S,
        options: Options,
    ) -> bool {
        let (front, is_below) = levels(filter);
        let mut node = &mut self.root;
        for level in front.into_iter().flat_map(|front| front.split('/')) {
            node = if level == "+" {
                node.any.get_or_insert_default()
            } else {
                // Twice, for a borrow of the key costs nothing where the level is there already.
                if !node.children.contains_key(level) {
                    node.children.insert(level.into(), Node::default());
                }
                match node.children.get_mut(level) {
                    Some(child) => child,
                    None => return false,
                }
            };
        }
        let leaf = if is_below { &mut node.below } else { &mut node.here };
        let list = match group {
            None => &mut leaf.plain,
            Some(name) => {
                let at = leaf.groups.iter().position(|group| &*group.name == name).unwrap_or_else(|| {
                    leaf.groups.push(Group { name: name.into(), members: Vec::new(), next: 0 });
                    leaf.groups.len() - 1
                });
                &mut leaf.groups[at].members
            }
        };
        match list.iter_mut().find(|(held, _)| held.id() == subscriber.id()) {
            Some(held) => {
                held.1 = options;
                false
            }
            None => {
                list.push((subscriber, options));
                true
            }
        }
    }

    /// Removes a subscription.
    pub(crate) fn remove(&mut self, group: Option<&str>, filter: &str, subscriber: u64) {
        let (front, is_below) = levels(filter);
        let levels: Vec<&str> = front.into_iter().flat_map(|front| front.split('/')).collect();
        self.root.remove(&levels, is_below, group, subscriber);
    }

    /// Visits every subscription that `topic` matches; of a share group, the one whose turn it is.
    pub(crate) fn matches<'a>(&'a mut self, topic: &str, visit: &mut impl FnMut(&'a S, Options)) {
        // A wildcard at the start does not match `$…` (OASIS MQTT 5, 4.7.2).
        self.root.matches(Some(topic), topic.starts_with('$'), visit);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

impl<S: Subscriber> Node<S> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.here.is_empty() && self.below.is_empty()
    }

    fn remove(&mut self, levels: &[&str], is_below: bool, group: Option<&str>, subscriber: u64) {
        match levels.split_first() {
            None => (if is_below { &mut self.below } else { &mut self.here }).remove(group, subscriber),
            Some((&"+", rest)) => {
                if let Some(any) = &mut self.any {
                    any.remove(rest, is_below, group, subscriber);
                    if any.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some((level, rest)) => {
                if let Some(child) = self.children.get_mut(*level) {
                    child.remove(rest, is_below, group, subscriber);
                    if child.is_empty() {
                        self.children.remove(*level);
                    }
                }
            }
        }
    }

    /// `rest`: the levels that are left; `None` behind the last.
    fn matches<'a>(
        &'a mut self,
        rest: Option<&str>,
        is_hidden: bool,
        visit: &mut impl FnMut(&'a S, Options),
    ) {
        if !is_hidden {
            self.below.visit(visit);
        }
        let Some(rest) = rest else {
            self.here.visit(visit);
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if let Some(child) = self.children.get_mut(level) {
            child.matches(rest, false, visit);
        }
        if let (Some(any), false) = (&mut self.any, is_hidden) {
            any.matches(rest, false, visit);
        }
    }
}

impl<S: Subscriber> Leaf<S> {
    fn remove(&mut self, group: Option<&str>, subscriber: u64) {
        match group {
            None => self.plain.retain(|(held, _)| held.id() != subscriber),
            Some(name) => {
                for group in self.groups.iter_mut().filter(|group| &*group.name == name) {
                    group.members.retain(|(held, _)| held.id() != subscriber);
                }
                self.groups.retain(|group| !group.members.is_empty());
            }
        }
    }

    fn visit<'a>(&'a mut self, visit: &mut impl FnMut(&'a S, Options)) {
        for (subscriber, options) in &self.plain {
            visit(subscriber, *options);
        }
        for group in &mut self.groups {
            let (next, size) = (group.next, group.members.len());
            let mut turns = (0..size).map(|n| (next + n) % size);
            let first = turns.clone().next();
            if let Some(at) = turns.find(|at| group.members[*at].0.is_online()).or(first) {
                group.next = at + 1;
                let (subscriber, options) = &group.members[at];
                visit(subscriber, *options);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millpond_protocol::topic;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Id(u64, bool);

    impl Subscriber for Id {
        fn id(&self) -> u64 {
            self.0
        }

        fn is_online(&self) -> bool {
            self.1
        }
    }

    fn found(trie: &mut Trie<Id>, topic: &str) -> Vec<u64> {
        let mut found = Vec::new();
        trie.matches(topic, &mut |id, _| found.push(id.0));
        found
    }

    #[test]
    fn a_share_group_takes_turns_and_passes_over_who_is_away() {
        let mut trie = Trie::default();
        for id in [1, 2, 3] {
            trie.insert(Some("g"), "a/#", Id(id, id != 2), Options::default());
        }
        trie.insert(Some("h"), "a/#", Id(4, false), Options::default());
        trie.insert(None, "a/b", Id(5, true), Options::default());
        let turns: Vec<Vec<u64>> = (0..4).map(|_| found(&mut trie, "a/b")).collect();
        assert_eq!(turns, [[1, 4, 5], [3, 4, 5], [1, 4, 5], [3, 4, 5]]);
        trie.remove(Some("g"), "a/#", 1);
        trie.remove(Some("g"), "a/#", 3);
        assert_eq!(found(&mut trie, "a/b"), [2, 4, 5], "who is away gets it where nobody else does");
    }

    #[test]
    fn topics_that_begin_with_a_dollar_sign_are_matched_by_name_only() {
        let mut trie = Trie::default();
        for (id, filter) in [(1, "#"), (2, "+/x"), (3, "$a/x"), (4, "$a/#"), (5, "$a/+")] {
            trie.insert(None, filter, Id(id, true), Options::default());
        }
        let all: BTreeSet<u64> = found(&mut trie, "$a/x").into_iter().collect();
        assert_eq!(all, [3, 4, 5].into());
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just(""), Just("$c")]
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![3 => level(), 2 => Just("+")];
        (proptest::collection::vec(level, 0..4), any::<bool>()).prop_map(|(mut levels, below)| {
            if below || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_the_definition_of_matching_says_and_nothing_is_left_of_what_was_removed(
            subscriptions in proptest::collection::vec((0_u64..6, filter()), 0..30),
            removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
            topics in proptest::collection::vec(proptest::collection::vec(level(), 1..5), 1..20),
        ) {
            let mut trie = Trie::default();
            let mut model: BTreeSet<(u64, String)> = BTreeSet::new();
            for (id, filter) in subscriptions.iter().filter(|(_, filter)| topic::is_filter(filter)) {
                let is_new = trie.insert(None, filter, Id(*id, true), Options::default());
                prop_assert_eq!(is_new, model.insert((*id, filter.clone())));
            }
            for at in removed {
                let all: Vec<_> = model.iter().cloned().collect();
                if !all.is_empty() {
                    let (id, filter) = at.get(&all);
                    trie.remove(None, filter, *id);
                    model.remove(&(*id, filter.clone()));
                }
            }
            for levels in topics {
                let topic = levels.join("/");
                if topic.is_empty() {
                    continue;
                }
                let mut found = found(&mut trie, &topic);
                found.sort_unstable();
                let mut expected: Vec<u64> =
                    model.iter().filter(|(_, filter)| topic::matches(filter, &topic)).map(|(id, _)| *id).collect();
                expected.sort_unstable();
                prop_assert_eq!(found, expected, "{}", topic);
            }
            for (id, filter) in model {
                trie.remove(None, &filter, id);
            }
            prop_assert!(trie.is_empty());
        }
    }
}
