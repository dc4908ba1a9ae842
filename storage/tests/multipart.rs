//! Objects in parts: what they become, and what stays on disk.
//!
//! Embedded only: its files, its quota and its sweep. What S3 says of parts is in `contract/parts.rs` and `parts_refused.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::parts::{Upload, base64};
use common::{Server, bytes, object, refusal, reopen_with, tags};
use futures_util::TryStreamExt as _;
use millpond_protocol::Sha256;
use millpond_storage::embedded;
use reqwest::Method;

const SMALL: u64 = 1000;

/// A server whose parts may be small.
async fn server() -> Server {
    Server::start_with(|config| config.min_part = SMALL).await
}

#[tokio::test]
async fn parts_become_one_object_whatever_the_order_they_came_in() {
    let server = server().await;
    let body = bytes(2_500_000);
    let chunks: Vec<&[u8]> = body.chunks(1_000_000).collect();
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let mut listed = Vec::new();
    for (n, chunk) in chunks.iter().enumerate().rev() {
        listed.insert(0, (n as u32 + 1, upload.put(n as u32 + 1, chunk).await.unwrap()));
    }
    assert_eq!(server.storage.stat(&object("k")).await, Ok(None), "nothing is there before it is complete");
    let listed: Vec<_> = listed.iter().map(|(n, tag)| (*n, tag.as_str())).collect();
    let answer = upload.complete(&listed).await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = answer.text().await.unwrap();
    let digests: Vec<u8> = chunks.iter().flat_map(|chunk| Sha256::of(chunk).0).collect();
    let composite = Sha256::of(&digests);
    assert_eq!(tags(&answer, "ChecksumSHA256"), [format!("{}-3", base64(&composite.0))]);
    assert_eq!(tags(&answer, "ChecksumType"), ["COMPOSITE"]);
    assert!(answer.contains(&format!("{composite}-3")), "{answer}");

    server.settles_at(3).await;
    let stat = server.storage.stat(&object("k")).await.unwrap().unwrap();
    assert_eq!((stat.size, stat.sha256), (2_500_000, None));
    assert!(server.storage.get(&object("k"), body.len()).await.unwrap() == body);
    for (start, end) in
        [(0, 1), (999_999, 1_000_001), (1_000_000, 2_000_000), (5, 2_400_000), (2_499_999, 2_500_000)]
    {
        let stream = server.storage.get_stream(&object("k"), Some(start..end)).await.unwrap();
        let read: Vec<Bytes> = stream.try_collect().await.unwrap();
        assert!(read.concat() == body[start as usize..end as usize], "{start}..{end}");
    }
    let head = server
        .signed(Method::HEAD, "k", &[], &[("x-amz-checksum-mode", "ENABLED".into())])
        .send()
        .await
        .unwrap();
    assert_eq!(head.headers()["x-amz-checksum-sha256"], format!("{}-3", base64(&composite.0)));
    assert_eq!(head.headers()["x-amz-checksum-type"], "COMPOSITE");
    assert_eq!(head.headers()["etag"], format!("\"{composite}-3\""));

    let server = server.restart().await;
    assert!(server.storage.get(&object("k"), body.len()).await.unwrap() == body);
    server.storage.delete(&object("k")).await.unwrap();
    server.settles_at(0).await;
}

#[tokio::test]
async fn completing_again_is_answered_again_and_changes_nothing() {
    let server = server().await;
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let one = upload.put(1, &bytes(2000)).await.unwrap();
    let two = upload.put(2, &bytes(10)).await.unwrap();
    let first = upload.complete(&[(1, &one), (2, &two)]).await.unwrap().text().await.unwrap();
    let again = upload.complete(&[(1, &one), (2, &two)]).await.unwrap();
    assert_eq!((again.status().as_u16(), again.text().await.unwrap()), (200, first.clone()));
    let fewer = upload.complete(&[(1, &one)]).await.unwrap();
    assert_eq!(refusal(fewer).await, (400, "InvalidPart".into()));

    // Also when the object has been replaced, and after a restart.
    let new = Bytes::from_static(b"new");
    server.storage.put(&object("k"), new.clone(), Sha256::of(&new)).await.unwrap();
    let server = server.restart().await;
    let upload = Upload { signer: server.signer(), ..upload };
    assert_eq!(upload.complete(&[(1, &one), (2, &two)]).await.unwrap().text().await.unwrap(), first);
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), new);
    server.settles_at(1).await;
}

#[tokio::test]
async fn a_crc_of_the_parts_is_that_of_the_object() {
    let server = server().await;
    let body = bytes(1500);
    let crc = |algorithm, bytes: &[u8]| crc_fast::checksum(algorithm, bytes).to_be_bytes();
    let narrow = |bytes: &[u8]| base64(&crc(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes)[4..]);
    let wide = |bytes: &[u8]| base64(&crc(crc_fast::CrcAlgorithm::Crc64Nvme, bytes));
    for (name, of) in
        [("CRC32", &narrow as &dyn Fn(&[u8]) -> String), ("CRC64NVME", &wide as &dyn Fn(&[u8]) -> String)]
    {
        let header = ["x-amz-checksum-crc32", "x-amz-checksum-crc64nvme"][usize::from(name != "CRC32")];
        let begin =
            [("x-amz-checksum-algorithm", name.into()), ("x-amz-checksum-type", "FULL_OBJECT".into())];
        let upload = Upload::begin_with(&server.signer(), "k", &begin).await.unwrap();
        let mut listed = Vec::new();
        for (n, part) in [(1, &body[..1000]), (2, &body[1000..])] {
            let answer = upload.put_with(n, part, &[(header, of(part))]).await.unwrap();
            let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
            assert_eq!(answer.headers()[header], of(part));
            listed.push((n, tag, format!("<Checksum{name}>{}</Checksum{name}>", of(part))));
        }
        let wrong = upload.complete_with(&listed, &[(header, of(b"other"))]).await.unwrap();
        assert_eq!(refusal(wrong).await, (400, "BadDigest".into()));
        let done = upload.complete_with(&listed, &[(header, of(&body))]).await.unwrap().text().await.unwrap();
        assert_eq!(tags(&done, "ChecksumType"), ["FULL_OBJECT"], "{done}");
        assert_eq!(tags(&done, &format!("Checksum{name}")), [of(&body)]);
    }
}

#[tokio::test]
async fn an_upload_that_nobody_goes_on_with_is_ended() {
    let server = Server::start_with(|config| {
        config.abandoned = Duration::ZERO;
        config.sweep = Duration::from_millis(50);
    })
    .await;
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let query = [("partNumber", "1"), ("uploadId", &upload.id)];
    let part = server.signed(Method::PUT, "k", &query, &[]).body("x").send().await.unwrap();
    // It may have ended before the part came.
    assert!(part.status() == 200 || part.status() == 404);
    server.settles_at(0).await;
    assert_eq!(refusal(upload.list(&[]).await.unwrap()).await, (404, "NoSuchUpload".into()));
}

#[tokio::test]
async fn a_server_that_is_always_restarted_ends_what_was_abandoned_and_not_what_grew_old_while_it_was_down() {
    let change = |config: &mut embedded::EmbeddedConfig| {
        config.abandoned = Duration::ZERO;
        // The first one comes within five of them, the second one after the test.
        config.sweep = Duration::from_secs(30);
    };
    let server = Server::start_with(change).await;
    let old = Upload::begin(&server.signer(), "old").await.unwrap();
    old.put(1, b"old").await.unwrap();
    let then = common::now();
    common::settles(|| common::now() > then, || "time stands still".into()).await;
    let new = Upload::begin(&server.signer(), "new").await.unwrap();
    new.put(1, b"new").await.unwrap();
    server.settles_at(2).await;
    let dir = server.stop().await;
    let mut config = common::embedded_config();
    change(&mut config);
    let embedded = reopen_with(dir.path(), config).await;
    let server = Server::serve(dir, embedded).await;
    server.settles_at(1).await;
    let (old, new) = (Upload { signer: server.signer(), ..old }, Upload { signer: server.signer(), ..new });
    assert_eq!(refusal(old.list(&[]).await.unwrap()).await, (404, "NoSuchUpload".into()));
    assert_eq!(new.list(&[]).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_sweep_while_it_works_takes_strays_and_nothing_else() {
    let server = Server::start_with(|config| {
        config.sweep = Duration::from_millis(5);
        config.min_part = SMALL;
    })
    .await;
    let upload = Upload::begin(&server.signer(), "parts").await.unwrap();
    let tag = upload.put(1, &bytes(5000)).await.unwrap();
    let work = (0..200u32).map(|n| {
        let (storage, body) = (server.storage.clone(), Bytes::from(bytes(20_000 + n as usize)));
        tokio::spawn(async move {
            let key = object(&format!("k/{}", n % 50));
            storage.put(&key, body.clone(), Sha256::of(&body)).await
        })
    });
    for put in work.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
    let stray = "00112233445566778899aabbccddeeff";
    std::fs::write(server.dir.path().join("blobs/00").join(stray), "nobody's").unwrap();
    server.settles_at(51).await;
    for n in 0..50 {
        let stat = server.storage.stat(&object(&format!("k/{n}"))).await.unwrap().unwrap();
        let read = server.storage.get(&object(&format!("k/{n}")), 30_000).await.unwrap();
        assert_eq!(Some(Sha256::of(&read)), stat.sha256);
    }
    assert_eq!(upload.complete(&[(1, &tag)]).await.unwrap().status(), 200);
    assert!(server.storage.get(&object("parts"), 5000).await.unwrap() == bytes(5000));
}

#[tokio::test]
async fn a_reader_of_parts_gets_all_of_them_although_the_object_goes() {
    let server = server().await;
    let body = bytes(6 << 20);
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let mut tags = Vec::new();
    for (n, part) in body.chunks(1 << 20).enumerate() {
        tags.push((n as u32 + 1, upload.put(n as u32 + 1, part).await.unwrap()));
    }
    let listed: Vec<_> = tags.iter().map(|(n, tag)| (*n, tag.as_str())).collect();
    assert_eq!(upload.complete(&listed).await.unwrap().status(), 200);
    let reader = server.storage.get_stream(&object("k"), None).await.unwrap();
    server.storage.delete(&object("k")).await.unwrap();
    assert_eq!(server.storage.stat(&object("k")).await, Ok(None));
    let read: Vec<Bytes> = reader.try_collect().await.unwrap();
    assert!(read.concat() == body);
    server.settles_at(0).await;
}

#[tokio::test]
async fn a_full_bucket_refuses_what_is_more_and_counts_parts() {
    let server = Server::start_with(|config| {
        config.quota = 10_000;
        config.min_part = SMALL;
    })
    .await;
    let over = (507, "QuotaExceeded".to_owned());
    let put = async |key: &str, size: usize| {
        let body = bytes(size);
        server.put_request(key, &body, body.clone()).send().await.unwrap()
    };
    assert_eq!(put("a", 4000).await.status(), 200);
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    upload.put(1, &bytes(2000)).await.unwrap();
    let tag = upload.put(2, &bytes(3000)).await.unwrap();
    assert_eq!(refusal(put("b", 1001).await).await, over);
    assert_eq!(refusal(upload.put_with(3, &bytes(1001), &[]).await.unwrap()).await, over);
    assert_eq!(put("b", 1000).await.status(), 200);
    // A replaced part, an unused part, a replaced and a deleted object give their room back.
    assert_eq!(upload.complete(&[(2, &tag)]).await.unwrap().status(), 200);
    assert_eq!(refusal(put("c", 2001).await).await, over);
    assert_eq!(put("a", 2000).await.status(), 200);
    assert_eq!(refusal(put("c", 4001).await).await, over);
    server.storage.delete(&object("k")).await.unwrap();
    let dir = server.stop().await;

    let mut config = common::embedded_config();
    config.quota = 10_000;
    let embedded = reopen_with(dir.path(), config).await;
    let server = Server::serve(dir, embedded).await;
    let body = bytes(7001);
    let put = server.put_request("c", &body, body.clone()).send().await.unwrap();
    assert_eq!(refusal(put).await, over);
    let put = server.put_request("c", &body[..7000], body[..7000].to_vec()).send().await.unwrap();
    assert_eq!(put.status(), 200);
}
