//! From a verified object to a row that counts.

use bytes::Bytes;
use millpond_protocol::{Code, Principal, Refusal, Sha256, limits};
use millpond_storage::Error;

use super::Grants;
use crate::ledger::grants::{Grant, Target, grant};
use crate::ledger::results::Committed;
use crate::ledger::transfer::Cause;
use crate::ledger::uploads::Stored;

impl Grants {
    /// Counts uploads of one member, all of which are verified, together or, on an error, not at all.
    ///
    /// # Errors
    /// `conflict` if one of the grants is not any more what it was; the ledger's.
    pub async fn count_uploads(&self, who: &Principal, grants: Vec<Grant>) -> Result<Vec<Stored>, Refusal> {
        let who = who.clone();
        let job = self.ledger.write(move |tx| {
            for known in &grants {
                let standing = grant(tx.sql(), known.id)?;
                if standing.is_none_or(|standing| standing.verifying != known.verifying) {
                    let message = format!("the grant of {} has changed meanwhile", known.target);
                    return Err(Refusal::new(Code::Conflict, message).hint("ask `status`").into());
                }
            }
            tx.count_uploads(&who, &grants)
        });
        job.await
    }

    /// The bytes of a result that `result/data` shows, where they are few enough.
    ///
    /// # Errors
    /// Storage cannot be used.
    pub async fn inline(&self, grant: &Grant) -> Result<Option<Bytes>, Error> {
        if !matches!(grant.target, Target::Result { .. }) || grant.object.size > limits::SMALL_MAX as u64 {
            return Ok(None);
        }
        let bytes = self.storage.get(&grant.object.key, limits::SMALL_MAX).await?;
        if Sha256::of(&bytes) == grant.object.sha256 {
            Ok(Some(bytes))
        } else {
            Err(Error::Mismatch("the object was replaced while it was read".into()))
        }
    }

    /// Commits a result whose object is verified, for whom nobody waits any more.
    pub(super) async fn count_result(&self, known: Grant) -> Result<Option<Committed>, Refusal> {
        let data = self.inline(&known).await.map_err(|error| super::unavailable(&error))?;
        let job = self.ledger.write(move |tx| {
            let Some(grant) = grant(tx.sql(), known.id)? else { return Ok(None) };
            let who = grant.who.clone();
            let committed = tx.count_result(&who, &grant, data)?;
            if let (Some(committed), Target::Result { round, attempt }) = (&committed, &grant.target) {
                tx.close_round(grant.pool, *round, *attempt, committed.version)?;
            }
            Ok(committed)
        });
        job.await
    }

    /// Gives grants up that are still there, and says which; one that was to end by its time may have been renewed
    /// meanwhile, and is open again with those that were to count with it.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn end(&self, ended: Vec<Grant>, cause: Cause) -> Result<Vec<Grant>, Refusal> {
        let job = self.ledger.write(move |tx| {
            let mut gone = Vec::new();
            for known in ended {
                let Some(standing) = grant(tx.sql(), known.id)? else { continue };
                if cause == Cause::Expired && standing.expires > tx.now() {
                    if let Some(set) = standing.verifying {
                        let why = format!("{} is not there yet, and was renewed", standing.target);
                        tx.reopen_grants(standing.pool, set, &Refusal::new(Code::NotFound, why))?;
                    }
                    continue;
                }
                tx.end_grant(&standing, cause)?;
                gone.push(standing);
            }
            Ok(gone)
        });
        job.await
    }
}
