//! A publisher without a network: its files wait in a spool, and all go in one bundle when there is one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use millpond_edge::sender::{self, Options, Report};
use millpond_edge::session;
use millpond_edge::spool::Spool;
use millpond_protocol::{Sha256, UploadId};

use super::super::link::Credentials;
use super::super::member::Member;
use super::super::publisher::File;
use super::{config, open, push};

/// What it does until it has a network.
pub(in super::super) struct Offline {
    who: Credentials,
    spool: Spool,
    waiting: BTreeMap<UploadId, Sha256>,
}

impl Offline {
    /// Puts the files into a spool in that directory.
    pub(in super::super) fn push(
        who: Credentials,
        directory: PathBuf,
        files: &[File],
    ) -> anyhow::Result<Self> {
        let mut spool = open(&directory)?;
        let mut waiting = BTreeMap::new();
        for file in files {
            push(&mut spool, &file.upload, file.event_time, file.bytes.as_slice())?;
            waiting.insert(file.upload.clone(), Sha256::of(&file.bytes));
        }
        ensure!(spool.entries()?.count() == files.len(), "the spool does not hold what was put into it");
        Ok(Self { who, spool, waiting })
    }

    /// Sends the spool, and joins the others. Answers the bundles that were sent.
    pub(in super::super) async fn come_online(mut self) -> anyhow::Result<(Member, u64)> {
        let _sending = self.spool.sending()?.context("somebody else sends from the spool")?;
        let (session, mut inbox) = session::open(config(&self.who).topics(sender::TOPICS));
        let mut stored = BTreeMap::new();
        let mut late = 0;
        let mut report = |report: Report<'_>| {
            if let Report::Stored(entry, receipt) = report {
                stored.extend(receipt.sha256.map(|sha256| (entry.upload.clone(), sha256)));
                late += u64::from(receipt.late || receipt.clamped);
            }
        };
        let options = Options::default();
        let summary = sender::flush(&mut self.spool, &session, &mut inbox, &options, &mut report).await?;
        session.close().await;
        let member = &self.who.member;
        ensure!(stored == self.waiting, "{member}: the receipts are not of what was in the spool");
        ensure!(late == 0, "{member}: {late} files are not where they belong");
        ensure!(self.spool.entries()?.next().is_none(), "{member}: the spool is not empty");
        let mut member = Member::join(self.who).await?;
        member.sent = stored;
        Ok((member, summary.bundles))
    }
}
