//! SIGKILL at every step of `push`, `flush`, `listen` and `enrol`: before each of the system calls by which they change anything, in
//! turn; where several threads do that side by side, before each by whichever of them, for which there are fail-points. Whatever was
//! left behind, the same command goes on from there to the same end.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use millpond_edge::spool::Entry;
use millpond_failpoint::Point;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Edge, Link, Mill, STEPS, Server, killed_at, may_trace, was_killed};
use serde_json::{Value, json};

/// Runs the command once for each step, killed there. `prepare` answers the command, and `after` looks at what was left and goes
/// on. Answers how often it ran, and how often it was killed.
async fn at_every_step(
    mut prepare: impl AsyncFnMut(u32) -> Command,
    mut after: impl AsyncFnMut(&str, u32),
) -> (u32, u32) {
    let (mut runs, mut killed) = (0, 0);
    for call in STEPS {
        for nth in 1..=1_000 {
            let mut run = killed_at(&prepare(runs).await, call, nth);
            let output = tokio::task::spawn_blocking(move || run.output().unwrap()).await.unwrap();
            let ended = output.status;
            assert!(ended.success() || ended.signal() == Some(9), "{call} {nth}: {output:?}");
            after(&format!("{call} {nth}"), runs).await;
            runs += 1;
            if ended.success() {
                break;
            }
            killed += 1;
        }
    }
    (runs, killed)
}

/// The client alone, in a directory of its own.
fn edge(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(millpond_tests::edge_binary());
    command.args(arguments).current_dir(directory);
    command
}

fn done(mut command: Command, at: &str) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{at}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_push_that_is_killed_at_any_step_leaves_a_whole_file_or_none_and_can_be_repeated() {
    if !may_trace() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let bytes = [7; 300_000];
    std::fs::write(home.path().join("whole"), bytes).unwrap();
    std::fs::write(home.path().join("other"), b"other").unwrap();
    let spool = home.path().join("spool");
    let push = |name| {
        let mut push = edge(home.path(), &["push", "--offline", name]);
        push.env("MILLPOND_SPOOL", &spool);
        push
    };
    let list = |at: &str| {
        let mut list = edge(home.path(), &["--json", "spool", "list"]);
        list.env("MILLPOND_SPOOL", &spool);
        done(list, at)
    };
    // Into a spool that is made, and into one that holds something.
    for begun in [false, true] {
        let prepare = async |_| {
            let _ = std::fs::remove_dir_all(&spool);
            if begun {
                done(push("other"), "before");
            }
            push("whole")
        };
        let after = async |at: &str, _| {
            let left = list(at);
            assert!(left.lines().count() <= 1 + usize::from(begun), "{at}: {left}");
            assert!(!begun || left.contains("other-"), "{at}: {left}");
            done(push("whole"), at);
            assert_eq!(list(at).lines().count(), 1 + usize::from(begun), "{at}");
            assert_eq!(std::fs::read_dir(spool.join("staging")).unwrap().count(), 0, "{at}");
            for entry in std::fs::read_dir(spool.join("ready")).unwrap() {
                let entry = entry.unwrap();
                if entry.file_name().to_string_lossy().contains("whole-") {
                    assert!(std::fs::read(entry.path()).unwrap().starts_with(&bytes), "{at}");
                }
            }
        };
        let (_, killed) = at_every_step(prepare, after).await;
        assert!(killed >= 8, "{killed}");
    }
}

#[tokio::test]
async fn a_flush_that_is_killed_at_any_step_loses_nothing_and_nothing_is_stored_twice() {
    if !may_trace() {
        return;
    }
    let server = Server::with(&[("MILLPOND__MQTT__PUBLISH_MAX", "131072")]).await;
    server.pool("demo", json!({ "grouping": "count", "count": 100_000 })).await;
    let device = Edge::new(&server, server.member("demo", "edge-1", Role::Publisher).await).await;
    // Two for a bundle, and one that goes by URL; no two files in all of it are the same.
    let content = |n: u32, size: usize| n.to_le_bytes().into_iter().cycle().take(size).collect::<Vec<_>>();
    let sizes = [("a", 10), ("b", 2_000), ("c", 150_000)];
    let prepare = async |n| {
        for (name, size) in sizes {
            device.file(name, &content(n, size));
        }
        done(device.command(&["push", "--offline", "a", "b", "c"]), "before");
        device.command(&["spool", "flush"])
    };
    let after = async |at: &str, _| {
        let summary = device.run(&["--json", "spool", "flush"]).await;
        let left: Value = serde_json::from_slice(&summary.stdout).unwrap();
        assert_eq!((summary.status.code(), left["left"].as_u64()), (Some(0), Some(0)), "{at}: {summary:?}");
    };
    let (runs, killed) = at_every_step(prepare, after).await;
    assert!(killed >= 30, "{killed}");
    assert_eq!(device.done(&["--json", "spool", "list"]).await, "");
    let uploads = server.uploads("demo").await;
    let mut stored: Vec<_> =
        uploads.iter().map(|upload| upload["sha256"].as_str().unwrap().to_owned()).collect();
    let all = (0..runs).flat_map(|n| sizes.map(|(_, size)| Sha256::of(&content(n, size)).to_string()));
    let mut expected: Vec<_> = all.collect();
    stored.sort_unstable();
    expected.sort_unstable();
    assert_eq!(stored, expected);
}

/// More than threads work on at a time.
const MANY: usize = 40;

/// Writes so many files that were never there before; their names.
fn new_files(edge: &Edge, run: u32) -> Vec<String> {
    let names: Vec<String> = (0..MANY).map(|n| format!("file-{run}-{n}")).collect();
    names.iter().for_each(|name| drop(edge.file(name, name.as_bytes())));
    names
}

/// The command with these files.
fn of<'a>(command: &[&'a str], files: &'a [String]) -> Vec<&'a str> {
    command.iter().copied().chain(files.iter().map(String::as_str)).collect()
}

/// Ids of the entries that a directory, or a note, of the spool names.
fn entries(names: impl Iterator<Item = String>) -> BTreeSet<String> {
    names.map(|name| name.parse::<Entry>().unwrap().upload.to_string()).collect()
}

fn waiting(edge: &Edge) -> BTreeSet<String> {
    let ready = std::fs::read_dir(edge.spool().join("ready")).unwrap();
    entries(ready.map(|entry| entry.unwrap().file_name().into_string().unwrap()))
}

/// Runs it with that point armed for the `nth` time; whether it was killed there.
async fn dies_at(edge: &Edge, point: Point, nth: u32, command: &[&str]) -> bool {
    edge.arm(point, nth);
    let output = edge.run(command).await;
    edge.disarm();
    assert!(output.status.success() || was_killed(output.status), "{} {nth}: {output:?}", point.name());
    was_killed(output.status)
}

#[tokio::test]
async fn a_push_that_is_killed_at_any_of_many_files_leaves_whole_ones_and_can_be_repeated() {
    let (_server, edge) = Edge::device().await;
    for point in [Point::SpoolSyncing, Point::SpoolRenamed] {
        for nth in 1.. {
            let _ = std::fs::remove_dir_all(edge.spool());
            let files = new_files(&edge, 0);
            let push = of(&["push", "--offline"], &files);
            let killed = dies_at(&edge, point, nth, &push).await;
            assert_eq!(killed, nth as usize <= MANY, "{} {nth}", point.name());
            let shown = if !killed {
                MANY
            } else if point == Point::SpoolRenamed {
                nth as usize
            } else {
                0
            };
            assert_eq!(waiting(&edge).len(), shown, "{} {nth}", point.name());
            edge.done(&push).await;
            assert_eq!(waiting(&edge).len(), MANY, "{} {nth}", point.name());
            assert_eq!(std::fs::read_dir(edge.spool().join("staging")).unwrap().count(), 0);
            if !killed {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_flush_that_is_killed_at_any_removal_loses_nothing_and_what_came_to_be_stored_is_in_doubt() {
    let (server, edge) = Edge::device().await;
    let mut left_behind = BTreeSet::new();
    for nth in 1.. {
        let files = new_files(&edge, nth);
        edge.done(&of(&["push", "--offline"], &files)).await;
        let all = waiting(&edge);
        let killed = dies_at(&edge, Point::SpoolRemoving, nth, &["spool", "flush"]).await;
        assert_eq!(killed, nth as usize <= MANY, "{nth}");
        server.at_rest("demo").await;
        let uploads = server.uploads("demo").await;
        let stored: BTreeSet<_> =
            uploads.iter().map(|upload| upload["upload"].as_str().unwrap().to_owned()).collect();
        let left = waiting(&edge);
        let lost: Vec<_> = all.iter().filter(|id| !left.contains(*id) && !stored.contains(*id)).collect();
        assert!(lost.is_empty(), "{nth}: {lost:?}");
        let note = std::fs::read_to_string(edge.spool().join("in-flight")).unwrap_or_default();
        let doubtful = entries(note.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()));
        let twice: Vec<_> = left.intersection(&stored).filter(|id| !doubtful.contains(*id)).collect();
        assert!(twice.is_empty(), "{nth}: {twice:?}");
        left_behind.insert(left.len());
        edge.done(&["spool", "flush"]).await;
        server.at_rest("demo").await;
        assert_eq!((waiting(&edge).len(), server.repeats("demo").await), (0, 0), "{nth}");
        assert_eq!(server.uploads("demo").await.len(), nth as usize * MANY, "{nth}");
        if !killed {
            break;
        }
    }
    // It died with all of them there, and with ever fewer.
    assert!(left_behind.contains(&MANY) && left_behind.len() > MANY / 4, "{left_behind:?}");
}

#[tokio::test]
async fn after_a_push_that_is_killed_while_it_makes_room_the_log_names_all_that_is_gone_and_nothing_else() {
    let (_server, edge) = Edge::device().await;
    let limit = MANY.to_string();
    let push = ["--spool-files", &limit, "--spool-full", "drop-oldest", "push", "--offline"];
    for nth in 1.. {
        let _ = std::fs::remove_dir_all(edge.spool());
        let (old, new) = (new_files(&edge, 0), new_files(&edge, 1));
        edge.done(&of(&push, &old)).await;
        let before = waiting(&edge);
        let killed = dies_at(&edge, Point::SpoolRemoving, nth, &of(&push, &new)).await;
        assert_eq!(killed, nth as usize <= MANY, "{nth}");
        // Whoever opens it next sees to the log.
        edge.done(&["spool", "list"]).await;
        let log = std::fs::read_to_string(edge.spool().join("dropped.log")).unwrap_or_default();
        let logged: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut logged: Vec<_> =
            logged.iter().map(|line| line["upload"].as_str().unwrap().to_owned()).collect();
        logged.sort_unstable();
        let gone: Vec<_> = before.difference(&waiting(&edge)).cloned().collect();
        assert_eq!(logged, gone, "{nth}");
        assert!(!edge.spool().join("dropping").exists(), "{nth}");
        edge.done(&of(&push, &new)).await;
        assert!(waiting(&edge).is_disjoint(&before) && waiting(&edge).len() == MANY, "{nth}");
        if !killed {
            break;
        }
    }
}

#[tokio::test]
async fn a_listener_that_is_killed_at_any_step_shows_a_whole_result_and_ends_with_the_newest() {
    if !may_trace() {
        return;
    }
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let publisher = server.member("demo", "edge-1", Role::Publisher).await;
    let result = async |n: usize, bytes: Vec<u8>| {
        let link = Link::open(publisher.clone()).await.unwrap();
        link.publish(&format!("mp/demo/c/edge-1/up/u{n}"), vec![1], Default::default()).await.unwrap();
        let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
        mill.answer(&lease, bytes).await.unwrap();
        link.close().await;
    };
    let listen = ["listen", "--once", "--exec", r#"cp "$MILLPOND_FILE" applied"#];
    let (results, before) = (edge.directory().join("results"), edge.directory().join("before"));
    // One that came over MQTT is there; the next comes by URL.
    let (old, new) = (vec![1; 1_000], vec![2; 300_000]);
    result(1, old.clone()).await;
    edge.done(&listen).await;
    std::fs::rename(&results, &before).unwrap();
    result(2, new.clone()).await;
    let prepare = async |_| {
        let _ = std::fs::remove_dir_all(&results);
        let copied = Command::new("cp").arg("-a").args([&before, &results]).status().unwrap();
        assert!(copied.success());
        std::fs::write(edge.directory().join("applied"), b"").unwrap();
        edge.command(&listen)
    };
    let after = async |at: &str, _| {
        let shown = std::fs::read(results.join("current")).unwrap();
        assert!(shown == old || shown == new, "{at}: {} bytes are shown", shown.len());
        edge.done(&listen).await;
        assert!(std::fs::read(results.join("current")).unwrap() == new, "{at}");
        assert!(std::fs::read(edge.directory().join("applied")).unwrap() == new, "{at}");
        let partial = std::fs::read_dir(results.join(".millpond")).unwrap();
        let partial = partial
            .filter(|item| item.as_ref().unwrap().file_name().to_string_lossy().starts_with("partial-"));
        assert_eq!(partial.count(), 0, "{at}");
    };
    let (_, killed) = at_every_step(prepare, after).await;
    assert!(killed >= 30, "{killed}");
}

#[tokio::test]
async fn an_enrolment_that_is_killed_at_any_step_makes_one_member_when_it_is_repeated() {
    if !may_trace() {
        return;
    }
    let server = Server::start().await;
    server.pool("p", json!({})).await;
    let new = json!({ "name": "j", "role": Role::Publisher, "uses": 1_000, "expires_s": 86_400 });
    let join = server.api().post("/v1/pools/p/joins", &new).await["token"].as_str().unwrap().to_owned();
    let home = tempfile::tempdir().unwrap();
    let enrol = |n: u32| {
        let mut command = edge(home.path(), &["enrol", &format!("p/dev-{n}")]);
        command.env("MILLPOND_SERVER", format!("http://{}", server.ports().http));
        command.env("MILLPOND_JOIN_TOKEN", &join);
        command.env("MILLPOND_IDENTITY", home.path().join(format!("identity-{n}")));
        command
    };
    let prepare = async |n| enrol(n);
    let after = async |at: &str, n| {
        done(enrol(n), at);
        let kept = std::fs::read(home.path().join(format!("identity-{n}/identity.json"))).unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert!(kept["url"].as_str().is_some_and(|url| url.starts_with("mqtt://")), "{at}: {kept}");
    };
    let (runs, killed) = at_every_step(prepare, after).await;
    assert!(killed >= 8, "{killed}");
    let joins = server.api().get("/v1/pools/p/joins").await;
    assert_eq!(joins["joins"][0]["uses"], 1_000 - runs, "one use each");
}
