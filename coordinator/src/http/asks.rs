//! `/v1/pools/{pool}/ask/{op}`: the ops of MQTT over HTTP, for whoever has a member's token.

use axum::Json;
use axum::extract::State;
use millpond_protocol::access::Op;
use millpond_protocol::{Code, PoolName, Refusal};
use serde_json::Value;

use super::Api;
use super::auth::Caller;
use super::error::{Answer, Failed, Params, Raw};

/// Whether the member may ask is decided where asks over MQTT are decided too.
pub(super) async fn ask(
    State(api): State<Api>,
    caller: Caller,
    Params((pool, op)): Params<(PoolName, Op)>,
    Raw(body): Raw,
) -> Answer<Value> {
    let Some(member) = caller.member() else {
        return Err(Refusal::new(Code::Unauthorized, "an admin is no member, and only members ask")
            .hint("use a member's token")
            .into());
    };
    if member.pool != pool {
        return Err(Refusal::new(Code::Unauthorized, format!("the token is not of pool {pool}")).into());
    }
    api.0.asks.answer(member, &caller.source, op, &body).await.map(Json).map_err(Failed)
}
