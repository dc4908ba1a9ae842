//! What storage has of a granted file.

use std::ops::RangeInclusive;
use std::sync::PoisonError;

use millpond_failpoint::{Point, reach};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Part, Stat};

use super::Grants;
use crate::ledger::grants::{Grant, GrantId};

/// Runs of missing parts that are named.
const NAMED: usize = 5;

/// What storage has of a granted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// All of it, and it is what was declared.
    Good,
    /// All of it by its length; only reading it tells whether it is what was declared.
    Unread,
    /// Not all of it.
    Missing(String),
    /// Something else.
    Differs(String),
}

impl Grants {
    /// Asks storage, without reading the object.
    ///
    /// # Errors
    /// Storage cannot be asked.
    pub async fn look(&self, grant: &Grant) -> Result<Look, Error> {
        if grant.verified {
            let found = self.storage.stat(&grant.object.key).await?;
            if found.is_some_and(|found| is_the_same(grant, &found)) {
                return Ok(Look::Good);
            }
            // It was there, and is not any more: somebody restored a backup, or emptied a bucket.
            let id = grant.id;
            let job = self.ledger.write(move |tx| tx.mark_unverified(id));
            job.await.map_err(|error| Error::Unavailable(error.to_string()))?;
        }
        if grant.part_size.is_some() {
            match self.parts(grant).await? {
                Some(parts) => return Ok(check(grant, &parts)),
                // It may have been completed.
                None if grant.multipart.is_some() => {}
                None => return Ok(Look::Missing("no part has been PUT yet".into())),
            }
        }
        let object = &grant.object;
        Ok(match self.storage.stat(&object.key).await? {
            None => Look::Missing("nothing has been PUT yet".into()),
            Some(stat) if stat.size != object.size => {
                Look::Differs(format!("storage has {} bytes, {} were declared", stat.size, object.size))
            }
            Some(stat) => match stat.sha256 {
                Some(found) if found == object.sha256 => Look::Good,
                Some(found) => Look::Differs(differs(found, object.sha256)),
                None => Look::Unread,
            },
        })
    }

    /// The parts that storage has; none if it knows no such upload.
    ///
    /// # Errors
    /// Storage cannot be asked.
    pub async fn parts(&self, grant: &Grant) -> Result<Option<Vec<Part>>, Error> {
        let Some(id) = &grant.multipart else { return Ok(None) };
        match self.storage.list_parts(&grant.object.key, id).await {
            Ok(parts) => Ok(Some(parts)),
            Err(Error::NoUpload) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object of the parts, where it came in parts, and reads it once. May be repeated at any point.
    ///
    /// # Errors
    /// Storage cannot be used.
    pub(super) async fn read_whole(&self, grant: &Grant) -> Result<Look, Error> {
        if let (Some(id), Some(parts)) = (&grant.multipart, self.parts(grant).await?) {
            let look = check(grant, &parts);
            if look != Look::Unread {
                return Ok(look);
            }
            let wanted: Vec<Part> = parts.into_iter().filter(|part| is_wanted(grant, part)).collect();
            self.storage.complete_multipart(&grant.object.key, id, &wanted).await?;
            reach(Point::PartsCompleted);
        }
        let _told = Told { grants: self, id: grant.id };
        let hashed = self.storage.hash(&grant.object.key, |read| self.tell(grant.id, read)).await;
        let (size, sha256) = match hashed {
            Ok(hashed) => hashed,
            Err(Error::NotFound) => return Ok(Look::Missing("the object is not there any more".into())),
            Err(error) => return Err(error),
        };
        metrics::counter!("millpond_verified_bytes_total").increment(size);
        Ok(if (size, sha256) == (grant.object.size, grant.object.sha256) {
            Look::Good
        } else {
            Look::Differs(differs(sha256, grant.object.sha256))
        })
    }

    fn tell(&self, id: GrantId, read: u64) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(id, read);
    }
}

/// Forgets how far a reading has come, however it ends.
struct Told<'a> {
    grants: &'a Grants,
    id: GrantId,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.grants.progress.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Whether this can be the object that was verified, by what storage knows of it.
fn is_the_same(grant: &Grant, found: &Stat) -> bool {
    found.size == grant.object.size && found.sha256.is_none_or(|sha256| sha256 == grant.object.sha256)
}

fn differs(found: Sha256, declared: Sha256) -> String {
    format!("the bytes have SHA-256 {found}, not {declared}")
}

/// Bytes of part `n` of a file in parts.
pub fn part_len(grant: &Grant, n: u64) -> Option<u64> {
    let (size, count) = (grant.part_size?, grant.part_count()?);
    match n {
        0 => None,
        n if n < count => Some(size),
        n if n == count => Some(grant.object.size - (count - 1) * size),
        _ => None,
    }
}

/// Whether the file has such a part, of that length.
pub fn is_wanted(grant: &Grant, part: &Part) -> bool {
    part_len(grant, part.n.into()) == Some(part.size)
}

/// Whether every part is there, with its length.
fn check(grant: &Grant, parts: &[Part]) -> Look {
    let there = runs(parts.iter().filter(|part| is_wanted(grant, part)).map(|part| u32::from(part.n)));
    let count = u32::try_from(grant.part_count().unwrap_or_default()).unwrap_or(u32::MAX);
    let mut missing = Vec::new();
    let mut next = 1;
    for run in &there {
        if *run.start() > next {
            missing.push((next, run.start() - 1));
        }
        next = run.end() + 1;
    }
    if next <= count {
        missing.push((next, count));
    }
    if missing.is_empty() {
        return Look::Unread;
    }
    let more = if missing.len() > NAMED { " and more" } else { "" };
    let named: Vec<_> = missing
        .iter()
        .take(NAMED)
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}–{last}") })
        .collect();
    Look::Missing(format!("of its {count} parts {}{more} are not there", named.join(", ")))
}

/// Numbers in rising order as runs without gaps.
pub fn runs(numbers: impl IntoIterator<Item = u32>) -> Vec<RangeInclusive<u32>> {
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some(run) if *run.end() + 1 == n => *run = *run.start()..=n,
            _ => runs.push(n..=n),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_runs_without_gaps() {
        assert_eq!(runs([]), []);
        assert_eq!(runs([1, 2, 3, 7, 9, 10]), [1..=3, 7..=7, 9..=10]);
    }
}
