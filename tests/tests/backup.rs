//! `backup` and `restore` over the real binary.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use millpond_protocol::access::Op;
use millpond_protocol::message::{Pointer, answer};
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Beside, Disk, Link, Loss, Mill, SeaweedFs, Server, Shim, binary, recent_hour};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Bytes that go to storage, not into the ledger.
const LARGE: usize = 200_000;

fn backup(server: &Server, file: &Path, more: &[&str]) -> Output {
    server.cli().args(["backup", "--json"]).args(more).arg(file).output().unwrap()
}

/// Restores to a server that has not run yet.
fn restore(server: &Server, file: &Path, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    command.args(["restore", "--json", "--data"]).arg(server.data()).arg(file);
    command.envs(settings.iter().copied()).output().unwrap()
}

fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What was said when it failed, as it had to.
fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A server with a result, and an open batch with a small and a large upload.
async fn lived(server: &Server) -> (Link, Mill) {
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    publish(&edge, "first", 100).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, vec![b'r'; LARGE]).await.unwrap();
    publish(&edge, "small", 100).await;
    publish(&edge, "large", LARGE).await;
    (edge, mill)
}

async fn publish(link: &Link, upload: &str, size: usize) {
    let topic = format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    link.publish(&topic, vec![b'u'; size], Beside::default()).await.unwrap();
}

async fn uploads(server: &Server) -> BTreeSet<String> {
    let uploads = server.uploads("demo").await;
    uploads.iter().map(|upload| upload["upload"].as_str().unwrap().to_owned()).collect()
}

/// The server has what a backup of [`lived`] holds, and the pool's life goes on.
async fn goes_on(server: &Server, edge: &Link, mill: &Mill, expected: &BTreeSet<String>) {
    let there = uploads(server).await;
    assert!(there.is_superset(expected), "{:?} are lost", expected.difference(&there));
    // The tokens are those that members have.
    let edge = Link::open(server.here(&edge.who)).await.unwrap();
    let latest: Value = edge.ask(Op::Latest, &json!({})).await.unwrap();
    let latest: Pointer = serde_json::from_value(latest["result"].clone()).unwrap();
    assert_eq!(server.api().fetch(&latest.url).await, vec![b'r'; LARGE]);

    let mill = Mill::join(server.here(&mill.link.who), server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    assert_eq!(leased.files["edge/large"], vec![b'u'; LARGE]);
    assert!(leased.files.contains_key("edge/small"));
    mill.answer(&leased.lease, "the next").await.unwrap();
    let checked = server.cli().args(["check", "--deep"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_under_load_is_there_elsewhere() {
    let server = Server::start().await;
    let (edge, mill) = lived(&server).await;
    let (acknowledged, mut count) = watch::channel(0);
    let who = millpond_tests::Credentials { client_id: "load".into(), ..edge.who.clone() };
    let load = tokio::spawn(async move {
        let link = Link::open(who).await.unwrap();
        loop {
            let n = *acknowledged.borrow();
            publish(&link, &format!("load-{n}"), if n % 5 == 0 { LARGE } else { 1_000 }).await;
            acknowledged.send_modify(|n| *n += 1);
        }
    });
    let file = server.directory().join("mill.tar");
    let (before, made) = loop {
        let before = *count.wait_for(|n| *n >= 20).await.unwrap();
        let made = tokio::task::block_in_place(|| done(&backup(&server, &file, &[])));
        if *count.borrow() > before {
            break (before, made);
        }
        // On a machine that had no time for both.
        std::fs::remove_file(&file).unwrap();
    };
    load.abort();
    assert!(made["objects"]["count"].as_u64().unwrap() >= 3, "{made}");
    // The archive is its owner's alone: it holds what clients sent.
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!server.data().join("ledger.snapshot").exists());
    let trail = server.api().get("/v1/audit").await;
    assert_eq!(trail["entries"][0]["action"], "backup", "{trail}");

    let mut elsewhere = Server::prepare(&[]);
    assert_eq!(done(&restore(&elsewhere, &file, &[]))["objects"], made["objects"]);
    elsewhere.launch().await;
    let mut expected: BTreeSet<String> = (0..before).map(|n| format!("load-{n}")).collect();
    expected.extend(["first", "small", "large"].map(str::to_owned));
    goes_on(&elsewhere, &edge, &mill, &expected).await;

    // The directory is in use, and then it has a ledger.
    let refused = failed(&restore(&elsewhere, &file, &[]));
    assert!(refused.contains("in use"), "{refused}");
    assert!(elsewhere.terminate().await.success());
    let refused = failed(&restore(&elsewhere, &file, &[]));
    assert!(refused.contains("has a ledger"), "{refused}");
}

#[tokio::test]
async fn a_backup_of_embedded_storage_is_restored_to_any_other() {
    let Some(seaweed) = SeaweedFs::start() else { return };
    seaweed.ready().await;
    let server = Server::start().await;
    let (edge, mill) = lived(&server).await;
    let file = server.directory().join("mill.tar");
    done(&backup(&server, &file, &[]));
    let settings = seaweed.settings();
    let mut elsewhere = Server::prepare(&settings);
    done(&restore(&elsewhere, &file, &settings));
    elsewhere.launch().await;
    goes_on(&elsewhere, &edge, &mill, &BTreeSet::new()).await;
}

#[tokio::test]
async fn the_ledger_alone_is_restored_beside_its_objects() {
    let mut server = Server::start().await;
    let (edge, mill) = lived(&server).await;
    let file = server.directory().join("mill.tar");
    assert_eq!(done(&backup(&server, &file, &["--ledger-only"]))["objects"], Value::Null);
    assert!(server.terminate().await.success());
    // A log that is left of the old ledger would be laid over the new one.
    let log = server.data().join("ledger.db-wal");
    std::fs::rename(server.data().join("ledger.db"), server.directory().join("old.db")).unwrap();
    std::fs::write(&log, "of the old one").unwrap();
    let refused = failed(&restore(&server, &file, &[]));
    assert!(refused.contains("ledger.db-wal"), "{refused}");
    std::fs::remove_file(log).unwrap();
    done(&restore(&server, &file, &[]));
    server.launch().await;
    goes_on(&server, &edge, &mill, &BTreeSet::new()).await;
}

#[tokio::test]
async fn a_backup_that_is_damaged_or_cut_off_is_refused_and_leaves_no_ledger() {
    let server = Server::start().await;
    lived(&server).await;
    let file = server.directory().join("mill.tar");
    let made = done(&backup(&server, &file, &[]));
    assert_eq!(backup(&server, &file, &[]).status.code(), Some(2), "a file of the name is there");
    let good = std::fs::read(&file).unwrap();
    let ledger = usize::try_from(made["ledger"]["size"].as_u64().unwrap()).unwrap();
    // Headers are blocks of 512 bytes, and what follows is padded to blocks.
    let (in_ledger, in_object) = (1_024 + 512 + ledger / 2, 1_024 + 512 + ledger + 512 + 100);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let end = good.windows(8).rposition(|bytes| bytes == b"end.json").unwrap();
    for (bytes, why) in [
        (good[..good.len() / 2].to_vec(), "breaks off"),
        // Whole entries, but not all of them.
        (good[..end].to_vec(), "breaks off"),
        (flipped(in_ledger), "ledger.db is damaged"),
        (flipped(in_object), "is damaged"),
        (b"something else".to_vec(), "no backup of Millpond"),
        (Vec::new(), "no backup of Millpond"),
    ] {
        let bad = server.directory().join("bad.tar");
        std::fs::write(&bad, bytes).unwrap();
        let elsewhere = Server::prepare(&[]);
        let said = failed(&restore(&elsewhere, &bad, &[]));
        assert!(said.contains(why), "{why}: {said}");
        for name in ["ledger.db", "ledger.db.restoring"] {
            assert!(!elsewhere.data().join(name).exists(), "{why}: {name}");
        }
        // What broke off is begun again.
        done(&restore(&elsewhere, &file, &[]));
    }
}

#[tokio::test]
async fn a_backup_that_cannot_have_every_object_says_which_and_is_not_kept() {
    let server = Server::start().await;
    lived(&server).await;
    let blobs = std::fs::read_dir(server.data().join("objects/blobs")).unwrap();
    let blob = blobs.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()).next();
    std::fs::remove_file(blob.unwrap().unwrap().path()).unwrap();
    let file = server.directory().join("mill.tar");
    let said = failed(&backup(&server, &file, &[]));
    assert!(said.contains("objects/1/") && said.contains("not whole"), "{said}");
    let left = std::fs::read_dir(server.directory()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("mill.tar")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn files_on_their_way_are_asked_for_again_after_a_restore() {
    let server = Server::start().await;
    let (edge, _) = lived(&server).await;
    let bytes = vec![b'w'; LARGE];
    let put = json!({ "id": "p", "upload": "way", "size": LARGE, "sha256": Sha256::of(&bytes) });
    let granted: answer::Put = edge.ask(Op::Put, &put).await.unwrap();
    assert_eq!(server.api().send(&granted.to.unwrap(), bytes.clone()).await, 200);
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    // As while another file of the same commit is still read.
    assert_eq!(ledger.execute("UPDATE grants SET verified = 1", []).unwrap(), 1);
    let file = server.directory().join("mill.tar");
    done(&backup(&server, &file, &[]));

    let mut elsewhere = Server::prepare(&[]);
    done(&restore(&elsewhere, &file, &[]));
    elsewhere.launch().await;
    let edge = Link::open(elsewhere.here(&edge.who)).await.unwrap();
    let commit = json!({ "id": "c", "upload": "way" });
    let refused = format!("{:#}", edge.ask::<Value>(Op::Commit, &commit).await.unwrap_err());
    assert!(refused.contains("nothing has been PUT yet"), "{refused}");
    let again: answer::Put = edge.ask(Op::Put, &put).await.unwrap();
    assert_eq!(elsewhere.api().send(&again.to.unwrap(), bytes).await, 200);
    let counted: Value = edge.ask(Op::Commit, &json!({ "id": "d", "upload": "way" })).await.unwrap();
    assert!(counted.to_string().contains("stored"), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_and_a_restore_that_have_ended_outlast_a_loss_of_power() {
    let Some(shim) = Shim::new() else { return };
    let server = Server::start().await;
    let (edge, mill) = lived(&server).await;
    let expected = uploads(&server).await;
    let mut disk = Disk::new(&shim, server.directory(), &["mill.tar"]);
    let file = server.directory().join("mill.tar");
    let mut backup = server.cli();
    done(&backup.args(["backup", "--json"]).arg(&file).envs(disk.environment()).output().unwrap());
    disk.fail(&mut Loss::Everything);

    let mut other = Server::prepare(&[]);
    let mut disk = Disk::new(&shim, other.directory(), &["data"]);
    let environment = disk.environment();
    done(&restore(&other, &file, &environment.each_ref().map(|(key, value)| (*key, value.as_str()))));
    disk.fail(&mut Loss::Everything);
    other.launch().await;
    goes_on(&other, &edge, &mill, &expected).await;
}
