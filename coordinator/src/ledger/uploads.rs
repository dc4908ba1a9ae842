//! Uploads as rows: the row is the upload's receipt and its event too.

use millpond_protocol::message::{Outcome, Receipt};
use millpond_protocol::{Code, FileName, Label, Principal, Refusal, Sha256, Timestamp, UploadId, limits};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::quota::row_bytes;
use super::transfer::Cause;
use super::tx::Tx;
use super::{PoolId, Result, number, row_id};
use crate::rounds::acceptance::{self, Candidate, Rejection};
use crate::rounds::policy::Grouping;
use crate::rounds::{Batch, Event, Group, Reply, Upload};

/// Flag of an upload whose own window or label was closed.
pub const LATE: u32 = 1;
/// Flag of an upload whose event time lay in the future.
pub const CLAMPED: u32 = 2;

/// An upload on its way into the ledger.
#[derive(Debug, Clone)]
pub struct NewUpload {
    pub upload: UploadId,
    pub name: Option<FileName>,
    pub content_type: Option<String>,
    /// JSON.
    pub meta: Option<String>,
    pub label: Option<Label>,
    pub event_time: Option<Timestamp>,
    /// The time of receipt, if that was before now: of a file that was granted then.
    pub received: Option<Timestamp>,
    pub sha256: Sha256,
    pub sha256_declared: bool,
    pub size: u64,
    pub bundle: Option<String>,
    pub body: Body,
}

impl NewUpload {
    /// A small file of which nothing more is said.
    pub fn inline(upload: UploadId, bytes: bytes::Bytes) -> Self {
        Self {
            upload,
            name: None,
            content_type: None,
            meta: None,
            label: None,
            event_time: None,
            received: None,
            sha256: Sha256::of(&bytes),
            sha256_declared: false,
            size: bytes.len() as u64,
            bundle: None,
            body: Body::Inline(bytes),
        }
    }
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub enum Body {
    Inline(bytes::Bytes),
    /// Row of an object that is in storage, verified.
    Object(i64),
}

/// The receipt of a row, and whether it is new.
#[derive(Debug, Clone)]
pub struct Stored {
    pub receipt: Receipt,
    pub repeated: bool,
}

impl Tx<'_> {
    /// Stores an upload once: a repeat gets the first receipt, other bytes under the same key are a `conflict`.
    ///
    /// # Errors
    /// `conflict`; `rejected` while the upload's grant is open. What the pool's rules reject otherwise is no error but a
    /// row.
    pub fn store_upload(&mut self, pool: PoolId, who: &Principal, new: NewUpload) -> Result<Stored> {
        if let Some(receipt) = find_receipt(self.sql, who.id, new.upload.as_str())? {
            if receipt.sha256 != Some(new.sha256) {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("upload {} exists with other bytes (it is not replaced)", new.upload),
                )
                .hint("use a new upload id for other bytes")
                .into());
            }
            return Ok(Stored { receipt, repeated: true });
        }
        let granted = self.granted(pool, who, &new)?;
        // A file that was granted counts since then.
        let uncounted = granted.is_none() && new.received.is_none();
        let (size, row) = (new.size, row_bytes(&new));
        let candidate = Candidate {
            size: new.size,
            declares_sha256: new.sha256_declared,
            has_label: new.label.is_some(),
        };
        let placed = match acceptance::accept(self.core(pool)?.policy(), &candidate) {
            Err(rejection) => {
                // Of a rejected file that was granted there is no row.
                if uncounted {
                    self.check_kept(pool, row)?;
                }
                Err(rejection)
            }
            // A caller that thought the rules would refuse it has not brought the bytes.
            Ok(()) if matches!(&new.body, Body::Inline(data) if data.len() as u64 != new.size) => {
                return Err(
                    Refusal::unavailable("the pool's rules changed just now: send the upload again").into()
                );
            }
            Ok(()) => {
                if uncounted {
                    self.check_kept(pool, size.saturating_add(row))?;
                }
                self.place(pool, who, &new)?
            }
        };
        match (granted, &placed) {
            // A rejection would be a row and take the id from the file that was granted.
            (Some(_), Err(rejection)) => {
                return Err(Refusal::from(rejection.clone())
                    .hint("the upload's grant is open as before: `commit` or `abort` it")
                    .into());
            }
            (Some(grant), Ok(_)) => self.end_grant(&grant, Cause::Published)?,
            (None, _) => {}
        }
        self.insert(pool, who, new, placed)
    }

    /// Asks the core for the batch.
    fn place(
        &mut self,
        pool: PoolId,
        who: &Principal,
        new: &NewUpload,
    ) -> Result<std::result::Result<Reply, Rejection>> {
        let core = self.core(pool)?;
        let label = new.label.as_ref().filter(|_| core.policy().grouping == Grouping::Label);
        let parts = match label.filter(|label| !core.has_open_part(label, self.now)) {
            Some(label) => parts(self.sql, pool, label)?,
            None => 0,
        };
        let event = Event::Upload(Upload {
            member: who.id,
            event_time: new.event_time,
            received: new.received,
            label: new.label.clone(),
            parts,
            size: new.size,
        });
        match self.apply(pool, event)? {
            Reply::Rejected { rejection, .. } => Ok(Err(rejection)),
            reply => Ok(Ok(reply)),
        }
    }

    fn insert(
        &mut self,
        pool: PoolId,
        who: &Principal,
        new: NewUpload,
        placed: std::result::Result<Reply, Rejection>,
    ) -> Result<Stored> {
        let seq = row_id(pool, self.next_seq(pool)?);
        self.keep(pool, row_bytes(&new));
        let received = new.received.unwrap_or(self.now);
        let (batch, event_time, flags, first) = match &placed {
            Ok(Reply::Placed { batch, event_time, late, clamped, first_of_member }) => {
                let flags = u32::from(*late) * LATE + u32::from(*clamped) * CLAMPED;
                (Some(*batch), *event_time, flags, *first_of_member)
            }
            _ => (None, new.event_time.unwrap_or(received), 0, false),
        };
        let rejection = placed.err();
        let rule = rejection.as_ref().map(|rejection| rejection.rule.as_str());
        let why = rejection.map(|rejection| rejection.why);
        let batch_id = batch.map(|batch| row_id(pool, batch));
        let object = match &new.body {
            Body::Object(id) if rule.is_none() => Some(*id),
            Body::Object(_) | Body::Inline(_) => None,
        };
        self.sql
            .prepare_cached(
                "INSERT INTO uploads (seq, member_id, upload, batch_id, rule, why, name, content_type, label, meta, size, \
                 sha256, event_time, received, flags, bundle, object_id) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            )?
            .execute(params![
                seq,
                who.id,
                new.upload.as_str(),
                batch_id,
                rule,
                why,
                new.name.as_ref().map(FileName::as_str),
                new.content_type,
                new.label.as_ref().map(Label::as_str),
                new.meta,
                new.size,
                new.sha256.0.as_slice(),
                event_time.as_millis(),
                received.as_millis(),
                flags,
                new.bundle,
                object
            ])?;
        if let Some(batch_id) = batch_id {
            self.count(batch_id, who, &new, seq, first)?;
            self.keep(pool, new.size);
        }
        self.change(pool)?.uploads = true;
        self.effects.commit.receipts.insert((who.pool.clone(), who.name.clone()));
        self.effects.made.upload(rule.is_some(), new.size);
        let receipt = receipt(
            new.upload.as_str().to_owned(),
            batch,
            rule.zip(why.as_deref()),
            event_time,
            flags,
            new.sha256,
            new.bundle,
        );
        Ok(Stored { receipt, repeated: false })
    }

    /// Keeps the bytes, and what the batch's row will say after the flush.
    fn count(
        &mut self,
        batch_id: i64,
        who: &Principal,
        new: &NewUpload,
        seq: i64,
        first: bool,
    ) -> Result<()> {
        let mut small = 0;
        match &new.body {
            Body::Inline(data) => {
                small = limits::packed(new.size);
                self.sql
                    .prepare_cached("INSERT INTO payloads (seq, data) VALUES (?1, ?2)")?
                    .execute(params![seq, data.as_ref()])?;
            }
            Body::Object(id) => {
                self.live_object(*id)?;
            }
        }
        if first {
            // The upload itself may have made the batch due, and it was carried on before this row.
            self.sql
                .prepare_cached(
                    "INSERT INTO batch_members (batch_id, member_id, uploaded) \
                     SELECT coalesce(carried_into, id), ?2, 1 FROM batches WHERE id = ?1 \
                     ON CONFLICT DO UPDATE SET uploaded = 1",
                )?
                .execute(params![batch_id, who.id])?;
        }
        let sum = self.effects.batches.entry(batch_id).or_default();
        *sum = (sum.0 + 1, sum.1 + new.size, sum.2 + small);
        Ok(())
    }
}

/// The last batch of a label.
const LAST_PART: &str =
    "SELECT record FROM batches WHERE pool_id = ?1 AND label = ?2 ORDER BY id DESC LIMIT 1";

/// How many parts of a label were opened so far.
fn parts(sql: &Connection, pool: PoolId, label: &Label) -> Result<u32> {
    let last: Option<String> = sql
        .prepare_cached(LAST_PART)?
        .query_row(params![pool, label.as_str()], |row| row.get(0))
        .optional()?;
    let Some(record) = last else { return Ok(0) };
    Ok(match serde_json::from_str::<Batch>(&record)?.group {
        Group::Label { part, .. } => part,
        Group::Window { .. } | Group::Count => 0,
    })
}

/// The receipt of a member's upload.
pub fn find_receipt(sql: &Connection, member: i64, upload: &str) -> Result<Option<Receipt>> {
    let receipt = sql
        .prepare_cached(&format!("SELECT {RECEIPT} FROM uploads WHERE member_id = ?1 AND upload = ?2"))?
        .query_row(params![member, upload], receipt_of)
        .optional()?;
    Ok(receipt)
}

/// At most `max` receipts of a member after `after`, oldest first, each with its seq.
pub fn receipts_after(sql: &Connection, member: i64, after: i64, max: usize) -> Result<Vec<(i64, Receipt)>> {
    let mut statement = sql.prepare_cached(&format!(
        "SELECT {RECEIPT}, seq FROM uploads WHERE member_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"
    ))?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![member, after, max], |row| Ok((row.get(8)?, receipt_of(row)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

const RECEIPT: &str = "upload, batch_id, rule, why, event_time, flags, sha256, bundle";

fn receipt_of(row: &Row<'_>) -> rusqlite::Result<Receipt> {
    let (rule, why): (Option<String>, Option<String>) = (row.get(2)?, row.get(3)?);
    Ok(receipt(
        row.get(0)?,
        row.get::<_, Option<i64>>(1)?.map(number),
        rule.as_deref().zip(why.as_deref()),
        Timestamp::clamped(row.get(4)?),
        row.get(5)?,
        Sha256(row.get(6)?),
        row.get(7)?,
    ))
}

fn receipt(
    upload: String,
    batch: Option<u64>,
    rejected: Option<(&str, &str)>,
    event_time: Timestamp,
    flags: u32,
    sha256: Sha256,
    bundle: Option<String>,
) -> Receipt {
    Receipt {
        upload,
        outcome: if rejected.is_some() { Outcome::Rejected } else { Outcome::Stored },
        batch,
        event_time: Some(event_time),
        late: flags & LATE != 0,
        clamped: flags & CLAMPED != 0,
        sha256: Some(sha256),
        bundle,
        error: rejected.map(|(rule, why)| Refusal::new(Code::Rejected, format!("{rule}: {why}"))),
    }
}

/// Where the replay of a member's receipts after `cursor` begins: those beyond the number and the age that are kept are
/// not sent again.
pub fn replay_from(sql: &Connection, member: i64, cursor: i64, now: Timestamp) -> Result<i64> {
    let kept = i64::try_from(limits::RECEIPTS_KEPT).unwrap_or(i64::MAX);
    let by_count: Option<i64> = sql
        .prepare_cached(
            "SELECT seq FROM uploads WHERE member_id = ?1 AND seq > ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?3",
        )?
        .query_row(params![member, cursor, kept], |row| row.get(0))
        .optional()?;
    let from = by_count.unwrap_or(cursor);
    let since = now.before(limits::RECEIPTS_KEPT_FOR).as_millis();
    let by_age: Option<i64> = sql
        .prepare_cached("SELECT max(seq) FROM uploads WHERE member_id = ?1 AND seq > ?2 AND received < ?3")?
        .query_row(params![member, from, since], |row| row.get(0))?;
    Ok(by_age.unwrap_or(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_label_is_found_by_one_row_of_an_index() {
        let steps = crate::ledger::plan(LAST_PART);
        assert_eq!(steps, ["SEARCH batches USING INDEX batches_label (pool_id=? AND label=?)"]);
    }
}
