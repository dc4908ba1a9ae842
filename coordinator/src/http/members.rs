//! `/v1/pools/{pool}/members`: members and their tokens.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Action;
use millpond_protocol::{Code, MemberName, PoolName, Refusal, Role, Sha256, Timestamp, limits};
use rusqlite::{OptionalExtension as _, params};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{HandOut, MemberInfo, Members, NewMember, NewRole, NewToken};
use super::auth::Caller;
use super::error::{Answer, Asked, Body, Params};
use super::page::Page;
use super::{Api, Reached};
use crate::ledger::tokens::{Others, find_token};
use crate::ledger::{Tx, manage, now};
use crate::secrets;

/// The query of a list.
#[derive(Deserialize)]
pub(super) struct List {
    /// Also those that were revoked.
    #[serde(default)]
    all: bool,
    limit: Option<String>,
    cursor: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(List { all, limit, cursor }): Asked<List>,
) -> Answer<Members> {
    caller.check(&pool, Action::Inspect)?;
    let limit = Page::new(limit, None).limit()?;
    let (name, id) = after(cursor.as_deref())?;
    let members: Vec<(i64, MemberInfo)> = api
        .0
        .ledger
        .read(move |sql| {
            let pool = manage::find_pool(sql, &pool)?;
            let mut newest_delivery = sql.prepare_cached(
                "SELECT state, version FROM deliveries WHERE pool_id = ?1 AND member_id = ?2 \
                 ORDER BY version DESC LIMIT 1",
            )?;
            let mut statement = sql.prepare_cached(
                "SELECT m.id, m.name, m.role, m.created, m.revoked, \
                 (SELECT count(*) FROM tokens t WHERE t.member_id = m.id AND coalesce(t.expires > ?6, 1)), \
                 (SELECT received FROM uploads u WHERE u.member_id = m.id ORDER BY u.seq DESC LIMIT 1) \
                 FROM members m WHERE m.pool_id = ?1 AND (m.name, m.id) > (?2, ?3) AND (?4 OR m.revoked IS NULL) \
                 ORDER BY m.name, m.id LIMIT ?5",
            )?;
            let (limit, at) = (i64::try_from(limit).unwrap_or(i64::MAX), now().as_millis());
            let rows = statement.query_and_then(params![pool, name, id, all, limit, at], |row| {
                let delivery: Option<(String, u64)> = newest_delivery
                    .query_row(params![pool, row.get::<_, i64>(0)?], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let (delivery, version) = delivery.unzip();
                let info = MemberInfo {
                    member: row.get::<_, String>(1)?.parse().map_err(Refusal::from)?,
                    role: role(&row.get::<_, String>(2)?)?,
                    created: Timestamp::clamped(row.get(3)?),
                    revoked: row.get::<_, Option<i64>>(4)?.map(Timestamp::clamped),
                    tokens: row.get(5)?,
                    last_upload: row.get::<_, Option<i64>>(6)?.map(Timestamp::clamped),
                    delivery,
                    version,
                };
                Ok((row.get(0)?, info))
            })?;
            rows.collect::<crate::ledger::Result<_>>()
        })
        .await?;
    let last = members.last().filter(|_| members.len() >= limit);
    let cursor = last.map(|(id, info)| format!("{id}/{}", info.member));
    Ok(Json(Members { members: members.into_iter().map(|(_, info)| info).collect(), cursor }))
}

/// The name and id that a page ended with.
fn after(cursor: Option<&str>) -> Result<(String, i64), Refusal> {
    let Some(cursor) = cursor else { return Ok((String::new(), 0)) };
    let parts = cursor.split_once('/').and_then(|(id, name)| Some((name.to_owned(), id.parse().ok()?)));
    parts.ok_or_else(|| Refusal::new(Code::Malformed, "the cursor is not one that an answer gave you"))
}

pub(super) async fn add(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Body(new): Body<NewMember>,
) -> Answer<HandOut> {
    caller.check(&pool, Action::Manage)?;
    let (token, hash) = mint("mpd_", new.token_sha256)?;
    let (member, role) = (new.member.clone(), new.role);
    let job = {
        let (pool, member, brought) = (pool.clone(), member.clone(), new.token_sha256.is_some());
        move |tx: &mut Tx<'_>| {
            caller.still(tx)?;
            let id = tx.pool(&pool)?;
            // A device that brought its own hash repeats the request if the answer was lost.
            if brought
                && let Some(found) = find_token(tx.sql(), &hash, tx.now())?
                && (&found.pool, &found.name, found.role) == (&pool, &member, role)
            {
                return Ok(());
            }
            tx.add_member(id, &member, role, &hash)?;
            let detail = json!({ "member": member, "role": role });
            tx.audit(Some(&pool), &caller.name(), &caller.source, "member-add", &detail)
        }
    };
    api.0.ledger.write(job).await?;
    Ok(Json(hand_out(&api, pool, member, role, token)))
}

pub(super) async fn revoke(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, member)): Params<(PoolName, MemberName)>,
) -> Answer<Value> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        tx.revoke_member(id, &member)?;
        let detail = json!({ "member": member });
        tx.audit(Some(&pool), &caller.name(), &caller.source, "member-revoke", &detail)
    };
    api.0.ledger.write(job).await?;
    Ok(Json(json!({})))
}

pub(super) async fn set_role(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, member)): Params<(PoolName, MemberName)>,
    Body(NewRole { role }): Body<NewRole>,
) -> Answer<Value> {
    caller.check(&pool, Action::Manage)?;
    let job = move |tx: &mut Tx<'_>| {
        caller.still(tx)?;
        let id = tx.pool(&pool)?;
        let was = tx.set_role(id, &member, role)?;
        if was == role {
            return Ok(());
        }
        let detail = json!({"member": member, "role": role, "was": was});
        tx.audit(Some(&pool), &caller.name(), &caller.source, "member-role", &detail)
    };
    api.0.ledger.write(job).await?;
    Ok(Json(json!({})))
}

pub(super) async fn token(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, member)): Params<(PoolName, MemberName)>,
    Body(new): Body<NewToken>,
) -> Answer<HandOut> {
    // A member rotates its own tokens; it brings the hash, so that a lost answer locks nobody out.
    let own = caller.member().is_some_and(|who| (&who.pool, &who.name) == (&pool, &member));
    let managing = caller.check(&pool, Action::Manage);
    let may_manage = managing.is_ok();
    if !(own && new.token_sha256.is_some()) {
        managing?;
    }
    let overlap = Duration::from_secs(new.overlap_s.unwrap_or(0));
    if overlap > limits::TOKEN_OVERLAP_MAX {
        let most = limits::TOKEN_OVERLAP_MAX.as_secs();
        return Err(Refusal::new(Code::Malformed, format!("overlap_s is at most {most}")).limit(most).into());
    }
    let others = if new.replace { Others::EndAfter(overlap) } else { Others::Stay };
    let (token, hash) = mint("mpd_", new.token_sha256)?;
    let job = {
        let (pool, member) = (pool.clone(), member.clone());
        move |tx: &mut Tx<'_>| {
            caller.still(tx)?;
            let id = tx.pool(&pool)?;
            if !may_manage {
                tx.check_rotation(&caller.token(), &hash)?;
            }
            let (role, changed) = tx.give_token(id, &member, &hash, others)?;
            if changed {
                let detail = json!({"member": member, "replace": new.replace, "overlap_s": new.overlap_s});
                tx.audit(Some(&pool), &caller.name(), &caller.source, "token-new", &detail)?;
            }
            Ok(role)
        }
    };
    let role = api.0.ledger.write(job).await?;
    Ok(Json(hand_out(&api, pool, member, role, token)))
}

/// The hash that is kept, and the token where the server makes it.
pub(super) fn mint(prefix: &str, brought: Option<Sha256>) -> Result<(Option<String>, Sha256), Refusal> {
    match brought {
        Some(hash) => Ok((None, hash)),
        None => {
            let token = secrets::random(prefix).map_err(|error| Refusal::unavailable(error.to_string()))?;
            let hash = Sha256::of(token.as_bytes());
            Ok((Some(token), hash))
        }
    }
}

pub(super) fn hand_out(
    api: &Api,
    pool: PoolName,
    member: MemberName,
    role: Role,
    token: Option<String>,
) -> HandOut {
    let Reached { host, port, tls, authority } = &api.0.mqtt;
    let storage_url = api.0.storage_url.clone();
    let user = format!("{pool}/{member}");
    let password = token.as_deref().unwrap_or("TOKEN");
    let trusts = match authority {
        _ if !tls => String::new(),
        Some(authority) => format!("--cafile {} ", authority.file),
        None => "--tls-use-os-certs ".to_owned(),
    };
    let connect = format!("{trusts}-h {host} -p {port} -u {user} -P {password}");
    let example = match role {
        Role::Publisher => {
            format!("mosquitto_pub {connect} -q 1 -t mp/{pool}/c/{member}/up/first -m hello")
        }
        Role::Listener => {
            format!("mosquitto_sub {connect} -q 1 -t mp/{pool}/result -t mp/{pool}/result/data -v")
        }
        Role::Processor => {
            format!("mosquitto_sub {connect} -q 1 -t mp/{pool}/offer -t mp/{pool}/d/{member}/# -v")
        }
        Role::Trigger => {
            format!("mosquitto_pub {connect} -q 1 -t mp/{pool}/c/{member}/ask/trigger -m '{{\"id\":\"t1\"}}'")
        }
        Role::Operator => format!("mosquitto_sub {connect} -q 1 -t mp/{pool}/event/# -v"),
    };
    HandOut {
        pool,
        member,
        role,
        mqtt_host: host.clone(),
        mqtt_port: *port,
        mqtt_url: api.0.mqtt.url(),
        ca_file: authority.as_ref().map(|authority| authority.file.clone()),
        ca: authority.as_ref().map(|authority| authority.pem.clone()),
        storage_url,
        user,
        token,
        example,
    }
}

fn role(text: &str) -> Result<Role, Refusal> {
    text.parse().map_err(|error: String| Refusal::new(Code::Malformed, error))
}
