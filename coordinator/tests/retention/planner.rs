//! The plan against a model that knows the whole history of a pool and asks of each thing: who may still need it?

use std::time::Duration;

use millpond::retention::plan::{self, BatchRows, Outcome, PoolRows, ResultRows, RoundRows, SealedRows};
use millpond::rounds::Policy;
use millpond_protocol::Timestamp;
use proptest::prelude::*;
use proptest::sample::Index;

const DAY: u64 = 86_400;

/// One step of a pool's history; an index chooses among what the step can be done to.
#[derive(Debug, Clone)]
enum Step {
    Open,
    /// With or without a round.
    Seal(Index, bool),
    /// Packs and manifest.
    Write(Index),
    Commit(Index),
    Fail(Index),
    Retry(Index),
    /// `round.json`.
    Tell(Index),
    RollBack(Index),
    Policy(u64, u64),
    Remove,
    /// Retention runs.
    Run,
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<Index>;
    prop_oneof![
        3 => Just(Step::Open),
        3 => (which(), any::<bool>()).prop_map(|(which, runs)| Step::Seal(which, runs)),
        3 => which().prop_map(Step::Write),
        3 => which().prop_map(Step::Commit),
        2 => which().prop_map(Step::Fail),
        1 => which().prop_map(Step::Retry),
        2 => which().prop_map(Step::Tell),
        1 => which().prop_map(Step::RollBack),
        1 => (0..20_u64, 1..4_u64).prop_map(|(days, newest)| Step::Policy(days, newest)),
        1 => Just(Step::Remove),
        3 => Just(Step::Run),
    ]
}

/// A batch with its round, as the model sees it.
#[derive(Debug, Clone, Default)]
struct Batch {
    /// When it was sealed, and whether it runs.
    sealed: Option<(Timestamp, bool)>,
    written: bool,
    /// When its round ended, and with which version.
    ended: Option<(Timestamp, Option<u64>)>,
    told: bool,
    bytes_gone: bool,
    story_gone: bool,
}

#[derive(Debug, Clone)]
struct Version {
    object: i64,
    round: usize,
    committed: Timestamp,
    gone: bool,
}

/// All that ever happened.
struct Model {
    now: Timestamp,
    policy: Policy,
    removed: Option<Timestamp>,
    batches: Vec<Batch>,
    versions: Vec<Version>,
    /// Which version the pointer named from when on.
    pointers: Vec<(Timestamp, u64)>,
}

impl Model {
    /// Whether the bytes of a batch may still be needed: by the model's own words, not by the plan's.
    fn needs_bytes(&self, batch: &Batch) -> bool {
        let kept = |since: Timestamp| self.now < since.after(Duration::from_secs(self.policy.keep_uploads_s));
        let goes_on = match (batch.sealed, batch.ended) {
            (None, _) => true,
            (Some((_, runs)), ended) => (runs && ended.is_none()) || !batch.written,
        };
        let ended = match (batch.sealed, batch.ended) {
            (Some((sealed, false)), _) => Some(sealed),
            (_, Some((ended, _))) => Some(ended),
            _ => None,
        };
        match self.removed {
            None => goes_on || kept(ended.unwrap()),
            Some(removed) => kept(ended.unwrap_or(removed)),
        }
    }

    /// Whether anybody may want the bytes of this object: it is, or was within the time that is kept, where the pointer
    /// led; or it is among the newest; or it is new.
    fn needs_object(&self, object: i64) -> bool {
        let keeps = Duration::from_secs(self.policy.keep_results_s);
        let count = self.versions.len() as u64;
        (1_u64..).zip(&self.versions).filter(|(_, version)| version.object == object).any(
            |(number, version)| {
                let pointed = self.pointers.iter().enumerate().any(|(at, (_, named))| {
                    let until = self.pointers.get(at + 1).map(|(from, _)| *from).or(self.removed);
                    *named == number && until.is_none_or(|until| self.now < until.after(keeps))
                });
                let newest = self.removed.is_none() && number + self.policy.keep_results > count;
                pointed || newest || self.now < version.committed.after(keeps)
            },
        )
    }

    fn needs_story(&self, at: usize) -> bool {
        let batch = &self.batches[at];
        let Some((ended, _)) = batch.ended else { return true };
        let result = self.versions.iter().any(|version| version.round == at && !version.gone);
        let untold = !batch.told && self.removed.is_none();
        untold || result || self.now < ended.after(Duration::from_secs(self.policy.keep_rounds_s))
    }

    fn step(&mut self, step: &Step) {
        // After its end a pool has no history but retention's.
        if self.removed.is_some() && !matches!(step, Step::Run) {
            return;
        }
        let now = self.now;
        let pick = |which: &Index, of: Vec<usize>| (!of.is_empty()).then(|| of[which.index(of.len())]);
        let batches = |may: &dyn Fn(&Batch) -> bool| -> Vec<usize> {
            (0..self.batches.len()).filter(|at| may(&self.batches[*at])).collect()
        };
        let live = |batch: &Batch| batch.sealed.is_some_and(|(_, runs)| runs) && batch.ended.is_none();
        match step {
            Step::Open => self.batches.push(Batch::default()),
            Step::Seal(which, runs) => {
                if let Some(at) = pick(which, batches(&|batch| batch.sealed.is_none())) {
                    self.batches[at].sealed = Some((now, *runs));
                }
            }
            Step::Write(which) => {
                if let Some(at) = pick(which, batches(&|batch| batch.sealed.is_some() && !batch.written)) {
                    assert!(!self.batches[at].bytes_gone, "packing finds the bytes");
                    self.batches[at].written = true;
                }
            }
            Step::Commit(which) => {
                if let Some(at) = pick(which, batches(&|batch| live(batch) && batch.written)) {
                    assert!(!self.batches[at].bytes_gone, "the processor finds the bytes");
                    let version = self.versions.len() as u64 + 1;
                    let object = i64::try_from(version).unwrap();
                    self.versions.push(Version { object, round: at, committed: now, gone: false });
                    self.batches[at].ended = Some((now, Some(version)));
                    self.pointers.push((now, version));
                }
            }
            Step::Fail(which) => {
                if let Some(at) = pick(which, batches(&live)) {
                    self.batches[at].ended = Some((now, None));
                }
            }
            Step::Retry(which) => {
                let failed = |batch: &Batch| matches!(batch.ended, Some((_, None))) && !batch.bytes_gone;
                if let Some(at) = pick(which, batches(&failed)) {
                    self.batches[at] =
                        Batch { ended: None, told: false, story_gone: false, ..self.batches[at].clone() };
                }
            }
            Step::Tell(which) => {
                if let Some(at) = pick(which, batches(&|batch| batch.ended.is_some())) {
                    self.batches[at].told = true;
                }
            }
            Step::RollBack(which) => {
                let kept = (0..self.versions.len()).filter(|at| !self.versions[*at].gone).collect();
                if let Some(of) = pick(which, kept) {
                    let version = Version { committed: now, ..self.versions[of].clone() };
                    self.versions.push(version);
                    self.pointers.push((now, self.versions.len() as u64));
                }
            }
            Step::Policy(days, newest) => {
                self.policy.keep_uploads_s = days * DAY;
                self.policy.keep_rounds_s = days * DAY / 2;
                self.policy.keep_results = *newest;
            }
            Step::Remove => {
                if batches(&live).is_empty() {
                    self.removed = Some(now);
                }
            }
            Step::Run => self.run(),
        }
    }

    /// Asks the plan of everything that is there, compares it with what the model needs, and takes what is due.
    fn run(&mut self) {
        let now = self.now;
        let pool = PoolRows {
            name: "p".parse().unwrap(),
            policy: self.policy.clone(),
            removed: self.removed,
            pointer: self.pointers.last().map(|(_, version)| *version),
            versions: self.versions.len() as u64,
        };
        for at in 0..self.batches.len() {
            let batch = &self.batches[at];
            let verdict = plan::uploads(&pool, &batch_rows(at, batch), now);
            if !batch.bytes_gone {
                assert_eq!(verdict.is_due(), !self.needs_bytes(batch), "batch {at}: {verdict}");
                self.batches[at].bytes_gone = verdict.is_due();
            }
        }
        let kept: Vec<(usize, ResultRows)> = (0..self.versions.len())
            .filter(|at| !self.versions[*at].gone)
            .map(|at| (at, self.result_rows(at)))
            .collect();
        let rows: Vec<ResultRows> = kept.iter().map(|(_, row)| *row).collect();
        for ((at, row), verdict) in kept.iter().zip(plan::results(&pool, &rows, now)) {
            assert_eq!(verdict.is_due(), !self.needs_object(row.object), "version {}: {verdict}", at + 1);
            self.versions[*at].gone = verdict.is_due();
        }
        for at in 0..self.batches.len() {
            let batch = &self.batches[at];
            let Some((ended, version)) = batch.ended.filter(|_| !batch.story_gone) else { continue };
            let kept = (1..).zip(&self.versions).filter(|(_, version)| version.round == at && !version.gone);
            let row = RoundRows {
                round: at as u64 + 1,
                ended,
                committed: version.is_some(),
                told: batch.told,
                result: kept.map(|(number, _)| number).last(),
            };
            let verdict = plan::story(&pool, &row, now);
            assert_eq!(verdict.is_due(), !self.needs_story(at), "round {}: {verdict}", row.round);
            self.batches[at].story_gone = verdict.is_due();
        }
    }

    fn result_rows(&self, at: usize) -> ResultRows {
        let number = at as u64 + 1;
        let left = self
            .pointers
            .iter()
            .position(|(_, named)| *named == number)
            .and_then(|pointed| self.pointers.get(pointed + 1).map(|(from, _)| *from));
        let Version { object, committed, .. } = self.versions[at];
        ResultRows { version: number, object, committed, pointed_until: left }
    }
}

/// What the ledger's rows say of a batch.
fn batch_rows(at: usize, batch: &Batch) -> BatchRows {
    let sealed = batch.sealed.map(|(sealed, runs)| SealedRows {
        round: at as u64 + 1,
        at: sealed,
        written: batch.written,
        outcome: match (runs, batch.ended) {
            (false, _) => Outcome::Skipped,
            (true, None) => Outcome::Live,
            (true, Some((at, Some(_)))) => Outcome::Committed(at),
            (true, Some((at, None))) => Outcome::Failed(at),
        },
    });
    BatchRows { batch: at as u64 + 1, sealed }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_a_live_round_the_pointer_or_the_policy_needs_is_never_due_and_all_else_is(
        steps in prop::collection::vec((step(), 0..5_u64), 1..60),
    ) {
        let mut model = Model {
            now: Timestamp::from_millis(1_790_000_000_000).unwrap(),
            policy: Policy { keep_uploads_s: 3 * DAY, keep_rounds_s: 2 * DAY, keep_results: 2, ..Policy::default() },
            removed: None,
            batches: Vec::new(),
            versions: Vec::new(),
            pointers: Vec::new(),
        };
        for (step, days) in steps {
            model.step(&step);
            model.now = model.now.after(Duration::from_secs(days * DAY));
        }
        model.run();
        // Nothing that has ended is kept for ever.
        let last = model.policy.keep_uploads_s.max(model.policy.keep_rounds_s).max(model.policy.keep_results_s);
        model.now = model.now.after(Duration::from_secs(last));
        model.run();
        for batch in &model.batches {
            let ended = batch.written && (batch.ended.is_some() || matches!(batch.sealed, Some((_, false))));
            prop_assert!(batch.bytes_gone || !(ended || model.removed.is_some()), "{batch:?}");
        }
        prop_assert!(model.removed.is_none() || model.versions.iter().all(|version| version.gone));
    }
}

#[test]
fn a_verdict_says_in_words_what_it_is_about_and_how_long() {
    let at = Timestamp::from_millis(1_790_000_000_000).unwrap();
    let pool = PoolRows {
        name: "p".parse().unwrap(),
        policy: Policy::default(),
        removed: None,
        pointer: Some(7),
        versions: 7,
    };
    let sealed = SealedRows { round: 17, at, written: true, outcome: Outcome::Committed(at) };
    let batch = BatchRows { batch: 20, sealed: Some(sealed) };
    let day = |days: u64| at.after(Duration::from_secs(days * DAY));
    let words = |now| plan::uploads(&pool, &batch, now).to_string();
    assert_eq!(words(day(2)), "round 17 was committed 2026-09-21T14:13:20.000Z, kept for 30 d");
    assert_eq!(
        words(day(30)),
        "round 17 was committed 2026-09-21T14:13:20.000Z, which is longer ago than 30 d"
    );
    let row = ResultRows { version: 7, object: 1, committed: at, pointed_until: None };
    let verdicts = plan::results(&pool, &[row], day(9_000));
    assert_eq!(verdicts[0].to_string(), "version 7 is the current one");
}
