//! Publishers that are not like the others, each with files of the first window: large ones, one of which is cut off and one of
//! which loses its client, and those of devices that had no network.

use anyhow::Context as _;
use futures_util::future::try_join_all;
use millpond_protocol::{Role, Timestamp};

use super::content::Content;
use super::edge::{Offline, killed};
use super::hauler::{self, Freight};
use super::member::Member;
use super::progress::Progress;
use super::publisher::{Habit, files};
use super::report::{self, Large, Resumed};
use super::stage::Stage;

/// Publishers of a large file each, by one PUT.
const HAULERS: u32 = 3;
/// Bytes of each of these.
const HAULED: u64 = 10_000_000;
/// Bytes of the file that is cut off.
const INTERRUPTED: u64 = 100_000_000;
/// Bytes of the file whose client is killed.
const KILLED: u64 = 80_000_000;
/// Publishers that have no network at first.
const OFFLINE: u32 = 3;
/// Windows of their files, beginning with the first.
const OFFLINE_WINDOWS: usize = 2;
/// Their files are those of publishers with numbers that begin here: more than there are others.
const OFFLINE_NUMBER: u32 = 500;

/// Once they have sent what they have, they are members like the others.
#[derive(Default)]
pub(super) struct Guests {
    pub(super) members: Vec<Member>,
    pub(super) large: Large,
    pub(super) interrupted: Resumed,
    pub(super) killed: Resumed,
    pub(super) offline: report::Offline,
}

impl Guests {
    /// All come, beside each other.
    pub(super) async fn arrive(
        stage: &Stage,
        windows: &[Timestamp],
        progress: Progress,
    ) -> anyhow::Result<Self> {
        let (http, from) = (&stage.http, *windows.first().context("a window")?);
        let (offline, uploads) = offline(stage, windows).await?;
        progress.say(&format!("{OFFLINE} devices without a network put {uploads} files into their spools"));
        let who = async |name: &str| stage.member(name, Role::Publisher).await;
        let total = u64::from(HAULERS + OFFLINE + 2);
        let step = progress.step("window 1: large files, spools, a client that is killed", total);
        let whole = try_join_all((0..HAULERS).map(async |number| {
            let file = freight(&format!("film-{number}"), HAULED, from)?;
            let member = hauler::whole(who(&format!("camera-{number}")).await?, http, &file).await?;
            step.advance();
            anyhow::Ok(member)
        }));
        let interrupted = async {
            let file = freight("map", INTERRUPTED, from)?;
            let done = hauler::interrupted(who("survey").await?, http, &file).await?;
            step.advance();
            anyhow::Ok(done)
        };
        let killed = async {
            let file = freight("soundings", KILLED, from)?;
            let done = killed(who("buoy").await?, &stage.directory("buoy")?, file).await?;
            step.advance();
            anyhow::Ok(done)
        };
        let online = try_join_all(offline.into_iter().map(async |offline| {
            let done = offline.come_online().await?;
            step.advance();
            anyhow::Ok(done)
        }));
        let (whole, (cut_off, interrupted), (restarted, killed), online) =
            tokio::try_join!(whole, interrupted, killed, online)?;
        step.end();
        progress.say(&format!("survey was cut off in mid-transfer: {interrupted}"));
        progress.say(&format!("buoy's client was killed in mid-transfer: {killed}"));
        let bundles = online.iter().map(|(_, bundles)| bundles).sum();
        let mut members = whole;
        members.extend([cut_off, restarted]);
        members.extend(online.into_iter().map(|(member, _)| member));
        let bytes = u64::from(HAULERS) * HAULED + INTERRUPTED + KILLED;
        Ok(Self {
            members,
            large: Large { files: u64::from(HAULERS) + 2, bytes },
            interrupted,
            killed,
            offline: report::Offline { publishers: OFFLINE.into(), uploads, bundles },
        })
    }
}

/// Devices with files of several days in their spools, and how many files that are.
async fn offline(stage: &Stage, windows: &[Timestamp]) -> anyhow::Result<(Vec<Offline>, u64)> {
    let (mut devices, mut uploads) = (Vec::new(), 0);
    for number in 0..OFFLINE {
        let name = format!("field-{number}");
        let mut found = Vec::new();
        for (round, from) in (1..).zip(windows.iter().take(OFFLINE_WINDOWS)) {
            found.extend(files((OFFLINE_NUMBER + number) as usize, round, Habit::Plain, *from)?);
        }
        uploads += found.len() as u64;
        let who = stage.member(&name, Role::Publisher).await?;
        devices.push(Offline::push(who, stage.directory(&name)?, &found)?);
    }
    Ok((devices, uploads))
}

/// A large file of the window.
fn freight(upload: &str, size: u64, from: Timestamp) -> anyhow::Result<Freight> {
    Ok(Freight { upload: upload.parse()?, event_time: from, content: Content::new(upload, size) })
}
