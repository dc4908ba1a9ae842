//! stub
use super::Asks;
use millpond_protocol::message::{answer, ask};
use millpond_protocol::{Principal, Refusal};
pub(super) async fn trigger(
    _: &Asks,
    _: &Principal,
    _: ask::Trigger,
    _: &ask::Head,
) -> Result<answer::Triggered, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub(super) async fn claim(
    _: &Asks,
    _: &Principal,
    _: ask::Claim,
    _: &ask::Head,
) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub(super) async fn beat(
    _: &Asks,
    _: &Principal,
    _: ask::Beat,
    _: &ask::Head,
) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub(super) async fn files(
    _: &Asks,
    _: &Principal,
    _: ask::Files,
    _: &ask::Head,
) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub(super) async fn done(
    _: &Asks,
    _: &Principal,
    _: ask::Done,
    _: &ask::Head,
) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub(super) async fn fail(
    _: &Asks,
    _: &Principal,
    _: ask::Fail,
    _: &ask::Head,
) -> Result<serde_json::Value, Refusal> {
    Err(Refusal::unavailable("x"))
}
