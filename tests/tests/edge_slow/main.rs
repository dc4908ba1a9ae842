//! Slow and lossy networks, and disks without room: what was begun comes to its end, and little of it is sent twice.

#![allow(clippy::unwrap_used, reason = "tests")]

mod backoff;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Edge, Link, Mill, Process, Relay, Server, Shape, edge_binary, skip};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(240);

/// 200 ms there and back, 256 KB/s, and connections that end after about so many bytes.
fn bad(cut_every: u64) -> Shape {
    Shape { delay: Duration::from_millis(100), rate: Some(256_000), cut_every: Some(cut_every), seed: 7 }
}

#[tokio::test]
async fn a_push_over_a_slow_network_that_is_cut_all_the_time_gets_everything_through() {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "window", "window_s": 86_400 })).await;
    let edge = Edge::new(&server, server.member("demo", "edge-1", Role::Publisher).await).await;
    let names: Vec<String> = (0..300).map(|n| format!("file-{n}")).collect();
    for name in &names {
        edge.file(name, &name.bytes().cycle().take(5_000).collect::<Vec<_>>());
    }
    let mut push = vec!["push", "--offline"];
    push.extend(names.iter().map(String::as_str));
    edge.done(&push).await;
    // A bundle of the usual size does not get through between two cuts; what was in it is asked for, and sent as the answers come.
    edge.relay.shape(bad(400_000));
    let mut flush = edge.start("flush", &["--patience", "120", "spool", "flush"]);
    assert!(flush.wait(PATIENCE).await.success(), "{}", flush.stderr());
    let uploads = server.uploads("demo").await;
    let stored: BTreeSet<_> = uploads.iter().map(|upload| upload["name"].as_str().unwrap()).collect();
    assert_eq!((uploads.len(), stored.len()), (300, 300));
    let (sent, cuts) = (edge.relay.upward(), edge.relay.cuts());
    eprintln!("{sent} bytes sent for 1500000, {cuts} cuts");
    assert!(cuts >= 2, "{cuts} cuts");
    assert!(sent < 2 * 1_500_000 + 600_000, "{sent} bytes with {cuts} cuts");
}

/// A result that waits to be fetched by URL, and who fetches it.
struct Cast {
    server: Server,
    edge: Edge,
    storage: Relay,
}

async fn result(bytes: &[u8]) -> Cast {
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    storage.mend(server.ports().storage.unwrap());
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    link.publish("mp/demo/c/edge-1/up/u1", vec![1], Default::default()).await.unwrap();
    let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
    mill.answer(&lease, bytes.to_vec()).await.unwrap();
    Cast { server, edge, storage }
}

#[tokio::test]
async fn a_listener_on_such_a_network_has_the_result_and_fetches_no_byte_of_it_twice() {
    let bytes: Vec<u8> = (0..1_000_000_usize).map(|n| (n / 1_000 + n % 251) as u8).collect();
    let Cast { server: _server, edge, storage } = result(&bytes).await;
    let before = storage.downward();
    edge.relay.shape(bad(1_000_000));
    storage.shape(bad(200_000));
    let mut listen = edge.start("listen", &["listen", "--once"]);
    assert!(listen.wait(PATIENCE).await.success(), "{}", listen.stderr());
    assert!(std::fs::read(edge.directory().join("results/current")).unwrap() == bytes);
    let (fetched, cuts) = (storage.downward() - before, storage.cuts());
    eprintln!("{fetched} bytes fetched for 1000000, {cuts} cuts");
    assert!(cuts >= 2, "{cuts} cuts");
    // What is under way when a connection ends: a tenth of a second of it, and a piece; and the head of each answer.
    assert!(fetched < 1_000_000 + (cuts + 1) * 80_000, "{fetched} bytes with {cuts} cuts");
}

#[tokio::test]
async fn a_small_result_comes_whole_over_a_slow_line_and_by_mqtt_alone() {
    let bytes = vec![7; 80_000];
    let Cast { server: _server, edge, storage } = result(&bytes).await;
    let before = storage.downward();
    edge.relay.shape(Shape { rate: Some(8_000), ..Shape::default() });
    let mut listen = edge.start("listen", &["--keep-alive", "5", "listen", "--once"]);
    assert!(listen.wait(PATIENCE).await.success(), "{}", listen.stderr());
    assert!(std::fs::read(edge.directory().join("results/current")).unwrap() == bytes);
    assert_eq!(storage.downward(), before, "nothing is fetched by URL");
    assert!(edge.relay.downward() < 90_000, "{} bytes", edge.relay.downward());
}

/// Starts the client with that directory on a file system of 1 MiB; none without the right to mount.
fn on_a_small_disk(edge: &Edge, directory: &str, arguments: &[&str]) -> Option<Process> {
    let allowed = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|o| o.status.success());
    if !allowed {
        skip("unshare -m needs root");
        return None;
    }
    let disk = edge.directory().join(directory);
    std::fs::create_dir(&disk).unwrap();
    let script = r#"mount -t tmpfs -o size=1m,mode=0700 none "$1" || exit 99; cd "$3"
        head -c 980000 /dev/zero > "$1/ballast"; shift; edge="$1"; shift 2; exec "$edge" "$@""#;
    let command = edge.command(arguments);
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", script, "sh"]).arg(&disk).arg(edge_binary()).arg(edge.directory());
    unshare.args(arguments);
    for (key, value) in command.get_envs() {
        unshare.env(key, value.unwrap());
    }
    Some(Process::start(unshare, edge.directory(), "small"))
}

/// The path as the process sees it.
fn inside(process: &Process, path: &Path) -> std::path::PathBuf {
    Path::new(&format!("/proc/{}/root", process.id())).join(path.strip_prefix("/").unwrap())
}

#[tokio::test]
async fn a_listener_whose_disk_is_full_says_so_shows_nothing_half_and_goes_on_when_there_is_room() {
    // One that comes over MQTT, and one by URL.
    for size in [120_000, 400_000] {
        let bytes = vec![7; size];
        let cast = result(&bytes).await;
        let arguments = ["listen", "--dir", "shelf"];
        let Some(mut listen) = on_a_small_disk(&cast.edge, "shelf", &arguments) else { return };
        let begin = Instant::now();
        while !listen.stdout().contains("No space left") {
            assert!(begin.elapsed() < PATIENCE && listen.status().is_none(), "{}", listen.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let shelf = inside(&listen, &cast.edge.directory().join("shelf"));
        assert!(!shelf.join("current").exists());
        std::fs::remove_file(shelf.join("ballast")).unwrap();
        while !listen.stdout().contains("version 1 applied") {
            assert!(begin.elapsed() < PATIENCE && listen.status().is_none(), "{}", listen.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(std::fs::read(shelf.join("current")).unwrap() == bytes);
        listen.signal("TERM");
        assert!(listen.wait(PATIENCE).await.success());
        drop(cast.server);
    }
}
