//! A server that is not there: what is said of it, and how long a listener waits that is to end.

use tokio::time::Instant;

use super::{ListenError, Listener, Report};
use crate::session::Cause;

impl Listener<'_> {
    /// There is no connection. The same reason is said once, however many attempts it ends.
    pub(super) fn offline(&mut self, cause: Cause) {
        if self.offline.as_ref() != Some(&cause) {
            (self.report)(Report::Offline(&cause));
            self.offline = Some(cause);
        }
    }

    /// With `once`: until when something has to come. What is on its way has a limit of its own.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waits = self.options.once && self.download.is_none() && self.command.is_none();
        waits.then(|| self.since + self.options.patience)
    }

    /// Why nothing came.
    pub(super) fn in_vain(&self) -> ListenError {
        if !self.session.is_connected() {
            let cause = self.offline.clone();
            return ListenError::Offline(
                cause.unwrap_or_else(|| Cause::Lost("no attempt came to an end".into())),
            );
        }
        let why = match (&self.trouble, self.shelf.state()) {
            (Some(why), _) => why.clone(),
            (None, Some(state)) if self.pointed => {
                format!("the server does not take what became of version {}", state.version)
            }
            (None, _) => "the server names no result".to_owned(),
        };
        ListenError::InVain { waited: self.options.patience, why }
    }
}
