//! State topics: the card, the pointer with its bytes, and the offer, made from the ledger whenever somebody needs them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use millpond_broker::StateMessage;
use millpond_protocol::access::{Action, may};
use millpond_protocol::message::state::{CardLimits, Window};
use millpond_protocol::message::{Card, Offer, Pointer};
use millpond_protocol::{NO_APP_TOPICS, PoolName, Principal, Refusal, Sha256, Timestamp, limits, topic};
use millpond_storage::{Presigned, Storage};
use rusqlite::{Connection, OptionalExtension, params};

use crate::ledger::manage::find_pool;
use crate::ledger::tokens::holder_of_all;
use crate::ledger::{self, Ledger, PoolId, now, objects};
use crate::rounds::policy::{Grouping, Late};
use crate::rounds::{Batch, Policy, Round};

/// The limits that a pool's card shows.
#[derive(Debug, Clone)]
pub struct Shown {
    pub publish_max: u64,
    pub bundle_max: u64,
    pub upload_max: u64,
    /// Host and port of the URLs that are handed out.
    pub storage_host: String,
}

/// Makes the state messages of every pool.
#[derive(Clone)]
pub struct States {
    ledger: Ledger,
    storage: Storage,
    shown: Arc<Shown>,
    /// URLs of results, minted once per half of their life.
    urls: Arc<Mutex<HashMap<i64, Presigned>>>,
}

/// The newest result as the ledger has it.
pub(crate) struct Newest {
    pool: PoolId,
    version: u64,
    round: u64,
    batch: u64,
    of: Option<u64>,
    name: String,
    content_type: Option<String>,
    sha256: Sha256,
    object: objects::Object,
    data: Option<Vec<u8>>,
    spread_s: u64,
}

impl States {
    /// State messages come from this ledger, their URLs from this storage.
    pub fn new(ledger: Ledger, storage: Storage, shown: Shown) -> Self {
        Self { ledger, storage, shown: Arc::new(shown), urls: Arc::default() }
    }

    /// The messages of those of `topics` that `who` may read; cleared state is absent.
    ///
    /// # Errors
    /// `unavailable`; `not_found` if the pool is gone.
    pub async fn current(&self, who: &Principal, topics: &[String]) -> Result<Vec<StateMessage>, Refusal> {
        let pool = &who.pool;
        let wanted =
            |topic: &String| topics.contains(topic) && may(who, Action::Subscribe(topic, &NO_APP_TOPICS));
        let mut found = Vec::new();
        if wanted(&topic::card(pool)) {
            found.push(self.card(pool).await?);
        }
        let (pointer, data) = (topic::result(pool), topic::result_data(pool));
        if wanted(&pointer) || wanted(&data) {
            let both = self.result(pool).await?;
            found.extend(both.into_iter().filter(|message| wanted(&message.topic)));
        }
        if wanted(&topic::offer(pool)) {
            found.push(self.offer(pool).await?);
        }
        found.retain(|message| !message.payload.is_empty());
        Ok(found)
    }

    /// The pool's card as of now.
    pub async fn card(&self, pool: &PoolName) -> Result<StateMessage, Refusal> {
        let name = pool.clone();
        let (rank, policy) = self.ledger.look(move |sql| policy(sql, find_pool(sql, &name)?)).await?;
        let card = self.card_of(pool, &policy, now());
        Ok(state(topic::card(pool), json(&card), rank))
    }

    fn card_of(&self, pool: &PoolName, policy: &Policy, now: Timestamp) -> Card {
        let windowed = policy.grouping == Grouping::Window;
        let (from, to) = policy.window(now);
        let upload_max = match policy.max_size {
            0 => self.shown.upload_max,
            own => own.min(self.shown.upload_max),
        };
        Card {
            pool: pool.clone(),
            protocol: 1,
            grouping: match policy.grouping {
                Grouping::Window => "window",
                Grouping::Label => "label",
                Grouping::Count => "count",
            }
            .to_owned(),
            window_s: windowed.then_some(policy.window_s),
            open: windowed.then_some(Window { from, to }),
            late: match policy.late {
                Late::Next => "next",
                Late::Reject => "reject",
            }
            .to_owned(),
            limits: CardLimits {
                publish_max: self.shown.publish_max,
                bundle_max: self.shown.bundle_max,
                upload_max,
                sha256_required: policy.require_sha256,
            },
            storage_host: self.shown.storage_host.clone(),
            server_time: now,
        }
    }

    /// The pointer and the bytes; both cleared while there is no result, the bytes cleared where they are large.
    pub async fn result(&self, pool: &PoolName) -> Result<[StateMessage; 2], Refusal> {
        let newest = self.newest(pool).await?;
        let rank = newest.as_ref().map_or(0, |newest| newest.version);
        let mut pointer = state(topic::result(pool), Bytes::new(), rank);
        let mut data = state(topic::result_data(pool), Bytes::new(), rank);
        if let Some(newest) = newest {
            data.user_properties = vec![
                ("version".into(), newest.version.to_string()),
                ("sha256".into(), newest.sha256.to_string()),
            ];
            data.content_type.clone_from(&newest.content_type);
            pointer.payload = json(&self.pointer_of(&newest)?);
            data.payload = newest.data.map(Bytes::from).unwrap_or_default();
        }
        Ok([pointer, data])
    }

    /// The pointer to the newest result, with a URL that holds for half of its life at least.
    pub async fn pointer(&self, pool: &PoolName) -> Result<Option<Pointer>, Refusal> {
        self.newest(pool).await?.map(|newest| self.pointer_of(&newest)).transpose()
    }

    async fn newest(&self, pool: &PoolName) -> Result<Option<Newest>, Refusal> {
        let name = pool.clone();
        self.ledger.look(move |sql| newest(sql, find_pool(sql, &name)?)).await
    }

    fn pointer_of(&self, newest: &Newest) -> Result<Pointer, Refusal> {
        let url = self.url(newest.pool, &newest.object);
        Ok(Pointer {
            version: newest.version,
            batch: newest.batch,
            round: newest.round,
            of: newest.of,
            name: newest.name.parse()?,
            size: newest.object.size,
            sha256: newest.sha256,
            content_type: newest.content_type.clone(),
            url: url.url.to_string(),
            url_expires: url.expires_at,
            spread_s: newest.spread_s,
        })
    }

    fn url(&self, pool: PoolId, object: &objects::Object) -> Presigned {
        let mut urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let fresh = now.after(limits::RESULT_URL_VALIDITY / 2);
        // What was signed before the clock was set back is not valid yet.
        let until = now.after(limits::RESULT_URL_VALIDITY);
        let is_fresh = |url: &Presigned| url.expires_at > fresh && url.expires_at <= until;
        if let Some(url) = urls.get(&object.id).filter(|url| is_fresh(url)) {
            return url.clone();
        }
        urls.retain(|_, url| is_fresh(url));
        let storage = self.storage.held_by(&holder_of_all(pool));
        let url = storage.presign_get(&object.key, limits::RESULT_URL_VALIDITY, now);
        urls.insert(object.id, url.clone());
        url
    }

    /// The oldest round on offer, or cleared.
    pub async fn offer(&self, pool: &PoolName) -> Result<StateMessage, Refusal> {
        let name = pool.clone();
        let (rank, offer) = self.ledger.look(move |sql| offer(sql, find_pool(sql, &name)?)).await?;
        Ok(state(topic::offer(pool), offer.map(|offer| json(&offer)).unwrap_or_default(), rank))
    }
}

fn state(topic: String, payload: Bytes, rank: u64) -> StateMessage {
    StateMessage { topic, payload, rank, user_properties: Vec::new(), content_type: None }
}

fn json<T: serde::Serialize>(message: &T) -> Bytes {
    serde_json::to_vec(message).unwrap_or_default().into()
}

fn newest(sql: &Connection, pool: PoolId) -> ledger::Result<Option<Newest>> {
    let row = sql
        .prepare_cached(
            "SELECT r.version, r.round, r.batch, r.of, r.name, r.content_type, r.sha256, r.object_id, r.data, p.policy \
             FROM pools p JOIN results r ON r.pool_id = p.id AND r.version = p.pointer WHERE p.id = ?1",
        )?
        .query_row([pool], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
                row.get::<_, [u8; 32]>(6)?,
                row.get::<_, i64>(7)?,
                row.get(8)?,
                row.get::<_, String>(9)?,
            ))
        })
        .optional()?;
    let Some((version, round, batch, of, name, content_type, sha256, object, data, policy)) = row else {
        return Ok(None);
    };
    Ok(Some(Newest {
        pool,
        version,
        round,
        batch,
        of,
        name,
        content_type,
        sha256: Sha256(sha256),
        object: objects::object(sql, object)?,
        data,
        spread_s: serde_json::from_str::<Policy>(&policy)?.spread_s,
    }))
}

/// The rank is the pool's sequence number, which a change of the policy raises, read in the same snapshot as the policy.
fn policy(sql: &Connection, pool: PoolId) -> ledger::Result<(u64, Policy)> {
    let (rank, policy): (u64, String) = sql
        .prepare_cached("SELECT seq, policy FROM pools WHERE id = ?1")?
        .query_row([pool], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((rank, serde_json::from_str(&policy)?))
}

/// The rank is the pool's sequence number, read in the same snapshot as the offer.
fn offer(sql: &Connection, pool: PoolId) -> ledger::Result<(u64, Option<Offer>)> {
    let row = sql
        .prepare_cached(
            "SELECT p.seq, r.record, b.record, b.cause FROM pools p \
             LEFT JOIN rounds r ON r.pool_id = p.id AND r.round = \
                 (SELECT min(round) FROM rounds WHERE pool_id = p.id AND state = 'offered') \
             LEFT JOIN batches b ON b.id = r.batch_id WHERE p.id = ?1",
        )?
        .query_row(params![pool], |row| {
            Ok((
                row.get(0)?,
                row.get::<_, Option<String>>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, Option<String>>(3)?,
            ))
        })?;
    let (rank, Some(round), Some(batch), cause) = row else { return Ok((row.0, None)) };
    let (round, batch): (Round, Batch) = (serde_json::from_str(&round)?, serde_json::from_str(&batch)?);
    let label = match batch.group {
        crate::rounds::Group::Label { label, .. } => Some(label),
        crate::rounds::Group::Window { .. } | crate::rounds::Group::Count => None,
    };
    let offer = Offer {
        round: round.round,
        batch: round.batch,
        count: batch.count,
        bytes: batch.bytes,
        cause: cause.unwrap_or_default(),
        label,
        attempts: round.spent,
    };
    Ok((rank, Some(offer)))
}

#[cfg(test)]
mod tests {
    use millpond_storage::{Secret, StorageConfig};

    use super::*;

    #[tokio::test]
    async fn the_url_of_a_pointer_is_kept_for_half_of_its_life_and_then_another() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _ended) = Ledger::open(dir.path()).unwrap();
        let config = StorageConfig::new(
            "http://127.0.0.1:9".parse().unwrap(),
            "millpond",
            "access",
            Secret::new("a-secret-of-the-tests"),
        );
        let shown = Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: "x".into() };
        let states = States::new(ledger, Storage::new(&config).unwrap(), shown);
        let object = |id| objects::Object {
            id,
            key: "1/result/a".parse().unwrap(),
            size: 1,
            sha256: Sha256::of(b"x"),
        };
        let first = states.url(1, &object(1));
        states.url(1, &object(2));
        let kept = |id: i64| states.urls.lock().unwrap().get(&id).cloned();
        let age = |by| {
            for url in states.urls.lock().unwrap().values_mut() {
                url.expires_at = url.expires_at.before(by);
            }
        };
        let half = limits::RESULT_URL_VALIDITY / 2;
        age(half - std::time::Duration::from_secs(60));
        assert_eq!((states.url(1, &object(1)).url, kept(2).is_some()), (first.url, true));
        age(std::time::Duration::from_secs(120));
        // Those that nobody asked for again are forgotten.
        let second = states.url(1, &object(1));
        assert!(second.expires_at > now().after(half), "{second:?}");
        assert_eq!((kept(1).map(|url| url.expires_at), kept(2).is_some()), (Some(second.expires_at), false));
    }
}
