//! A client that is killed in the middle of a large file, and goes on when it is started again.
//!
//! Only a process can be killed: this program starts itself as one that does nothing but send a spool ([`client`]). The first time it
//! sends slowly, so that there is a middle; it is killed when the server says that a part is there.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use millpond_edge::sender::{self, Options, Summary};
use millpond_edge::session;
use millpond_edge::transfer::{self, Digests, Throttle, Transfer};
use millpond_protocol::access::Op;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, MemberName, PoolName, Refusal};
use serde_json::json;
use tokio::time::Instant;

use super::super::hauler::{Freight, PART, grant};
use super::super::link::{Credentials, Link};
use super::super::member::Member;
use super::super::report::Resumed;
use super::{config, open, push};

/// Bytes per second of the first process, which sends one part after the other: the first is there after a second, the
/// others would take many more.
const RATE: NonZeroU64 = NonZeroU64::new(PART).expect("a part is not empty");
/// How often to look how far a process is.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to have a part there, or to end.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the token is: the command line is for everybody to see.
const TOKEN: &str = "MILLPOND_DEMO_TOKEN";

/// Sends a file by a client that is killed and started again.
pub(in super::super) async fn killed(
    who: Credentials,
    directory: &Path,
    file: Freight,
) -> anyhow::Result<(Member, Resumed)> {
    let digests = file.content.digests(Some(PART)).await?;
    let spool = directory.join("spool");
    let (upload, event_time, content) = (file.upload.clone(), file.event_time, file.content);
    let into = spool.clone();
    let pushed = move || push(&mut open(&into)?, &upload, event_time, content.reader());
    let pushed = tokio::task::spawn_blocking(pushed).await??;
    ensure!(pushed == digests.sha256, "the spool took other bytes");

    let watch = Link::connect(Credentials { client_id: format!("{}-watch", who.client_id), ..who.clone() });
    let watch = watch.await?;
    // Not its receipts: they are for the client to see.
    watch.subscribe(&format!("mp/{}/d/{}/answer/#", who.pool, who.member)).await?;

    let mut first = Process::start(&who, &spool, directory.join("first"), Some(RATE))?;
    let until = Instant::now() + PATIENCE;
    let seen = loop {
        if let Some(status) = first.child.try_wait()? {
            bail!("the client that was to be killed ended before ({status}): {}", first.said());
        }
        match there(&watch, &file, &digests).await? {
            0 => ensure!(Instant::now() < until, "no part is there after {PATIENCE:?}: {}", first.said()),
            parts => break parts,
        }
        tokio::time::sleep(LOOK).await;
    };
    first.child.kill()?;
    let status = first.child.wait()?;
    ensure!(status.signal() == Some(9), "the client was to be killed and ended with {status}");

    let mut second = Process::start(&who, &spool, directory.join("second"), None)?;
    let status = second.wait().await?;
    ensure!(status.success(), "the client that was started again ended with {status}: {}", second.said());
    let summary: serde_json::Value = serde_json::from_str(&second.said())?;
    let sent = summary["bytes"].as_u64().context("a summary without bytes")?;
    ensure!((1..digests.size).contains(&sent), "killed in mid-transfer, the client sent {sent} bytes more");
    let kept = u32::try_from((digests.size - sent).div_ceil(PART))?;
    ensure!(kept >= seen, "{seen} parts were there when the client was killed, and it kept {kept}");

    let ask = json!({ "upload": file.upload });
    let info: UploadInfo = watch.ask(Op::Status, &ask).await?;
    ensure!(
        info.outcome == Outcome::Stored && info.sha256 == digests.sha256,
        "{} is not stored as it was sent",
        file.upload
    );
    watch.close().await;
    let mut member = Member::join(who).await?;
    member.sent.insert(file.upload, digests.sha256);
    let parts = u32::try_from(digests.parts.len())?;
    let resumed = Resumed { bytes: digests.size, parts, kept, sent: parts - kept, bytes_twice: None };
    Ok((member, resumed))
}

/// How many parts of the file the server says it has.
async fn there(watch: &Link, file: &Freight, digests: &Digests) -> anyhow::Result<u32> {
    // The grant is for the client to ask for.
    let status = watch.ask::<UploadInfo>(Op::Status, &json!({ "upload": file.upload })).await;
    match status {
        Ok(_) => {}
        Err(error) if error.downcast_ref::<Refusal>().is_some_and(|r| r.code == Code::NotFound) => {
            return Ok(0);
        }
        Err(error) => return Err(error),
    }
    let granted: answer::Put = grant(watch, file, digests, Some(PART), Vec::new()).await?;
    Ok(granted.there.iter().map(|(first, last)| last + 1 - first).sum())
}

/// This program as a client. Dropped, it is killed.
struct Process {
    child: Child,
    output: PathBuf,
}

impl Process {
    fn start(
        who: &Credentials,
        spool: &Path,
        output: PathBuf,
        rate: Option<NonZeroU64>,
    ) -> anyhow::Result<Self> {
        // Where there is no /proc, the way in which this process was started leads to the program too.
        let program = std::env::current_exe().ok().or_else(|| std::env::args_os().next().map(PathBuf::from));
        let mut command = Command::new(program.context("where this program is")?);
        command.arg("demo-client").arg("--mqtt").arg(who.mqtt.to_string());
        command.args(["--pool", who.pool.as_str(), "--member", who.member.as_str(), "--spool"]).arg(spool);
        if let Some(rate) = rate {
            command.arg("--rate").arg(rate.to_string());
        }
        let file = File::create(&output)?;
        // Its input is this program's, and not read: an empty root has no /dev/null either.
        command.env(TOKEN, &who.token).stdout(file.try_clone()?).stderr(file);
        Ok(Self { child: command.spawn()?, output })
    }

    async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "a client does not end: {}", self.said());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What it wrote.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process is told.
#[derive(Debug, clap::Args)]
pub struct Client {
    #[arg(long)]
    mqtt: std::net::SocketAddr,
    #[arg(long)]
    pool: PoolName,
    #[arg(long)]
    member: MemberName,
    #[arg(long)]
    spool: PathBuf,
    /// Bytes per second.
    #[arg(long)]
    rate: Option<NonZeroU64>,
}

/// What the process does: sends a spool.
///
/// # Errors
/// Whatever keeps it from sending all.
pub async fn client(args: Client) -> anyhow::Result<Summary> {
    let token = std::env::var(TOKEN).with_context(|| format!("{TOKEN} is not set"))?;
    let client_id = String::new();
    let who = Credentials { mqtt: args.mqtt, pool: args.pool, member: args.member, client_id, token };
    let mut spool = open(&args.spool)?;
    let _sending = spool.sending()?.context("another process sends from the spool")?;
    let throttle = Arc::new(args.rate.map_or_else(Throttle::unlimited, Throttle::new));
    let transfer = transfer::Options { throttle, parallel: 1, ..transfer::Options::default() };
    let options = Options { transfer: Arc::new(Transfer::new(transfer)), ..Options::default() };
    let (session, mut inbox) = session::open(config(&who).topics(sender::TOPICS));
    let summary = sender::flush(&mut spool, &session, &mut inbox, &options, &mut |_| ()).await?;
    session.close().await;
    ensure!(summary.left + summary.refused + summary.damaged == 0, "not everything was sent: {summary:?}");
    Ok(summary)
}
