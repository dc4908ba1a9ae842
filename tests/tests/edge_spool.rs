//! `millpond-edge spool` and what lies in one: entries that are discarded or exported, times over steps of the clock, and what another
//! process has in flight.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millpond_failpoint::Point;
use millpond_protocol::Timestamp;
use millpond_tests::{Edge, Server, Shim, edge_binary, was_killed};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

fn now_ms() -> i64 {
    millpond_edge::clock::wall_ms()
}

/// Runs the device's command with the umask that hides nothing.
fn open_to_all(edge: &Edge, arguments: &[&str]) {
    let mut command = Command::new("sh");
    let plain = edge.command(&[]);
    command.args(["-c", r#"umask 000; exec "$0" "$@""#]).arg(edge_binary()).args(arguments);
    command
        .current_dir(edge.directory())
        .envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_refused_damaged_or_not_wanted_is_listed_and_discarded() {
    let (server, edge) = Edge::device().await;
    for name in ["one", "two", "three", "four"] {
        edge.file(name, name.as_bytes());
    }
    edge.done(&["push", "--id", "taken", "one"]).await;
    assert_eq!(edge.run(&["push", "--id", "taken", "two"]).await.status.code(), Some(1));
    edge.done(&["push", "--offline", "--id", "rotten", "three"]).await;
    let entry = std::fs::read_dir(edge.spool().join("ready")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    assert_eq!(edge.run(&["spool", "flush"]).await.status.code(), Some(1));
    edge.done(&["push", "--offline", "--id", "waits", "four"]).await;
    let states = async || {
        let list = edge.done(&["--json", "spool", "list"]).await;
        let lines = list.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        lines.map(|line| (text(&line, "state"), text(&line, "upload"))).collect::<Vec<_>>()
    };
    let all = [("waiting", "waits"), ("refused", "taken"), ("damaged", "rotten")];
    assert_eq!(states().await, all.map(|(state, id)| (state.to_owned(), id.to_owned())));

    let nothing = edge.run(&["spool", "discard"]).await;
    assert_eq!(nothing.status.code(), Some(2));
    let unknown = edge.run(&["spool", "discard", "waits", "stranger"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("stranger is not there: nothing was removed"));
    let elsewhere = edge.run(&["spool", "discard", "--refused", "rotten"]).await;
    assert_eq!((elsewhere.status.code(), states().await.len()), (Some(1), 3));

    assert_eq!(edge.done(&["spool", "discard", "--refused"]).await, "1 files discarded\n");
    assert_eq!(std::fs::read_dir(edge.spool().join("refusals")).unwrap().count(), 0);
    edge.done(&["spool", "discard", "rotten", "waits"]).await;
    assert_eq!(states().await, []);
    let log = std::fs::read_to_string(edge.spool().join("dropped.log")).unwrap();
    for (from, id) in [("ready", "waits"), ("refused", "taken"), ("damaged", "rotten")] {
        let line = log.lines().find(|line| line.contains(id)).unwrap();
        assert!(line.contains(&format!(r#""from":"{from}""#)), "{log}");
    }
    assert_eq!(server.uploads("demo").await.len(), 1);
}

#[tokio::test]
async fn what_waits_is_not_discarded_while_somebody_sends() {
    let (server, edge) = Edge::device().await;
    edge.file("one", b"1");
    edge.done(&["push", "--offline", "--id", "one", "one"]).await;
    edge.relay.cut();
    let before = edge.relay.begun();
    let mut flush = edge.start("flush", &["--patience", "600", "spool", "flush"]);
    // It connects when it has the right to send.
    while edge.relay.begun() == before {
        assert!(flush.status().is_none(), "{}", flush.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(edge.run(&["spool", "discard", "one"]).await.status.code(), Some(75));
    edge.relay.mend(server.mqtt());
    assert!(flush.wait(PATIENCE).await.success(), "{}", flush.stderr());
    assert_eq!(server.uploads("demo").await.len(), 1);
}

#[tokio::test]
async fn what_is_exported_is_its_owners_alone_whatever_the_umask() {
    let (_server, edge) = Edge::device().await;
    edge.file("one", b"1");
    open_to_all(&edge, &["push", "--offline", "--id", "one", "one"]);
    open_to_all(&edge, &["spool", "export", "out"]);
    let out = edge.directory().join("out");
    for (path, expected) in [("files", 0o700), ("about", 0o700), ("files/one", 0o600), ("about/one", 0o600)] {
        assert_eq!(mode(&out.join(path)), expected, "{path}");
    }
    assert_eq!(std::fs::read(out.join("files/one")).unwrap(), b"1");
}

#[tokio::test]
async fn a_damaged_entry_is_not_exported_and_keeps_no_other_from_it() {
    let (_server, edge) = Edge::device().await;
    for name in ["one", "two", "three"] {
        edge.file(name, name.as_bytes());
    }
    edge.done(&["push", "--offline", "--id", "rotten", "one"]).await;
    let entry = std::fs::read_dir(edge.spool().join("ready")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    edge.done(&["push", "--offline", "two", "three"]).await;
    let first = edge.run(&["spool", "export", "out"]).await;
    assert_eq!(first.status.code(), Some(1), "{first:?}");
    let exported = || {
        let names = std::fs::read_dir(edge.directory().join("out/files")).unwrap();
        names.map(|name| std::fs::read(name.unwrap().path()).unwrap()).collect::<BTreeSet<_>>()
    };
    let whole = BTreeSet::from([b"two".to_vec(), b"three".to_vec()]);
    assert_eq!(exported(), whole);
    // It lies beside the others now.
    edge.done(&["spool", "export", "out"]).await;
    assert_eq!(exported(), whole);
}

/// Event time of each upload, by id.
async fn times(server: &Server) -> Vec<(String, i64)> {
    let uploads = server.uploads("demo").await;
    let time =
        |upload: &Value| upload["event_time"].as_str().unwrap().parse::<Timestamp>().unwrap().as_millis();
    uploads.iter().map(|upload| (upload["upload"].as_str().unwrap().to_owned(), time(upload))).collect()
}

#[tokio::test]
async fn a_clock_that_is_stepped_between_capture_and_sending_does_not_move_the_capture() {
    let Some(shim) = Shim::new() else { return };
    let (server, mut edge) = Edge::device().await;
    edge.set_environment(shim.clocked());
    edge.file("reading", b"21.5");
    let (day, begin) = (86_400_000, now_ms());
    // How far the device's clock is ahead when it captures, each time.
    let clocks = [("in-1970", -begin), ("years-ahead", 1_000 * day), ("days-behind", -5 * day), ("right", 0)];
    for (id, ahead) in clocks {
        shim.set_clock(ahead);
        edge.done(&["push", "--offline", "--id", id, "reading"]).await;
    }
    let end = now_ms();
    // And when it sends.
    shim.set_clock(-40 * day);
    edge.done(&["spool", "flush"]).await;
    // Once the server's time is known in this boot, a capture is dated by it, whatever the clock on the wall shows then or later.
    shim.set_clock(700 * day);
    edge.done(&["push", "--offline", "--id", "later", "reading"]).await;
    let last = now_ms();
    shim.set_clock(-begin);
    edge.done(&["spool", "flush"]).await;
    let times = times(&server).await;
    let ids: BTreeSet<&str> = times.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["in-1970", "years-ahead", "days-behind", "right", "later"]));
    // The server's time is known to half of what the question for it took; the steps are of days.
    let slack = 60_000;
    for (id, time) in &times {
        let until = if id == "later" { last } else { end };
        assert!(
            (begin - slack..=until + slack).contains(time),
            "{id}: {time}, pushed from {begin} to {until}"
        );
    }
}

#[tokio::test]
async fn a_push_leaves_what_another_process_had_in_flight_in_doubt_and_nobody_sends_it_twice() {
    let (server, edge) = Edge::device().await;
    edge.spooled(20, 20_000).await;
    // The server has some, perhaps all, and the device dies before it acts on the first receipts.
    edge.arm(Point::FlushReceipted, 1);
    let mut flush = edge.start("flush", &["spool", "flush"]);
    assert!(was_killed(flush.wait(PATIENCE).await));
    edge.disarm();
    let (sent, stored) = (edge.relay.upward(), server.uploads("demo").await.len() as u64);
    assert!(stored > 0);
    let in_flight = || {
        let noted = std::fs::read_to_string(edge.spool().join("in-flight")).unwrap();
        noted.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let doubtful = in_flight();
    assert!(doubtful.len() as u64 >= stored, "{doubtful:?}");
    edge.file("now", b"now");
    assert!(edge.done(&["push", "--only", "now"]).await.starts_with("stored"));
    assert!(in_flight().is_superset(&doubtful));
    // A push that is killed itself keeps them in doubt, too.
    edge.file("then", b"then");
    edge.arm(Point::FlushReceipted, 1);
    let mut killed = edge.start("killed", &["push", "--only", "then"]);
    assert!(was_killed(killed.wait(PATIENCE).await));
    edge.disarm();
    assert!(in_flight().is_superset(&doubtful));
    edge.done(&["spool", "flush"]).await;
    let again = edge.relay.upward() - sent;
    assert!(again < (20 - stored) * 20_000 + 40_000, "{again} bytes, and the server had {stored} files");
    assert_eq!(server.uploads("demo").await.len(), 22);
    assert_eq!(std::fs::read_dir(edge.spool().join("ready")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_push_beside_a_flush_that_lives_waits_for_its_turn_and_touches_nothing_in_flight() {
    let (server, edge) = Edge::device().await;
    edge.spooled(40, 10_000).await;
    edge.relay.cut_after(200_000);
    let mut flush = edge.start("flush", &["--patience", "600", "spool", "flush"]);
    edge.relay.was_cut().await;
    edge.file("now", b"now");
    let mut push = edge.start("push", &["push", "--only", "now"]);
    let here = edge.spool().join("ready");
    let spooled = |name: &str| {
        std::fs::read_dir(&here)
            .unwrap()
            .any(|item| item.unwrap().file_name().to_string_lossy().contains(name))
    };
    while !spooled(".now-") {
        assert!(push.status().is_none(), "{}", push.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    edge.relay.mend(server.mqtt());
    assert!(flush.wait(PATIENCE).await.success(), "{}", flush.stderr());
    assert!(push.wait(PATIENCE).await.success(), "{}", push.stderr());
    assert!(push.stdout().starts_with("stored"), "{}", push.stdout());
    assert_eq!(server.uploads("demo").await.len(), 41);
    // What was cut, and all of it once more; not a second time by the other process.
    assert!(edge.relay.upward() < 700_000, "{}", edge.relay.upward());
}

/// Puts files of all kinds into the device's spool: with everything that `push` can say of one, and with nothing but its name.
async fn of_all_kinds(edge: &Edge) {
    edge.file("table.csv", b"a,b");
    edge.file("plain", b"plain");
    edge.file("large", &[7; 2_000_000]);
    let all = ["--event-time", "2026-11-21T10:04:00Z", "--label", "l", "--content-type", "text/csv"];
    let all = [&all[..], &["--meta", r#"{"sensor":7}"#, "--id", "stated"]].concat();
    edge.done(&[&["push", "--offline"], &all[..], &["table.csv"]].concat()).await;
    edge.done(&["push", "--offline", "plain", "large"]).await;
}

/// What the server says of each upload, but for when it came, and its time.
async fn uploads(server: &Server) -> Vec<(Value, i64)> {
    let mut uploads = server.uploads("demo").await;
    uploads.sort_by_key(|upload| upload["upload"].as_str().unwrap().to_owned());
    let told = |mut upload: Value| {
        let time = upload["event_time"].as_str().unwrap().parse::<Timestamp>().unwrap().as_millis();
        let keys = upload.as_object_mut().unwrap();
        let of_this_time = ["event_time", "seq", "received", "batch", "via", "bundle", "member"];
        of_this_time.iter().for_each(|key| drop(keys.remove(*key)));
        (upload, time)
    };
    uploads.into_iter().map(told).collect()
}

/// What an export says of its files, by name, but for their place in the order of a spool.
fn described(directory: &Path) -> Vec<Value> {
    let about = std::fs::read_dir(directory.join("about")).unwrap().map(|item| item.unwrap().path());
    let about = about.collect::<BTreeSet<_>>().into_iter().map(|path| std::fs::read(path).unwrap());
    let mut all: Vec<Value> = about.map(|json| serde_json::from_slice(&json).unwrap()).collect();
    all.iter_mut().for_each(|about| drop(about.as_object_mut().unwrap().remove("key")));
    all
}

#[tokio::test]
async fn what_is_exported_and_imported_elsewhere_is_what_it_was_and_is_stored_once() {
    let (server, edge) = Edge::device().await;
    // The device knows the time since it sent something.
    edge.file("first", b"first");
    edge.done(&["push", "--id", "first", "first"]).await;
    of_all_kinds(&edge).await;
    edge.done(&["spool", "export", "stick"]).await;
    let other = Edge::new(&server, edge.who().clone()).await;
    let stick = edge.directory().join("stick");
    let exported = described(&stick);
    assert!(exported.iter().all(|about| about["event_time"].is_string()), "{exported:?}");
    let import = ["spool", "import", stick.to_str().unwrap()];
    assert!(other.done(&import).await.starts_with("3 files imported from "));
    let json = async |command: &[&str]| {
        let told = other.done(&[&["--json"], command].concat()).await;
        serde_json::from_str::<Value>(&told).unwrap()
    };
    assert_eq!(json(&import).await, json!({ "imported": 0, "known": 3, "left_out": 0 }));
    assert_eq!(server.uploads("demo").await.len(), 1);
    assert_eq!(json(&["spool", "export", "back"]).await["exported"], 3);
    assert_eq!(described(&other.directory().join("back")), exported);
    // Once from where they were, which says what they are, and once from where they came to.
    edge.done(&["spool", "flush"]).await;
    let told = uploads(&server).await;
    assert_eq!(told.len(), 4);
    other.done(&["spool", "flush"]).await;
    // The one that goes by URL is asked for first, and not sent.
    assert_eq!((uploads(&server).await, server.repeats("demo").await), (told.clone(), 2));
    // Somebody else brings them to another server: they are the same there.
    let (there, third) = Edge::device().await;
    third.done(&["push", "--id", "first", edge.directory().join("first").to_str().unwrap()]).await;
    third.done(&import).await;
    third.done(&["spool", "flush"]).await;
    for ((what, time), (before, then)) in uploads(&there).await.into_iter().zip(told) {
        assert_eq!(what, before);
        // Each time that the server's is learnt it is some milliseconds another one.
        assert!(
            what["upload"] == "first" || time.abs_diff(then) < 5_000,
            "{what}: {time}, and it was {then}"
        );
    }
    let stated = uploads(&there).await.into_iter().find(|(upload, _)| upload["upload"] == "stated").unwrap();
    assert_eq!(stated.1, "2026-11-21T10:04:00Z".parse::<Timestamp>().unwrap().as_millis(), "{stated:?}");
    assert_eq!(stated.0["label"], "l", "{stated:?}");
}

#[tokio::test]
async fn what_is_not_what_was_exported_is_named_and_keeps_no_other_from_being_imported() {
    let (_server, edge) = Edge::device().await;
    for name in ["bent", "gone", "whole", "strange", "grown", "taken"] {
        edge.file(name, name.as_bytes());
        edge.done(&["push", "--offline", "--id", name, name]).await;
    }
    edge.done(&["spool", "export", "--remove", "stick"]).await;
    let stick = edge.directory().join("stick");
    std::fs::write(stick.join("files/bent"), "bend").unwrap();
    std::fs::remove_file(stick.join("files/gone")).unwrap();
    std::fs::write(stick.join("about/strange"), "{}").unwrap();
    // For as much as it would be now there is no room.
    std::fs::write(stick.join("files/grown"), [b'x'; 1_000]).unwrap();
    edge.done(&["push", "--offline", "--id", "taken", "whole"]).await;
    std::fs::copy(stick.join("about/whole"), stick.join("about/renamed")).unwrap();
    std::fs::create_dir(stick.join("about/directory")).unwrap();
    std::fs::write(stick.join("about/long"), [b' '; 300_000]).unwrap();
    let imported = edge.run(&["--spool-bytes", "500", "spool", "import", "stick"]).await;
    let (out, err) = (String::from_utf8_lossy(&imported.stdout), String::from_utf8_lossy(&imported.stderr));
    assert_eq!((imported.status.code(), &*out), (Some(1), "1 files imported from stick\n"), "{err}");
    for wrong in [
        "files/bent: its bytes are not those",
        "files/gone: No such file",
        "about/strange: missing field",
        "files/grown: it has another size",
        "files/taken: upload taken is in the spool with other bytes",
        "about/renamed: it speaks of another file",
        "about/directory: is not a file",
        "about/long: is longer than",
    ] {
        assert!(err.contains(wrong), "{wrong}: {err}");
    }
    assert!(err.contains("8 files were left out"), "{err}");
    assert!(edge.done(&["spool", "list"]).await.contains("whole"));
    let no_export = edge.run(&["spool", "import", "spool"]).await;
    assert!(
        String::from_utf8_lossy(&no_export.stderr).contains("is this a directory that `spool export` wrote?")
    );
}

#[tokio::test]
async fn an_import_into_a_full_spool_keeps_what_went_in_and_what_waits_there_already_needs_no_room() {
    let (_server, edge) = Edge::device().await;
    edge.spooled(3, 10).await;
    edge.done(&["spool", "export", "--remove", "stick"]).await;
    let import = ["spool", "import", "stick"];
    let full = [&["--spool-files", "2"][..], &import].concat();
    for told in ["2 files imported from stick\n", "0 files imported from stick, 2 were in the spool\n"] {
        let imported = edge.run(&full).await;
        let (out, err) =
            (String::from_utf8_lossy(&imported.stdout), String::from_utf8_lossy(&imported.stderr));
        assert_eq!((imported.status.code(), &*out), (Some(75), told), "{err}");
        assert!(err.contains("the spool is full") && err.contains("raise --spool-files"), "{err}");
    }
    assert_eq!(edge.done(&import).await, "1 files imported from stick, 2 were in the spool\n");
}
