//! `/v1/pools/{pool}/uploads`: what became of uploads, and why.

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::{Code, MemberName, PoolName, Refusal, Timestamp, UploadId, limits};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::Deserialize;

use super::Api;
use super::api::{UploadStory, Uploads};
use super::auth::Caller;
use super::error::{Answer, Asked, Params};
use super::page::{self, Page};
use crate::asks;
use crate::grants::Grants;
use crate::ledger::grants::{Grant, Target, grant_for};
use crate::ledger::history::{self, Of};
use crate::ledger::{PoolId, Result, error::not_found, manage, now, number, row_id};
use crate::retention::explain;
use crate::retention::plan::Verdict;
use crate::rounds::{Batch, Group, Round, RoundState};

/// The query of a list.
#[derive(Deserialize)]
pub(super) struct Which {
    member: Option<MemberName>,
    batch: Option<u64>,
    limit: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(which): Asked<Which>,
) -> Answer<Uploads> {
    caller.check(&pool, Action::Inspect)?;
    let asked = Page::new(which.limit, which.cursor);
    let (limit, before) = (asked.limit()?, asked.before()?);
    let uploads: Vec<(u64, UploadInfo)> = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let member = match &which.member {
                Some(name) => Some(newest(sql, pool, name)?),
                None => None,
            };
            let of = match (member, which.batch) {
                (None, None) => Of::Pool,
                (Some(member), None) => Of::Member(member),
                (None, Some(batch)) => Of::Batch(batch),
                (Some(member), Some(batch)) => Of::MemberInBatch(member, batch),
            };
            history::uploads(sql, pool, of, before, limit)
        })
        .await?;
    let cursor = page::next(&uploads, limit, |(number, _)| *number);
    Ok(Json(Uploads { uploads: uploads.into_iter().map(|(_, upload)| upload).collect(), cursor }))
}

/// The id that a member's name stands for, or stood for last.
fn newest(sql: &Connection, pool: PoolId, name: &MemberName) -> Result<i64> {
    sql.prepare_cached("SELECT id FROM members WHERE pool_id = ?1 AND name = ?2 ORDER BY id DESC LIMIT 1")?
        .query_row(params![pool, name.as_str()], |row| row.get(0))
        .optional()?
        .ok_or_else(|| not_found(format!("member {name}")))
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, member, upload)): Params<(PoolName, MemberName, UploadId)>,
) -> Answer<UploadStory> {
    caller.check(&pool, Action::Inspect)?;
    let grants = api.0.asks.grants.clone();
    let story = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            // The newest member of that name who has such an upload.
            let seq: Option<i64> = sql
                .prepare_cached(
                    "SELECT u.seq FROM members m JOIN uploads u ON u.member_id = m.id \
                     WHERE m.pool_id = ?1 AND m.name = ?2 AND u.upload = ?3 ORDER BY m.id DESC LIMIT 1",
                )?
                .query_row(params![pool, member.as_str(), upload.as_str()], |row| row.get(0))
                .optional()?;
            if let (None, Some((id, _))) = (seq, manage::find_member(sql, pool, &member)?)
                && let Some(grant) = grant_for(sql, pool, id, &Target::Upload(upload.clone()))?
            {
                return Ok(granted(upload, &grant, &grants));
            }
            let seq = seq.ok_or_else(|| {
                Refusal::new(Code::NotFound, format!("there is no upload {upload} of {member}")).hint(
                    "it never came, or it was refused: refusals leave no row and stand in the event feed",
                )
            })?;
            story(sql, pool, seq)
        })
        .await?;
    Ok(Json(story))
}

/// The story of a file that did not come to count yet.
fn granted(upload: UploadId, grant: &Grant, grants: &Grants) -> UploadStory {
    let info = asks::granted(upload, grant, grants);
    let mut story =
        vec![format!("granted {}: it may come to storage until {}", grant.received, grant.expires)];
    let problem = grant.problem.as_ref();
    story.extend(problem.map(|problem| format!("a commit did not count it: {}", problem.message)));
    story.push(match info.verified {
        Some(bytes) => format!("committed, and being verified: {bytes} of {} bytes are read", info.size),
        None => "it is not committed: nothing counts it yet".to_owned(),
    });
    UploadStory { info, bundle: None, content_type: grant.content_type.clone(), story }
}

/// What a row says beside the [`UploadInfo`].
struct Extra {
    why: Option<String>,
    bundle: Option<String>,
    content_type: Option<String>,
    in_ledger: bool,
    in_storage: bool,
    /// The batch that it joined first.
    first: Option<i64>,
}

fn story(sql: &Connection, pool: PoolId, seq: i64) -> Result<UploadStory> {
    let extra = sql
        .prepare_cached(
            "SELECT why, bundle, content_type, EXISTS (SELECT 1 FROM payloads p WHERE p.seq = u.seq), \
             object_id IS NOT NULL, batch_id FROM uploads u WHERE seq = ?1",
        )?
        .query_row([seq], |row| {
            Ok(Extra {
                why: row.get(0)?,
                bundle: row.get(1)?,
                content_type: row.get(2)?,
                in_ledger: row.get(3)?,
                in_storage: row.get(4)?,
                first: row.get(5)?,
            })
        })?;
    let found = history::uploads(sql, pool, Of::Pool, Some(number(seq) + 1), 1)?;
    let (_, info) = found.into_iter().next().ok_or_else(|| not_found("such upload"))?;
    let mut story = vec![received(&info, &extra)];
    match extra.first {
        None => {
            let rule = info.rule.as_deref().unwrap_or("?");
            story.push(format!("rejected by the pool's rule {rule}: {}", extra.why.as_deref().unwrap_or("")));
        }
        Some(first) => {
            placed(sql, pool, &mut story, &info, first)?;
            story.push(match (info.expired, explain::batch(sql, first, now())?) {
                (Some(expired), _) => format!(
                    "its bytes are not kept any more since {expired}; its key and hash are, for {} days from then",
                    limits::KEYS_KEPT_FOR.as_secs() / 86_400
                ),
                (None, Some(Verdict::Kept(term))) => {
                    format!("{}, until {}", bytes(&extra), term.until())
                }
                (None, Some(Verdict::Live(_) | Verdict::Due(_)) | None) => bytes(&extra),
            });
        }
    }
    Ok(UploadStory { info, bundle: extra.bundle, content_type: extra.content_type, story })
}

fn received(info: &UploadInfo, extra: &Extra) -> String {
    let way = extra.bundle.as_ref().map_or_else(String::new, |bundle| format!(" in bundle {bundle}"));
    let clamped =
        if info.clamped { "; its event time lay in the future and became the time of receipt" } else { "" };
    format!("received {}{way}{clamped}", info.received)
}

/// Its way through batches and rounds.
fn placed(
    sql: &Connection,
    pool: PoolId,
    story: &mut Vec<String>,
    info: &UploadInfo,
    first: i64,
) -> Result<()> {
    let late = if info.late { ", late: its own window or label was closed" } else { "" };
    story.push(format!("joined batch {} ({}){late}", number(first), group(&batch(sql, first)?.group)));
    let Some(now_in) = info.batch else { return Ok(()) };
    let id = row_id(pool, now_in);
    if id != first {
        story.push(format!("that batch was below its minimum and was carried into batch {now_in}"));
    }
    let (deadline, sealed, cause, runs): (i64, Option<i64>, Option<String>, Option<bool>) = sql
        .prepare_cached("SELECT deadline, sealed, cause, runs FROM batches WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    let (Some(sealed), Some(round)) = (sealed, info.round) else {
        story.push(format!(
            "batch {now_in} is open: it is sealed by a trigger, when it is complete, or at the latest {}",
            Timestamp::clamped(deadline)
        ));
        return Ok(());
    };
    let cause = cause.unwrap_or_default();
    story.push(format!("batch {now_in} was sealed {} by {cause}", Timestamp::clamped(sealed)));
    if info.superseded {
        story.push(format!("another upload of {} counts in its place", info.member));
    }
    if runs == Some(false) {
        story.push("the batch was below its minimum, so it has a manifest and no round".to_owned());
        return Ok(());
    }
    let record: Option<String> = sql
        .prepare_cached("SELECT record FROM rounds WHERE pool_id = ?1 AND round = ?2")?
        .query_row(params![pool, round], |row| row.get(0))
        .optional()?;
    if let Some(record) = record {
        story.push(round_in_words(sql, &serde_json::from_str(&record)?)?);
    }
    Ok(())
}

fn batch(sql: &Connection, id: i64) -> Result<Batch> {
    let record: String =
        sql.prepare_cached("SELECT record FROM batches WHERE id = ?1")?.query_row([id], |row| row.get(0))?;
    Ok(serde_json::from_str(&record)?)
}

fn group(group: &Group) -> String {
    match group {
        Group::Window { from, to } => format!("window {from} – {to}"),
        Group::Label { label, part } => format!("label {label}, part {part}"),
        Group::Count => "in order of arrival".to_owned(),
    }
}

fn round_in_words(sql: &Connection, round: &Round) -> Result<String> {
    let number = round.round;
    Ok(match &round.state {
        RoundState::Sealed { since } => format!("round {number} is being packed since {since}"),
        RoundState::Offered { since } => format!("round {number} waits for a processor since {since}"),
        RoundState::Leased(lease) => {
            let member: String = sql
                .prepare_cached("SELECT name FROM members WHERE id = ?1")?
                .query_row([lease.member], |row| row.get(0))?;
            let until = match lease.until {
                Some(until) => format!("until {until}"),
                None => "and its files are being packed".to_owned(),
            };
            format!("round {number} is with processor {member}, attempt {}, {until}", round.attempt)
        }
        RoundState::Pausing { until } => {
            format!("round {number} is offered again {until}, after {} attempts", round.spent)
        }
        RoundState::Committed { version } => format!("round {number} came back as version {version}"),
        RoundState::Failed { at, .. } => {
            format!("round {number} failed {at}: `round show` says why, `round retry` offers it again")
        }
    })
}

/// Where the bytes are.
fn bytes(extra: &Extra) -> String {
    let place = match (extra.in_storage, extra.in_ledger) {
        (true, _) => "an object of their own in storage",
        (false, true) => "in the ledger, until their pack is written and verified",
        (false, false) => "in a pack of the batch",
    };
    format!("its bytes are {place}")
}
