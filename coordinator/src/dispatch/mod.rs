//! stub
use crate::ledger::Ledger;
use millpond_protocol::Refusal;
use millpond_storage::Storage;
pub async fn read_small(_: &Ledger, _: &Storage, _: i64) -> Result<bytes::Bytes, Refusal> {
    Err(Refusal::unavailable("x"))
}
pub async fn run(_: Ledger, _: Storage, stop: tokio_util::sync::CancellationToken) {
    stop.cancelled().await
}
