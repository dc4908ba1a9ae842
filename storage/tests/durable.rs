//! What is on disk after failures, kills and restarts.
//!
//! Embedded only: its files. What a client sees of it is in `contract/objects.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use bytes::Bytes;
use common::{Server, bytes, embedded_config, object, reopen};
use millpond_protocol::Sha256;
use millpond_storage::embedded::{self, OpenError};
use tokio::sync::mpsc;

/// A body that is sent piece by piece, as the test says.
fn pieces() -> (mpsc::Sender<Result<Bytes, std::io::Error>>, reqwest::Body) {
    let (sender, receiver) = mpsc::channel(1);
    let stream = futures_util::stream::unfold(receiver, |mut from: mpsc::Receiver<_>| async {
        Some((from.recv().await?, from))
    });
    (sender, reqwest::Body::wrap_stream(stream))
}

#[tokio::test]
async fn a_restart_finds_every_object_and_nothing_else() {
    let server = Server::start().await;
    for n in 0..20 {
        let body = Bytes::from(bytes(n * 1000));
        server.storage.put(&object(&format!("k/{n}")), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    server.storage.delete(&object("k/7")).await.unwrap();
    let server = server.restart().await;
    for n in 0..20 {
        let read = server.storage.get(&object(&format!("k/{n}")), 20_000).await;
        assert_eq!(read.is_ok(), n != 7);
        assert!(n == 7 || read.unwrap() == bytes(n * 1000));
    }
    server.settles_at(19).await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_object_and_no_file() {
    let server = Server::start().await;
    let old = Bytes::from_static(b"old");
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();

    let declared = bytes(2 << 20);
    let (sender, body) = pieces();
    let put = tokio::spawn(server.put_request("k", &declared, body).send());
    sender.send(Ok(Bytes::from(declared[..1 << 20].to_vec()))).await.unwrap();
    common::settles(|| server.files().len() == 2, || "the upload has a file while it runs".into()).await;
    put.abort();
    drop(sender);
    server.settles_at(1).await;
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), old);
}

#[tokio::test]
async fn a_server_that_is_killed_in_an_upload_starts_with_the_old_object_and_no_leftovers() {
    let server = Server::start().await;
    let old = Bytes::from_static(b"old");
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let declared = bytes(2 << 20);
    let (sender, body) = pieces();
    let put = tokio::spawn(server.put_request("k", &declared, body).send());
    sender.send(Ok(Bytes::from(declared[..1 << 20].to_vec()))).await.unwrap();
    common::settles(|| server.files().len() == 2, || "the upload has a file while it runs".into()).await;
    let dir = server.kill().await;
    put.abort();

    let embedded = reopen(dir.path()).await;
    let server = Server::serve(dir, embedded).await;
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), old);
    server.settles_at(1).await;
}

#[tokio::test]
async fn files_that_no_object_has_are_removed_at_start_and_strangers_stay() {
    let server = Server::start().await;
    let body = Bytes::from_static(b"abc");
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let dir = server.stop().await;
    let blob = "00112233445566778899aabbccddeeff";
    std::fs::write(dir.path().join("incoming").join(blob), "half").unwrap();
    std::fs::write(dir.path().join("blobs/00").join(blob), "whole, but nobody's").unwrap();
    std::fs::write(dir.path().join("blobs/00/README"), "a person put this here").unwrap();

    let embedded = reopen(dir.path()).await;
    let server = Server::serve(dir, embedded).await;
    let left: Vec<String> =
        server.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&"README".to_owned()) && !left.contains(&blob.to_owned()));
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), body);
}

#[tokio::test]
async fn a_reader_gets_all_of_the_object_that_was_there_when_it_asked() {
    let server = Server::start().await;
    let (old, new) = (Bytes::from(bytes(4 << 20)), Bytes::from_static(b"new"));
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let reader = server.storage.get_stream(&object("k"), None).await.unwrap();
    server.storage.put(&object("k"), new.clone(), Sha256::of(&new)).await.unwrap();
    server.settles_at(1).await;
    let read: Vec<Bytes> = futures_util::TryStreamExt::try_collect(reader).await.unwrap();
    assert!(read.concat() == old);
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), new);
}

#[tokio::test]
async fn a_directory_has_one_server_at_a_time() {
    let server = Server::start().await;
    assert!(matches!(embedded::open(server.dir.path(), embedded_config()), Err(OpenError::InUse(_))));
    let dir = server.stop().await;
    reopen(dir.path()).await;
}

#[tokio::test]
async fn stopping_lets_a_running_upload_finish() {
    let server = Server::start().await;
    let declared = bytes(2 << 20);
    let (sender, body) = pieces();
    let put = tokio::spawn(server.put_request("k", &declared, body).send());
    sender.send(Ok(Bytes::from(declared[..1 << 20].to_vec()))).await.unwrap();
    common::settles(|| server.files().len() == 1, || "the upload has a file while it runs".into()).await;
    let stop = tokio::spawn(server.stop());
    sender.send(Ok(Bytes::from(declared[1 << 20..].to_vec()))).await.unwrap();
    drop(sender);
    assert_eq!(put.await.unwrap().unwrap().status(), 200);
    let dir = stop.await.unwrap();
    let embedded = reopen(dir.path()).await;
    let server = Server::serve(dir, embedded).await;
    assert!(server.storage.get(&object("k"), 2 << 20).await.unwrap() == declared);
}

#[tokio::test]
async fn a_disk_without_room_refuses_uploads_and_still_serves_and_deletes() {
    let server = Server::start().await;
    let body = Bytes::from_static(b"old");
    for key in ["k", "j"] {
        server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    let dir = server.stop().await;
    let mut config = embedded_config();
    config.min_free = u64::MAX / 2;
    let embedded = embedded::open(dir.path(), config).unwrap();
    let server = Server::serve(dir, embedded).await;

    let new = bytes(1 << 20);
    let put = server.put_request("k", &new, new.clone()).send().await.unwrap();
    assert_eq!(common::refusal(put).await, (507, "InsufficientStorage".into()));
    assert!(
        server
            .storage
            .put(&object("k"), new.clone().into(), Sha256::of(&new))
            .await
            .unwrap_err()
            .is_temporary()
    );
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), body);
    server.storage.delete(&object("j")).await.unwrap();
    server.settles_at(1).await;
}

#[tokio::test]
async fn a_listener_of_its_own_stays_reachable_when_the_public_one_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = embedded_config();
    config.max_connections = 2;
    let embedded = embedded::open(dir.path(), config).unwrap();
    let public = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = public.local_addr().unwrap();
    let also = embedded.clone();
    let serve = tokio::spawn(async move { also.serve(public, Default::default()).await });
    let server = Server::serve(dir, embedded).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }

    let body = Bytes::from_static(b"abc");
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let url = server
        .get_url("k")
        .replace(&format!(":{}/", server.config.endpoint.port().unwrap()), &format!(":{}/", address.port()));
    let get = tokio::spawn(common::http().get(url).send());
    // The place of one that leaves goes to the next in line; the URL was signed for another host, so it is refused.
    idle.clear();
    assert_eq!(get.await.unwrap().unwrap().status(), 403);
    serve.abort();
}

/// How many transactions the catalogue's log holds: a frame that ends one says how large the file is then.
fn commits(server: &Server) -> usize {
    let log = std::fs::read(server.dir.path().join("catalog.sqlite-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frame = 24 + number(8) as usize;
    let frames = (32..).step_by(frame).take_while(|at| at + frame <= log.len());
    // Those of an earlier turn of the log have other salts.
    frames.filter(|at| log[at + 8..at + 16] == log[16..24] && number(at + 4) != 0).count()
}

#[tokio::test]
async fn many_puts_at_once_share_a_transaction_and_their_bodies_lie_in_many_directories() {
    const COUNT: usize = 16;
    let server = Server::start().await;
    let put = |n: usize| {
        let (storage, body) = (server.storage.clone(), Bytes::from(bytes(n + 1)));
        async move { storage.put(&object(&format!("k/{n}")), body.clone(), Sha256::of(&body)).await }
    };
    let before = commits(&server);
    for n in 0..COUNT {
        put(n).await.unwrap();
    }
    assert_eq!(commits(&server), before + COUNT, "one after the other, each is on disk before its answer");

    // While the first one waits for the catalogue, the others come to wait behind it.
    let held = rusqlite::Connection::open(server.dir.path().join("catalog.sqlite")).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = commits(&server);
    let puts: Vec<_> = (COUNT..2 * COUNT).map(|n| tokio::spawn(put(n))).collect();
    let settled =
        || server.files().iter().filter(|file| !file.starts_with(server.dir.path().join("incoming"))).count();
    common::settles(|| settled() == 2 * COUNT, || format!("{} bodies are there", settled())).await;
    held.execute_batch("ROLLBACK").unwrap();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    let taken = commits(&server) - before;
    assert!((1..=COUNT / 2).contains(&taken), "{COUNT} objects took {taken} transactions");

    let directories: std::collections::BTreeSet<_> =
        server.files().iter().map(|file| file.parent().unwrap().to_owned()).collect();
    assert!(directories.len() > COUNT, "{} bodies in {directories:?}", 2 * COUNT);
    for file in server.files() {
        let (name, directory) = (file.file_name().unwrap(), file.parent().unwrap().file_name().unwrap());
        assert!(name.to_str().unwrap().starts_with(directory.to_str().unwrap()), "{file:?}");
    }
}
