//! `millpond demo`: the main job as a story with the real server and real MQTT connections, on ephemeral loopback ports and
//! in a directory that is gone at the end.
//!
//! Act by act (`company`): publishers fill the window of a day, each with its own habit (`publisher`). Guests join them
//! (`guests`): some have large files, of which one is cut off in mid-transfer (`hauler`); some were offline, and one is killed
//! (`edge`). The batch is sealed, first because everybody said that they had nothing more, later because the external server
//! asks for it; a processor takes the round (`processor`), the very first one dies over it and is replaced; its one result
//! reaches every member, who checks it (`member`). One file comes late, one listener after everything. At the end the
//! manifests must list every upload exactly once, and each must name the one before it.
//!
//! Large bytes are made where they are needed (`content`) and go piece by piece (`url`), so the story takes little memory.

mod company;
mod content;
mod edge;
mod guests;
mod hauler;
mod link;
mod member;
mod processor;
mod progress;
mod publisher;
mod report;
mod stage;
mod url;

use std::time::Duration;

use anyhow::Context as _;
use millpond_protocol::Timestamp;

pub use edge::{Client, client};
pub use link::{Beside, Credentials, Link, Message};
pub use report::{Large, Offline, Report, Resumed, RoundReport};
pub use stage::Stage;

use company::Company;
use progress::Progress;

/// Length of a window: days, so that the present one does not end under the demo's feet (and no harm if it does).
const WINDOW: Duration = Duration::from_secs(86_400);

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
    let length = i64::try_from(WINDOW.as_millis())?;
    // The very start of each window: that has passed, whatever the time is now.
    let start = |n| {
        let day = first.after(WINDOW * u32::from(n)).as_millis();
        Timestamp::clamped(day - day % length)
    };
    let windows: Vec<Timestamp> = (0..options.rounds).map(start).collect();
    for (round, from) in (1..).zip(&windows) {
        company.publish(round, *from).await?;
        let done = if round == 1 {
            company.welcome(&windows).await?;
            company.first_round(*from).await?
        } else {
            company.trigger(round).await?
        };
        let done = done.context("the batch just filled was not to be sealed")?;
        company.take_home(done).await?;
        if round == 1 {
            company.send_late(*from).await?;
        }
    }
    // What came late has joined another window; with one round in all, or over midnight, that one is open still.
    while let Some(done) = company.trigger(u64::MAX).await? {
        company.take_home(done).await?;
    }
    company.arrive_late().await?;
    company.audit()
}
