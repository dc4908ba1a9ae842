//! The scheduler: what could happen next, and which of it does.

use std::time::Duration;

use millpond_protocol::{Principal, Role, Sha256, Timestamp};

use super::bench::Bench;
use super::net::Request;
use super::server::Server;
use super::stage::Stage;
use super::store::Fate;
use super::tasks::{Owner, Tasks};
use super::{listener, oracle, policies, processor, publisher};
use crate::ledger::tokens::find_token;
use crate::ledger::{Ledger, PoolId};
use crate::rounds::Policy;

/// Processors, and their connections.
const HANDS: [&[(&str, &[&str])]; 4] = [
    &[("proc0", &["a"])],
    &[("proc0", &["a"]), ("proc1", &["a"])],
    &[("proc0", &["a", "b"])],
    &[("proc0", &["a", "b"]), ("proc1", &["a", "b"])],
];
/// A PUT that the caller has given up is done until then.
const LATE: Duration = Duration::from_secs(30);

/// A pool and everybody around it.
pub(super) struct World<'a> {
    pub(super) bench: &'a mut Bench,
    pub(super) stage: Stage,
    pub(super) pool: PoolId,
    pub(super) policy: Policy,
    /// When a group was lost: cores that were read again then count terms from there, and rows do not say so.
    pub(super) lost: Option<Duration>,
    pub(super) tasks: Tasks,
    server: Server,
    /// Since when no more harm is done, by the cores' time.
    pub(super) calm_since: Timestamp,
    /// Rounds that had failed by then. That of an earlier life may have been another time.
    pub(super) failed_before: Vec<u64>,
    pub(super) publishers: Vec<Principal>,
    /// The newest row of batches that an earlier policy sealed.
    pub(super) sealed_before: i64,
}

impl<'a> World<'a> {
    fn new(bench: &'a mut Bench, stage: Stage) -> Self {
        let ledger = bench.ledger.start().unwrap();
        let policy = policies::choose(&mut stage.choices());
        let (publishers, hands) = (1 + stage.below(3), stage.below(HANDS.len()));
        let adopted = policy.clone();
        let made = ledger.write(move |tx| {
            let (pool, _) = tx.apply_pool(&"p".parse()?, &adopted)?;
            let names = (0..publishers).map(|n| (format!("pub{n}"), Role::Publisher));
            let processors = HANDS[hands].iter().map(|(name, _)| ((*name).to_owned(), Role::Processor));
            let others = processors.chain([("lis".to_owned(), Role::Listener)]);
            let mut members = Vec::new();
            for (name, role) in names.chain(others) {
                let token = Sha256::of(name.as_bytes());
                tx.add_member(pool, &name.parse()?, role, &token)?;
                members.extend(find_token(tx.sql(), &token, tx.now())?);
            }
            Ok((pool, members))
        });
        bench.ledger.group(1, true);
        let (pool, members) = futures_util::FutureExt::now_or_never(made).unwrap().unwrap();
        let server = Self::server(bench, &stage, pool, ledger);
        let mut tasks = Tasks::default();
        tasks.spawn(Owner::Server, "start".into(), server.clone().recover());
        let mut publishers = Vec::new();
        for who in members {
            let (name, stage) = (who.name.to_string(), stage.clone());
            match who.role {
                Role::Publisher => {
                    if stage.chance(128) {
                        let receipts = publisher::receipts(stage, who.clone());
                        tasks.spawn(Owner::Client, format!("{name} receipts"), receipts);
                    }
                    publishers.push(who);
                }
                Role::Processor => {
                    let connections = HANDS[hands].iter().find(|(of, _)| *of == name);
                    for connection in connections.into_iter().flat_map(|(_, connections)| *connections) {
                        let work = processor::live(stage.clone(), who.clone(), connection);
                        tasks.spawn(Owner::Client, format!("{name} {connection}"), work);
                    }
                }
                _ => tasks.spawn(Owner::Client, name, listener::live(stage, who, 0)),
            }
        }
        Self {
            bench,
            stage,
            pool,
            policy,
            lost: None,
            tasks,
            server,
            calm_since: Timestamp::MAX,
            failed_before: Vec::new(),
            publishers,
            sealed_before: 0,
        }
    }

    fn server(bench: &Bench, stage: &Stage, pool: PoolId, ledger: Ledger) -> Server {
        let name = "p".parse().unwrap_or_else(|e| unreachable!("{e}"));
        Server::new(stage, (pool, name), ledger, bench.storage.clone())
    }

    /// From the beginning to the end: schedules one after the other.
    pub(super) fn play(bench: &'a mut Bench, stage: Stage, strings: &[Vec<u8>]) -> Result<(), String> {
        stage.take_up(&strings[0]);
        let mut world = Self::new(bench, stage);
        let outcome = world.live(strings);
        // While what they use is there.
        world.tasks = Tasks::default();
        outcome
    }

    /// One thing happens that a byte decides.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let what = self.stage.byte();
        let happened = match what {
            0..=79 => self.run(),
            80..=114 => self.deliver(false),
            115..=149 => self.commit(true),
            150..=164 => self.settle(false),
            165..=184 => self.arrive(),
            185..=194 => self.notice(false),
            195..=204 => {
                if what == 195 {
                    self.bench.ledger.compare_cores()?;
                }
                self.pass()
            }
            205..=211 => self.lose(),
            212..=219 => self.deliver(true),
            220..=227 => self.settle(true),
            228..=233 => {
                let happened = self.commit(false);
                self.bench.ledger.compare_cores()?;
                happened
            }
            234..=238 => {
                self.crash()?;
                true
            }
            239..=244 => self.beside(),
            245..=248 => self.set_clock(),
            249..=251 => self.notice(true),
            252..=255 => {
                self.stage.note(|| "the listener's connection ends".into());
                self.stage.net().disconnect_listeners();
                true
            }
        };
        if !happened && !self.progress() {
            self.wait()?;
        }
        self.look()
    }

    /// The next thing happens that disturbs nobody; false if there is none.
    pub(super) fn progress(&mut self) -> bool {
        self.run()
            || self.settle(false)
            || self.commit(true)
            || self.notice(false)
            || self.arrive()
            || self.deliver(false)
    }

    fn run(&mut self) -> bool {
        if let Some(work) = self.server.work() {
            self.tasks.spawn(Owner::Server, "dispatch".into(), work);
        }
        if let Some(tell) = self.server.tell() {
            self.tasks.spawn(Owner::Server, "fan-out".into(), tell);
        }
        let ready = self.tasks.ready();
        if ready == 0 {
            return false;
        }
        let nth = self.stage.below(ready);
        let Self { bench, tasks, stage, .. } = self;
        bench.ledger.reading(|| tasks.run(nth, |name| stage.note(|| format!("{name} goes on"))));
        true
    }

    /// A message arrives, one of the first four; with a copy that arrives later, or once more.
    fn deliver(&mut self, twice: bool) -> bool {
        let under_way = self.stage.net().requests.len();
        if under_way == 0 || !self.server.serves() {
            return false;
        }
        let nth = self.stage.below(under_way.min(4));
        let request: Request = self.stage.net().requests.remove(nth);
        self.stage
            .note(|| format!("{} arrives{}", request.words(), if twice { ", and a copy will" } else { "" }));
        if twice {
            self.stage.net().requests.push(request.clone());
        }
        let name = format!("server, message {}", request.id);
        self.tasks.spawn(Owner::Server, name, self.server.take(request));
        true
    }

    /// The first jobs in line become a group.
    fn commit(&mut self, commits: bool) -> bool {
        let waiting = self.bench.ledger.waiting();
        if waiting == 0 && self.bench.ledger.next_due() != Some(Duration::ZERO) {
            return false;
        }
        let jobs = if self.stage.is_calm() { waiting } else { waiting - self.stage.below(waiting) };
        let kept = self.bench.ledger.group(jobs, commits);
        if !kept {
            self.lost = Some(self.stage.running());
        }
        self.stage.book().check(kept == commits, || "a group was lost that nothing harmed".into());
        self.stage.note(|| {
            format!("a group of {jobs} of {waiting} {}", if commits { "commits" } else { "fails to commit" })
        });
        true
    }

    fn settle(&mut self, fails: bool) -> bool {
        let waiting = self.stage.store().waiting();
        if waiting == 0 {
            return false;
        }
        let nth = self.stage.below(waiting);
        let fates = [Fate::Refused, Fate::Unheard, Fate::Late(self.stage.running() + LATE)];
        let fate = if fails { fates[self.stage.below(fates.len())] } else { Fate::Done };
        let what = self.stage.store().settle(nth, fate);
        self.stage.note(|| format!("storage: {what}: {fate:?}"));
        true
    }

    fn arrive(&mut self) -> bool {
        let under_way = {
            let net = self.stage.net();
            net.answers.len() + net.pushes.len()
        };
        if under_way == 0 {
            return false;
        }
        let nth = self.stage.below(under_way);
        self.stage.note(|| self.stage.net().words(nth));
        self.stage.net().arrive(nth);
        true
    }

    fn notice(&mut self, lagged: bool) -> bool {
        let has = self.server.has_notice() && self.server.notice(lagged);
        if has {
            self.stage.note(|| if lagged { "notices are missed" } else { "a commit is noticed" }.into());
        }
        has
    }

    /// Time goes by.
    fn pass(&mut self) -> bool {
        let times = [10, 1_000, 6_000, 31_000, 61_000, 310_000, 1_800_000, 3_600_000, 90_000_000];
        let time = Duration::from_millis(times[self.stage.below(times.len())]);
        self.go_by(time);
        self.stage.note(|| format!("{time:?} go by"));
        true
    }

    /// Time goes by, for the cores too, wherever the hands of the clock on the wall stand.
    fn go_by(&mut self, time: Duration) {
        let then = self.bench.ledger.now();
        self.stage.pass(time);
        let now = self.bench.ledger.now();
        self.stage
            .book()
            .check(now >= then.after(time), || format!("in {time:?} it went from {then} to {now}"));
    }

    /// Somebody loses patience, or a message is lost.
    fn lose(&mut self) -> bool {
        let (requests, waiting) = {
            let net = self.stage.net();
            (net.requests.len(), net.waiting())
        };
        if self.stage.chance(128) && requests > 0 {
            let nth = self.stage.below(requests);
            let lost = self.stage.net().requests.remove(nth);
            self.stage.note(|| format!("{} is lost", lost.words()));
            return true;
        }
        let nth = self.stage.below(waiting);
        let gives_up = self.stage.net().give_up(nth);
        self.stage.note(|| format!("the connection ends of who waits for {gives_up:?}"));
        gives_up.is_some()
    }

    /// The process dies, and another one starts.
    fn crash(&mut self) -> Result<(), String> {
        self.tasks.crash();
        self.stage.net().cut();
        self.stage.store().crash(|| self.stage.chance(128));
        self.stage.note(|| "the server dies and starts again".into());
        let ledger =
            self.bench.ledger.start().map_err(|error| format!("the ledger does not start: {error}"))?;
        self.server = Self::server(self.bench, &self.stage, self.pool, ledger);
        self.tasks.spawn(Owner::Server, "start".into(), self.server.clone().recover());
        oracle::nothing_is_lost(self)
    }

    /// What runs beside: the sweep, cursors of receipts, an operator.
    fn beside(&mut self) -> bool {
        if !self.server.serves() {
            return false;
        }
        let kind = self.stage.below(4);
        let (name, server) = (["cursors", "sweep", "operator", "operator"][kind], self.server.clone());
        self.stage.note(|| format!("{name} has a turn"));
        match kind {
            0 => self.tasks.spawn(Owner::Server, name.into(), server.write_cursors()),
            1 => self.tasks.spawn(Owner::Server, name.into(), server.sweep()),
            _ => {
                let what = self.stage.below(8);
                self.tasks.spawn(Owner::Server, name.into(), server.operate(what));
            }
        }
        true
    }

    fn set_clock(&mut self) -> bool {
        let now = self.stage.now();
        let by = Duration::from_secs([1, 60, 3_600][self.stage.below(3)]);
        let wall = if self.stage.chance(128) { now.before(by) } else { now.after(by) };
        self.stage.set_clock(wall);
        self.stage.note(|| format!("the clock is set from {now} to {wall}"));
        true
    }

    /// Nothing can happen until time has gone by.
    pub(super) fn wait(&mut self) -> Result<(), String> {
        oracle::nothing_is_overdue(self)?;
        let next = [self.stage.next_timer(), self.bench.ledger.next_due()].into_iter().flatten().min();
        self.go_by(next.unwrap_or(Duration::from_secs(60)).max(Duration::from_millis(1)));
        self.stage.note(|| "everybody waits".into());
        Ok(())
    }

    /// What has to hold at any time.
    pub(super) fn look(&mut self) -> Result<(), String> {
        match self.stage.book().fault.take() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// An operator changes the pool's policy while everybody rests.
    pub(super) fn adopt(&mut self, policy: Policy) -> Result<(), String> {
        self.sealed_before = oracle::newest_batch(self);
        self.policy = policy.clone();
        let pool = "p".parse().unwrap_or_else(|e| unreachable!("{e}"));
        let applied = self.server.ledger().write(move |tx| tx.apply_pool(&pool, &policy).map(drop));
        self.bench.ledger.group(1, true);
        let applied = futures_util::FutureExt::now_or_never(applied);
        applied.unwrap_or_else(|| unreachable!("a group answers its jobs")).map_err(|error| error.to_string())
    }

    /// Everything has come to its end: it is so too for who starts again, and nothing is left over.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.stage.end();
        self.crash()?;
        self.settle_down();
        // No PUT is under way any more, whatever the clock on the wall shows.
        self.stage.pass(self.stage.behind() + Duration::from_secs(4 * 3_600));
        self.tasks.spawn(Owner::Server, "sweep".into(), self.server.sweep());
        self.settle_down();
        self.look()?;
        oracle::nothing_is_lost(self)?;
        oracle::nothing_is_left_over(self)
    }

    fn settle_down(&mut self) {
        while self.progress() {}
    }
}
