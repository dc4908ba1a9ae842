//! `/v1/pools/{pool}/joins` and `/enrol`: devices that become members by themselves.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{Code, MemberName, PoolName, Refusal, Role, Sha256, limits};
use serde_json::{Value, json};

use super::Api;
use super::api::{Enrol, HandOut, JoinInfo, Joins, NewJoin};
use super::auth::{Bearer, Caller};
use super::error::{Answer, Body, Params};
use super::members::{hand_out, mint};
use crate::ledger::joins::{Join, joins};
use crate::ledger::{Tx, manage, now};

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
) -> Answer<Joins> {
    caller.check(&pool, Action::Manage)?;
    let name = pool.clone();
    let found = api.0.ledger.read(move |sql| joins(sql, manage::find_pool(sql, &name)?)).await?;
    Ok(Json(Joins { joins: found.into_iter().map(|join| info(&pool, join, None)).collect() }))
}

pub(super) async fn add(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Body(new): Body<NewJoin>,
) -> Answer<JoinInfo> {
    caller.check(&pool, Action::Manage)?;
    let most = limits::JOIN_LIFE_MAX.as_secs();
    if new.role == Role::Operator {
        return Err(Refusal::new(Code::Malformed, "operators are added one by one")
            .hint("use `millpond member add`")
            .into());
    }
    if !(1..=most).contains(&new.expires_s) || !(1..=limits::JOIN_USES_MAX).contains(&new.uses) {
        let message = format!("uses is 1 to {}, expires_s is 1 to {most}", limits::JOIN_USES_MAX);
        return Err(Refusal::new(Code::Malformed, message).into());
    }
    let (token, hash) = mint("mpj_", new.token_sha256)?;
    let expires = now().after(Duration::from_secs(new.expires_s));
    let join = Join { name: new.name, role: new.role, uses: new.uses, expires };
    let job = {
        let pool = pool.clone();
        move |tx: &mut Tx<'_>| {
            caller.still(tx)?;
            let id = tx.pool(&pool)?;
            let (join, new) = tx.add_join(id, &join, &hash)?;
            if new {
                let detail =
                    json!({"join": join.name, "role": join.role, "uses": join.uses, "expires": join.expires});
                tx.audit(Some(&pool), &caller.name(), &caller.source, "join-add", &detail)?;
            }
            Ok(join)
        }
    };
    let join = api.0.ledger.write(job).await?;
    Ok(Json(info(&pool, join, token)))
}

pub(super) async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, name)): Params<(PoolName, MemberName)>,
) -> Answer<Value> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        tx.remove_join(id, &name)?;
        tx.audit(Some(&pool), &caller.name(), &caller.source, "join-remove", &json!({"join": name}))
    };
    api.0.ledger.write(job).await?;
    Ok(Json(json!({})))
}

/// The device brings the hash of a token that only it knows, so a lost answer is asked for again.
pub(super) async fn enrol(
    State(api): State<Api>,
    Bearer { from, token }: Bearer,
    Params(pool): Params<PoolName>,
    Body(new): Body<Enrol>,
) -> Answer<HandOut> {
    let join = Sha256::of(token.as_bytes());
    api.0.identity.may_enrol(from.ip(), &join, &pool, &new.member)?;
    let job = {
        let (pool, member) = (pool.clone(), new.member.clone());
        move |tx: &mut Tx<'_>| {
            let enrolled = tx.enrol(&join, &pool, &member, &new.token_sha256)?;
            if let Some(by) = enrolled.by {
                let detail = json!({"member": member, "role": enrolled.role});
                let by = format!("join token {by}");
                tx.audit(Some(&pool), &by, &from.to_string(), "member-add", &detail)?;
            }
            Ok(enrolled.role)
        }
    };
    match api.0.ledger.write(job).await {
        Ok(role) => Ok(Json(hand_out(&api, pool, new.member, role, None))),
        Err(refusal) => {
            // Whoever tries names learns which there are.
            let is_taken = refusal.code == Code::Conflict;
            if is_taken || refusal.code == Code::Unauthorized {
                api.0.identity.not_enrolled(from.ip(), &join, &pool, &new.member, is_taken);
            }
            Err(refusal.into())
        }
    }
}

fn info(pool: &PoolName, join: Join, token: Option<String>) -> JoinInfo {
    let Join { name, role, uses, expires } = join;
    JoinInfo { pool: pool.clone(), name, role, uses, expires, token }
}
