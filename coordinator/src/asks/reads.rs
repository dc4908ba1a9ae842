//! `time`, `status`, `history`, `get`, `latest` and `complete`: what members ask beside rounds.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use millpond_protocol::message::{Outcome, answer, ask};
use millpond_protocol::{Code, FileName, MemberName, Principal, Refusal, Role, UploadId, limits};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::Asks;
use crate::dispatch;
use crate::grants::Grants;
use crate::ledger::grants::{self, Grant, Target};
use crate::ledger::history::{self, Of};
use crate::ledger::manage::{find_member, find_pool};
use crate::ledger::{PoolId, bodies, error::not_found, now, objects};
use crate::rounds::Event;

pub(super) fn time() -> answer::Time {
    answer::Time { time: now() }
}

/// Whose uploads `who` may look at: one's own; an operator names anybody's.
fn owner(who: &Principal, named: Option<MemberName>) -> Result<Option<MemberName>, Refusal> {
    match (who.role, named) {
        (Role::Operator, named) => Ok(named),
        (_, None) => Ok(Some(who.name.clone())),
        (_, Some(named)) if named == who.name => Ok(Some(named)),
        (_, Some(_)) => Err(Refusal::new(Code::Unauthorized, "you see your own uploads")),
    }
}

pub(super) async fn status(
    asks: &Asks,
    who: &Principal,
    ask: ask::Status,
) -> Result<answer::UploadInfo, Refusal> {
    let owner =
        owner(who, ask.member)?.ok_or_else(|| Refusal::new(Code::Malformed, "name the upload's `member`"))?;
    let (pool, progress) = (who.pool.clone(), asks.grants.clone());
    asks.ledger
        .read(move |sql| {
            let pool = find_pool(sql, &pool)?;
            let missing = || not_found(format!("upload {} of {owner}", ask.upload));
            let (member, _) = find_member(sql, pool, &owner)?.ok_or_else(missing)?;
            if let Some((_, info)) = history::upload(sql, member, &ask.upload)? {
                return Ok(info);
            }
            let grant = grants::grant_for(sql, pool, member, &Target::Upload(ask.upload.clone()))?;
            let grant = grant.ok_or_else(missing)?;
            Ok(granted(ask.upload, &grant, &progress))
        })
        .await
}

/// What there is to say of an upload that does not count yet.
pub(crate) fn granted(upload: UploadId, grant: &Grant, progress: &Grants) -> answer::UploadInfo {
    let pending = grant.verifying.is_some();
    answer::UploadInfo {
        member: grant.who.name.clone(),
        outcome: if pending { Outcome::Pending } else { Outcome::Granted },
        name: grant.name.clone().unwrap_or_else(|| FileName::from(&upload)),
        upload,
        size: grant.object.size,
        sha256: grant.object.sha256,
        event_time: grant.event_time.unwrap_or(grant.received),
        label: grant.label.clone(),
        received: grant.received,
        late: false,
        clamped: false,
        batch: None,
        batch_state: None,
        round: None,
        round_state: None,
        version: None,
        superseded: false,
        rule: None,
        expired: None,
        expires: Some(grant.expires),
        verified: pending.then(|| progress.progress(grant)),
        problem: grant.problem.as_ref().map(|problem| problem.message.clone()),
    }
}

pub(super) async fn history(
    asks: &Asks,
    who: &Principal,
    ask: ask::History,
    head: &ask::Head,
) -> Result<Value, Refusal> {
    let owner = owner(who, None)?;
    let pool = who.pool.clone();
    let room = super::room(head);
    asks.ledger
        .read(move |sql| {
            let pool = find_pool(sql, &pool)?;
            // No item is shorter than that, so a page is never longer than what fits.
            let (before, max) = (super::cursor(ask.cursor.as_deref())?, room / 128 + 1);
            match ask.of {
                ask::HistoryOf::Uploads => {
                    let of = uploads_of(sql, pool, owner.as_ref(), ask.batch)?;
                    Ok(super::fitting("uploads", history::uploads(sql, pool, of, before, max)?, room)?)
                }
                ask::HistoryOf::Results => {
                    let found = history::results(sql, pool, before, max)?;
                    let numbered = found.into_iter().map(|result| (result.version, result)).collect();
                    Ok(super::fitting("results", numbered, room)?)
                }
            }
        })
        .await
}

fn uploads_of(
    sql: &Connection,
    pool: PoolId,
    owner: Option<&MemberName>,
    batch: Option<u64>,
) -> crate::ledger::Result<Of> {
    let Some(owner) = owner else { return Ok(batch.map_or(Of::Pool, Of::Batch)) };
    let (member, _) = find_member(sql, pool, owner)?.ok_or_else(|| not_found(format!("member {owner}")))?;
    Ok(batch.map_or(Of::Member(member), |batch| Of::MemberInBatch(member, batch)))
}

pub(super) async fn get(
    asks: &Asks,
    who: &Principal,
    ask: ask::Get,
    head: &ask::Head,
) -> Result<answer::Bytes, Refusal> {
    let room = super::room(head);
    match (ask.upload, ask.version) {
        (Some(upload), None) => {
            let owner = owner(who, ask.member)?
                .ok_or_else(|| Refusal::new(Code::Malformed, "name the upload's `member`"))?;
            let pool = who.pool.clone();
            let found = asks
                .ledger
                .read(move |sql| {
                    let pool = find_pool(sql, &pool)?;
                    let missing = || not_found(format!("upload {upload} of {owner}"));
                    let (member, _) = find_member(sql, pool, &owner)?.ok_or_else(missing)?;
                    bodies::upload_body(sql, member, &upload)?.ok_or_else(missing)
                })
                .await?;
            let bytes = match found.object {
                Some(_) => None,
                None => Some(dispatch::read_small(&asks.ledger, &asks.storage, found.seq).await?),
            };
            let object = found.object.map(|object| (object, limits::URL_VALIDITY));
            body(asks, found.name, found.size, found.sha256, bytes.as_deref(), object, room)
        }
        (None, Some(version)) => {
            let pool = who.pool.clone();
            let found = asks
                .ledger
                .read(move |sql| {
                    let pool = find_pool(sql, &pool)?;
                    bodies::result_body(sql, pool, version)?
                        .ok_or_else(|| not_found(format!("version {version}")))
                })
                .await?;
            let object = Some((found.object, limits::RESULT_URL_VALIDITY));
            body(asks, found.name, found.size, found.sha256, found.data.as_deref(), object, room)
        }
        _ => Err(Refusal::new(Code::Malformed, "name either `upload` or `version`")),
    }
}

fn body(
    asks: &Asks,
    name: millpond_protocol::FileName,
    size: u64,
    sha256: millpond_protocol::Sha256,
    bytes: Option<&[u8]>,
    object: Option<(objects::Object, Duration)>,
    room: usize,
) -> Result<answer::Bytes, Refusal> {
    let mut answer = answer::Bytes { name, size, sha256, data: None, url: None, url_expires: None };
    match (bytes, object) {
        // 1 KiB is more than the keys around the data take.
        (Some(bytes), _) if bytes.len() * 4 / 3 + 1_024 <= room => answer.data = Some(BASE64.encode(bytes)),
        (_, Some((object, validity))) => {
            let url = asks.storage.presign_get(&object.key, validity, now());
            answer.url = Some(url.url.to_string());
            answer.url_expires = Some(url.expires_at);
        }
        (_, None) => {
            return Err(Refusal::new(
                Code::TooLarge,
                format!("the file has {size} bytes and does not fit the answer"),
            )
            .limit(room as u64)
            .hint(format!("name a larger max_answer, up to {}", limits::ANSWER_MAX)));
        }
    }
    Ok(answer)
}

pub(super) async fn latest(asks: &Asks, who: &Principal) -> Result<Value, Refusal> {
    let pointer = asks.states.pointer(&who.pool).await?;
    Ok(json!({ "result": pointer }))
}

pub(super) async fn complete(
    asks: &Asks,
    who: &Principal,
    ask: ask::Complete,
    head: &ask::Head,
) -> Result<Value, Refusal> {
    let event = match (ask.through, ask.label) {
        (Some(through), None) => Event::CompleteThrough { member: who.id, through },
        (None, Some(label)) => Event::CompleteLabel { member: who.id, label },
        _ => return Err(Refusal::new(Code::Malformed, "name either `through` or `label`")),
    };
    let (who, id) = (who.clone(), head.id.clone());
    asks.ledger
        .write(move |tx| {
            let pool = tx.pool_of(&who)?;
            let Some(id) = id else {
                return Err(Refusal::new(Code::Malformed, "complete needs an id").into());
            };
            if let Some(answer) = tx.remembered(&who, "complete", id.as_str())? {
                return Ok(answer);
            }
            tx.apply(pool, event)?;
            let answer = json!({});
            tx.remember(&who, "complete", id.as_str(), &answer)?;
            Ok(answer)
        })
        .await
}
