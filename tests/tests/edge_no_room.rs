//! Large files for which pool or storage has no room: hardly a byte of them goes in vain, and they wait for another time.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Edge, Liar, Lie, Relay, Server, Shape};
use serde_json::json;

/// A pool that may keep so many bytes (0: no limit), its device, and storage behind somebody who lies.
struct Cast {
    server: Server,
    edge: Edge,
    liar: Liar,
    /// Between the device and the liar.
    storage: Relay,
}

async fn cast(quota_bytes: u64) -> Cast {
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    let liar = Liar::before(server.ports().storage.unwrap()).await;
    storage.mend(liar.endpoint().strip_prefix("http://").unwrap().parse().unwrap());
    server
        .pool("demo", json!({ "grouping": "window", "window_s": 86_400, "quota_bytes": quota_bytes }))
        .await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let edge = Edge::new(&server, who).await;
    Cast { server, edge, liar, storage }
}

/// Spools files of those sizes, the first of them the oldest.
async fn spooled(edge: &Edge, sizes: &[usize]) {
    for (n, size) in sizes.iter().enumerate() {
        let name = format!("file-{n}");
        edge.file(&name, &vec![n as u8; *size]);
        edge.done(&["push", "--offline", "--id", &name, &name]).await;
    }
}

/// How often the device asked for a URL.
fn puts(edge: &Edge) -> usize {
    let ask = b"/ask/put";
    edge.relay.said().iter().map(|said| said.windows(ask.len()).filter(|bytes| bytes == ask).count()).sum()
}

#[tokio::test]
async fn a_full_storage_gets_no_second_file_and_none_as_a_message_before_another_run() {
    let Cast { server, edge, liar, storage } = cast(0).await;
    // On such a line a file of that size is better off by URL.
    edge.relay.shape(Shape { rate: Some(10_000), ..Shape::default() });
    spooled(&edge, &[500_000, 500_000]).await;
    liar.tell(Lie::RefuseWrites(507, "XMinioStorageFull"));
    let flush = edge.run(&["spool", "flush"]).await;
    let (out, err) = (String::from_utf8_lossy(&flush.stdout), String::from_utf8_lossy(&flush.stderr));
    assert_eq!((flush.status.code(), &*out), (Some(75), "0 stored, 0 refused, 2 left\n"), "{err}");
    assert!(err.contains("file-0: storage has no room: HTTP 507") && err.contains("file-1: "), "{err}");
    let (messages, by_url) = (edge.relay.upward(), storage.upward());
    assert!(messages < 100_000, "{messages} bytes went over MQTT");
    assert!(by_url < 600_000, "{by_url} bytes went to a storage that has no room");
    liar.tell(Lie::None);
    assert_eq!(edge.done(&["spool", "flush"]).await, "2 stored, 0 refused, 0 left\n");
    assert_eq!(server.uploads("demo").await.len(), 2);
}

#[tokio::test]
async fn a_pool_over_its_quota_is_asked_for_one_large_file_and_those_of_half_its_size_and_nobody_waits_for_it()
 {
    let Cast { server, edge, storage, .. } = cast(1).await;
    spooled(&edge, &[6 << 20, 4 << 20, 2 << 20]).await;
    edge.relay.listen_in();
    let begin = Instant::now();
    let flush = edge.run(&["--patience", "3", "spool", "flush"]).await;
    let (out, err) = (String::from_utf8_lossy(&flush.stdout), String::from_utf8_lossy(&flush.stderr));
    assert_eq!((flush.status.code(), &*out), (Some(75), "0 stored, 0 refused, 3 left\n"), "{err}");
    assert!((0..3).all(|n| err.contains(&format!("file-{n}: quota: "))), "{err}");
    assert_eq!(puts(&edge), 2, "{err}");
    // The server asks everybody to come again after a minute.
    assert!(begin.elapsed() < Duration::from_secs(50), "{:?}", begin.elapsed());
    assert!(storage.upward() < 10_000, "{} bytes", storage.upward());
    // Of one that goes by URL for the line alone, no byte goes as a message either.
    edge.relay.shape(Shape { rate: Some(10_000), ..Shape::default() });
    edge.file("middle", &[9; 500_000]);
    let before = edge.relay.upward();
    let push = edge.run(&["--patience", "3", "push", "--only", "middle"]).await;
    let out = String::from_utf8_lossy(&push.stdout);
    assert!(push.status.code() == Some(75) && out.contains("quota: "), "{out}");
    let sent = edge.relay.upward() - before;
    assert!(sent < 100_000, "{sent} bytes were sent in vain");
    assert_eq!(server.uploads("demo").await.len(), 0);
}
