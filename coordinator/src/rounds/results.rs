//! Versions of results, and the one that the pool's pointer names.

use millpond_protocol::{Code, Refusal};

use super::pool::Pool;
use super::{Fact, Reply, RoundNo, Version};

/// The pointer names the result of the newest batch, the one with the highest number in the chain. A rollback overrides
/// it, until a batch newer than all committed so far commits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Results {
    pub(super) versions: Version,
    pub(super) newest_committed: RoundNo,
    pub(super) pointer: Option<Version>,
}

impl Results {
    pub(super) fn next_version(&self) -> Version {
        self.versions + 1
    }

    /// The result of `round` becomes the next version.
    pub(super) fn commit(&mut self, round: RoundNo, facts: &mut Vec<Fact>) {
        self.versions += 1;
        if round > self.newest_committed {
            self.newest_committed = round;
            self.point(facts);
        }
    }

    /// The pointer names the newest version.
    fn point(&mut self, facts: &mut Vec<Fact>) {
        self.pointer = Some(self.versions);
        facts.push(Fact::Pointer { version: self.versions });
    }
}

impl Pool {
    /// Publishes an old version again, as a new one.
    pub(super) fn roll_back(&mut self, of: Version, facts: &mut Vec<Fact>) -> Result<Reply, Refusal> {
        if !(1..=self.results.versions).contains(&of) {
            return Err(Refusal::new(Code::NotFound, format!("the pool has no version {of}")));
        }
        self.results.versions += 1;
        self.results.point(facts);
        Ok(Reply::RolledBack { version: self.results.versions })
    }
}
