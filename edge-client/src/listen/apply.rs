//! What comes after a result is shown: its command, and what the server is told.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_failpoint::{Point, reach};
use millpond_protocol::Sha256;
use millpond_protocol::message::{Delivery, DeliveryState};
use tokio::time::Instant;

use super::{ListenError, Listener, Report, Stage};
use crate::exec::Running;
use crate::session::SessionError;

/// How long a statement may wait for its acknowledgement.
const TELL: Duration = Duration::from_secs(30);

impl Listener<'_> {
    /// Runs the command for what is shown.
    pub(super) async fn apply(&mut self) -> Result<(), ListenError> {
        let (Some(line), Some(state)) = (&self.options.exec, self.shelf.state()) else {
            return self.applied(None).await;
        };
        let started = Running::start(line, |command| {
            command
                .env("MILLPOND_FILE", absolute(&self.shelf.file(state)))
                .env("MILLPOND_VERSION", state.version.to_string())
                .env("MILLPOND_NAME", state.name.as_str())
                .env("MILLPOND_SIZE", state.size.to_string())
                .env("MILLPOND_SHA256", state.sha256.to_string())
                .env("MILLPOND_CONTENT_TYPE", state.content_type.as_deref().unwrap_or_default())
                // Standard output is for what this program says.
                .stdout(io::stderr());
        });
        match started {
            Ok(running) => {
                self.command = Some((running, Instant::now() + self.options.exec_timeout));
                Ok(())
            }
            Err(error) => self.applied(Some(error.to_string())).await,
        }
    }

    /// The command has ended.
    pub(super) async fn applied(&mut self, failed: Option<String>) -> Result<(), ListenError> {
        reach(Point::ResultApplied);
        let stage = failed.map_or(Stage::Applied, Stage::Failed);
        let Some(state) = self.shelf.state().cloned() else { return Ok(()) };
        self.since = Instant::now();
        let noted = self.shelf.note(stage.clone(), false);
        self.unless_full(noted)?;
        match &stage {
            Stage::Failed(why) => (self.report)(Report::Failed(&state, why)),
            Stage::Applied | Stage::Shown => (self.report)(Report::Applied(&state)),
        }
        self.tell().await?;
        self.prune();
        Ok(())
    }

    /// Tells the server how far the shown version is, unless it knows.
    pub(super) async fn tell(&mut self) -> Result<(), ListenError> {
        let Some(state) = self.shelf.state().filter(|state| !state.told).cloned() else { return Ok(()) };
        let (delivery, reason) = match &state.stage {
            Stage::Shown => return Ok(()),
            Stage::Applied => (DeliveryState::Applied, None),
            Stage::Failed(why) => (DeliveryState::Failed, Some(why.clone())),
        };
        match self.say(state.version, delivery, state.sha256, reason).await {
            // A server that does not want to know need not be asked again.
            Ok(()) | Err(SessionError::Refused(_)) => {
                reach(Point::ResultTold);
                let noted = self.shelf.note(state.stage.clone(), true);
                self.unless_full(noted)
            }
            // At the next connection.
            Err(_) => Ok(()),
        }
    }

    /// By `&mut`: so that the whole of [`listen`] may run on a task of its own.
    pub(super) async fn say(
        &mut self,
        version: u64,
        state: DeliveryState,
        sha256: Sha256,
        reason: Option<String>,
    ) -> Result<(), SessionError> {
        let delivery = Delivery { state, sha256: Some(sha256), reason };
        let said = tokio::time::timeout(TELL, self.session.delivery(version, &delivery)).await;
        said.unwrap_or(Err(SessionError::Unanswered(TELL)))
    }
}

/// For a command that may run in another directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
