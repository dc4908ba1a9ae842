//! `commit` and `abort`: what became of granted files.
//!
//! A commit needs no memory of its ids: an upload that counts answers with its receipt for ever. What storage tells by one
//! call each counts at once; if one of them has to be read, all become `pending` and the worker of [`crate::grants`] goes
//! on, also after a restart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{Outcome, Receipt, answer, ask};
use millpond_protocol::{Code, Principal, Refusal, UploadId, limits};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::put::target;
use super::rounds::decide;
use super::wake::Wake;
use super::{Asks, room};
use crate::grants::{self, Look, unavailable};
use crate::ledger::PoolId;
use crate::ledger::grants::{Grant, Target, grant_for};
use crate::ledger::objects::differed;
use crate::ledger::transfer::Cause;
use crate::ledger::uploads::find_receipt;

/// Calls to storage of one commit that are under way at once.
const LOOKS: usize = 16;
/// Problems that an answer names.
const NAMED: usize = 5;
/// What to do where a grant has ended: no URL of it takes anything any more.
const AGAIN: &str = "nothing was counted: ask `put` again, send what that says is missing, and commit again";

/// What there is for an id.
enum Found {
    Receipt(Receipt),
    Grant(Box<Grant>),
    /// Neither; of a grant that was there before, whether it ended because the file was not what was declared.
    Nothing {
        id: UploadId,
        differed: bool,
    },
}

/// The objects of the grants that an ask began with, by upload id.
type Objects = HashMap<UploadId, i64>;

pub(super) async fn commit(
    asks: &Asks,
    who: &Principal,
    ask: ask::Commit,
    head: &ask::Head,
) -> Result<answer::Commit, Refusal> {
    let ids = ids(&ask, room(head))?;
    let deadline = Instant::now() + Duration::from_secs(ask.wait_s).min(limits::ASK_TIMEOUT);
    let mut found = find(asks, who, &ids, &Objects::new()).await?;
    if let Some(receipts) = all_receipts(&found) {
        return Ok(answer::Commit { uploads: receipts });
    }
    let open = open(found)?;
    // There is one: not all are receipts.
    let pool = open.first().map_or(PoolId::default(), |grant| grant.pool);
    let objects: Objects = open.iter().filter_map(object).collect();
    if open.iter().all(|grant| grant.verifying.is_none()) {
        match look(asks, &open).await? {
            Look::Good => {
                reach(Point::CommitLooked);
                match asks.grants.count_uploads(who, open).await {
                    // Another commit was faster: what it came to stands in the rows.
                    Err(refusal) if refusal.code == Code::Conflict => {}
                    counted => drop(counted?),
                }
                reach(Point::CommitCounted);
            }
            Look::Unread | Look::Missing(_) | Look::Differs(_) => {
                let (who, grants) = (who.clone(), open);
                let job = asks.ledger.write(move |tx| {
                    tx.pool_of(&who)?;
                    if tx.verify_grants(&grants)? == grants.len() {
                        return Ok(());
                    }
                    // All or none: the job is taken back.
                    Err(Refusal::new(Code::Conflict, "one of the grants ended meanwhile").into())
                });
                match job.await {
                    Err(refusal) if refusal.code == Code::Conflict => {}
                    marked => marked?,
                }
            }
        }
    }
    let mut wake = Wake::new(asks.ledger.commits(), pool, deadline);
    loop {
        found = find(asks, who, &ids, &objects).await?;
        let waits = found.iter().any(|one| matches!(one, Found::Grant(grant) if grant.verifying.is_some()));
        if !waits || !wake.wait().await? {
            return outcome(found);
        }
    }
}

/// The ids of an ask, each once.
fn ids(ask: &ask::Commit, room: usize) -> Result<Vec<UploadId>, Refusal> {
    let mut seen = HashSet::new();
    let named = ask.upload.iter().chain(&ask.uploads);
    let ids: Vec<UploadId> = named.filter(|id| seen.insert(*id)).cloned().collect();
    if ids.is_empty() || (ask.upload.is_some() && !ask.uploads.is_empty()) {
        return Err(Refusal::new(Code::Malformed, "name either `upload` or `uploads`"));
    }
    let most = room / limits::RECEIPT_MAX;
    if ids.len() > most {
        let message = format!("{} uploads, whose receipts do not fit the answer", ids.len());
        return Err(Refusal::new(Code::TooLarge, message)
            .limit(most as u64)
            .hint("commit fewer at once, or name a larger max_answer, up to 262144"));
    }
    Ok(ids)
}

fn object(grant: &Grant) -> Option<(UploadId, i64)> {
    match &grant.target {
        Target::Upload(id) => Some((id.clone(), grant.object.id)),
        Target::Result { .. } => None,
    }
}

async fn find(
    asks: &Asks,
    who: &Principal,
    ids: &[UploadId],
    objects: &Objects,
) -> Result<Vec<Found>, Refusal> {
    let (member, ids, objects) = (who.id, ids.to_vec(), objects.clone());
    let find = asks.ledger.read(move |sql| {
        ids.into_iter()
            .map(|id| {
                if let Some(receipt) = find_receipt(sql, member, id.as_str())? {
                    return Ok(Found::Receipt(receipt));
                }
                let target = Target::Upload(id.clone());
                // The pool matters to results only.
                if let Some(grant) = grant_for(sql, PoolId::default(), member, &target)? {
                    return Ok(Found::Grant(Box::new(grant)));
                }
                let differed = objects.get(&id).map_or(Ok(false), |object| differed(sql, *object))?;
                Ok(Found::Nothing { id, differed })
            })
            .collect()
    });
    find.await
}

fn all_receipts(found: &[Found]) -> Option<Vec<Receipt>> {
    let receipts = found.iter().map(|one| match one {
        Found::Receipt(receipt) => Some(receipt.clone()),
        Found::Grant(_) | Found::Nothing { .. } => None,
    });
    receipts.collect()
}

/// The grants among what was found, if nothing is missing and all of them can start together.
fn open(found: Vec<Found>) -> Result<Vec<Grant>, Refusal> {
    let (mut grants, mut missing) = (Vec::new(), Vec::new());
    for one in found {
        match one {
            Found::Receipt(_) => {}
            Found::Grant(grant) => grants.push(*grant),
            Found::Nothing { id, .. } => {
                missing.push(format!("{id}: there is neither a grant nor an upload"))
            }
        }
    }
    if !missing.is_empty() {
        return Err(problems(Code::NotFound, &missing).hint("ask `put` first"));
    }
    let set = grants.first().and_then(|grant| grant.verifying);
    if grants.iter().any(|grant| grant.verifying != set) {
        return Err(Refusal::new(Code::Conflict, "some of these are being verified for an earlier commit")
            .hint("ask again when they are, see `status`"));
    }
    Ok(grants)
}

/// Looks at all of them: good only if all are, unread if one is. What differs from its grant ends it.
async fn look(asks: &Asks, grants: &[Grant]) -> Result<Look, Refusal> {
    let look = |grant: Grant| {
        let grants = asks.grants.clone();
        async move { grants.look(&grant).await }
    };
    let looks: Vec<Look> = stream::iter(grants.to_vec())
        .map(look)
        .buffered(LOOKS)
        .try_collect()
        .await
        .map_err(|error| unavailable(&error))?;
    let (mut wrong, mut code, mut differ) = (Vec::new(), Code::NotFound, Vec::new());
    for (grant, look) in grants.iter().zip(&looks) {
        match look {
            Look::Good | Look::Unread => {}
            Look::Missing(why) => wrong.push(format!("{}: {why}", grant.target)),
            Look::Differs(why) => {
                wrong.push(format!("{}: {why}", grant.target));
                differ.push(grant.clone());
                code = Code::Mismatch;
            }
        }
    }
    if wrong.is_empty() {
        let unread = looks.contains(&Look::Unread);
        return Ok(if unread { Look::Unread } else { Look::Good });
    }
    asks.grants.end(differ, Cause::Mismatch).await?;
    let hint = match code {
        Code::Mismatch => AGAIN,
        _ => "nothing was counted: send what is missing and commit again",
    };
    Err(problems(code, &wrong).hint(hint))
}

fn problems(code: Code, problems: &[String]) -> Refusal {
    let named = problems.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    let more = if problems.len() > NAMED { "; and more" } else { "" };
    Refusal::new(code, format!("{named}{more}"))
}

/// The answer when nothing is waited for any more.
fn outcome(found: Vec<Found>) -> Result<answer::Commit, Refusal> {
    let (mut wrong, mut codes) = (Vec::new(), Vec::new());
    let mut uploads = Vec::new();
    for one in found {
        match one {
            Found::Receipt(receipt) => uploads.push(receipt),
            Found::Grant(grant) if grant.verifying.is_some() => {
                uploads.push(grants::receipt(&grant, Outcome::Pending, None));
            }
            Found::Grant(grant) => {
                let problem = grant.problem.unwrap_or_else(|| Refusal::unavailable("it did not count"));
                wrong.push(format!("{}: {}", grant.target, problem.message));
                codes.push(problem.code);
            }
            Found::Nothing { id, differed: true } => {
                wrong.push(format!("{id}: its grant has ended, for it is not the file that was declared"));
                codes.push(Code::Mismatch);
            }
            Found::Nothing { id, differed: false } => {
                wrong.push(format!("{id}: its grant has ended"));
                codes.push(Code::NotFound);
            }
        }
    }
    // What no repeat can help comes before what has to be sent, and that before what may be better the next time.
    let worst = [Code::Mismatch, Code::NotFound].into_iter().find(|code| codes.contains(code));
    match worst.or_else(|| codes.first().copied()) {
        None => Ok(answer::Commit { uploads }),
        Some(code @ (Code::Mismatch | Code::NotFound)) => Err(problems(code, &wrong).hint(AGAIN)),
        Some(code) => Err(problems(code, &wrong)),
    }
}

/// Gives a grant back.
pub(super) async fn abort(
    asks: &Asks,
    who: &Principal,
    ask: ask::Abort,
    head: &ask::Head,
) -> Result<Value, Refusal> {
    let target = target(who, ask.upload, ask.round, ask.attempt)?;
    decide(asks, who, "abort", head, move |tx, pool, who| {
        if let Some(grant) = grant_for(tx.sql(), pool, who.id, &target)? {
            return tx.end_grant(&grant, Cause::Aborted);
        }
        Err(if tx.is_counted(pool, who.id, &target)? {
            Refusal::new(Code::Conflict, format!("{target} is committed, which is for good"))
        } else {
            Refusal::new(Code::NotFound, format!("there is no grant of {target}"))
        }
        .into())
    })
    .await?;
    Ok(json!({}))
}
