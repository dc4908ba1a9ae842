//! Sessions of MQTT clients that outlive their connections: what a restart must not forget of them.

use std::time::Duration;

use millpond_broker::{KeptSession, LeftSession, Subscription};
use millpond_protocol::{Code, Principal, Refusal, Timestamp};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{Result, Tx};

/// A subscription as the row has it.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    filter: String,
    qos: u8,
    #[serde(default, skip_serializing_if = "is_false")]
    no_local: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    as_published: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<u32>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl From<Subscription> for Row {
    fn from(of: Subscription) -> Self {
        let Subscription { filter, qos, no_local, as_published, tag } = of;
        Self { filter, qos, no_local, as_published, tag }
    }
}

impl From<Row> for Subscription {
    fn from(row: Row) -> Self {
        let Row { filter, qos, no_local, as_published, tag } = row;
        Self { filter, qos, no_local, as_published, tag }
    }
}

impl Tx<'_> {
    /// Keeps a session that has a connection.
    ///
    /// # Errors
    /// `unauthorized` behind a job that ended the member's rights: with the next start the session would be back. SQLite's.
    pub fn keep_session(&self, who: &Principal, session: &KeptSession) -> Result<()> {
        self.pool_of(who)?;
        let rows: Vec<Row> = session.subscriptions.iter().cloned().map(Into::into).collect();
        let subscriptions = serde_json::to_string(&rows)?;
        self.sql()
            .prepare_cached(
                "INSERT INTO sessions (member_id, client_id, expiry, since, subscriptions, certificates) \
                 VALUES (?1, ?2, ?3, NULL, ?4, ?5) \
                 ON CONFLICT DO UPDATE SET expiry = excluded.expiry, since = NULL, \
                 subscriptions = excluded.subscriptions, certificates = excluded.certificates",
            )?
            .execute(params![
                who.id,
                session.client_id,
                millis(session.expiry),
                subscriptions,
                session.certificates.as_deref()
            ])?;
        Ok(())
    }

    /// The session has no connection any more, and is kept as said; or it is over.
    ///
    /// # Errors
    /// SQLite's.
    pub fn leave_session(&self, member: i64, client_id: &str, left: Option<&LeftSession>) -> Result<()> {
        match left {
            Some(LeftSession { expiry, certificates }) => self
                .sql()
                .prepare_cached(
                    "UPDATE sessions SET expiry = ?3, since = ?4, certificates = ?5 \
                     WHERE member_id = ?1 AND client_id = ?2",
                )?
                .execute(params![
                    member,
                    client_id,
                    millis(*expiry),
                    self.now().as_millis(),
                    certificates.as_deref()
                ])?,
            None => self
                .sql()
                .prepare_cached("DELETE FROM sessions WHERE member_id = ?1 AND client_id = ?2")?
                .execute(params![member, client_id])?,
        };
        Ok(())
    }

    /// Forgets the sessions that are over: expired, or of members that are no more.
    ///
    /// # Errors
    /// SQLite's.
    pub fn forget_sessions(&self) -> Result<()> {
        self.sql()
            .prepare_cached(
                "DELETE FROM sessions WHERE since + expiry <= ?1 OR member_id NOT IN \
                 (SELECT members.id FROM members JOIN pools ON pools.id = pool_id WHERE revoked IS NULL AND removed IS NULL)",
            )?
            .execute([self.now().as_millis()])?;
        Ok(())
    }
}

/// All sessions that are kept. One that had a connection when the server ended has its whole time from now on.
///
/// # Errors
/// SQLite's, or a row that is none.
pub fn all(sql: &Connection, now: Timestamp) -> Result<Vec<(Principal, KeptSession)>> {
    let mut statement = sql.prepare_cached(
        "SELECT pools.name, members.name, role, members.id, client_id, expiry, since, subscriptions, certificates \
         FROM sessions \
         JOIN members ON members.id = member_id JOIN pools ON pools.id = pool_id WHERE revoked IS NULL AND removed IS NULL",
    )?;
    let mut rows = statement.query([])?;
    let mut sessions = Vec::new();
    while let Some(row) = rows.next()? {
        let who = Principal {
            pool: row.get::<_, String>(0)?.parse()?,
            name: row.get::<_, String>(1)?.parse()?,
            role: row.get::<_, String>(2)?.parse().map_err(|e: String| Refusal::new(Code::Malformed, e))?,
            id: row.get(3)?,
        };
        let (expiry, since): (i64, Option<i64>) = (row.get(5)?, row.get(6)?);
        let left = since.map_or(expiry, |since| since + expiry - now.as_millis());
        let Ok(left) = u64::try_from(left) else { continue };
        let subscriptions: Vec<Row> = serde_json::from_str(&row.get::<_, String>(7)?)?;
        let session = KeptSession {
            client_id: row.get(4)?,
            expiry: Duration::from_millis(left),
            subscriptions: subscriptions.into_iter().map(Into::into).collect(),
            certificates: row.get::<_, Option<Vec<u8>>>(8)?.map(Into::into),
        };
        sessions.push((who, session));
    }
    Ok(sessions)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use millpond_protocol::{Role, Sha256};

    use super::*;
    use crate::ledger::{Ledger, now};
    use crate::rounds::Policy;

    fn session(client_id: &str, expiry: u64) -> KeptSession {
        let filter = format!("$share/g/app/p/{client_id}");
        let subscription = Subscription { filter, qos: 2, no_local: false, as_published: true, tag: Some(7) };
        let certificates = (client_id != "gone").then(|| b"certificates".as_slice().into());
        let (client_id, expiry) = (client_id.to_owned(), Duration::from_secs(expiry));
        KeptSession { client_id, expiry, subscriptions: vec![subscription], certificates }
    }

    fn member(name: &str, id: i64) -> Principal {
        let (pool, name) = ("p".parse().unwrap(), name.parse().unwrap());
        Principal { pool, name, role: Role::Listener, id }
    }

    #[tokio::test]
    async fn sessions_are_there_until_they_expire_end_or_their_member_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let (pool, ids) = ledger
            .write(|tx| {
                let (pool, _) = tx.apply_pool(&"p".parse()?, &Policy::default())?;
                let mut ids = Vec::new();
                for name in ["a", "b", "c"] {
                    let id =
                        tx.add_member(pool, &name.parse()?, Role::Listener, &Sha256::of(name.as_bytes()))?;
                    let who = member(name, id);
                    for client_id in ["here", "away", "gone", "over"] {
                        tx.keep_session(&who, &session(client_id, 600))?;
                    }
                    let left = |seconds, certificates: Option<&'static [u8]>| LeftSession {
                        expiry: Duration::from_secs(seconds),
                        certificates: certificates.map(Into::into),
                    };
                    tx.leave_session(id, "away", Some(&left(60, Some(b"others"))))?;
                    tx.leave_session(id, "gone", Some(&left(0, None)))?;
                    tx.leave_session(id, "over", None)?;
                    ids.push(id);
                }
                Ok((pool, ids))
            })
            .await
            .unwrap();
        ledger.write(move |tx| tx.revoke_member(pool, &"b".parse()?)).await.unwrap();
        ledger.write(move |tx| tx.set_role(pool, &"c".parse()?, Role::Operator)).await.unwrap();
        // What they subscribed to before is in line behind that.
        for (name, id) in [("b", ids[1]), ("c", ids[2])] {
            let late =
                ledger.write(move |tx| tx.keep_session(&member(name, id), &session("late", 600))).await;
            assert_eq!(late.unwrap_err().code, Code::Unauthorized, "{name}");
        }
        ledger.write(|tx| tx.forget_sessions()).await.unwrap();
        let kept = ledger.look(|sql| all(sql, now())).await.unwrap();
        let found: Vec<_> = kept.iter().map(|(who, session)| (who.id, &*session.client_id)).collect();
        assert_eq!(found, [(ids[0], "away"), (ids[0], "here")]);
        assert_eq!(kept[1].1, session("here", 600), "its whole time, and its subscription as it was");
        assert!(kept[0].1.expiry <= Duration::from_secs(60));
        assert_eq!(kept[0].1.certificates.as_deref(), Some(&b"others"[..]), "those that it was left with");
        let rows = |sql: &Connection| {
            Ok(sql.query_row("SELECT count(*) FROM sessions", [], |row| row.get::<_, i64>(0))?)
        };
        assert_eq!(ledger.look(rows).await.unwrap(), 2);
    }
}
