//! When the downloads of a fleet begin.

use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::Process;
use serde_json::json;

use crate::cast::{Cast, PATIENCE, content};

const LISTENERS: u64 = 20;
/// What a machine may take beside: how soon who has waited begins.
const SLACK: Duration = Duration::from_millis(500);
/// Results that may come at a moment when the machine was busier than that.
const TRIES: usize = 5;

/// A new version, and how long after it the first and the last of the downloads began.
async fn begun(cast: &Cast, fleet: &mut [Process], version: usize) -> (Duration, Duration) {
    // Nobody goes on with a connection that there was.
    cast.storage.cut();
    cast.storage.mend(cast.server.ports().storage.unwrap());
    let before = cast.storage.begun();
    cast.result(version, &content(200_000, version as u8)).await;
    let (begin, mut first) = (Instant::now(), None);
    let last = loop {
        let count = cast.storage.begun() - before;
        if count > 0 {
            first.get_or_insert(begin.elapsed());
        }
        if count == LISTENERS {
            break begin.elapsed();
        }
        assert!(begin.elapsed() < PATIENCE, "{count} downloads began");
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    for listener in fleet {
        cast.said(listener, &format!("version {version} applied")).await;
    }
    (first.unwrap_or_default(), last)
}

#[tokio::test]
async fn downloads_of_a_fleet_begin_all_over_the_spread_and_without_one_at_once() {
    let cast = Cast::new().await;
    let mut fleet = Vec::new();
    for n in 0..LISTENERS {
        let name = format!("fleet-{n}");
        let who = cast.server.member("demo", &name, Role::Listener).await;
        fleet.push(cast.edge.start_as(&who, &name, &["listen", "--dir", &name]));
    }
    // It comes over MQTT: who shows it is connected.
    cast.result(1, b"small").await;
    for listener in &mut fleet {
        cast.said(listener, "version 1 applied").await;
    }
    let mut version = 1;
    // That all of twenty begin within half of the spread happens once in 50,000 times.
    for (spread_s, apart) in [(2, Duration::from_secs(1)), (0, Duration::ZERO)] {
        cast.server.api().patch("/v1/pools/demo", &json!({ "spread_s": spread_s })).await;
        let mut seen = Vec::new();
        let as_told = |(first, last): (Duration, Duration)| {
            last - first >= apart && last <= Duration::from_secs(spread_s) + SLACK
        };
        while !seen.last().copied().is_some_and(as_told) {
            assert!(
                seen.len() < TRIES,
                "spread over {spread_s} s, the first and the last began after {seen:?}"
            );
            version += 1;
            seen.push(begun(&cast, &mut fleet, version).await);
        }
    }
}
