//! Large files of `millpond-edge push`: by presigned URL, in parts that are resumed, over a network that is cut.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::answer;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Credentials, Edge, Link, Place, Relay, SeaweedFs, Server, Shape, edge_binary, until};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

struct Cast {
    server: Server,
    edge: Edge,
    /// Between the device and storage.
    storage: Relay,
}

async fn cast() -> Cast {
    cast_on(&Place::Here).await
}

async fn cast_on(place: &Place) -> Cast {
    // URLs are signed for the address that clients use: the relay's.
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = place.server(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let edge = Edge::new(&server, who).await;
    let cast = Cast { server, edge, storage };
    cast.mend(place);
    cast
}

impl Cast {
    /// The way to storage is open.
    fn mend(&self, place: &Place) {
        self.storage.mend(place.address(&self.server));
    }
}

/// Bytes that no two parts of the file have in common.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 1_000 + n % 251) as u8).collect()
}

async fn only_upload(server: &Server) -> (u64, String) {
    let uploads = server.uploads("demo").await;
    assert_eq!(uploads.len(), 1, "{uploads:?}");
    (uploads[0]["size"].as_u64().unwrap(), uploads[0]["sha256"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_file_too_large_for_mqtt_goes_by_url_and_small_ones_need_not_wait_for_it() {
    let cast = cast().await;
    let bytes = content(3 * MIB);
    cast.edge.file("large.bin", &bytes);
    let out = cast.edge.done(&["push", "large.bin"]).await;
    assert!(out.starts_with("stored  large.bin-"), "{out}");
    assert_eq!(only_upload(&cast.server).await, (3 * MIB as u64, Sha256::of(&bytes).to_string()));
    assert!(cast.edge.relay.upward() < 20_000, "the bytes went past MQTT");
    let again = cast.edge.done(&["push", "large.bin"]).await;
    assert_eq!(again, out);
    assert!(cast.storage.upward() < 3 * MIB as u64 + 20_000, "once");
}

async fn a_push_that_is_killed_is_resumed_with_the_parts_that_are_missing(place: &Place) {
    let cast = cast_on(place).await;
    let bytes = content(40 * MIB);
    cast.edge.file("film.bin", &bytes);
    // Four parts of 8 MiB go at once, so by then one of the five at least is through.
    cast.storage.cut_after(34 * MIB as u64);
    let mut push = cast.edge.start("push", &["push", "--id", "film", "film.bin"]);
    cast.storage.was_cut().await;
    push.kill();
    let link = another(cast.edge.who()).await;
    let put: answer::Put = link.ask(Op::Put, &about("film", &bytes)).await.unwrap();
    let there: u32 = put.there.iter().map(|(first, last)| last - first + 1).sum();
    assert!((1..5).contains(&there), "{put:?}");
    cast.mend(place);
    let before = cast.storage.upward();
    cast.edge.done(&["spool", "flush"]).await;
    assert_eq!(only_upload(&cast.server).await, (40 * MIB as u64, Sha256::of(&bytes).to_string()));
    let sent = cast.storage.upward() - before;
    assert!(
        sent < u64::from(5 - there) * 8 * MIB as u64 + 20_000,
        "{sent} bytes, and {there} parts were there"
    );
    assert_eq!(std::fs::read_dir(cast.edge.spool().join("ready")).unwrap().count(), 0);
}

/// A part of the very same length lies there, of another file. Where storage says its hash it is sent again, else it is taken for
/// ours until the commit: then all are.
async fn a_push_of_which_a_part_lies_there_with_other_bytes_is_stored(place: &Place) {
    let cast = cast_on(place).await;
    let bytes = content(40 * MIB);
    cast.edge.file("film.bin", &bytes);
    let other: Vec<u8> = bytes[..8 * MIB].iter().map(|byte| !byte).collect();
    let link = another(cast.edge.who()).await;
    let mut ask = about("film", &bytes);
    ask["part_size"] = json!(8 * MIB);
    ask["parts"] = json!([{ "n": 1, "sha256": Sha256::of(&other) }]);
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    assert_eq!(cast.server.api().send(put.parts[0].to.as_ref().unwrap(), other).await, 200);
    let before = cast.storage.upward();
    let out = cast.edge.done(&["push", "--id", "film", "film.bin"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!(only_upload(&cast.server).await, (40 * MIB as u64, Sha256::of(&bytes).to_string()));
    let sent = cast.storage.upward() - before;
    let most = if place.lists_hashes_of_parts() { 40 } else { 32 + 40 };
    assert!(sent < most * MIB as u64 + 50_000, "{sent} bytes");
}

#[tokio::test]
async fn parts_that_are_there_are_not_sent_again_unless_they_are_of_other_bytes() {
    a_push_that_is_killed_is_resumed_with_the_parts_that_are_missing(&Place::Here).await;
    a_push_of_which_a_part_lies_there_with_other_bytes_is_stored(&Place::Here).await;
}

#[tokio::test]
async fn the_same_holds_where_storage_lists_no_hashes_of_parts() {
    let Some(storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    let place = Place::SeaweedFs(storage);
    a_push_that_is_killed_is_resumed_with_the_parts_that_are_missing(&place).await;
    a_push_of_which_a_part_lies_there_with_other_bytes_is_stored(&place).await;
}

/// Another connection of a device's member.
async fn another(who: &Credentials) -> Link {
    let mut who = who.clone();
    who.client_id = "another-release".into();
    Link::open(who).await.unwrap()
}

/// The ask for a grant.
fn about(upload: &str, bytes: &[u8]) -> Value {
    json!({ "id": upload, "upload": upload, "size": bytes.len(), "sha256": Sha256::of(bytes) })
}

/// Has an upload granted, as a client would that cuts files otherwise, and sends so many parts of it.
async fn begun(
    cast: &Cast,
    who: &Credentials,
    upload: &str,
    bytes: &[u8],
    part_size: Option<usize>,
    send: usize,
) {
    let link = another(who).await;
    let mut ask = about(upload, bytes);
    if let Some(size) = part_size {
        let parts = bytes.chunks(size).take(send).enumerate();
        let parts: Vec<_> =
            parts.map(|(i, part)| json!({ "n": i + 1, "sha256": Sha256::of(part) })).collect();
        ask.as_object_mut()
            .unwrap()
            .extend([("part_size".into(), json!(size)), ("parts".into(), json!(parts))]);
    }
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(bytes.chunks(part_size.unwrap_or(1))) {
        assert_eq!(cast.server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
}

#[tokio::test]
async fn a_grant_of_another_release_is_gone_on_with_by_its_parts_or_without() {
    let cast = cast().await;
    let who = cast.server.member("demo", "edge-2", Role::Publisher).await;
    let edge = Edge::new(&cast.server, who.clone()).await;
    let bytes = content(40 * MIB);
    edge.file("film.bin", &bytes);
    begun(&cast, &who, "film", &bytes, Some(12 * MIB), 2).await;
    let before = cast.storage.upward();
    let out = edge.done(&["push", "--id", "film", "film.bin"]).await;
    assert!(out.starts_with("stored"), "{out}");
    let sent = cast.storage.upward() - before;
    assert!((16 * MIB as u64..17 * MIB as u64).contains(&sent), "{sent}: parts 3 and 4");

    edge.file("map.bin", &bytes[..20 * MIB]);
    begun(&cast, &who, "map", &bytes[..20 * MIB], None, 0).await;
    let out = edge.done(&["push", "--id", "map", "map.bin"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!(cast.server.uploads("demo").await.len(), 2);
}

#[tokio::test]
async fn a_cut_between_the_device_and_storage_is_waited_out() {
    let cast = cast().await;
    let bytes = content(20 * MIB);
    cast.edge.file("film.bin", &bytes);
    cast.storage.cut_after(5 * MIB as u64);
    let mut push = cast.edge.start("push", &["push", "film.bin"]);
    cast.storage.was_cut().await;
    cast.storage.mend(cast.server.ports().storage.unwrap());
    assert!(push.wait(PATIENCE).await.success(), "{}", push.stderr());
    assert!(push.stdout().starts_with("stored"), "{}", push.stdout());
    assert_eq!(only_upload(&cast.server).await, (20 * MIB as u64, Sha256::of(&bytes).to_string()));
}

/// The network vanishes while the commit, or its answer, is on the line.
async fn a_push_whose_commit_is_never_answered(is_counted: bool) {
    let cast = cast().await;
    let bytes = content(3 * MIB);
    cast.edge.file("film.bin", &bytes);
    cast.edge.relay.shape(Shape { delay: Duration::from_secs(1), ..Shape::default() });
    let mut push = cast.edge.start("push", &["--patience", "10", "push", "film.bin"]);
    until("storage has the file", async || {
        let uploads = if is_counted { cast.server.uploads("demo").await.len() } else { 1 };
        uploads == 1 && cast.storage.upward() > bytes.len() as u64
    })
    .await;
    cast.edge.relay.vanish();
    assert_eq!(
        cast.server.uploads("demo").await.len(),
        usize::from(is_counted),
        "the network vanished too late"
    );
    assert!(push.wait(PATIENCE).await.success(), "{}", push.stderr());
    assert!(push.stdout().starts_with("spooled"), "{}", push.stdout());
    cast.edge.relay.shape(Shape::default());
    cast.edge.relay.come_back();
    assert_eq!(cast.edge.done(&["spool", "flush"]).await, "1 stored, 0 refused, 0 left\n");
    assert_eq!(only_upload(&cast.server).await, (3 * MIB as u64, Sha256::of(&bytes).to_string()));
    let sent = cast.storage.upward();
    assert!(sent < bytes.len() as u64 + 20_000, "{sent} bytes, counted before: {is_counted}");
}

#[tokio::test]
async fn a_file_whose_commit_is_never_answered_waits_and_no_byte_of_it_goes_twice() {
    tokio::join!(a_push_whose_commit_is_never_answered(false), a_push_whose_commit_is_never_answered(true));
}

#[tokio::test]
async fn memory_does_not_depend_on_the_size_of_a_file() {
    let cast = cast().await;
    cast.edge.file("film.bin", &content(60 * MIB));
    let peak = |arguments: &'static [&'static str]| {
        // The shell's own child tells what it took at the most, in KiB.
        let mut command = cast.edge.command(arguments);
        let script = r#""$0" "$@" & child=$!; peak=0
            while read -r _ kib _ < <(grep VmHWM /proc/$child/status 2>/dev/null); do peak=$kib; sleep 0.01; done
            wait $child; code=$?; echo "peak $peak"; exit $code"#;
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", script]).arg(edge_binary()).args(arguments);
        shell.current_dir(cast.edge.directory());
        for (key, value) in command.get_envs() {
            shell.env(key, value.unwrap_or_default());
        }
        command.stdin(std::process::Stdio::null());
        tokio::task::spawn_blocking(move || shell.output().unwrap())
    };
    let output = peak(&["push", "film.bin"]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let out = String::from_utf8(output.stdout).unwrap();
    let kib: u64 = out.lines().find_map(|line| line.strip_prefix("peak ")).unwrap().parse().unwrap();
    eprintln!("peak {kib} KiB");
    assert!((1..40_000).contains(&kib), "{out}");
}
