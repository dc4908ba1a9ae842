//! A shell without I/O, so that tests read as sentences: `pool("quorum = 2").at("10:00").upload("a", "09:59")…`.
//!
//! It keeps rows as the real one does. After every event it restores a second pool from them and compares, checks that
//! `next_due` is exact, and that an error changed nothing but what time did.

use std::fmt::Write;

use millpond::rounds::{
    Event, Fact, Group, MemberId, Policy, Pool, Reply, RoundNo, RoundState, Snapshot, Target, Upload,
};
use millpond_protocol::{Refusal, Timestamp};

use crate::rows::{Rows, UploadRow};

/// A pool under test. Members are called by one letter each.
pub(crate) struct Shell {
    pub(crate) now: Timestamp,
    pub(crate) pool: Pool,
    pub(crate) rows: Rows,
    /// Of the last event.
    pub(crate) facts: Vec<Fact>,
    pub(crate) reply: Result<Reply, Refusal>,
    /// Leaves out the checks after each event, which take long for a thousand batches.
    pub(crate) unchecked: bool,
}

/// A pool with that policy, written as in a configuration file, and the publishers a, b and c.
pub(crate) fn pool(policy: &str) -> Shell {
    #[derive(serde::Deserialize)]
    struct File {
        policy: Policy,
    }
    let file: File = toml::from_str(&format!("policy = {{ {policy} }}")).unwrap();
    assert_eq!(file.policy.problems(), Vec::<String>::new());
    Shell::new(file.policy).publishers("abc")
}

/// `10:00`, `10:00:30` or `+1d 10:00` of the days of the tests.
pub(crate) fn time(text: &str) -> Timestamp {
    let (days, clock) = match text.strip_prefix('+') {
        Some(rest) => {
            rest.split_once("d ").map(|(days, clock)| (days.parse::<u32>().unwrap(), clock)).unwrap()
        }
        None => (0, text),
    };
    let clock = if clock.len() == 5 { format!("{clock}:00") } else { clock.to_owned() };
    format!("2026-06-{:02}T{clock}Z", 1 + days).parse().unwrap()
}

pub(crate) fn member(name: &str) -> MemberId {
    MemberId::from(name.as_bytes()[0])
}

impl Shell {
    pub(crate) fn new(policy: Policy) -> Self {
        let (pool, facts) =
            Pool::restore(Snapshot { policy: policy.clone(), ..Snapshot::default() }, time("00:00"));
        assert_eq!(facts, []);
        let rows = Rows { policy, ..Rows::default() };
        Self { now: time("00:00"), pool, rows, facts: Vec::new(), reply: Ok(Reply::Done), unchecked: false }
    }

    pub(crate) fn publishers(mut self, names: &str) -> Self {
        let members: Vec<MemberId> = self.rows.publishers.keys().copied().collect();
        for gone in members {
            self.event(Event::MemberRemoved { member: gone });
        }
        for name in names.split("").filter(|name| !name.is_empty()) {
            self.event(Event::PublisherAdded { member: member(name) });
        }
        self
    }

    /// From now on it is this time; nothing is told the pool yet.
    pub(crate) fn at(&mut self, text: &str) -> &mut Self {
        self.now = time(text);
        self
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, text: &str) -> &mut Self {
        self.at(text).event(Event::Tick)
    }

    /// An upload with that event time.
    pub(crate) fn upload(&mut self, who: &str, event_time: &str) -> &mut Self {
        let upload = self.file(who, Some(time(event_time)), None);
        self.store(&format!("u{}", self.rows.uploads.len()), upload)
    }

    /// An upload with the time of receipt.
    pub(crate) fn upload_now(&mut self, who: &str) -> &mut Self {
        let upload = self.file(who, None, None);
        self.store(&format!("u{}", self.rows.uploads.len()), upload)
    }

    /// An upload with that label.
    pub(crate) fn label(&mut self, who: &str, label: &str) -> &mut Self {
        let upload = self.file(who, None, Some(label));
        self.store(&format!("u{}", self.rows.uploads.len()), upload)
    }

    pub(crate) fn file(&self, who: &str, event_time: Option<Timestamp>, label: Option<&str>) -> Upload {
        let of_label =
            |group: &Group| matches!(group, Group::Label { label: it, .. } if Some(it.as_str()) == label);
        let parts = self.rows.batches.values().filter(|batch| of_label(&batch.group));
        Upload {
            member: member(who),
            event_time,
            received: None,
            label: label.map(|text| text.parse().unwrap()),
            parts: parts.count() as u32,
            size: 10,
        }
    }

    /// Feeds an upload unless its key is there already, and writes its row.
    pub(crate) fn store(&mut self, id: &str, upload: Upload) -> &mut Self {
        let key = (upload.member, id.to_owned());
        if !self.rows.uploads.contains_key(&key) {
            self.event_with_row(Event::Upload(upload.clone()), Some((key, upload)));
        }
        self
    }

    pub(crate) fn complete(&mut self, who: &str, through: &str) -> &mut Self {
        self.event(Event::CompleteThrough { member: member(who), through: time(through) })
    }

    pub(crate) fn complete_label(&mut self, who: &str, label: &str) -> &mut Self {
        self.event(Event::CompleteLabel { member: member(who), label: label.parse().unwrap() })
    }

    pub(crate) fn trigger(&mut self, target: Target) -> &mut Self {
        self.event(Event::Trigger { target, take: None })
    }

    pub(crate) fn trigger_and_take(&mut self, who: &str) -> &mut Self {
        self.event(Event::Trigger { target: Target::Oldest, take: Some(member(who)) })
    }

    pub(crate) fn ready(&mut self, round: RoundNo) -> &mut Self {
        self.event(Event::Ready { round })
    }

    pub(crate) fn claim(&mut self, who: &str) -> &mut Self {
        self.event(Event::Claim { member: member(who), round: None })
    }

    pub(crate) fn claim_round(&mut self, who: &str, round: RoundNo) -> &mut Self {
        self.event(Event::Claim { member: member(who), round: Some(round) })
    }

    pub(crate) fn beat(&mut self, who: &str, round: RoundNo, attempt: u32) -> &mut Self {
        self.event(Event::Beat { member: member(who), round, attempt })
    }

    pub(crate) fn result(&mut self, who: &str, round: RoundNo, attempt: u32) -> &mut Self {
        self.event(Event::Result { member: member(who), round, attempt })
    }

    pub(crate) fn fail(&mut self, who: &str, round: RoundNo, attempt: u32, retryable: bool) -> &mut Self {
        self.event(Event::Fail { member: member(who), round, attempt, retryable })
    }

    pub(crate) fn retry(&mut self, round: RoundNo) -> &mut Self {
        let round = self.rows.rounds[&round].clone();
        self.event(Event::Retry { round })
    }

    pub(crate) fn remove(&mut self, who: &str) -> &mut Self {
        self.event(Event::MemberRemoved { member: member(who) })
    }

    /// One batch is sealed, and its round is on offer: of one upload by a.
    pub(crate) fn offered_round(&mut self) -> &mut Self {
        self.upload_now("a").trigger(Target::Open);
        let round = self.rows.manifests.len() as RoundNo;
        self.ready(round)
    }

    /// The process ends and starts again from its rows.
    pub(crate) fn restart(&mut self) -> &mut Self {
        let (pool, facts) = Pool::restore(self.rows.snapshot(), self.now);
        self.pool = pool;
        self.take(facts);
        self
    }

    pub(crate) fn event(&mut self, event: Event) -> &mut Self {
        self.event_with_row(event, None)
    }

    fn event_with_row(&mut self, event: Event, row: Option<((MemberId, String), Upload)>) -> &mut Self {
        let mut unmoved = self.pool.clone();
        let mut facts = Vec::new();
        self.reply = self.pool.apply(self.now, event.clone(), &mut facts);
        if self.reply.is_err() {
            let mut by_time = Vec::new();
            unmoved.apply(self.now, Event::Tick, &mut by_time).unwrap();
            assert_eq!((&facts, &self.pool), (&by_time, &unmoved), "a refused event changes nothing");
        } else {
            match event {
                Event::PublisherAdded { member } if !self.rows.publishers.contains_key(&member) => {
                    self.rows.publishers.insert(member, None);
                }
                // What it said is void, also if the same member joins again.
                Event::MemberRemoved { member } => {
                    self.rows.completed_labels.retain(|(_, it)| *it != member);
                    self.rows.publishers.remove(&member);
                }
                Event::Policy(policy) => self.rows.policy = *policy,
                _ => {}
            }
        }
        let seals_itself =
            |batch| move |fact: &Fact| matches!(fact, Fact::BatchOpened(opened) if opened.batch == batch);
        // The row of the upload is written with its batch: after what time sealed, before what the upload itself did.
        let placed = match (&self.reply, row) {
            (Ok(Reply::Placed { batch, event_time, late, .. }), Some((key, upload))) => {
                let row =
                    UploadRow { batch: *batch, event_time: *event_time, size: upload.size, late: *late };
                if !facts.iter().any(seals_itself(*batch)) {
                    assert!(self.rows.is_open(*batch), "an upload joins an open batch");
                }
                Some((key, row))
            }
            _ => None,
        };
        if let Some((key, row)) = placed {
            self.rows.uploads.insert(key, row);
        }
        self.take(facts);
        if !self.unchecked {
            self.check();
        }
        self
    }

    fn take(&mut self, facts: Vec<Fact>) {
        for fact in &facts {
            self.rows.record(fact);
        }
        self.facts = facts;
    }

    /// What holds after every event.
    fn check(&self) {
        self.check_restored();
        let Some(due) = self.pool.next_due() else { return };
        assert!(due > self.now, "what is due is done");
        let mut facts = Vec::new();
        let mut early = self.pool.clone();
        early.apply(Timestamp::clamped(due.as_millis() - 1), Event::Tick, &mut facts).unwrap();
        assert_eq!(facts, [], "nothing changes before next_due");
        self.pool.clone().apply(due, Event::Tick, &mut facts).unwrap();
        assert_ne!(facts, [], "something changes at next_due");
    }

    /// A pool restored from the rows is the live one, save for the time that a start gives to leases and packing.
    fn check_restored(&self) {
        let (restored, facts) = Pool::restore(self.rows.snapshot(), self.now);
        let untimed = |pool: &Pool| -> Vec<_> {
            let kind = |state: &RoundState| std::mem::discriminant(state);
            let rounds = pool.live_rounds();
            rounds.map(|it| (it.round, it.ready, kind(&it.state), it.attempt, it.spent, it.holder)).collect()
        };
        assert_eq!(untimed(&restored), untimed(&self.pool));
        assert_eq!(Vec::from_iter(restored.open_batches()), Vec::from_iter(self.pool.open_batches()));
        assert_eq!(restored.pointer(), self.pool.pointer());
        if facts.is_empty() {
            assert_eq!(restored, self.pool);
        }
    }

    /// The reply to the last event, in words.
    #[track_caller]
    pub(crate) fn says(&mut self, expected: &str) -> &mut Self {
        assert_eq!(self.reply_words(), expected);
        self
    }

    /// The facts of the last event, in words; those of `complete` left out.
    #[track_caller]
    pub(crate) fn does(&mut self, expected: &[&str]) -> &mut Self {
        let words: Vec<String> = self.facts.iter().filter_map(fact_words).collect();
        assert_eq!(words, expected);
        self
    }

    fn reply_words(&self) -> String {
        match &self.reply {
            Err(refusal) => refusal.code.to_string(),
            Ok(Reply::Placed { batch, late, clamped, .. }) => {
                let mut words = format!("in {batch}");
                for (flag, word) in [(late, ", late"), (clamped, ", clamped")] {
                    words.push_str(if *flag { word } else { "" });
                }
                words
            }
            Ok(Reply::Rejected { rejection, .. }) => format!("rejected: {}", rejection.rule),
            Ok(Reply::Triggered { round, batch, lease: None }) => format!("round {round} of batch {batch}"),
            Ok(Reply::Triggered { round, batch, lease: Some(attempt) }) => {
                format!("round {round} of batch {batch}, attempt {attempt}")
            }
            Ok(Reply::Claimed { lease: None }) => "no lease".to_owned(),
            Ok(Reply::Claimed { lease: Some((round, attempt)) }) => {
                format!("round {round}, attempt {attempt}")
            }
            Ok(Reply::Committed { version } | Reply::RolledBack { version }) => format!("version {version}"),
            Ok(Reply::Done) => "done".to_owned(),
        }
    }
}

/// A word of the wire.
fn word<T: serde::Serialize>(value: T) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}

fn fact_words(fact: &Fact) -> Option<String> {
    Some(match fact {
        Fact::BatchOpened(batch) => match &batch.group {
            Group::Window { from, to } => {
                format!(
                    "batch {} opens for {}–{}",
                    batch.batch,
                    &from.to_string()[11..16],
                    &to.to_string()[11..16]
                )
            }
            Group::Label { label, part } => format!("batch {} opens for {label} part {part}", batch.batch),
            Group::Count => format!("batch {} opens", batch.batch),
        },
        Fact::BatchSealed { batch, cause, runs } => {
            let skipped = if *runs { "" } else { ", skipped" };
            format!("batch {} of {} sealed by {}{skipped}", batch.batch, batch.count, word(cause))
        }
        Fact::BatchCarried { batch, into } => format!("batch {} carried into {}", batch.batch, into.batch),
        Fact::WindowsAged { through } => format!("windows to {} stay closed", &through.to_string()[11..16]),
        Fact::CompletedThrough { .. } | Fact::CompletedLabel { .. } => return None,
        Fact::Round { round, step } => {
            let mut words = format!("round {} {}", round.round, word(step));
            match &round.state {
                RoundState::Leased(lease) => match lease.until {
                    Some(until) => write!(words, " until {}", &until.to_string()[11..19]).unwrap(),
                    None => words.push_str(" without term"),
                },
                RoundState::Failed { cause, .. } => write!(words, ": {}", word(cause)).unwrap(),
                RoundState::Committed { version } => write!(words, " as {version}").unwrap(),
                RoundState::Pausing { until } => {
                    write!(words, ", pauses until {}", &until.to_string()[11..19]).unwrap();
                }
                RoundState::Sealed { .. } | RoundState::Offered { .. } => {}
            }
            words
        }
        Fact::Pointer { version } => format!("pointer {version}"),
    })
}
