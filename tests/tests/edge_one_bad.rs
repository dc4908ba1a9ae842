//! One file that cannot be removed from the spool, or read, at once: it is sent and removed all the same, and so are the others; and
//! it keeps nobody from exporting, pushing, or making room.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use millpond_edge::sender::{self, Options, Report, SendError};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::spool::{Limits, Spool};
use millpond_tests::{Edge, edge_binary, skip};

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_file_whose_removal_failed_is_told_to_be_stored_and_leaves_the_spool() {
    let (server, edge) = Edge::device().await;
    edge.spooled(1, 100).await;
    let (at, who) = (edge.relay.address(), edge.who().clone());
    let config = Config::new(at.ip().to_string(), at.port(), who.pool, who.member, Token::new(&who.token));
    let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
    let mut spool = Spool::open(&edge.spool(), Limits::default()).unwrap();
    // Removal beside the work opens the lock for itself, and finds something else; the spool has it open.
    let (lock, away) = (edge.spool().join("lock"), edge.directory().join("lock"));
    std::fs::rename(&lock, &away).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let mut stored = 0;
    let mut report = |report: Report<'_>| match report {
        Report::Stored(..) => stored += 1,
        report => panic!("{report:?}"),
    };
    let options = Options::default();
    let flush = sender::flush(&mut spool, &session, &mut inbox, &options, &mut report);
    let failed = tokio::time::timeout(PATIENCE, flush).await.unwrap();
    assert!(matches!(failed, Err(SendError::Spool(_))), "{failed:?}");
    assert_eq!((stored, std::fs::read_dir(edge.spool().join("ready")).unwrap().count()), (1, 0));
    std::fs::remove_dir(&lock).unwrap();
    std::fs::rename(away, lock).unwrap();
    assert_eq!(edge.done(&["spool", "flush"]).await, "0 stored, 0 refused, 0 left\n");
    assert_eq!(server.uploads("demo").await.len(), 1);
}

#[tokio::test]
async fn a_file_that_the_disk_does_not_give_keeps_no_other_from_being_sent() {
    let (server, edge) = Edge::device().await;
    edge.spooled(4, 100).await;
    let ready = edge.spool().join("ready");
    let entry = std::fs::read_dir(&ready).unwrap().next().unwrap().unwrap().path();
    let away = edge.directory().join("away");
    std::fs::rename(&entry, &away).unwrap();
    // No bytes can be read of a directory, whoever reads.
    std::fs::create_dir(&entry).unwrap();
    edge.done(&["complete", "--offline"]).await;
    let flush = edge.run(&["spool", "flush"]).await;
    let (out, err) = (String::from_utf8_lossy(&flush.stdout), String::from_utf8_lossy(&flush.stderr));
    assert_eq!((flush.status.code(), &*out), (Some(75), "3 stored, 0 refused, 1 left\n"), "{err}");
    assert!(err.contains("Is a directory"), "{err}");
    assert!(
        edge.done(&["spool", "list"]).await.contains("complete through"),
        "it speaks of what is left, perhaps"
    );
    std::fs::remove_dir(&entry).unwrap();
    std::fs::rename(away, entry).unwrap();
    assert_eq!(edge.done(&["spool", "flush"]).await, "1 stored, 0 refused, 0 left\n");
    assert_eq!(server.uploads("demo").await.len(), 4);
}

/// In the place of an entry lies what no bytes can be read of, whoever reads.
fn spoil(edge: &Edge, id: &str) -> PathBuf {
    let mut entries = std::fs::read_dir(edge.spool().join("ready")).unwrap().map(|item| item.unwrap().path());
    let entry = entries.find(|path| path.to_string_lossy().ends_with(id)).unwrap();
    std::fs::remove_file(&entry).unwrap();
    std::fs::create_dir(&entry).unwrap();
    entry
}

/// Spools files whose times follow each other.
async fn spooled(edge: &Edge, ids: &[&str]) {
    for (n, id) in ids.iter().enumerate() {
        edge.file(id, id.as_bytes());
        let time = format!("2026-01-0{}T00:00:00Z", n + 1);
        edge.done(&["push", "--offline", "--event-time", &time, "--id", id, id]).await;
    }
}

/// Names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let items = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = items.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_that_the_disk_does_not_give_is_named_and_keeps_no_other_from_being_exported() {
    let (_server, edge) = Edge::device().await;
    spooled(&edge, &["a", "b", "c"]).await;
    let entry = spoil(&edge, "b");
    let export = edge.run(&["spool", "export", "--remove", "out"]).await;
    let (out, err) = (String::from_utf8_lossy(&export.stdout), String::from_utf8_lossy(&export.stderr));
    assert_eq!((export.status.code(), &*out), (Some(1), "2 files exported to out\n"), "{err}");
    let name = entry.file_name().unwrap().to_str().unwrap();
    assert!(err.contains(name) && err.contains("1 files could not be read and were left out"), "{err}");
    assert_eq!(names(&edge.directory().join("out/files")), ["a", "c"]);
    assert_eq!(names(&edge.directory().join("out/about")), ["a", "c"]);
    assert_eq!(names(&edge.spool().join("ready")), [name], "it waits as it is");
}

#[tokio::test]
async fn a_push_of_what_lies_unreadable_in_the_spool_puts_that_aside_and_goes_on() {
    let (server, edge) = Edge::device().await;
    spooled(&edge, &["a", "b"]).await;
    // A look at the spool finds that it is as long as the file that is pushed.
    let time = ["--event-time", "2026-01-02T00:00:00Z"];
    let entry = spoil(&edge, "b");
    let pushed = edge.done(&[&["push", "--id", "b"], &time[..], &["b"]].concat()).await;
    assert!(pushed.starts_with("stored  b"), "{pushed}");
    assert_eq!(names(&edge.spool().join("damaged")), [entry.file_name().unwrap().to_str().unwrap()]);
    assert_eq!(names(&edge.spool().join("ready")), Vec::<String>::new());
    assert_eq!(server.uploads("demo").await.len(), 2);
}

/// Runs the client where that file cannot be removed: something is mounted on it. None without the right to mount.
async fn beside_one_that_stays(edge: &Edge, file: &Path, arguments: &[&str]) -> Option<Output> {
    if !Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|output| output.status.success()) {
        skip("unshare -m needs root");
        return None;
    }
    let script = r#"mount --bind "$0" "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(file).arg(edge_binary()).args(arguments);
    command.current_dir(edge.directory());
    command.envs(edge.command(&[]).get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
}

#[tokio::test]
async fn a_stored_file_that_cannot_be_removed_is_named_and_keeps_no_other_from_being_sent() {
    let (server, edge) = Edge::device().await;
    spooled(&edge, &["a", "b", "c"]).await;
    let ready = edge.spool().join("ready");
    let newest = ready.join(&names(&ready)[2]);
    // It goes first, and is stored and not removed, before the others begin.
    let push = ["push", "--only", "--id", "c", "--event-time", "2026-01-03T00:00:00Z", "c"];
    let Some(pushed) = beside_one_that_stays(&edge, &newest, &push).await else { return };
    let (out, err) = (String::from_utf8_lossy(&pushed.stdout), String::from_utf8_lossy(&pushed.stderr));
    assert!(pushed.status.code() == Some(75) && out.contains("stored, and cannot be removed"), "{out}{err}");
    let flush = beside_one_that_stays(&edge, &newest, &["spool", "flush"]).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&flush.stdout), String::from_utf8_lossy(&flush.stderr));
    assert_eq!((flush.status.code(), &*out), (Some(75), "2 stored, 0 refused, 1 left\n"), "{err}");
    assert!(err.contains("stored, and cannot be removed"), "{err}");
    assert_eq!(server.uploads("demo").await.len(), 3);
    assert_eq!(edge.done(&["spool", "flush"]).await, "1 stored, 0 refused, 0 left\n");
    assert_eq!(names(&ready), Vec::<String>::new());
}

#[tokio::test]
async fn a_full_spool_drops_the_next_oldest_where_the_oldest_cannot_be_removed() {
    let (_server, edge) = Edge::device().await;
    spooled(&edge, &["a", "b", "c"]).await;
    let ready = edge.spool().join("ready");
    let oldest = ready.join(&names(&ready)[0]);
    edge.file("d", b"d");
    // That is found out when it is tried.
    let limit = ["--spool-files", "3", "--spool-full", "drop-oldest"];
    let arguments = [&limit[..], &["push", "--offline", "--id", "d", "d"]].concat();
    let Some(push) = beside_one_that_stays(&edge, &oldest, &arguments).await else { return };
    let left = names(&ready);
    let err = String::from_utf8_lossy(&push.stderr);
    assert_eq!(push.status.code(), Some(0), "{err}");
    assert!(err.contains("dropped b of") && !err.contains("dropped a of"), "{err}");
    let ids: Vec<_> = left.iter().map(|name| name.rsplit('.').next().unwrap()).collect();
    assert_eq!(ids, ["a", "c", "d"]);
}
