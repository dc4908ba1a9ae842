//! Limits that whoever starts `millpond-edge` sets: what the spool may hold, and how many bytes a second may go.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use millpond_protocol::{Role, limits};
use millpond_tests::{Edge, Link, Mill, Relay, Server};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

/// Ids of what waits, oldest first.
async fn waiting(edge: &Edge) -> Vec<String> {
    let list = edge.done(&["--json", "spool", "list"]).await;
    let lines = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| line["upload"].as_str().unwrap().to_owned()).collect()
}

/// Spools files of 10 bytes whose times follow each other.
async fn spooled(edge: &Edge, ids: &[&str]) {
    for (n, id) in ids.iter().enumerate() {
        edge.file(id, &[b'x'; 10]);
        let time = format!("2026-01-0{}T00:00:00Z", n + 1);
        edge.done(&["push", "--offline", "--event-time", &time, "--id", id, id]).await;
    }
}

/// What `push` says of these files where that is the limit; exit code and standard error.
async fn pushed(edge: &Edge, limit: &[&str], files: &[&str]) -> (Option<i32>, String) {
    files.iter().for_each(|name| drop(edge.file(name, format!("{name:>10}").as_bytes())));
    let output = edge.run(&[limit, &["push", "--offline"], files].concat()).await;
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn a_full_spool_refuses_what_comes_and_keeps_what_it_has() {
    let (_server, mut edge) = Edge::device().await;
    spooled(&edge, &["a", "b", "c"]).await;
    // One fits under each of the limits, and of two none is taken.
    for limit in [["--spool-files", "4"], ["--spool-bytes", "49"]] {
        let (code, said) = pushed(&edge, &limit, &["d", "e"]).await;
        assert_eq!(code, Some(75), "{limit:?}: {said}");
        assert!(said.contains("the spool is full") && said.contains(limit[1]), "{said}");
        assert_eq!(waiting(&edge).await, ["a", "b", "c"], "{limit:?}");
    }
    assert_eq!(std::fs::read_dir(edge.spool().join("staging")).unwrap().count(), 0);
    assert!(!edge.spool().join("dropped.log").exists());
    let (code, said) = pushed(&edge, &["--spool-files", "4", "--spool-bytes", "40"], &["d"]).await;
    assert_eq!((code, waiting(&edge).await.len()), (Some(0), 4), "{said}");
    // As a service has it; and what there is leaves all the same.
    edge.set_environment([("MILLPOND_SPOOL_FILES", "4".to_owned())]);
    assert_eq!(pushed(&edge, &[], &["e"]).await.0, Some(75));
    edge.done(&["spool", "flush"]).await;
    assert_eq!(pushed(&edge, &[], &["e"]).await.0, Some(0));
    assert_eq!(waiting(&edge).await.len(), 1);
}

#[tokio::test]
async fn a_full_spool_that_drops_the_oldest_says_which_and_drops_no_more_than_it_must() {
    for limit in [["--spool-files", "3"], ["--spool-bytes", "39"]] {
        let (_server, edge) = Edge::device().await;
        spooled(&edge, &["a", "b", "c"]).await;
        let drops = [&limit[..], &["--spool-full", "drop-oldest"]].concat();
        let (code, said) = pushed(&edge, &drops, &["d", "e"]).await;
        assert_eq!(code, Some(0), "{said}");
        for (id, day) in [("a", 1), ("b", 2)] {
            assert!(said.contains(&format!("dropped {id} of 2026-01-0{day}T")), "{said}");
        }
        let left = waiting(&edge).await;
        assert_eq!((left.len(), left[0].as_str()), (3, "c"), "{left:?}");
        let log = std::fs::read_to_string(edge.spool().join("dropped.log")).unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let logged: Vec<_> =
            lines.iter().map(|line| [&line["from"], &line["upload"], &line["size"]]).collect();
        assert_eq!(json!(logged), json!([["ready", "a", 10], ["ready", "b", 10]]));
        // What would not fit into an empty one drives nothing out.
        edge.file("large", &[b'x'; 40]);
        let large = ["large", "f", "g", "h"];
        large[1..].iter().for_each(|name| drop(edge.file(name, name.as_bytes())));
        let refused = edge.run(&[&drops[..], &["push", "--offline"], &large].concat()).await;
        assert_eq!(refused.status.code(), Some(75), "{refused:?}");
        assert_eq!(waiting(&edge).await, left);
    }
}

#[tokio::test]
async fn small_files_go_over_mqtt_no_faster_than_the_rate_on_average() {
    const RATE: u64 = 2_000_000;
    // More messages than one: of the largest there is.
    let (server, edge) = Edge::device().await;
    edge.spooled(60, 100_000).await;
    let begin = Instant::now();
    let mut flush = edge.start("flush", &["--rate", &RATE.to_string(), "spool", "flush"]);
    loop {
        let sent = edge.relay.upward();
        // Time is looked at later: what was sent had no more than this.
        let may = RATE as f64 * begin.elapsed().as_secs_f64() + (limits::BUNDLE_MAX / 2 + 100_000) as f64;
        assert!((sent as f64) < may, "{sent} bytes after {:?}", begin.elapsed());
        if let Some(status) = flush.status() {
            assert!(status.success(), "{}", flush.stderr());
            break;
        }
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(edge.relay.upward() > 6_000_000, "{} bytes went over MQTT", edge.relay.upward());
    // The last message is not waited for, and it is 2 MiB at the most.
    assert!(begin.elapsed() > Duration::from_millis(1_900), "{:?}", begin.elapsed());
    assert_eq!(server.uploads("demo").await.len(), 60);
}

#[tokio::test]
async fn what_comes_by_url_comes_no_faster_than_the_rate_for_listeners_and_processors() {
    const SIZE: usize = 900_000;
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    storage.mend(server.ports().storage.unwrap());
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let source = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    source.publish("mp/demo/c/edge-1/up/one", vec![1; SIZE], Default::default()).await.unwrap();
    let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
    mill.answer(&lease, vec![2; SIZE]).await.unwrap();
    source.publish("mp/demo/c/edge-1/up/two", vec![3; SIZE], Default::default()).await.unwrap();
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let other = Edge::new(&server, server.member("demo", "other", Role::Processor).await).await;
    let process =
        ["process", "--once", "--trigger", "every", "1h", "--exec", r#"echo x > "$MILLPOND_OUTPUT""#];
    for (edge, command) in [(&edge, &["listen", "--once"][..]), (&other, &process)] {
        let (begin, before) = (Instant::now(), storage.downward());
        edge.done(&[&["--rate", "450000"], command].concat()).await;
        assert!(storage.downward() - before > SIZE as u64, "it came by URL");
        // Two seconds' worth, of which the last piece is not waited for.
        assert!(begin.elapsed() > Duration::from_millis(1_600), "{command:?}: {:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn what_is_more_than_a_second_of_the_rate_goes_and_comes_by_url_so_that_no_message_is_a_burst() {
    const RATE: u64 = 60_000;
    const SIZE: usize = 120_000;
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    storage.mend(server.ports().storage.unwrap());
    server.pool("demo", json!({ "grouping": "count", "count": 1, "spread_s": 0 })).await;
    let device = Edge::new(&server, server.member("demo", "edge-1", Role::Publisher).await).await;
    let mill = Edge::new(&server, server.member("demo", "mill", Role::Processor).await).await;
    let listener = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    // All of them would be messages.
    device.file("file", &[1; SIZE]);
    let exec = format!(r#"head -c {SIZE} /dev/zero > "$MILLPOND_OUTPUT""#);
    let steps = [
        (&device, &["push", "file"][..], 1),
        // What was pushed, and the result.
        (&mill, &["process", "--once", "--exec", &exec], 2),
        (&listener, &["listen", "--once"], 1),
    ];
    for (edge, command, times) in steps {
        // What comes is taken in by the system before anybody can slow it down.
        let passed = || storage.upward() + edge.relay.upward();
        let (before, by_url) = (passed(), storage.upward() + storage.downward());
        let mut running = edge.start("limited", &[&["--rate", &RATE.to_string()], command].concat());
        let begin = Instant::now();
        while running.status().is_none() {
            let now = passed() - before;
            // Time is looked at later: a second of it, and what is no content.
            let may = RATE as f64 * begin.elapsed().as_secs_f64() + (RATE + 40_000) as f64;
            assert!((now as f64) < may, "{command:?}: {now} bytes after {:?}", begin.elapsed());
            assert!(begin.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(running.wait(PATIENCE).await.success(), "{command:?}: {}", running.stderr());
        let by_url = storage.upward() + storage.downward() - by_url;
        assert!(by_url > (times * SIZE) as u64, "{command:?}: {by_url} bytes by URL");
        assert!(edge.relay.upward() + edge.relay.downward() < 40_000, "{command:?}");
    }
}
