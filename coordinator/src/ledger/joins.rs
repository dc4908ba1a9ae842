//! Join tokens: by which devices become members. Of each there is only the SHA-256.

use millpond_protocol::{Code, MemberName, PoolName, Refusal, Role, Sha256, Timestamp};
use rusqlite::{Connection, Row, params};
use serde_json::json;

use super::error::not_found;
use super::tokens::{find_token, token_in_use};
use super::tx::Tx;
use super::{PoolId, Result};

/// What a device that knows a join token may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// What operators call it, once in a pool.
    pub name: MemberName,
    pub role: Role,
    /// Devices that may still use it.
    pub uses: u32,
    pub expires: Timestamp,
}

impl Tx<'_> {
    /// Lets devices that know the token join the pool. The same again changes nothing: answered is what stands, and whether
    /// it is new.
    ///
    /// # Errors
    /// `conflict` if the pool has another of that name, the same with another role or fewer uses than are left, or if the
    /// token is in use.
    pub fn add_join(&mut self, pool: PoolId, join: &Join, token: &Sha256) -> Result<(Join, bool)> {
        // One that has expired is still there until retention deletes it.
        self.sql
            .prepare_cached("DELETE FROM joins WHERE pool_id = ?1 AND name = ?2 AND expires <= ?3")?
            .execute(params![pool, join.name.as_str(), self.now.as_millis()])?;
        let stands = self
            .sql
            .prepare_cached(
                "SELECT name, role, uses, expires, hash FROM joins WHERE pool_id = ?1 AND name = ?2",
            )?
            .query_and_then(params![pool, join.name.as_str()], |row| {
                Ok::<_, super::Error>((read(row)?, row.get::<_, Vec<u8>>(4)?))
            })?
            .next()
            .transpose()?;
        match stands {
            // Devices may have used it since the first request.
            Some((stands, hash))
                if hash == token.0 && stands.role == join.role && stands.uses <= join.uses =>
            {
                return Ok((stands, false));
            }
            Some(_) => {
                let message = format!("there is another join token {} already", join.name);
                return Err(Refusal::new(Code::Conflict, message)
                    .hint("remove it, or use another name")
                    .into());
            }
            None => {}
        }
        let inserted = self
            .sql
            .prepare_cached(
                "INSERT INTO joins (hash, pool_id, name, role, uses, expires, created) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                token.0.as_slice(),
                pool,
                join.name.as_str(),
                join.role.as_str(),
                join.uses,
                join.expires.as_millis(),
                self.now.as_millis()
            ])?;
        if inserted == 0 {
            return Err(token_in_use().into());
        }
        let body = json!({"join": join.name, "role": join.role, "uses": join.uses, "expires": join.expires});
        self.event(pool, "join-added", &body)?;
        Ok((join.clone(), true))
    }

    /// Takes a join token back; members that used it stay.
    ///
    /// # Errors
    /// `not_found`.
    pub fn remove_join(&mut self, pool: PoolId, name: &MemberName) -> Result<()> {
        let removed = self
            .sql
            .prepare_cached("DELETE FROM joins WHERE pool_id = ?1 AND name = ?2")?
            .execute(params![pool, name.as_str()])?;
        if removed == 0 {
            return Err(not_found(format!("join token {name}")));
        }
        self.event(pool, "join-removed", &json!({"join": name}))?;
        Ok(())
    }

    /// Makes the device that knows a join token a member of that name with a token of its own. A repeat changes nothing, and
    /// is answered also when the join token is no more.
    ///
    /// # Errors
    /// `unauthorized` if the join token holds no more or was never one of that pool; `conflict` as in
    /// [`Tx::add_member`].
    pub fn enrol(
        &mut self,
        join: &Sha256,
        pool: &PoolName,
        name: &MemberName,
        token: &Sha256,
    ) -> Result<Enrolled> {
        let of_none = || Refusal::new(Code::Unauthorized, "the join token is not valid");
        if let Some(known) = find_token(self.sql, token, self.now)?
            && (&known.pool, &known.name) == (pool, name)
        {
            return Ok(Enrolled { role: known.role, by: None });
        }
        // A pool that does not exist is no news to whoever has no token of it.
        let id = self.pool(pool).map_err(|_| of_none())?;
        let found = self
            .sql
            .prepare_cached("SELECT name, role, uses, expires FROM joins WHERE hash = ?1 AND pool_id = ?2")?
            .query_and_then(params![join.0.as_slice(), id], read)?
            .next()
            .transpose()?;
        let Join { name: by, role, uses, expires } = found.ok_or_else(of_none)?;
        if uses == 0 || expires <= self.now {
            let hint = "ask the operator of the pool for a new one";
            return Err(Refusal::new(Code::Unauthorized, "the join token is used up or has expired")
                .hint(hint)
                .into());
        }
        self.add_member(id, name, role, token)?;
        self.sql
            .prepare_cached("UPDATE joins SET uses = uses - 1 WHERE hash = ?1")?
            .execute([join.0.as_slice()])?;
        Ok(Enrolled { role, by: Some(by) })
    }
}

/// What became of an enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub role: Role,
    /// The join token's name; none: it was done already.
    pub by: Option<MemberName>,
}

/// The join tokens of a pool, by name.
pub fn joins(sql: &Connection, pool: PoolId) -> Result<Vec<Join>> {
    let mut statement =
        sql.prepare_cached("SELECT name, role, uses, expires FROM joins WHERE pool_id = ?1 ORDER BY name")?;
    statement.query_and_then([pool], read)?.collect()
}

fn read(row: &Row<'_>) -> Result<Join> {
    Ok(Join {
        name: row.get::<_, String>(0)?.parse()?,
        role: row.get::<_, String>(1)?.parse().map_err(|e: String| Refusal::new(Code::Malformed, e))?,
        uses: row.get(2)?,
        expires: Timestamp::clamped(row.get(3)?),
    })
}
