//! How long a seal takes. Run it by hand, in a release build:
//!
//! ```text
//! cargo test --release -p millpond --test dispatch -- --ignored --nocapture seal_to_ready
//! ```

use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_protocol::access::Op;
use serde_json::json;

use crate::world::{World, files};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn seal_to_ready() {
    let counts = std::env::var("UPLOADS").unwrap_or("10000,100000".into());
    for count in counts.split(',').map(|count| count.parse::<usize>().unwrap()) {
        let mut world = World::new(json!({})).await;
        world.dispatch();
        let server = world.member("server", Role::Processor).await;
        let fresh = memory("VmRSS");
        let each = count / 100;
        for member in 0..100 {
            let who = world.member(&format!("edge-{member:03}"), Role::Publisher).await;
            let mut start = 0;
            while start < each {
                let end = (start + 1_000).min(each);
                world.upload(&who, files(start..end, 1_024)).await;
                start = end;
            }
        }
        // Whatever can be packed ahead is.
        let open = "SELECT count(*) FROM batches WHERE small_bytes - packed_bytes >= 16 * 1024 * 1024";
        world.until(open, 0).await;
        world.until("SELECT count(*) FROM packs WHERE purged = 0", 0).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let idle = reset_peak();
        let started = Instant::now();
        let answer =
            world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
        let took = started.elapsed();
        assert_eq!(answer["lease"]["ready"], true);
        let peak = memory("VmHWM");
        let manifest = world.number("SELECT size FROM objects WHERE key LIKE '%/manifest/%'").await;
        println!(
            "{count} uploads of 1 KiB: sealed to ready {took:?}, manifest {} KiB, memory {} KiB above the {idle} KiB \
             before the seal and {} KiB above the {fresh} KiB of an empty pool",
            manifest / 1024,
            peak.saturating_sub(idle),
            peak.saturating_sub(fresh)
        );
    }
}

/// Forgets the peak of memory; says what is used now, in KiB.
fn reset_peak() -> u64 {
    // Not every kernel lets us: then the peak includes what came before.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    memory("VmRSS")
}

fn memory(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
