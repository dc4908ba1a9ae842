//! The contract, against the embedded server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod contract;

use common::Server;
use contract::Place;

macro_rules! run {
    ($($case:ident,)*) => {$(
        #[tokio::test]
        async fn $case() {
            let server = Server::start().await;
            contract::$case(&Place::new(server.config.clone())).await;
        }
    )*};
}
object_cases!(run);
part_cases!(run);
