//! What is in packs, when they are written, and where the bytes of small files are.

use std::io::Read as _;
use std::process::{Command, Stdio};

use millpond::dispatch::read_small;
use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256, limits};
use serde_json::json;

use crate::world::{World, file, files};

const A_PACK: &str = "SELECT EXISTS (SELECT 1 FROM packs)";
const PURGED: &str = "SELECT count(*) FROM packs WHERE purged = 1";
const MANIFESTS: &str = "SELECT count(*) FROM manifests";
/// Bytes that one of the files takes in a pack, and the end of a pack.
const FILE: u64 = limits::packed(100 << 10);
const END: u64 = 1024;
/// Files that are packs of both kinds: of the least size, and of an eighth of what came before.
const MANY: u64 = 150;
/// Packs that are written ahead of so many files of 100 KiB, and the files that are left.
fn ahead(files: u64) -> (u64, u64) {
    let (mut packs, mut packed) = (0, 0);
    loop {
        let fit = (limits::pack_room(packed * FILE) - END) / FILE;
        if packed + fit >= files {
            return (packs, files - packed);
        }
        (packs, packed) = (packs + 1, packed + fit);
    }
}

async fn trigger(world: &World) {
    let operator = world.member("boss", Role::Operator).await;
    world.ask(&operator, Op::Trigger, json!({"id": "t", "which": "oldest"})).await.unwrap();
}

/// (path, bytes) in order.
fn untar(pack: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(pack);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        assert_eq!(header.mode().unwrap(), 0o644);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), bytes)
    });
    entries.collect()
}

#[tokio::test]
async fn packs_and_manifest_are_the_same_bytes_however_often_the_server_restarts() {
    // Everything at once, cut off after the first pack.
    let mut interrupted = World::new(json!({})).await;
    let who = interrupted.member("edge", Role::Publisher).await;
    interrupted.upload(&who, files(0..MANY as usize, 100 << 10)).await;
    trigger(&interrupted).await;
    interrupted.dispatch();
    interrupted.until(A_PACK, 1).await;
    let mut interrupted = interrupted.restart().await;
    interrupted.dispatch();
    let first = interrupted.manifest(1).await;

    // The same uploads one by one, packed while they come.
    let mut steady = World::new(json!({})).await;
    steady.dispatch();
    let who = steady.member("edge", Role::Publisher).await;
    for file in files(0..MANY as usize, 100 << 10) {
        steady.upload(&who, vec![file]).await;
    }
    steady.until(A_PACK, 1).await;
    trigger(&steady).await;
    let second = steady.manifest(1).await;

    assert!(first == second, "the manifests differ");
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for key in interrupted.packs().await {
        one.push(Sha256::of(&interrupted.object_bytes(&key).await));
    }
    for key in steady.packs().await {
        other.push(Sha256::of(&steady.object_bytes(&key).await));
    }
    assert_eq!(one, other);
    assert_eq!(one.len() as u64, ahead(MANY).0 + 1);
}

#[tokio::test]
async fn packing_ahead_leaves_the_tail_to_the_seal() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    let who = world.member("edge", Role::Publisher).await;
    world.upload(&who, files(0..MANY as usize, 100 << 10)).await;
    let (packs, left) = ahead(MANY);
    world.until(PURGED, packs).await;
    assert_eq!(world.number(MANIFESTS).await, 0);
    let before = world.packs().await;
    let mut packed = 0;
    for key in &before {
        let (pack, room) = (world.object_bytes(key).await.len() as u64, limits::pack_room(packed));
        assert!(pack <= room && pack + FILE > room, "{pack} of {room}");
        packed += pack - END;
    }
    assert_eq!(packed, FILE * (MANY - left));
    assert!(left * FILE + END <= packed / 8, "the tail is a small part: {left} files");
    trigger(&world).await;
    world.manifest(1).await;
    let after = world.packs().await;
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(world.number("SELECT sum(files) FROM packs").await, MANY);
    assert_eq!(world.number("SELECT sum(small_bytes - packed_bytes) FROM batches").await, 0);
}

#[tokio::test]
async fn a_pack_is_a_tar_for_the_tar_program_too() {
    let mut world = World::new(json!({"allow_empty": true})).await;
    world.dispatch();
    let long = "n".repeat(64);
    let who = world.member(&long, Role::Publisher).await;
    let other = world.member("b", Role::Publisher).await;
    world.upload(&who, vec![file(&long, "one"), file("empty", "")]).await;
    world.upload(&other, vec![file("x.csv", vec![7; 513])]).await;
    trigger(&world).await;
    world.manifest(1).await;
    let pack = world.object_bytes(&world.packs().await[0]).await;

    let expected = vec![
        (format!("{long}/{long}"), b"one".to_vec()),
        (format!("{long}/empty"), vec![]),
        ("b/x.csv".to_owned(), vec![7; 513]),
    ];
    assert_eq!(untar(&pack), expected);

    let dir = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar")
        .args(["-x", "-C"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    std::io::Write::write_all(tar.stdin.as_mut().unwrap(), &pack).unwrap();
    assert!(tar.wait().unwrap().success());
    for (path, bytes) in expected {
        assert_eq!(std::fs::read(dir.path().join(path)).unwrap(), bytes);
    }
}

#[tokio::test]
async fn payloads_leave_the_ledger_and_their_bytes_are_still_found() {
    let mut world = World::new(json!({"allow_empty": true})).await;
    let who = world.member("edge", Role::Publisher).await;
    let mut sent = files(0..200, 100 << 10);
    sent.push(file("empty", ""));
    sent.extend(files(200..210, 1000));
    world.upload(&who, sent.clone()).await;
    let seqs: Vec<i64> = world
        .sql(|sql| {
            sql.prepare("SELECT seq FROM uploads ORDER BY seq")?.query_map([], |row| row.get(0))?.collect()
        })
        .await;
    let found = |seq| read_small(&world.ledger, &world.storage, seq);
    assert_eq!(Sha256::of(&found(seqs[3]).await.unwrap()), sent[3].sha256);

    world.dispatch();
    trigger(&world).await;
    world.until("SELECT count(*) FROM payloads", 0).await;
    for (seq, sent) in seqs.iter().zip(&sent) {
        let bytes = read_small(&world.ledger, &world.storage, *seq).await.unwrap();
        assert_eq!(Sha256::of(&bytes), sent.sha256, "{}", sent.upload);
    }
    assert!(read_small(&world.ledger, &world.storage, 12345).await.is_err());
}

#[tokio::test]
async fn what_is_packed_ahead_counts_though_the_policy_selects_otherwise_by_now() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    let who = world.member("edge", Role::Publisher).await;
    let sent = files(0..170, 100 << 10);
    world.upload(&who, sent.clone()).await;
    let (packs, _) = ahead(170);
    world.until(PURGED, packs).await;
    let policy = serde_json::from_value(json!({"select": "latest"})).unwrap();
    world.ledger.write(move |tx| tx.apply_pool(&"p".parse().unwrap(), &policy)).await.unwrap();
    trigger(&world).await;
    world.until(PURGED, packs + 1).await;
    assert_eq!(world.number("SELECT sum(files) FROM packs").await, 170);
    assert_eq!(world.number("SELECT count(*) FROM superseded").await, 0);
    for (seq, sent) in [(0, &sent[0]), (97, &sent[97])] {
        let seq = world.sql(move |sql| {
            sql.query_row("SELECT seq FROM uploads ORDER BY seq LIMIT 1 OFFSET ?1", [seq], |row| row.get(0))
        });
        let bytes = read_small(&world.ledger, &world.storage, seq.await).await.unwrap();
        assert_eq!(Sha256::of(&bytes), sent.sha256);
    }
}

#[tokio::test]
async fn purging_goes_on_after_a_restart() {
    let mut world = World::new(json!({})).await;
    world.dispatch();
    let who = world.member("edge", Role::Publisher).await;
    world.upload(&who, files(0..20_000, 10)).await;
    trigger(&world).await;
    world.until(MANIFESTS, 1).await;
    let mut world = world.restart().await;
    world.dispatch();
    world.until("SELECT count(*) FROM payloads", 0).await;
    assert_eq!(world.number("SELECT count(*) FROM packs WHERE purged = 0").await, 0);
}
