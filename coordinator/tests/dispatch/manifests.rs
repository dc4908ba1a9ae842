//! What manifests say, and how they hang together.

use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256, Timestamp};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::world::{World, file, files, window};

fn lines(manifest: &[u8]) -> (Value, Vec<Value>) {
    let mut lines =
        manifest.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).unwrap_or_default());
    let header = lines.next().unwrap();
    let mut entries: Vec<Value> = lines.collect();
    // The file ends with a newline.
    assert_eq!(entries.pop(), Some(Value::Null));
    (header, entries)
}

fn uploads(entries: &[Value]) -> Vec<String> {
    let path = |e: &Value| format!("{}/{}", e["member"].as_str().unwrap(), e["upload"].as_str().unwrap());
    entries.iter().map(path).collect()
}

#[tokio::test]
async fn a_manifest_lists_every_upload_with_what_its_member_said_of_it() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    let b = world.member("b", Role::Publisher).await;
    let a = world.member("a", Role::Publisher).await;
    let mut told = file("told", "hello\n");
    told.name = Some("täglich.csv".parse().unwrap());
    told.content_type = Some("text/csv".into());
    told.label = Some("night-shift".parse().unwrap());
    told.meta = Some("{\n  \"unit\": \"K\"\n}".into());
    // None of it comes past the gate, and of what did once no upload keeps its pool from going on.
    let mut odd = file("odd", "x");
    odd.meta = Some("1e999".into());
    world.upload(&b, vec![told, file("plain", "x"), odd]).await;
    world.upload_large(&a, "large", vec![1; 200 << 10]).await;
    let trigger = json!({"id": "t", "window": window()});
    let operator = world.member("boss", Role::Operator).await;
    world.ask(&operator, Op::Trigger, trigger).await.unwrap();

    let manifest = world.manifest(1).await;
    let (header, entries) = lines(&manifest);
    let to = window().after(std::time::Duration::from_secs(3600));
    let expected = json!({"pool": "p", "seq": 1, "prev": null, "cause": "trigger", "from": window(), "to": to,
        "count": 4, "bytes": (200 << 10) + 8, "policy_version": 1});
    assert_eq!(header, expected);
    assert_eq!(uploads(&entries), ["a/large", "b/odd", "b/plain", "b/told"]);
    let expected = json!({"member": "b", "upload": "told", "name": "täglich.csv", "size": 6,
        "sha256": Sha256::of(b"hello\n"), "event_time": window(), "label": "night-shift",
        "content_type": "text/csv", "meta": {"unit": "K"}});
    assert_eq!(entries[3], expected);
    assert_eq!(entries[1]["meta"], "1e999");
    let key: String = world
        .sql(|sql| {
            sql.query_row("SELECT key FROM objects WHERE key LIKE '%/manifest/%'", [], |row| row.get(0))
        })
        .await;
    assert!(key.contains(&Sha256::of(&manifest).to_string()), "{key}");
}

/// Milliseconds.
const DAY: i64 = 86_400_000;

/// Only what differs from run to run, and the names that the document gives, are put in the place of what was written.
#[tokio::test]
async fn the_manifest_of_the_document_is_what_is_written_byte_for_byte() {
    let mut world = World::new(json!({"window_s": DAY / 1_000})).await;
    // The window of now: what is late joins it.
    let from = millpond::ledger::now().as_millis() / DAY * DAY;
    let [yesterday, too_late, from, event_time, to] =
        [from - DAY, from - 1, from, from + 1, from + DAY].map(|at| Timestamp::from_millis(at).unwrap());
    let who = world.member("edge-7", Role::Publisher).await;
    let operator = world.member("boss", Role::Operator).await;
    let mut before = file("before", "before");
    before.event_time = Some(yesterday);
    let mut upload = file("day-1.a", "hello\n");
    upload.name = Some("temperatures.csv".parse().unwrap());
    upload.content_type = Some("text/csv".into());
    upload.label = Some("night-shift".parse().unwrap());
    upload.meta = Some(r#"{"sensor": 7}"#.into());
    upload.event_time = Some(event_time);
    world.upload(&who, vec![before, upload]).await;
    world.dispatch();
    let seal = |id, window| world.ask(&operator, Op::Trigger, json!({"id": id, "window": window}));
    seal("t-1", yesterday).await.unwrap();
    // Its own window is closed now: it joins the next.
    let map = vec![b'm'; 409_600];
    let mut late = file("map-2026-11-21", map.clone());
    late.event_time = Some(too_late);
    world.upload(&who, vec![late]).await;
    seal("t-2", from).await.unwrap();
    let prev = Sha256::of(&world.manifest(1).await).to_string();
    let mut written = String::from_utf8(world.manifest(2).await).unwrap();
    for (found, documented) in [
        (r#""pool":"p""#.to_owned(), r#""pool":"demo""#),
        (r#""seq":2"#.to_owned(), r#""seq":7"#),
        (prev, "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        (r#""cause":"trigger""#.to_owned(), r#""cause":"deadline""#),
        (format!(r#""from":"{from}""#), r#""from":"2026-11-21T10:00:00.000Z""#),
        (format!(r#""to":"{}""#, to), r#""to":"2026-11-21T11:00:00.000Z""#),
        (format!(r#""event_time":"{event_time}""#), r#""event_time":"2026-11-21T10:04:00.000Z""#),
        (format!(r#""event_time":"{too_late}""#), r#""event_time":"2026-11-21T09:59:59.999Z""#),
        (Sha256::of(&map).to_string(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
    ] {
        assert_eq!(written.matches(&found).count(), 1, "{found} in {written}");
        written = written.replace(&found, documented);
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/golden/manifest.jsonl");
    assert_eq!(written, std::fs::read_to_string(golden).unwrap());
}

#[tokio::test]
async fn the_manifests_of_a_pool_are_a_chain_over_skipped_batches_too() {
    let policy = json!({"grouping": "count", "count": 2, "min_members": 2, "below_minimum": "skip"});
    let mut world = World::new(policy).await;
    let (a, b) = (world.member("a", Role::Publisher).await, world.member("b", Role::Publisher).await);
    // The middle one has one member only and is skipped.
    for (n, who) in [&a, &b, &a, &a, &b, &a].into_iter().enumerate() {
        world.upload(who, vec![file(&format!("u{n}"), format!("{n}"))]).await;
    }
    world.dispatch();
    world.until("SELECT count(*) FROM manifests", 3).await;
    let mut prev = Value::Null;
    for seq in 1..=3 {
        let manifest = world.manifest(seq).await;
        let (header, entries) = lines(&manifest);
        assert_eq!((&header["seq"], &header["prev"], entries.len()), (&json!(seq), &prev, 2));
        prev = json!(Sha256::of(&manifest));
    }
    assert_eq!(world.number("SELECT count(*) FROM packs").await, 2);
    assert_eq!(world.number("SELECT count(*) FROM rounds WHERE json_extract(record, '$.ready')").await, 2);
}

#[tokio::test]
async fn what_was_carried_into_a_batch_is_packed_and_listed_with_it() {
    // The window ended up to an hour ago, and its batch is due soon, but not before a busy machine has sent the first file.
    let ended = window().after(std::time::Duration::from_secs(3600));
    let deadline_s = millpond::ledger::now().since(ended).as_secs() + 6;
    let policy =
        json!({"window_s": 3600, "deadline_s": deadline_s, "min_uploads": 3, "below_minimum": "carry"});
    let mut world = World::new(policy).await;
    world.dispatch();
    let who = world.member("edge", Role::Publisher).await;
    // Too small: when it is due, it joins the window of now.
    let early = world.member("early", Role::Publisher).await;
    world.upload(&early, vec![file("old", "old")]).await;
    let mut new = files(0..2, 100);
    for file in &mut new {
        file.event_time = None;
    }
    world.upload(&who, new).await;
    world.until("SELECT count(*) FROM batches WHERE state = 'carried'", 1).await;
    let operator = world.member("boss", Role::Operator).await;
    world.ask(&operator, Op::Trigger, json!({"id": "t", "which": "open"})).await.unwrap();
    let (header, entries) = lines(&world.manifest(1).await);
    assert_eq!(header["count"], 3);
    assert_eq!(uploads(&entries), ["early/old", "edge/u000000", "edge/u000001"]);
    assert_eq!(world.number("SELECT sum(files) FROM packs").await, 3);
    world.until("SELECT count(*) FROM payloads", 0).await;
}

#[tokio::test]
async fn superseded_uploads_are_marked_and_stay_out_of_packs_and_leases() {
    for (select, counts) in [("latest", ["b", "large-2"]), ("first", ["a", "large-1"])] {
        let mut world = World::new(json!({"select": select})).await;
        let who = world.member("edge", Role::Publisher).await;
        let big = world.member("huge", Role::Publisher).await;
        let at = |ms| Some(Timestamp::from_millis(window().as_millis() + ms).unwrap());
        // Of equal times the upload id decides; the order of arrival never does.
        let mut sent = vec![file("b", "b"), file("a", "a"), file("middle", "m")];
        for (file, ms) in sent.iter_mut().zip([5, 1, 3]) {
            file.event_time = at(ms);
        }
        world.upload(&who, sent).await;
        for name in ["large-2", "large-1"] {
            world.upload_large(&big, name, name.repeat(30_000).into_bytes()).await;
        }
        let server = world.member("server", Role::Processor).await;
        world.dispatch();
        let ask = json!({"id": "t", "take": true, "wait_s": 60});
        let triggered = world.ask(&server, Op::Trigger, ask).await.unwrap();

        let (_, entries) = lines(&world.manifest(1).await);
        let counted: Vec<_> = entries.iter().filter(|e| e["superseded"] != true).cloned().collect();
        assert_eq!(entries.len(), 5);
        assert_eq!(uploads(&counted), [format!("edge/{}", counts[0]), format!("huge/{}", counts[1])]);
        let files = triggered["lease"]["files"].as_array().unwrap();
        assert_eq!(files.len(), 2, "{files:?}");
        assert_eq!(files[1]["upload"], counts[1]);
        assert_eq!(world.number("SELECT sum(files) FROM packs").await, 1);
        // Their own members can still get them.
        world.until("SELECT count(*) FROM packs WHERE purged = 1", 1).await;
        for upload in ["a", "b", "middle"] {
            world.ask(&who, Op::Get, json!({"upload": upload})).await.unwrap();
        }
        assert_eq!(world.number("SELECT count(*) FROM payloads").await, 2);
    }
}

#[tokio::test]
async fn a_change_of_policy_selects_for_batches_that_open_after_it_and_names_its_version() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    let a = world.member("a", Role::Publisher).await;
    let operator = world.member("boss", Role::Operator).await;
    world.upload(&a, files(0..3, 10)).await;
    world.policy(json!({"select": "latest"})).await;
    world.ask(&operator, Op::Trigger, json!({"id": "t1"})).await.unwrap();
    let (header, _) = lines(&world.manifest(1).await);
    assert_eq!(header["policy_version"], 2);
    assert_eq!(world.number("SELECT count(*) FROM superseded").await, 0, "it opened with `all`");

    world.upload(&a, files(3..5, 10)).await;
    // What the change itself seals names the new version too.
    let by_count = |count: u64| json!({"select": "latest", "grouping": "count", "count": count});
    world.ask(&operator, Op::Trigger, json!({"id": "t2"})).await.unwrap();
    world.manifest(2).await;
    assert_eq!(world.number("SELECT count(*) FROM superseded").await, 1, "it opened with `latest`");
    world.policy(by_count(9)).await;
    world.upload(&a, files(5..7, 10)).await;
    world.policy(by_count(2)).await;
    let (header, _) = lines(&world.manifest(3).await);
    assert_eq!((&header["cause"], &header["policy_version"]), (&json!("full"), &json!(4)));
}

/// A batch whose manifest is longer than one part, sealed.
async fn long_manifest(world: &World) {
    let edge = world.member("edge", Role::Publisher).await;
    let meta = format!("\"{}\"", "m".repeat(4_000));
    let files = files(0..2_200, 8).into_iter().map(|mut file| {
        file.meta = Some(meta.clone());
        file
    });
    world.upload(&edge, files.collect()).await;
    let operator = world.member("boss", Role::Operator).await;
    world.ask(&operator, Op::Trigger, json!({"id": "t", "window": window()})).await.unwrap();
}

#[tokio::test]
async fn a_manifest_that_goes_up_in_parts_is_named_by_its_row_so_that_a_crash_leaves_nothing_unseen() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    long_manifest(&world).await;
    assert!(world.manifest(1).await.len() > 8 << 20);
    let named = "SELECT count(*) FROM objects WHERE key LIKE '%/manifest/%' AND state = 'live' AND multipart IS NOT NULL";
    assert_eq!(world.number(named).await, 1);
}

#[tokio::test]
async fn an_upload_in_parts_that_its_row_cannot_name_is_given_up_at_once() {
    let mut world = World::new(json!({})).await;
    let ledger = Connection::open(world.ledger_file()).unwrap();
    let refuse =
        "CREATE TRIGGER refuses BEFORE UPDATE OF multipart ON objects BEGIN SELECT RAISE(ABORT, 'no'); END";
    ledger.execute_batch(refuse).unwrap();
    let mut troubles = world.dispatch();
    long_manifest(&world).await;
    let pool = world.pool;
    troubles.wait_for(|troubles| troubles.contains_key(&pool)).await.unwrap();
    world.until("SELECT count(*) FROM objects WHERE key LIKE '%/manifest/%' AND state = 'granted'", 0).await;
    assert!(
        world.number("SELECT count(*) FROM objects WHERE key LIKE '%/manifest/%' AND state = 'doomed'").await
            > 0
    );
    ledger.execute_batch("DROP TRIGGER refuses").unwrap();
    world.manifest(1).await;
    assert_eq!(world.storage.list_uploads(None).await.unwrap(), (Vec::new(), None));
}
