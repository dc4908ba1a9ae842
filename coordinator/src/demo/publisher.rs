//! A publisher: a few small files a window, each with its own habit.

use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::{Sha256, Timestamp, UploadId, limits};

use super::link::{Beside, Credentials, Link};
use super::member::Member;

/// How a publisher sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    /// One message a file.
    Plain,
    /// Every message twice, and all of them again from a new connection.
    Repeats,
    /// All files of a window in one bundle.
    Bundles,
    /// Has one file in the first window that is larger than what the server keeps in its ledger.
    Larger,
    /// Finds one more file of the first window when that has been sealed already.
    Late,
}

impl Habit {
    pub(super) fn of(index: usize) -> Self {
        match index {
            0 => Self::Repeats,
            1 => Self::Bundles,
            2 => Self::Larger,
            3 => Self::Late,
            _ => Self::Plain,
        }
    }
}

/// A file on its way: its bytes are a function of its name, so nothing else need be kept.
pub(super) struct File {
    pub(super) upload: UploadId,
    pub(super) event_time: Timestamp,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct Publisher {
    pub(super) member: Member,
    pub(super) habit: Habit,
    who: Credentials,
    /// Publishes beyond the first of an upload.
    pub(super) repeats: u64,
}

impl Publisher {
    pub(super) async fn join(who: Credentials, habit: Habit) -> anyhow::Result<Self> {
        let member = Member::join(who.clone()).await?;
        Ok(Self { member, habit, who, repeats: 0 })
    }

    /// Sends the files as this publisher does, and waits for every acknowledgement and receipt.
    pub(super) async fn send(&mut self, files: &[File]) -> anyhow::Result<()> {
        if self.habit == Habit::Bundles {
            self.send_bundle(files).await?;
        } else {
            for file in files {
                put(&self.member.link, file).await?;
                if self.habit == Habit::Repeats {
                    put(&self.member.link, file).await?;
                }
            }
        }
        if self.habit == Habit::Repeats {
            let client_id = format!("{}-again", self.who.client_id);
            let again = Link::connect(Credentials { client_id, ..self.who.clone() }).await?;
            for file in files {
                put(&again, file).await?;
            }
            again.close().await;
            self.repeats += 2 * files.len() as u64;
        }
        for file in files {
            self.member.stored(&file.upload, Sha256::of(&file.bytes)).await?;
        }
        Ok(())
    }

    async fn send_bundle(&self, files: &[File]) -> anyhow::Result<()> {
        let entries = files.iter().map(|file| Entry {
            upload: file.upload.as_str(),
            event_time_ms: file.event_time.as_millis(),
            sha256: Some(Sha256::of(&file.bytes).0),
            data: &file.bytes,
            ..Entry::default()
        });
        let bundle =
            Bundle { clock_offset_ms: Some(0), complete_through_ms: None, entries: entries.collect() };
        let Some(first) = files.first() else { return Ok(()) };
        let topic = format!("mp/{}/c/{}/bundle/b-{}", self.who.pool, self.who.member, first.upload);
        self.member.link.publish(&topic, bundle::encode(&bundle)?, Beside::default()).await
    }
}

async fn put(link: &Link, file: &File) -> anyhow::Result<()> {
    let topic = format!("mp/{}/c/{}/up/{}", link.who.pool, link.who.member, file.upload);
    let user_properties = vec![
        ("event-time".to_owned(), file.event_time.to_string()),
        ("sha256".to_owned(), Sha256::of(&file.bytes).to_string()),
    ];
    let beside = Beside { user_properties, content_type: Some("application/octet-stream".to_owned()) };
    link.publish(&topic, file.bytes.clone(), beside).await
}

/// The files that the publisher with this number has for this round.
pub(super) fn files(number: usize, round: u64, habit: Habit, from: Timestamp) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for n in 0..3_u64 {
        let size = 512 + (number * 97 + n as usize * 331) % 3_000;
        files.push(file(number, &format!("r{round}-{n}"), size, from, n)?);
    }
    if habit == Habit::Larger && round == 1 {
        files.push(file(number, "r1-large", limits::SMALL_MAX + 70_000, from, 3)?);
    }
    Ok(files)
}

/// One file. Different publishers' files differ, the same file is always the same.
pub(super) fn file(
    number: usize,
    upload: &str,
    size: usize,
    from: Timestamp,
    n: u64,
) -> anyhow::Result<File> {
    let line = format!("publisher {number} upload {upload}\n");
    let bytes = line.bytes().cycle().take(size).collect();
    let event_time = from.after(std::time::Duration::from_millis(number as u64 + n));
    Ok(File { upload: upload.parse()?, event_time, bytes })
}
