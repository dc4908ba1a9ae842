//! Everybody on the stage, and what they do together.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use millpond_protocol::{Role, Sha256, Timestamp, limits};

use super::edge::Keeper;
use super::guests::Guests;
use super::member::Member;
use super::processor::{Done, Key, Processor, Product};
use super::progress::Progress;
use super::publisher::{Habit, Publisher, file, files};
use super::report::{Report, RoundReport};
use super::stage::Stage;
use super::{Options, WINDOW};

/// Listeners by plain MQTT; one more is the keeper, and one comes when all is over.
const LISTENERS: usize = 3;
/// Members that fetch a result at once.
const AT_ONCE: usize = 8;
/// Bytes of the result of the second round.
const RESULT: u64 = 30_000_000;

/// Everybody on the stage, and what they have done.
pub(super) struct Company<'a> {
    stage: &'a Stage,
    progress: Progress,
    publishers: Vec<Publisher>,
    guests: Guests,
    listeners: Vec<Member>,
    keeper: Keeper,
    mills: Vec<Processor>,
    rounds: Vec<(Done, RoundReport)>,
    late: u64,
    began: Instant,
}

impl<'a> Company<'a> {
    pub(super) async fn join(stage: &'a Stage, options: Options, progress: Progress) -> anyhow::Result<Self> {
        let clients = usize::from(options.clients);
        let step = progress.step("members connect", (clients + LISTENERS + 3) as u64);
        let mut publishers = Vec::with_capacity(clients);
        for number in 0..clients {
            let who = stage.member(&format!("edge-{number:02}"), Role::Publisher).await?;
            publishers.push(Publisher::join(who, Habit::of(number)).await?);
            step.advance();
        }
        let mut listeners = Vec::new();
        for number in 0..LISTENERS {
            let who = stage.member(&format!("listener-{number}"), Role::Listener).await?;
            listeners.push(Member::join(who).await?);
            step.advance();
        }
        let who = stage.member("keeper", Role::Listener).await?;
        let keeper = Keeper::begin(&who, stage.directory("keeper")?)?;
        step.advance();
        let mut mills = Vec::new();
        for name in ["mill-b", "mill-a"] {
            let who = stage.member(name, Role::Processor).await?;
            mills.push(Processor::join(who, stage.http.clone()).await?);
            step.advance();
        }
        step.end();
        Ok(Self {
            stage,
            progress,
            publishers,
            guests: Guests::default(),
            listeners,
            keeper,
            mills,
            rounds: Vec::new(),
            late: 0,
            began: Instant::now(),
        })
    }

    /// Every publisher sends its files of the window.
    pub(super) async fn publish(&mut self, round: u64, from: Timestamp) -> anyhow::Result<()> {
        let step =
            self.progress.step(format!("window {round}: publishers send"), self.publishers.len() as u64);
        let sending = self.publishers.iter_mut().enumerate().map(async |(number, publisher)| {
            publisher.send(&files(number, round, publisher.habit, from)?).await?;
            step.advance();
            anyhow::Ok(())
        });
        try_join_all(sending).await?;
        step.end();
        Ok(())
    }

    /// Those come who are not like the others; what they have belongs to the first window.
    pub(super) async fn welcome(&mut self, windows: &[Timestamp]) -> anyhow::Result<()> {
        self.guests = Guests::arrive(self.stage, windows, self.progress).await?;
        Ok(())
    }

    /// All say that they have nothing more, which seals the batch; the first to take the round dies over it.
    pub(super) async fn first_round(&mut self, from: Timestamp) -> anyhow::Result<Option<Done>> {
        let through = from.after(WINDOW);
        self.began = Instant::now();
        let publishers =
            self.publishers.iter().map(|publisher| &publisher.member).chain(&self.guests.members);
        try_join_all(publishers.map(|member| member.complete(through))).await?;
        self.progress.say("window 1: everybody said that they have nothing more, so it is sealed");
        let mut doomed = self.mills.pop().context("two processors")?;
        let lease = doomed.claim().await?;
        ensure!(lease.attempt == 1, "the first attempt is not number 1");
        doomed.die_working(&lease).await?;
        self.progress.say("round 1: mill-a took it and died; mill-b waits for its lease to run out");
        let mill = self.mills.first_mut().context("a processor that lives")?;
        let lease = mill.claim().await?;
        ensure!(lease.attempt > 1, "two processors got the same attempt");
        let step = self.progress.step("round 1: mill-b checks its files", 0);
        let done = mill.work(&lease, Product::List(limits::SMALL_MAX + 1_000), &step).await?;
        step.end();
        Ok(Some(done))
    }

    /// The external server seals the oldest open batch and works on it; none if nothing is open.
    pub(super) async fn trigger(&mut self, round: u64) -> anyhow::Result<Option<Done>> {
        self.began = Instant::now();
        let mill = self.mills.first_mut().context("a processor that lives")?;
        let Some(lease) = mill.trigger().await? else { return Ok(None) };
        let text = match round {
            u64::MAX => format!("round {}: what came late", lease.round),
            round => format!("round {round}: triggered, mill-b checks its files"),
        };
        let step = self.progress.step(text, 0);
        let product = if self.rounds.len() == 1 { Product::Large(RESULT) } else { Product::List(0) };
        let done = mill.work(&lease, product, &step).await?;
        step.end();
        Ok(Some(done))
    }

    /// Every member gets the result and checks it.
    pub(super) async fn take_home(&mut self, done: Done) -> anyhow::Result<()> {
        let round_ms = self.began.elapsed().as_millis().try_into()?;
        let version = self.rounds.len() as u64 + 1;
        let expected = done.result_sha256;
        let total = self.publishers.len() + self.guests.members.len() + self.listeners.len() + 1;
        let step = self.progress.step(format!("version {version}: members check it"), total as u64);
        let check = |found: Sha256| {
            ensure!(found == expected, "a member got another result than the processor returned");
            step.advance();
            Ok(())
        };
        let members = self
            .publishers
            .iter_mut()
            .map(|publisher| &mut publisher.member)
            .chain(&mut self.guests.members)
            .chain(&mut self.listeners);
        // As `spread_s` has it in the field: a few at a time.
        let members = members.map(async |member| check(member.verify(version, &self.stage.http).await?));
        let members = stream::iter(members).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>();
        let keeper = async { check(self.keeper.verify(version).await?) };
        let (members, ()) = tokio::try_join!(members, keeper)?;
        let verified = members.len() as u64 + 1;
        step.end();
        let report = RoundReport {
            round: done.manifest.header.seq,
            batch: done.batch,
            cause: done.manifest.header.cause.clone(),
            uploads: done.manifest.header.count,
            bytes: done.manifest.header.bytes,
            attempts: done.attempt,
            round_ms,
            version,
            result_bytes: done.result_bytes,
            result_sha256: expected,
            verified,
        };
        self.rounds.push((done, report));
        Ok(())
    }

    /// One more file of the first window, which is sealed.
    pub(super) async fn send_late(&mut self, from: Timestamp) -> anyhow::Result<()> {
        let late = self.publishers.iter_mut().enumerate().find(|(_, p)| p.habit == Habit::Late);
        let (number, publisher) = late.context("a publisher that is late")?;
        let found = file(number, "late", 700, from, 9)?;
        publisher.send(std::slice::from_ref(&found)).await?;
        let receipt = publisher.member.receipts.iter().find(|receipt| receipt.upload == "late");
        ensure!(receipt.is_some_and(|receipt| receipt.late), "the late upload's receipt does not say so");
        self.late += 1;
        self.progress.say("one publisher found one more file of window 1: late, it joins a later batch");
        Ok(())
    }

    /// A listener that was never there before gets the newest result at once.
    pub(super) async fn arrive_late(&mut self) -> anyhow::Result<()> {
        let who = self.stage.member("listener-late", Role::Listener).await?;
        let mut listener = Member::join(who).await?;
        let (done, report) = self.rounds.last_mut().context("a round")?;
        let found = listener.verify(report.version, &self.stage.http).await?;
        ensure!(found == done.result_sha256, "the late listener got another result");
        report.verified += 1;
        self.listeners.push(listener);
        self.progress.say("a listener came when all was over, and has the newest result");
        Ok(())
    }

    /// Every upload is in exactly one manifest with the hash that was sent, and the manifests are a chain.
    pub(super) fn audit(self) -> anyhow::Result<Report> {
        let mut listed: BTreeMap<&Key, &Sha256> = BTreeMap::new();
        let mut prev = None;
        for (done, _) in &self.rounds {
            ensure!(done.manifest.header.prev == prev, "a manifest does not name the one before it");
            prev = Some(done.manifest.sha256);
            for (key, sha256) in &done.manifest.entries {
                ensure!(listed.insert(key, sha256).is_none(), "{}/{} is in two batches", key.0, key.1);
            }
        }
        let mut uploads = 0;
        let publishers =
            self.publishers.iter().map(|publisher| &publisher.member).chain(&self.guests.members);
        for member in publishers {
            for (upload, sha256) in &member.sent {
                let key = (member.link.who.member.clone(), upload.clone());
                match listed.remove(&key) {
                    Some(found) if found == sha256 => uploads += 1,
                    Some(_) => bail!("{}/{upload} is listed with another hash", key.0),
                    None => bail!("{}/{upload} is in no batch", key.0),
                }
            }
        }
        ensure!(listed.is_empty(), "the manifests list {} uploads that nobody sent", listed.len());
        let members = self.publishers.len() + self.guests.members.len() + self.listeners.len() + 1;
        Ok(Report {
            uploads,
            repeats: self.publishers.iter().map(|publisher| publisher.repeats).sum(),
            late: self.late,
            batches: self.rounds.len() as u64,
            large: self.guests.large,
            interrupted: self.guests.interrupted,
            killed: self.guests.killed,
            offline: self.guests.offline,
            members: members as u64,
            rounds: self.rounds.into_iter().map(|(_, report)| report).collect(),
            ok: true,
        })
    }
}
