//! How fast members may send, and that one that floods slows nobody else.

use std::time::{Duration, Instant};

use millpond_broker::{GateConfig, Rate};

use crate::support::{LEVELS, Raw, Server, app_config, packet, publish, server_with, subscribe};

/// A gate that takes so many messages a second of a member, and of a pool.
async fn limited(member: u64, pool: u64) -> Server {
    let rate = |messages| Rate { messages, bytes: 0 };
    server_with(GateConfig { member_rate: rate(member), pool_rate: rate(pool), ..app_config() }).await
}

/// Many small uploads at once.
fn flood(raw: &Raw, member: &str, count: u16) -> Vec<u8> {
    let one = |n| publish(raw.level, 1, n, &format!("mp/p/c/{member}/up/u{n}"), &[], b"x");
    (1..=count).flat_map(one).collect()
}

async fn acks(raw: &mut Raw, count: u16) {
    for n in 1..=count {
        let [high, low] = n.to_be_bytes();
        assert_eq!(raw.packet().await, (0x40, vec![high, low]));
    }
}

#[tokio::test]
async fn a_member_over_its_rate_is_not_read_for_a_while_and_loses_nothing() {
    for level in LEVELS {
        let server = limited(40, 0).await;
        let mut flooder = server.client_as(level, "publisher", "a").await;
        let begun = Instant::now();
        // Forty may come at once, and twenty more need half a second. A window of MQTT 5 holds them all.
        flooder.send(&flood(&flooder, "publisher", 60)).await;
        let mut other = server.client(level, "publisher-2").await;
        other.publish(1, 1, "mp/p/c/publisher-2/up/u", b"x").await;
        acks(&mut other, 1).await;
        acks(&mut flooder, 60).await;
        assert!(begun.elapsed() >= Duration::from_millis(450), "after {:?}", begun.elapsed());
        assert_eq!(server.backend.taken_ids().len(), 61);
    }
}

#[tokio::test]
async fn everything_that_a_member_sends_counts_for_its_rate_on_all_its_connections() {
    let ask = |n: u16| publish(4, 1, n, "mp/p/c/publisher/ask/time", &[], b"{}");
    let bundle = |n: u16| publish(4, 1, n, &format!("mp/p/c/publisher/bundle/b{n}"), &[], b"x");
    let app = |n: u16| publish(4, 1, n, "app/p/x", &[], b"x");
    let sub = |n: u16| subscribe(4, n, &[("app/p/none", 0)]);
    let ping = |_: u16| packet(0xC0, &[]);
    let kinds: [&dyn Fn(u16) -> Vec<u8>; 5] = [&ask, &bundle, &app, &sub, &ping];
    for kind in kinds {
        let server = limited(20, 0).await;
        let mut raws =
            [server.client_as(4, "publisher", "a").await, server.client_as(4, "publisher", "b").await];
        let begun = Instant::now();
        for raw in &mut raws {
            raw.send(&(1..=15).flat_map(kind).collect::<Vec<u8>>()).await;
        }
        for raw in &mut raws {
            for _ in 1..=15 {
                raw.packet().await;
            }
        }
        assert!(begun.elapsed() >= Duration::from_millis(400), "after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_pool_at_its_rate_holds_back_who_floods_and_nobody_within_its_share() {
    let begun = std::time::Instant::now();
    let server = limited(0, 50).await;
    let mut other = server.client(4, "publisher-2").await;
    other.publish(1, 1, "mp/p/c/publisher-2/up/u1", b"x").await;
    acks(&mut other, 1).await;
    let mut flooder = server.client(4, "publisher").await;
    let bytes = flood(&flooder, "publisher", 3_000);
    let (mut read, mut write) = flooder.io.split();
    let flooding = async {
        // It is read at fifty a second, so this blocks long before its end.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &bytes).await;
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    };
    let others = async {
        // The pool is at its rate from here on.
        server.backend.until(|backend| backend.taken_ids().len() > 50).await;
        for n in 2..=11 {
            other.publish(1, n, &format!("mp/p/c/publisher-2/up/u{n}"), b"x").await;
            let [high, low] = n.to_be_bytes();
            assert_eq!(other.packet().await, (0x40, vec![high, low]));
        }
    };
    tokio::select! {
        _ = flooding => panic!("it is not held back"),
        () = others => {}
    }
    let of_the_other =
        server.backend.taken.lock().unwrap().iter().filter(|one| one.from == "publisher-2").count();
    assert_eq!(of_the_other, 11);
    // The rate, a burst of the pool, and one of each share.
    let most = 120.0 + 50.0 * begun.elapsed().as_secs_f64();
    let taken = server.backend.taken_ids().len();
    assert!(taken as f64 <= most, "{taken} where the pool's rate permits {most}");
}

#[tokio::test]
async fn a_client_that_is_held_back_is_not_blamed_for_its_silence() {
    let server = limited(2, 0).await;
    let login = [crate::support::text("p/publisher"), crate::support::text("secret")].concat();
    let mut raw = server.raw().await;
    raw.level = 5;
    // A keep-alive of two seconds; it is held back for five.
    raw.send(&crate::support::connect_with(5, 0xC2, 2, "hasty", &[], &login)).await;
    assert_eq!(raw.packet().await.1[1], 0);
    raw.send(&flood(&raw, "publisher", 12)).await;
    acks(&mut raw, 12).await;
}

#[tokio::test]
async fn what_a_client_said_in_time_counts_however_late_the_gate_reads_it() {
    let server = limited(0, 0).await;
    for level in LEVELS {
        let login = [crate::support::text("p/publisher"), crate::support::text("secret")].concat();
        let mut raw = server.raw().await;
        raw.level = level;
        raw.send(&crate::support::connect_with(level, 0xC2, 1, "prompt", &[], &login)).await;
        assert_eq!(raw.packet().await.1[1], 0);
        raw.send(&packet(0xC0, &[])).await;
        // Everything stands still here, the gate too, for longer than the client may be silent.
        std::thread::sleep(Duration::from_millis(1_700));
        assert_eq!(raw.packet().await, (0xD0, vec![]));
    }
}
