//! A listener that keeps the newest result in a directory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use millpond_edge::listen::{self, Options, Report, Shelf, State};
use millpond_edge::session;
use millpond_edge::transfer::{self, Transfer};
use millpond_protocol::Sha256;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::super::link::Credentials;
use super::config;

/// How long a version may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A listener at work. Dropped, it ends.
pub(in super::super) struct Keeper {
    directory: PathBuf,
    /// The version that it shows and has told the server of.
    shown: watch::Receiver<Option<State>>,
    listening: AbortOnDropHandle<anyhow::Result<()>>,
}

impl Keeper {
    /// Begins to listen.
    pub(in super::super) fn begin(who: &Credentials, directory: PathBuf) -> anyhow::Result<Self> {
        let mut shelf = Shelf::open(&directory)?;
        let config = config(who).topics(listen::TOPICS);
        let (show, shown) = watch::channel(None);
        let listening = tokio::spawn(async move {
            let (session, mut inbox) = session::open(config);
            let transfer = Arc::new(Transfer::new(transfer::Options::default()));
            let options = Options::default();
            let mut report = |report: Report<'_>| {
                if let Report::Applied(state) = report {
                    let _ = show.send(Some(state.clone()));
                }
            };
            listen::listen(&mut shelf, &session, &mut inbox, &transfer, &options, &mut report).await?;
            Ok(())
        });
        Ok(Self { directory, shown, listening: AbortOnDropHandle::new(listening) })
    }

    /// Waits until it shows that version, and reads what it shows.
    pub(in super::super) async fn verify(&mut self, version: u64) -> anyhow::Result<Sha256> {
        let this = |state: &Option<State>| state.as_ref().is_some_and(|state| state.version >= version);
        let state = tokio::select! {
            shown = tokio::time::timeout(PATIENCE, self.shown.wait_for(this)) => {
                shown.context("the keeper waited in vain for the result")??.clone()
            }
            ended = &mut self.listening => {
                return Err(ended?.err().unwrap_or_else(|| anyhow!("it was closed")).context("the keeper ended"));
            }
        };
        let state = state.context("a version is shown")?;
        let current = self.directory.join("current");
        let found = move || transfer::digest(&current, state.size, None);
        let found = tokio::task::spawn_blocking(found).await??.sha256;
        ensure!(found == state.sha256, "what the keeper shows is not version {}", state.version);
        Ok(found)
    }
}
