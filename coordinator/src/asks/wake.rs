//! Waiting until grants of a pool change.

use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::Refusal;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::ledger::{Commit, PoolId};

/// The least time between two looks at the rows, save the first: many wait at once, and each look reads all that one
/// waits for.
const PAUSE: Duration = Duration::from_millis(200);

/// Tells when it is worth to look at grants of a pool again, until the time is over.
pub(super) struct Wake {
    commits: Receiver<Arc<Commit>>,
    pool: PoolId,
    deadline: Instant,
    /// No look before that.
    next: Instant,
}

impl Wake {
    /// To be made before the first look: what commits after it is in the channel.
    pub(super) fn new(commits: Receiver<Arc<Commit>>, pool: PoolId, deadline: Instant) -> Self {
        Self { commits, pool, deadline, next: Instant::now() }
    }

    /// Waits until grants of the pool changed; false when the time is over.
    ///
    /// # Errors
    /// The server is stopping.
    pub(super) async fn wait(&mut self) -> Result<bool, Refusal> {
        if Instant::now() >= self.deadline {
            return Ok(false);
        }
        loop {
            match tokio::time::timeout_at(self.deadline, self.commits.recv()).await {
                Err(_) => return Ok(false),
                Ok(Ok(commit)) if !commit.pools.get(&self.pool).is_some_and(|change| change.grants) => {}
                Ok(Ok(_) | Err(RecvError::Lagged(_))) => break,
                Ok(Err(RecvError::Closed)) => return Err(Refusal::unavailable("the server is stopping")),
            }
        }
        tokio::time::sleep_until(self.next.min(self.deadline)).await;
        self.next = Instant::now() + PAUSE;
        // The look that comes now sees what was committed until now.
        self.commits = self.commits.resubscribe();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;
    use crate::ledger::PoolChange;

    fn grants_of(pool: PoolId) -> Arc<Commit> {
        let mut commit = Commit::default();
        commit.pools.insert(pool, PoolChange { grants: true, ..PoolChange::of("p".parse().unwrap()) });
        Arc::new(commit)
    }

    #[tokio::test]
    async fn the_grants_of_other_pools_wake_nobody() {
        let (send, receive) = broadcast::channel(8);
        let mut wake = Wake::new(receive, 1, Instant::now() + Duration::from_millis(50));
        send.send(grants_of(2)).unwrap();
        assert_eq!(wake.wait().await, Ok(false));
    }

    #[tokio::test]
    async fn however_often_grants_change_they_are_looked_at_now_and_then() {
        let (send, receive) = broadcast::channel(8);
        let begin = Instant::now();
        let mut wake = Wake::new(receive, 1, begin + Duration::from_secs(3_600));
        for looks in 0..4 {
            send.send(grants_of(1)).unwrap();
            send.send(grants_of(1)).unwrap();
            assert_eq!(wake.wait().await, Ok(true));
            assert!(begin.elapsed() >= PAUSE * looks);
        }
        // One look is enough for all that came before it.
        let more = tokio::time::timeout(PAUSE * 2, wake.wait()).await;
        assert!(more.is_err(), "{more:?}");
    }

    #[tokio::test]
    async fn changes_at_the_end_of_the_time_keep_nobody() {
        let (send, receive) = broadcast::channel(8);
        let mut wake = Wake::new(receive, 1, Instant::now());
        send.send(grants_of(1)).unwrap();
        assert_eq!(wake.wait().await, Ok(false));
    }
}
