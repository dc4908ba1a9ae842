//! What holds whatever happens: the oracle for completion, and the invariants of batches, rounds and time.

use std::collections::BTreeMap;
use std::time::Duration;

use millpond::rounds::policy::{BelowMinimum, Grouping, Late};
use millpond::rounds::{Cause, Event, Fact, Group, Policy, Pool, Reply, Target, Upload};
use millpond_protocol::Timestamp;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::rows::Key;
use crate::shell::{Shell, time};

const MINUTE: Duration = Duration::from_secs(60);

/// What one publisher sends, over and over: uploads of some minutes of the day, then that it has no more up to an hour.
#[derive(Debug, Clone)]
struct Stage {
    minutes: Vec<u64>,
    hours: u64,
}

/// The stages of a publisher: what it sends lies after what it called complete; at last it completes the day.
fn script() -> impl Strategy<Value = Vec<Stage>> {
    let stage = (prop::collection::vec(0..240_u64, 0..4), 0..3_u64);
    prop::collection::vec(stage, 1..4).prop_map(|stages| {
        let mut through = 10;
        let mut script: Vec<Stage> = Vec::new();
        for (minutes, hours) in stages {
            let minutes = minutes.iter().map(|minute| through * 60 + minute).collect();
            through += hours;
            script.push(Stage { minutes, hours: through });
        }
        script.push(Stage { minutes: Vec::new(), hours: 23 });
        script
    })
}

/// One order of arrival: choices among what may come next, with repeats and restarts in between.
fn order() -> impl Strategy<Value = Vec<(Index, Index, u8)>> {
    prop::collection::vec((any::<Index>(), any::<Index>(), 0..8_u8), 64)
}

/// Plays the scripts in that order; the manifests that were sealed by `complete`.
fn play(policy: &Policy, scripts: &[Vec<Stage>], order: &[(Index, Index, u8)]) -> Manifests {
    let names = &"abcd"[..scripts.len()];
    let mut shell = Shell::new(policy.clone()).publishers(names);
    shell.now = time("+1d 00:00");
    let mut left: Vec<Vec<Stage>> = scripts.to_vec();
    let mut sent: Vec<(String, Event)> = Vec::new();
    let mut order = order.iter().cycle();
    while left.iter().any(|stages| !stages.is_empty()) {
        let (who, what, whim) = order.next().unwrap();
        let speakers: Vec<usize> = (0..left.len()).filter(|at| !left[*at].is_empty()).collect();
        let speaker = speakers[who.index(speakers.len())];
        let name = &names[speaker..=speaker];
        let stage = &mut left[speaker][0];
        let message = if stage.minutes.is_empty() {
            let through = time("00:00").after(MINUTE * 60 * stage.hours as u32);
            left[speaker].remove(0);
            (String::new(), Event::CompleteThrough { member: crate::shell::member(name), through })
        } else {
            let minute = stage.minutes.swap_remove(what.index(stage.minutes.len()));
            let event_time = time("00:00").after(MINUTE * minute as u32);
            (format!("minute-{minute}"), Event::Upload(shell.file(name, Some(event_time), None)))
        };
        deliver(&mut shell, &message);
        sent.push(message);
        match whim {
            0 => {
                shell.restart();
            }
            1 | 2 => deliver(&mut shell, &sent[what.index(sent.len())]),
            _ => {}
        }
    }
    let complete = shell.rows.manifests.values().filter(|manifest| manifest.cause == Cause::Complete);
    complete.map(|manifest| (format!("{:?}", manifest.group), manifest.entries.clone())).collect()
}

type Manifests = BTreeMap<String, Vec<(Key, Timestamp)>>;

fn deliver(shell: &mut Shell, (id, event): &(String, Event)) {
    match event {
        Event::Upload(upload) => shell.store(id, upload.clone()),
        other => shell.event(other.clone()),
    };
}

/// As many cases as that, or as PROPTEST_CASES says.
fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases, ..config },
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// Permuting arrivals, repeating any message and restarting at any point changes no entry of a manifest that was
    /// sealed by `complete`, carries included.
    #[test]
    fn what_is_sealed_by_complete_does_not_depend_on_the_order_of_arrival(
        scripts in prop::collection::vec(script(), 1..4),
        (one, other) in (order(), order()),
        (min_uploads, min_members) in (0..4_u64, 0..3_u64),
        below_minimum in prop_oneof![Just(BelowMinimum::Carry), Just(BelowMinimum::Run), Just(BelowMinimum::Skip)],
    ) {
        let policy = Policy { min_uploads, min_members, below_minimum, ..Policy::default() };
        prop_assert_eq!(play(&policy, &scripts, &one), play(&policy, &scripts, &other));
    }
}

/// Something that may happen to a pool.
#[derive(Debug, Clone)]
enum Step {
    Wait(u32),
    Upload { who: u8, minutes_ago: u32, label: bool },
    Complete { who: u8, minutes_ago: u32 },
    CompleteLabel { who: u8, label: bool },
    Trigger { target: u8, take: bool },
    Claim { who: u8, round: Option<u64> },
    Holder { round: Index, act: u8, foreign: bool },
    Ready(Index),
    Retry(Index),
    Rollback(u64),
    Join(u8),
    Leave(u8),
    Policy(Box<Policy>),
    Restart,
}

fn policy() -> impl Strategy<Value = Policy> {
    let groupings = prop_oneof![Just(Grouping::Window), Just(Grouping::Label), Just(Grouping::Count)];
    let below = prop_oneof![Just(BelowMinimum::Carry), Just(BelowMinimum::Run), Just(BelowMinimum::Skip)];
    let sealing =
        (0..3_u64, prop_oneof![Just(0.0), Just(0.5)], prop_oneof![Just(0), Just(600)], 600..7_200_u64);
    let minimum = (0..3_u64, 0..3_u64, below, any::<bool>());
    (groupings, 1..3_u64, 3..5_u64, sealing, minimum, 1..3_u32).prop_map(
        |(grouping, hours, count, (quorum, quorum_share, grace_s, deadline_s), minimum, parallel_rounds)| {
            let (min_uploads, min_members, below_minimum, reject) = minimum;
            Policy {
                grouping,
                window_s: hours * 3_600,
                count,
                late: if reject { Late::Reject } else { Late::Next },
                quorum,
                quorum_share,
                grace_s: grace_s.min(deadline_s - 1),
                deadline_s,
                min_uploads,
                min_members,
                below_minimum,
                lease_term_s: 300,
                round_max_s: 1_200,
                parallel_rounds,
                ..Policy::default()
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..4_u8;
    prop_oneof![
        3 => (0..2_400_u32).prop_map(Step::Wait),
        1 => (0..1_000_000_u32).prop_map(Step::Wait),
        8 => (who.clone(), 0..200_u32, any::<bool>())
            .prop_map(|(who, minutes_ago, label)| Step::Upload { who, minutes_ago, label }),
        4 => (who.clone(), 0..120_u32).prop_map(|(who, minutes_ago)| Step::Complete { who, minutes_ago }),
        3 => (who.clone(), any::<bool>()).prop_map(|(who, label)| Step::CompleteLabel { who, label }),
        2 => (0..4_u8, any::<bool>()).prop_map(|(target, take)| Step::Trigger { target, take }),
        5 => (who.clone(), prop::option::weighted(0.3, 0..6_u64)).prop_map(|(who, round)| Step::Claim { who, round }),
        8 => (any::<Index>(), 0..6_u8, prop::bool::weighted(0.2))
            .prop_map(|(round, act, foreign)| Step::Holder { round, act, foreign }),
        6 => any::<Index>().prop_map(Step::Ready),
        1 => any::<Index>().prop_map(Step::Retry),
        1 => (0..4_u64).prop_map(Step::Rollback),
        1 => who.clone().prop_map(Step::Join),
        1 => who.prop_map(Step::Leave),
        1 => policy().prop_map(|policy| Step::Policy(Box::new(policy))),
        1 => Just(Step::Restart),
    ]
}

fn label(second: bool) -> millpond_protocol::Label {
    (if second { "y" } else { "x" }).parse().unwrap()
}

fn perform(shell: &mut Shell, number: usize, step: &Step) {
    let who = |who: &u8| crate::shell::member(&"abcd"[*who as usize..=*who as usize]);
    let now = shell.now;
    let ago = |minutes: &u32| now.before(MINUTE * *minutes);
    let round = |index: &Index| -> Option<millpond::rounds::Round> {
        let rounds = Vec::from_iter(shell.rows.rounds.values());
        (!rounds.is_empty()).then(|| rounds[index.index(rounds.len())].clone())
    };
    let event = match step {
        Step::Wait(seconds) => {
            shell.now = now.after(Duration::from_secs((*seconds).into()));
            Event::Tick
        }
        Step::Upload { who: member, minutes_ago, label: second } => {
            let label = label(*second);
            let upload =
                Upload { event_time: Some(ago(minutes_ago)), ..shell.file("a", None, Some(label.as_str())) };
            shell.event(Event::Tick);
            let next = (shell.rows.policy.grouping == Grouping::Window).then(|| first_not_closed(shell));
            shell.store(&format!("u{number}"), Upload { member: who(member), ..upload });
            if let (Some(next), Ok(Reply::Placed { batch, late: true, .. })) = (next, &shell.reply) {
                assert_eq!(
                    shell.rows.batches[batch].group, next,
                    "late uploads join the first window not closed"
                );
            }
            return;
        }
        Step::Complete { who: member, minutes_ago } => {
            Event::CompleteThrough { member: who(member), through: ago(minutes_ago).after(MINUTE * 30) }
        }
        Step::CompleteLabel { who: member, label: second } => {
            Event::CompleteLabel { member: who(member), label: label(*second) }
        }
        Step::Trigger { target, take } => {
            let window = shell.pool.policy().window(now).0;
            let target = [Target::Window(window), Target::Label(label(false)), Target::Open, Target::Oldest]
                [*target as usize]
                .clone();
            Event::Trigger { target, take: take.then_some(who(&0)) }
        }
        Step::Claim { who: member, round } => Event::Claim { member: who(member), round: *round },
        Step::Holder { round: index, act, foreign } => {
            let Some(round) = round(index) else { return };
            let holder = round.holder.unwrap_or(who(&1)) + i64::from(*foreign);
            let (member, attempt) = (holder, round.attempt);
            let round = round.round;
            match act {
                0 | 1 => Event::Beat { member, round, attempt },
                2 | 3 => Event::Fail { member, round, attempt, retryable: *act == 2 },
                _ => Event::Result { member, round, attempt },
            }
        }
        Step::Ready(index) => {
            let Some(round) = round(index) else { return };
            Event::Ready { round: round.round }
        }
        Step::Retry(index) => {
            let Some(round) = round(index) else { return };
            Event::Retry { round }
        }
        Step::Rollback(of) => Event::Rollback { of: *of },
        Step::Join(member) => Event::PublisherAdded { member: who(member) },
        Step::Leave(member) => Event::MemberRemoved { member: who(member) },
        Step::Policy(policy) => Event::Policy(policy.clone()),
        Step::Restart => {
            shell.restart();
            return;
        }
    };
    let before = shell.rows.rounds.clone();
    shell.event(event.clone());
    if let (Event::Result { member, round, attempt }, Ok(Reply::Committed { .. })) = (&event, &shell.reply) {
        let round = &before[round];
        assert_eq!((round.holder, round.attempt), (Some(*member), *attempt), "only the holder commits");
    }
}

/// The first window from that of now on that is not closed, by looking at one after the other.
fn first_not_closed(shell: &Shell) -> Group {
    let (rows, policy) = (&shell.rows, &shell.rows.policy);
    let aged = rows.aged_through.max(policy.aged(shell.now));
    let (mut from, mut to) = policy.window(shell.now);
    loop {
        let group = Group::Window { from, to };
        let is_open = match rows.batches.values().find(|batch| batch.group == group) {
            Some(batch) => rows.is_open(batch.batch),
            None => Some(to) > aged,
        };
        if is_open {
            return group;
        }
        (from, to) = policy.window(to);
    }
}

/// Facts about batches that the passing of time brings until `end`; looked at as often as something is due, or once.
fn batches_by(mut pool: Pool, end: Timestamp, often: bool) -> Vec<Fact> {
    let mut facts = Vec::new();
    while let Some(due) = pool.next_due().filter(|due| often && *due <= end) {
        pool.apply(due, Event::Tick, &mut facts).unwrap();
    }
    pool.apply(end, Event::Tick, &mut facts).unwrap();
    facts.retain(|fact| !matches!(fact, Fact::Round { .. }));
    facts
}

proptest! {
    #![proptest_config(cases(300))]

    /// The shell of these tests checks after every event that a restart would change nothing, that `next_due` is exact and
    /// that errors change nothing; and of every fact that it fits what was written before: sealed batches and committed
    /// rounds never change, numbers have no gaps, attempts only grow.
    #[test]
    fn whatever_happens_every_upload_is_in_exactly_one_batch_and_what_is_sealed_stays(
        first_policy in policy(),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut shell = Shell::new(first_policy).publishers("ab");
        shell.now = time("12:00");
        for (number, step) in steps.iter().enumerate() {
            perform(&mut shell, number, step);
        }
        let rows = &shell.rows;
        let mut listed: Vec<Key> = Vec::new();
        for manifest in rows.manifests.values() {
            listed.extend(manifest.entries.iter().map(|(key, _)| key.clone()));
        }
        for (key, row) in &rows.uploads {
            if rows.is_open(rows.home(row.batch)) {
                listed.push(key.clone());
            }
        }
        listed.sort();
        prop_assert_eq!(listed, Vec::from_iter(rows.uploads.keys().cloned()));

        let later = shell.now.after(Duration::from_secs(86_400));
        prop_assert_eq!(
            batches_by(shell.pool.clone(), later, true),
            batches_by(shell.pool.clone(), later, false)
        );
    }
}
