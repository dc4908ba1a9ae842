//! `millpond-edge push` and `spool` against the real server: what is in the spool is stored once, whatever happens in between.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use millpond_edge::spool::{Limits, Spool};
use millpond_protocol::Role;
use millpond_tests::{Credentials, Edge, Server, edge_binary, skip, tool};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
const DAY_MS: i64 = 86_400_000;

/// Milliseconds since 1970, so many days ago.
fn days_ago(days: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_millis()).unwrap() - days * DAY_MS
}

/// Puts files into the spool without a network: so many of each day, and answers their ids.
async fn spool_files(edge: &Edge, days: &[i64], each: usize, size: usize) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for day in days {
        let names: Vec<String> = (0..each).map(|n| format!("day{day}-{n:04}.bin")).collect();
        for (n, name) in names.iter().enumerate() {
            let line = format!("{name} {n}\n");
            edge.file(name, &line.bytes().cycle().take(size).collect::<Vec<_>>());
        }
        let time = days_ago(*day).to_string();
        let mut arguments = vec!["--json", "push", "--offline", "--event-time", &time];
        arguments.extend(names.iter().map(String::as_str));
        let out = edge.done(&arguments).await;
        let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        ids.extend(lines.map(|line| line["upload"].as_str().unwrap().to_owned()));
    }
    assert_eq!(ids.len(), each * days.len());
    ids
}

async fn stored(server: &Server) -> Vec<String> {
    let uploads = server.uploads("demo").await;
    uploads.iter().map(|upload| upload["upload"].as_str().unwrap().to_owned()).collect()
}

async fn waiting(edge: &Edge) -> usize {
    edge.done(&["--json", "spool", "list"]).await.lines().filter(|line| line.contains("waiting")).count()
}

#[tokio::test]
async fn a_push_returns_when_the_file_is_receipted_and_the_same_file_is_sent_once() {
    let (server, edge) = Edge::device().await;
    edge.file("temperatures.csv", b"21.5\n");
    let push = ["push", "--content-type", "text/csv", "--meta", r#"{"sensor":7}"#, "temperatures.csv"];
    let out = edge.done(&push).await;
    assert!(out.starts_with("stored  temperatures.csv-") && out.contains("batch 1"), "{out}");
    assert_eq!(waiting(&edge).await, 0);
    let again = edge.done(&push).await;
    assert_eq!(out, again);
    let uploads = server.uploads("demo").await;
    assert_eq!((uploads.len(), uploads[0]["name"].as_str()), (1, Some("temperatures.csv")));
    edge.done(&["push", "--again", "temperatures.csv"]).await;
    assert_eq!(stored(&server).await.len(), 2);
}

#[tokio::test]
async fn a_push_of_some_files_only_leaves_the_backlog_where_it_is() {
    let (server, edge) = Edge::device().await;
    spool_files(&edge, &[3], 5, 100).await;
    edge.file("now.csv", b"21.5");
    let out = edge.done(&["push", "--only", "now.csv"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!((stored(&server).await.len(), waiting(&edge).await), (1, 5));
    edge.done(&["spool", "flush"]).await;
    assert_eq!((stored(&server).await.len(), waiting(&edge).await), (6, 0));
}

#[tokio::test]
async fn without_a_network_a_push_keeps_the_file_and_the_next_one_sends_it() {
    let (server, edge) = Edge::device().await;
    edge.relay.cut();
    edge.file("one", b"1");
    let out = edge.done(&["--patience", "1", "push", "one"]).await;
    assert!(out.starts_with("spooled"), "{out}");
    assert_eq!(waiting(&edge).await, 1);
    edge.relay.mend(server.mqtt());
    edge.file("two", b"2");
    let out = edge.done(&["push", "two"]).await;
    assert!(out.starts_with("stored"), "{out}");
    assert_eq!((stored(&server).await.len(), waiting(&edge).await), (2, 0));
}

#[tokio::test]
async fn after_days_offline_todays_files_go_first_then_the_newest_and_in_bundles() {
    let each = 2_500;
    let (server, edge) = Edge::device().await;
    let ids = spool_files(&edge, &[3, 2, 1, 0], each, 700).await;
    let out = edge.done(&["--json", "spool", "flush"]).await;
    let summary: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((summary["stored"].as_u64(), summary["left"].as_u64()), (Some(4 * each as u64), Some(0)));
    // Their size is what the line carries, which on a busy machine is less.
    assert!((1..=100).contains(&summary["bundles"].as_u64().unwrap()), "{summary}");
    let stored = stored(&server).await;
    assert_eq!(stored.iter().cloned().collect::<BTreeSet<_>>(), ids);
    let today = stored.iter().take_while(|id| id.starts_with("day0-")).count();
    assert_eq!(today, each, "today's files are the first of all");
    let last = |day: &str| stored.iter().rposition(|id| id.starts_with(day)).unwrap();
    assert!(last("day1-") < last("day2-") && last("day2-") < last("day3-"), "then the newest days");
}

#[tokio::test]
async fn a_network_that_is_cut_in_mid_bundle_costs_no_file_and_little_repetition() {
    let (server, edge) = Edge::device().await;
    let ids = spool_files(&edge, &[0], 400, 10_000).await;
    edge.relay.cut_after(1_500_000);
    let mut flush = edge.start("flush", &["spool", "flush"]);
    edge.relay.was_cut().await;
    edge.relay.mend(server.mqtt());
    assert!(flush.wait(PATIENCE).await.success());
    let stored = stored(&server).await;
    assert_eq!((stored.len(), stored.into_iter().collect::<BTreeSet<_>>()), (400, ids));
    // 4 MB, and at the most the two bundles that were on their way.
    assert!(edge.relay.upward() < 4_000_000 + 2_300_000, "{}", edge.relay.upward());
}

#[tokio::test]
async fn a_flush_that_is_killed_at_any_point_loses_nothing_and_sends_nothing_twice_that_was_stored() {
    const SIZE: usize = 20_000;
    let (server, edge) = Edge::device().await;
    let ids = spool_files(&edge, &[1, 0], 150, SIZE).await;
    let mut kills = 0;
    for after in [1_u64, 200, 900_000, 1_100_000, 1_400_000, 600_000, 3_000_000] {
        let begin = edge.relay.upward();
        let mut flush = edge.start("flush", &["--rate", "20000000", "spool", "flush"]);
        while flush.status().is_none() && edge.relay.upward() < begin + after {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        kills += u32::from(flush.status().is_none());
        flush.kill();
        server.at_rest("demo").await;
        assert_eq!(server.repeats("demo").await, 0, "after {kills} kills");
    }
    assert!(kills >= 3, "only {kills} were killed in the middle");
    let (missing, begin) = (ids.len() - stored(&server).await.len(), edge.relay.upward());
    edge.done(&["spool", "flush"]).await;
    let sent = edge.relay.upward() - begin;
    // Descriptions and questions beside the bytes: of as many as there are, and no file.
    let most = missing * (SIZE + 500) + 30_000;
    assert!(sent < most as u64, "{sent} bytes for {missing} files that were missing");
    server.at_rest("demo").await;
    assert_eq!(server.repeats("demo").await, 0);
    let stored = stored(&server).await;
    assert_eq!((stored.len(), stored.into_iter().collect::<BTreeSet<_>>()), (300, ids));
    assert_eq!(waiting(&edge).await, 0);
}

#[tokio::test]
async fn a_push_that_is_killed_at_any_point_leaves_a_whole_file_or_none() {
    let (_server, edge) = Edge::device().await;
    edge.file("whole", &[7; 3_000_000]);
    for pause in 0..25_u64 {
        let mut push = edge.start("push", &["push", "--offline", "--again", "whole"]);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        push.kill();
    }
    edge.done(&["push", "--offline", "--again", "whole"]).await;
    assert_eq!(std::fs::read_dir(edge.spool().join("staging")).unwrap().count(), 0);
    let waiting = waiting(&edge).await;
    let out = edge.done(&["spool", "export", "out"]).await;
    assert!(out.starts_with(&format!("{waiting} files")), "every one of them is whole: {out}");
    for file in std::fs::read_dir(edge.directory().join("out/files")).unwrap() {
        assert!(std::fs::read(file.unwrap().path()).unwrap() == [7; 3_000_000]);
    }
}

#[tokio::test]
async fn several_pushes_at_once_share_the_spool() {
    let (server, edge) = Edge::device().await;
    let mut pushes = Vec::new();
    for n in 0..6 {
        let name = format!("file-{n}");
        edge.file(&name, name.as_bytes());
        pushes.push(edge.start(&format!("push-{n}"), &["push", &name]));
    }
    for push in &mut pushes {
        assert!(push.wait(PATIENCE).await.success(), "{}", push.stderr());
        assert!(push.stdout().starts_with("stored"), "{}", push.stdout());
    }
    assert_eq!((stored(&server).await.len(), waiting(&edge).await), (6, 0));
}

#[tokio::test]
async fn more_files_go_at_once_than_a_process_may_have_open() {
    let (_server, edge) = Edge::device().await;
    let names: Vec<String> = (0..200).map(|n| format!("file-{n}")).collect();
    for name in &names {
        edge.file(name, name.as_bytes());
    }
    let script = r#"ulimit -S -n 64; exec "$0" push --offline "$@""#;
    let mut push = std::process::Command::new("sh");
    push.args(["-c", script]).arg(edge_binary()).args(&names);
    push.current_dir(edge.directory()).env("MILLPOND_SPOOL", edge.spool());
    let output = push.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(waiting(&edge).await, 200);
}

#[tokio::test]
async fn only_what_the_server_has_is_said_to_be_stored() {
    let (server, edge) = Edge::device().await;
    edge.file("one", b"1");
    let mut spool = Spool::open(&edge.spool(), Limits::default()).unwrap();
    let sending = spool.sending().unwrap();
    let mut push = edge.start("push", &["push", "one"]);
    let entry = loop {
        if let Some(entry) = spool.entries().unwrap().next().cloned() {
            break entry;
        }
        assert!(push.status().is_none(), "{}", push.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // As a full spool drops it, or an export takes it away.
    spool.remove(&[entry]).unwrap();
    assert_eq!(push.wait(PATIENCE).await.code(), Some(75), "{}", push.stderr());
    assert!(push.stdout().starts_with("unknown  one-"), "{}", push.stdout());
    drop(sending);
    assert!(edge.done(&["push", "one"]).await.starts_with("stored  one-"));
    assert_eq!(stored(&server).await.len(), 1);
}

#[tokio::test]
async fn what_the_server_refuses_is_kept_beside_and_holds_nothing_up() {
    let (server, edge) = Edge::device().await;
    for (name, content) in [("one", "1"), ("two", "2"), ("three", "3")] {
        edge.file(name, content.as_bytes());
    }
    edge.done(&["push", "--id", "taken", "one"]).await;
    edge.done(&["push", "--offline", "three"]).await;
    let refused = edge.run(&["push", "--id", "taken", "two"]).await;
    let out = String::from_utf8(refused.stdout).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        out.starts_with("refused  taken") && out.contains("use a new upload id for other bytes"),
        "{out}"
    );
    assert_eq!(stored(&server).await.len(), 2);
    let list = edge.done(&["spool", "list"]).await;
    assert!(list.starts_with("refused") && list.contains("taken") && list.contains("0 files"), "{list}");
}

#[tokio::test]
async fn who_is_not_wanted_keeps_its_files() {
    let (server, edge) = Edge::device().await;
    edge.file("one", b"1");
    edge.done(&["push", "--offline", "one"]).await;
    let listener = server.member("demo", "listener", Role::Listener).await;
    let stranger = Credentials { token: "mpd_wrong".into(), ..listener.clone() };
    for (who, what) in [(stranger, "refuses these credentials"), (listener, "does not take uploads")] {
        let mut flush = edge.start_as(&who, "flush", &["spool", "flush"]);
        assert_eq!(flush.wait(PATIENCE).await.code(), Some(1));
        assert!(flush.stderr().contains(what), "{}", flush.stderr());
    }
    assert_eq!(waiting(&edge).await, 1);
    edge.done(&["spool", "flush"]).await;
    assert_eq!(stored(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_files_and_keeps_the_old_ones() {
    if !tool("unshare") {
        return;
    }
    let (server, edge) = Edge::device().await;
    edge.file("small", &[1; 100_000]);
    edge.file("large", &[2; 3_000_000]);
    std::fs::create_dir(edge.spool()).unwrap();
    let script = r#"mount -t tmpfs -o size=1m,mode=0700 none "$1" || exit 99
        "$2" push --offline small || exit 1
        "$2" push --offline large && exit 2
        test $? = 75 || exit 3
        "$2" push --offline --again small || exit 4
        "$2" spool export out || exit 5
        head -c 2000000 /dev/zero > "$1/ballast" 2> /dev/null
        "$2" push --offline --again small && exit 6
        "$2" spool flush || exit 7
        "$2" push --offline --again small || exit 8"#;
    let mut unshare = std::process::Command::new("unshare");
    unshare
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(edge.spool())
        .arg(edge_binary())
        .current_dir(edge.directory())
        .envs(
            edge.command(&[]).get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))),
        );
    let output = tokio::task::block_in_place(|| unshare.output().unwrap());
    if output.status.code() == Some(99) && !skip("no right to mount") {
        return;
    }
    assert!(output.status.success(), "{output:?}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("2 files exported to out\n2 stored, 0 refused, 0 left\n"), "{out}");
    assert_eq!(stored(&server).await.len(), 2);
}

#[tokio::test]
async fn one_push_takes_more_files_than_a_process_may_have_open() {
    let (_server, edge) = Edge::device().await;
    let names: Vec<String> = (0..600).map(|n| format!("file-{n}")).collect();
    names.iter().for_each(|name| drop(edge.file(name, name.as_bytes())));
    let plain = edge.command(&[]);
    let mut push = Command::new("sh");
    push.args(["-c", r#"ulimit -n 100; exec "$0" push --offline "$@""#]).arg(edge_binary()).args(&names);
    push.current_dir(edge.directory());
    push.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let pushed = tokio::task::spawn_blocking(move || push.output().unwrap()).await.unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert_eq!(std::fs::read_dir(edge.spool().join("ready")).unwrap().count(), 600);
}
