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
            let server = Server::start_with(|config| config.cors_origins = vec![contract::PAGE.into()]).await;
            let place = Place::embedded(server.config.clone(), server.dir.path());
            contract::$case(&place).await;
            place.end();
        }
    )*};
}
object_cases!(run);
url_cases!(run);
part_cases!(run);
