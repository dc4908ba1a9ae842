//! A disk whose syncs take as long as they do on hardware, and kill -9 while it is at work.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millpond_protocol::{Role, limits};
use millpond_tests::{Link, Mill, Server, Shim};
use serde_json::json;

use super::{check, publish};

/// Messages at once.
const BURST: usize = 20;

async fn a_day(sync: Duration) {
    let Some(shim) = Shim::new() else { return };
    let mut server = Server::prepare(&[]);
    server.set_environment(shim.slow(sync));
    server.launch().await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let who = server.member("demo", "edge", Role::Publisher).await;
    let link = Link::open(who.clone()).await.unwrap();
    let begin = Instant::now();
    publish(&link, "first", vec![1]).await.unwrap();
    assert!(begin.elapsed() >= sync, "it was acknowledged before it was synced");
    let mut acknowledged = vec!["first".to_owned()];
    for round in 0..3 {
        let files = (0..BURST)
            .map(|n| (format!("u-{round}-{n}"), if n == 7 { limits::SMALL_MAX + 1 } else { 1_000 }));
        let files: Vec<_> = files.collect();
        let sent = join_all(files.iter().map(|(upload, size)| publish(&link, upload, vec![7; *size]))).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        acknowledged.extend(files.into_iter().map(|(upload, _)| upload));
    }
    // In the middle of more.
    let on_the_way: Vec<_> = (0..BURST).map(|n| format!("v-{n}")).collect();
    let sending = join_all(on_the_way.iter().map(|upload| publish(&link, upload, vec![8; 1_000])));
    let sent = tokio::select! {
        sent = sending => sent.into_iter().map(|sent| sent.is_ok()).collect(),
        () = tokio::time::sleep(sync) => vec![false; BURST],
    };
    server.kill();
    acknowledged.extend(on_the_way.into_iter().zip(sent).filter_map(|(upload, sent)| sent.then_some(upload)));
    server.launch().await;
    let uploads = server.uploads("demo").await;
    for upload in &acknowledged {
        assert!(
            uploads.iter().any(|there| there["upload"] == **upload),
            "{upload} was acknowledged and is lost"
        );
    }
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let leased = mill.fetch(mill.trigger(&json!({})).await.unwrap()).await.unwrap();
    assert_eq!(leased.files.len(), uploads.len());
    mill.answer(&leased.lease, "ground").await.unwrap();
    check(&server).await;
}

#[tokio::test]
async fn with_syncs_of_2_ms_everything_works_and_what_was_acknowledged_survives_a_kill() {
    a_day(Duration::from_millis(2)).await;
}

#[tokio::test]
async fn with_syncs_of_50_ms_everything_works_and_what_was_acknowledged_survives_a_kill() {
    a_day(Duration::from_millis(50)).await;
}
