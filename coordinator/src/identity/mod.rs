//! Who signs in: the one way in for devices over MQTT and for whoever calls the HTTP API.
//!
//! A credential is looked up by its SHA-256; tokens are 256 random bits, so nothing slower would make them safer. What
//! fails is limited (`limiter`) and ends in the audit trail (`refusals`). `expiry` ends what was valid for a time only.

pub mod expiry;
pub mod limiter;
pub mod refusals;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use millpond_broker::{Credential, SignIn, SignInError};
use millpond_protocol::error::TOKEN_PREFIXES;
use millpond_protocol::{Code, MemberName, PoolName, Principal, Refusal, Sha256, limits};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::ledger::tokens::{find_certified, find_token};
use crate::ledger::{Ledger, Tx, now};
use limiter::{Allowance, Limiter};
use refusals::{Refusals, Refused};

/// Between two looks at what was refused.
const AUDIT_EVERY: Duration = Duration::from_secs(5);

/// Sign-in for everybody; clones share it.
#[derive(Clone)]
pub struct Identity(Arc<Shared>);

struct Shared {
    ledger: Ledger,
    limiter: Mutex<Limiter>,
    refusals: Mutex<Refusals>,
}

impl Identity {
    /// Members and tokens are in `ledger`; an address, and a name from an address, may fail as often as said, and again
    /// after a while.
    pub fn new(ledger: Ledger, failures_per_name: u32, failures_per_address: u32) -> Self {
        let limiter = Limiter::new(
            Allowance { burst: failures_per_name, each: limits::SIGN_IN_NAME_PAUSE },
            Allowance { burst: failures_per_address, each: limits::SIGN_IN_ADDRESS_PAUSE },
        );
        Self(Arc::new(Shared { ledger, limiter: limiter.into(), refusals: Mutex::default() }))
    }

    /// The member who is named, if the credential is its own.
    ///
    /// # Errors
    /// [`SignInError`], without a word on which part was wrong.
    pub async fn member(&self, attempt: SignIn) -> Result<Principal, SignInError> {
        let SignIn { pool, member, credential, from } = attempt;
        let user = format!("{pool}/{member}");
        if self.limiter().wait(Instant::now(), from.ip(), Some(&user)).is_some() {
            return Err(SignInError::Quota);
        }
        let found = match credential {
            Credential::Token(token) => self.holder(Sha256::of(&token)).await,
            Credential::Certificate { issued } => {
                let (pool, member) = (pool.clone(), member.clone());
                self.0.ledger.look(move |sql| find_certified(sql, &pool, &member, issued)).await
            }
        };
        match found {
            Ok(Some(who)) if (&who.pool, &who.name) == (&pool, &member) => Ok(who),
            Ok(_) => {
                self.limiter().failed(Instant::now(), from.ip(), Some(&user));
                Err(SignInError::BadCredentials)
            }
            Err(_) => Err(SignInError::Unavailable),
        }
    }

    /// Whether a bearer token with that hash, which is its name here, is looked at now: a client that repeats a stale one
    /// keeps nobody out who is behind the same address.
    ///
    /// # Errors
    /// `quota` with the time to wait for.
    pub fn may_try(&self, from: IpAddr, token: &Sha256) -> Result<(), Refusal> {
        let wait = self.limiter().wait(Instant::now(), from, Some(&token.to_string()));
        self.no_wait(wait, None, from)
    }

    /// Whether somebody is made a member by a join token now: who repeats a name that is taken keeps nobody out who has the
    /// same token behind the same address.
    ///
    /// # Errors
    /// `quota` with the time to wait for.
    pub fn may_enrol(
        &self,
        from: IpAddr,
        token: &Sha256,
        pool: &PoolName,
        member: &MemberName,
    ) -> Result<(), Refusal> {
        let user = format!("{pool}/{member}");
        let wait = self.limiter().wait_among(Instant::now(), from, &token.to_string(), &user);
        self.no_wait(wait, Some(&user), from)
    }

    fn no_wait(&self, wait: Option<Duration>, user: Option<&str>, from: IpAddr) -> Result<(), Refusal> {
        let Some(wait) = wait else { return Ok(()) };
        self.refused(user, from, "too many failed attempts");
        let mut refusal = Refusal::new(Code::Quota, "too many failed sign-ins from your address");
        refusal.retry_after_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Err(refusal.hint("wait, and mend the client that repeats a wrong token"))
    }

    /// Counts a bearer token that is nobody's.
    pub fn not_a_token(&self, from: IpAddr, token: &Sha256) -> Refusal {
        self.failed(None, from, token, "a bearer token that is not valid");
        Refusal::new(Code::Unauthorized, "the token is not valid")
    }

    /// Counts a join token by which nobody becomes that member: it is none, or, where `is_taken`, the name is.
    pub fn not_enrolled(
        &self,
        from: IpAddr,
        token: &Sha256,
        pool: &PoolName,
        member: &MemberName,
        is_taken: bool,
    ) {
        let user = format!("{pool}/{member}");
        if !is_taken {
            return self.failed(Some(&user), from, token, "a join token that is not valid");
        }
        metrics::counter!("millpond_http_sign_in_failures_total").increment(1);
        self.limiter().failed_among(Instant::now(), from, &token.to_string(), &user);
        self.refused(Some(&user), from, "a join token for a name that is taken");
    }

    fn failed(&self, user: Option<&str>, from: IpAddr, token: &Sha256, why: &'static str) {
        metrics::counter!("millpond_http_sign_in_failures_total").increment(1);
        self.limiter().failed(Instant::now(), from, Some(&token.to_string()));
        self.refused(user, from, why);
    }

    /// Notes a refused sign-in for the audit trail. `user` is what the client named, whatever it is.
    pub fn refused(&self, user: Option<&str>, from: IpAddr, why: &'static str) {
        let user = user.filter(|user| may_be_shown(user));
        lock(&self.0.refusals).note(now(), user, from, why);
    }

    /// Writes what was refused into the audit trail: what is new within seconds, what goes on once an hour, and all of it at
    /// `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            let last = tokio::select! {
                () = shutdown.cancelled() => true,
                () = tokio::time::sleep(AUDIT_EVERY) => false,
            };
            let refused = lock(&self.0.refusals).take(Instant::now(), last);
            if !refused.is_empty() {
                // A trail that cannot be written is in the log at least.
                let _ = self.0.ledger.write(move |tx| audit(tx, &refused)).await;
            }
            if last {
                return;
            }
        }
    }

    /// The member whose token has that hash; `None` if it is nobody's.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn holder(&self, hash: Sha256) -> Result<Option<Principal>, Refusal> {
        self.0.ledger.look(move |sql| find_token(sql, &hash, now())).await
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        lock(&self.0.limiter)
    }
}

/// What it guards is whole at any time: a panic elsewhere does no harm to it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether a user name can be written down: one that has the shape of a name and not that of a token in the wrong field.
fn may_be_shown(user: &str) -> bool {
    let names = user
        .split_once('/')
        .is_some_and(|(pool, name)| pool.parse::<PoolName>().is_ok() && name.parse::<MemberName>().is_ok());
    names && !TOKEN_PREFIXES.iter().any(|prefix| user.contains(prefix))
}

fn audit(tx: &mut Tx<'_>, refused: &[Refused]) -> crate::ledger::Result<()> {
    for refused in refused {
        let Refused { user, from, why, count, first, last } = refused;
        let source = from.map_or_else(|| "several addresses".to_owned(), |from| from.to_string());
        let user = user.as_deref();
        tracing::warn!(user.name = user, client.address = %source, count, reason = why, "sign-in refused");
        // A pool that was only named by a stranger is not one: its operators see what is about theirs.
        let pool = user.and_then(|user| user.split_once('/')?.0.parse::<PoolName>().ok());
        let pool = pool.filter(|pool| tx.pool(pool).is_ok());
        let detail = json!({"reason": why, "count": count, "first": first, "last": last});
        tx.audit(pool.as_ref(), user.unwrap_or("unknown"), &source, "sign-in-refused", &detail)?;
    }
    Ok(())
}
