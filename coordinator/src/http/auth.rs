//! Who asks: a bearer token, the admin's or a device's.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use millpond_protocol::access::{Action, may};
use millpond_protocol::{Code, MemberName, PoolName, Principal, Refusal, Sha256};

use super::Api;
use super::error::Failed;
use super::serve::Peer;
use crate::ledger::tokens::find_token;
use crate::ledger::{self, Tx};

/// Who sent the request, and from where.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    who: Who,
    token: Sha256,
    /// The client's address, for the audit trail.
    pub source: String,
}

#[derive(Debug, Clone)]
enum Who {
    Admin,
    Member(Principal),
}

impl Caller {
    /// Checks that the caller may do this in the pool. Whether the pool exists makes no difference.
    ///
    /// # Errors
    /// `unauthorized`.
    pub(super) fn check(&self, pool: &PoolName, action: Action<'_>) -> Result<(), Refusal> {
        match &self.who {
            Who::Admin => Ok(()),
            Who::Member(member) if member.pool == *pool && may(member, action) => Ok(()),
            Who::Member(member) => Err(Refusal::new(
                Code::Unauthorized,
                format!("{} {}/{} may not do this in pool {pool}", member.role, member.pool, member.name),
            )
            .hint("use the admin token, or that of an operator of the pool")),
        }
    }

    /// Checks that the caller stands above pools.
    ///
    /// # Errors
    /// `unauthorized`.
    pub(super) fn check_admin(&self) -> Result<(), Refusal> {
        match &self.who {
            Who::Admin => Ok(()),
            Who::Member(_) => Err(Refusal::new(Code::Unauthorized, "this takes the admin token")),
        }
    }

    /// The member who asks; none for the admin.
    pub(super) fn member(&self) -> Option<&Principal> {
        match &self.who {
            Who::Admin => None,
            Who::Member(member) => Some(member),
        }
    }

    /// The only pool that the caller may see; none: all.
    ///
    /// # Errors
    /// `unauthorized` for members who may see none.
    pub(super) fn scope(&self) -> Result<Option<PoolName>, Refusal> {
        match &self.who {
            Who::Admin => Ok(None),
            Who::Member(member) => {
                self.check(&member.pool, Action::Inspect)?;
                Ok(Some(member.pool.clone()))
            }
        }
    }

    /// The hash of the token that the request came with.
    pub(super) fn token(&self) -> Sha256 {
        self.token
    }

    /// Checks, inside the job that the request becomes, that the token which it came with still stands for the same member
    /// and role: between the first check and the job lies the request's body, for as long as the client likes.
    ///
    /// # Errors
    /// `unauthorized`.
    pub(super) fn still(&self, tx: &Tx<'_>) -> ledger::Result<()> {
        let Who::Member(member) = &self.who else { return Ok(()) };
        if find_token(tx.sql(), &self.token, tx.now())?.as_ref() == Some(member) {
            return Ok(());
        }
        Err(Refusal::new(Code::Unauthorized, "the token is not valid any more").into())
    }

    /// Whether the token that the request came with still opens the same door.
    pub(super) async fn is_still_good(&self, api: &Api) -> bool {
        let Who::Member(member) = &self.who else { return true };
        let found = api.0.identity.holder(self.token).await;
        found.is_ok_and(|found| found.as_ref() == Some(member))
    }

    /// Whether something of the caller is among what ended.
    pub(super) fn is_among(&self, ended: &[(PoolName, MemberName, &'static str)]) -> bool {
        self.member()
            .is_some_and(|who| ended.iter().any(|(pool, name, _)| (pool, name) == (&who.pool, &who.name)))
    }

    /// The caller's name in the audit trail.
    pub(super) fn name(&self) -> String {
        match &self.who {
            Who::Admin => "admin".to_owned(),
            Who::Member(member) => format!("{}/{}", member.pool, member.name),
        }
    }
}

impl FromRequestParts<Api> for Caller {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failed> {
        let Bearer { from, token } = Bearer::from_request_parts(parts, api).await?;
        let (hash, source) = (Sha256::of(token.as_bytes()), from.to_string());
        let identity = &api.0.identity;
        // Digests are compared, so the time that it takes says nothing of the token.
        if hash == api.0.admin {
            return Ok(Self { who: Who::Admin, token: hash, source });
        }
        match identity.holder(hash).await? {
            Some(member) => Ok(Self { who: Who::Member(member), token: hash, source }),
            None => Err(identity.not_a_token(from.ip(), &hash).into()),
        }
    }
}

/// Where a request came from.
pub(super) struct Origin(pub SocketAddr);

impl Origin {
    /// Whether that is this machine.
    pub(super) fn is_local(&self) -> bool {
        self.0.ip().to_canonical().is_loopback()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Every request that came over a connection has a peer.
        let peer = parts.extensions.get::<Peer>().map(|Peer(address)| *address);
        Ok(Self(peer.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())))
    }
}

/// The bearer token of a request, whatever it is worth, and where it came from. Who failed too often is refused here, before the
/// body is read.
pub(super) struct Bearer {
    pub from: SocketAddr,
    pub token: String,
}

impl Bearer {
    /// Checks that it is one of those that may see what is of all pools: the admin's, or that for metrics.
    ///
    /// # Errors
    /// `unauthorized`.
    pub(super) fn may_watch(&self, api: &Api) -> Result<(), Refusal> {
        let hash = Sha256::of(self.token.as_bytes());
        if hash == api.0.admin || Some(hash) == api.0.metrics {
            return Ok(());
        }
        Err(api.0.identity.not_a_token(self.from.ip(), &hash))
    }
}

impl FromRequestParts<Api> for Bearer {
    type Rejection = Failed;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Failed> {
        let Ok(Origin(from)) = Origin::from_request_parts(parts, api).await;
        let value = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let presented = value
            .and_then(|value| value.split_once(' '))
            .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        match presented {
            Some((_, token)) => {
                let token = token.trim().to_owned();
                api.0.identity.may_try(from.ip(), &Sha256::of(token.as_bytes()))?;
                Ok(Self { from, token })
            }
            None => Err(Refusal::new(Code::Unauthorized, "the request carries no bearer token")
                .hint("send Authorization: Bearer TOKEN")
                .into()),
        }
    }
}
