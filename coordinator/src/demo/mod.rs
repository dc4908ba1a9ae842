//! `millpond demo`: the main job as a story with the real server and real MQTT connections, on ephemeral loopback ports and
//! in a directory that is gone at the end.
//!
//! Act by act: publishers fill the window of a day, each with its own habit (`publisher`); the batch is sealed, first
//! because everybody said that they had nothing more, later because the external server asks for it; a processor takes the
//! round (`processor`), the very first one dies over it and is replaced; its one result reaches every member, who
//! checks it (`member`). One file comes late, one listener after everything. At the end the manifests must list every
//! upload exactly once, and each must name the one before it.

mod link;
mod member;
mod processor;
mod progress;
mod publisher;
mod report;
mod stage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256, Timestamp, limits};
use serde_json::json;

pub use link::{Beside, Credentials, Link, Message};
pub use report::{Report, RoundReport};

use member::Member;
use processor::{Done, Key, Processor};
use progress::Progress;
use publisher::{Habit, Publisher, file, files};
use stage::Stage;

/// Length of a window: days, so that the present one does not end under the demo's feet (and no harm if it does).
const WINDOW: Duration = Duration::from_secs(86_400);
/// Listeners; one more comes when all is over.
const LISTENERS: usize = 4;

/// How big the story is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Options {
    /// Publishers.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(4..=500))]
    pub clients: u16,
    /// Windows, each of which becomes a round.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub rounds: u16,
}

/// Tells the story.
///
/// # Errors
/// The first thing that did not hold.
pub async fn run(options: Options) -> anyhow::Result<Report> {
    let progress = Progress::new();
    progress.say("Starting a server on loopback, in a temporary directory");
    let stage = Stage::start().await?;
    let report = tokio::select! {
        report = play(&stage, options, progress) => report,
        ended = stage.ended() => Err(ended),
    };
    stage.stop().await?;
    report
}

async fn play(stage: &Stage, options: Options, progress: Progress) -> anyhow::Result<Report> {
    let mut company = Company::join(stage, options, progress).await?;
    let today = stage::now();
    let first = today.before(WINDOW * u32::from(options.rounds - 1));
    for n in 0..options.rounds {
        let round = u64::from(n) + 1;
        // The very start of the window: that has passed, whatever the time is now.
        let day = first.after(WINDOW * u32::from(n)).as_millis();
        let from = Timestamp::clamped(day - day % i64::try_from(WINDOW.as_millis())?);
        company.publish(round, from).await?;
        let done = if round == 1 { company.first_round(from).await? } else { company.trigger(round).await? };
        let done = done.context("the batch just filled was not to be sealed")?;
        company.take_home(done).await?;
        if round == 1 {
            company.send_late(from).await?;
        }
    }
    // What came late has joined another window; with one round in all, or over midnight, that one is open still.
    while let Some(done) = company.trigger(u64::MAX).await? {
        company.take_home(done).await?;
    }
    company.arrive_late(stage).await?;
    company.audit()
}

/// Everybody on the stage, and what they have done.
struct Company {
    publishers: Vec<Publisher>,
    listeners: Vec<Member>,
    mills: Vec<Processor>,
    http: reqwest::Client,
    progress: Progress,
    rounds: Vec<(Done, RoundReport)>,
    late: u64,
    began: Instant,
}

impl Company {
    async fn join(stage: &Stage, options: Options, progress: Progress) -> anyhow::Result<Self> {
        let http = stage.http.clone();
        let clients = usize::from(options.clients);
        let mut step = progress.step("members connect", (clients + LISTENERS + 2) as u64);
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
        let mut mills = Vec::new();
        for name in ["mill-b", "mill-a"] {
            let who = stage.member(name, Role::Processor).await?;
            mills.push(Processor::join(who, http.clone()).await?);
            step.advance();
        }
        step.end();
        let began = Instant::now();
        Ok(Self { publishers, listeners, mills, http, progress, rounds: Vec::new(), late: 0, began })
    }

    /// Every publisher sends its files of the window.
    async fn publish(&mut self, round: u64, from: Timestamp) -> anyhow::Result<()> {
        let step =
            self.progress.step(format!("window {round}: publishers send"), self.publishers.len() as u64);
        let step = std::sync::Mutex::new(step);
        let sending = self.publishers.iter_mut().enumerate().map(async |(number, publisher)| {
            publisher.send(&files(number, round, publisher.habit, from)?).await?;
            step.lock().unwrap_or_else(std::sync::PoisonError::into_inner).advance();
            anyhow::Ok(())
        });
        try_join_all(sending).await?;
        step.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).end();
        Ok(())
    }

    /// All say that they have nothing more, which seals the batch; the first to take the round dies over it.
    async fn first_round(&mut self, from: Timestamp) -> anyhow::Result<Option<Done>> {
        let through = from.after(WINDOW);
        let saying = self.publishers.iter().map(async |publisher| {
            let ask = json!({ "id": format!("complete-{through}").replace(':', "."), "through": through });
            publisher.member.link.ask::<serde_json::Value>(Op::Complete, &ask).await
        });
        self.began = Instant::now();
        try_join_all(saying).await?;
        self.progress.say("window 1: everybody said that they have nothing more, so it is sealed");
        let mut doomed = self.mills.pop().context("two processors")?;
        let lease = doomed.claim().await?;
        ensure!(lease.attempt == 1, "the first attempt is not number 1");
        doomed.die_working(&lease).await?;
        self.progress.say("round 1: mill-a took it and died; mill-b waits for its lease to run out");
        let mill = self.mills.first_mut().context("a processor that lives")?;
        let lease = mill.claim().await?;
        ensure!(lease.attempt > 1, "two processors got the same attempt");
        let mut step = self.progress.step("round 1: mill-b checks its files", 0);
        let done = mill.work(&lease, limits::SMALL_MAX + 1_000, &mut step).await?;
        step.end();
        Ok(Some(done))
    }

    /// The external server seals the oldest open batch and works on it; none if nothing is open.
    async fn trigger(&mut self, round: u64) -> anyhow::Result<Option<Done>> {
        self.began = Instant::now();
        let mill = self.mills.first_mut().context("a processor that lives")?;
        let Some(lease) = mill.trigger().await? else { return Ok(None) };
        let text = match round {
            u64::MAX => format!("round {}: what came late", lease.round),
            round => format!("round {round}: triggered, mill-b checks its files"),
        };
        let mut step = self.progress.step(text, 0);
        let done = mill.work(&lease, 0, &mut step).await?;
        step.end();
        Ok(Some(done))
    }

    /// Every member gets the result and checks it.
    async fn take_home(&mut self, done: Done) -> anyhow::Result<()> {
        let round_ms = self.began.elapsed().as_millis().try_into()?;
        let version = self.rounds.len() as u64 + 1;
        let expected = Sha256::of(&done.result);
        let members = (self.publishers.len() + self.listeners.len()) as u64;
        let mut step = self.progress.step(format!("version {version}: members check it"), members);
        let everybody = self
            .publishers
            .iter_mut()
            .map(|publisher| &mut publisher.member)
            .chain(self.listeners.iter_mut());
        let mut verified = 0;
        for found in try_join_all(everybody.map(|member| member.verify(version, &self.http))).await? {
            ensure!(found == expected, "a member got another result than the processor returned");
            verified += 1;
            step.advance();
        }
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
            result_bytes: done.result.len() as u64,
            result_sha256: expected,
            verified,
        };
        self.rounds.push((done, report));
        Ok(())
    }

    /// One more file of the first window, which is sealed.
    async fn send_late(&mut self, from: Timestamp) -> anyhow::Result<()> {
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
    async fn arrive_late(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let who = stage.member("listener-late", Role::Listener).await?;
        let mut listener = Member::join(who).await?;
        let (done, report) = self.rounds.last_mut().context("a round")?;
        let found = listener.verify(report.version, &self.http).await?;
        ensure!(found == Sha256::of(&done.result), "the late listener got another result");
        report.verified += 1;
        self.listeners.push(listener);
        self.progress.say("a listener came when all was over, and has the newest result");
        Ok(())
    }

    /// Every upload is in exactly one manifest with the hash that was sent, and the manifests are a chain.
    fn audit(self) -> anyhow::Result<Report> {
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
        for publisher in &self.publishers {
            for (upload, sha256) in &publisher.sent {
                let key = (publisher.member.link.who.member.clone(), upload.clone());
                match listed.remove(&key) {
                    Some(found) if found == sha256 => uploads += 1,
                    Some(_) => bail!("{}/{upload} is listed with another hash", key.0),
                    None => bail!("{}/{upload} is in no batch", key.0),
                }
            }
        }
        ensure!(listed.is_empty(), "the manifests list {} uploads that nobody sent", listed.len());
        Ok(Report {
            uploads,
            repeats: self.publishers.iter().map(|publisher| publisher.repeats).sum(),
            late: self.late,
            batches: self.rounds.len() as u64,
            members: (self.publishers.len() + self.listeners.len()) as u64,
            rounds: self.rounds.into_iter().map(|(_, report)| report).collect(),
            ok: true,
        })
    }
}
