//! Objects in parts: what they become, what is refused, and what stays on disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::parts::{Upload, base64};
use common::{Server, bytes, http, object, refusal, reopen_with, tags};
use futures_util::TryStreamExt as _;
use millpond_protocol::Sha256;
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
async fn parts_that_do_not_fit_are_refused_and_the_old_object_stays() {
    let server = server().await;
    let old = Bytes::from_static(b"old");
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let big = upload.put(1, &bytes(2000)).await.unwrap();
    let small = upload.put(2, &bytes(10)).await.unwrap();
    let last = upload.put(3, &bytes(1500)).await.unwrap();

    let none: [(u32, &str); 0] = [];
    for (parts, code) in [
        (&none[..], "MalformedXML"),
        (&[(3, last.as_str()), (1, &big)], "InvalidPartOrder"),
        (&[(1, &big), (1, &big)], "InvalidPartOrder"),
        (&[(1, &big), (4, &last)], "InvalidPart"),
        (&[(1, &big), (3, &small)], "InvalidPart"),
        (&[(1, "\"none of ours\"")], "InvalidPart"),
        (&[(1, &big), (2, &small), (3, &last)], "EntityTooSmall"),
    ] {
        assert_eq!(refusal(upload.complete(parts).await.unwrap()).await, (400, code.into()), "{parts:?}");
    }
    let other = base64(&Sha256::of(b"other").0);
    let of_part = [(1, big.clone(), format!("<ChecksumSHA256>{other}</ChecksumSHA256>"))];
    assert_eq!(
        refusal(upload.complete_with(&of_part, &[]).await.unwrap()).await,
        (400, "InvalidPart".into())
    );
    let whole = [(1, big.clone(), String::new())];
    for (name, value, code) in [
        ("x-amz-checksum-sha256", format!("{other}-1"), "BadDigest"),
        ("x-amz-checksum-crc32", "AAAAAA==".into(), "InvalidRequest"),
        ("x-amz-mp-object-size", "2001".into(), "InvalidRequest"),
    ] {
        let answer = upload.complete_with(&whole, &[(name, value)]).await.unwrap();
        assert_eq!(refusal(answer).await, (400, code.into()), "{name}");
    }
    let exists = upload.complete_with(&whole, &[("if-none-match", "*".into())]).await.unwrap();
    assert_eq!(refusal(exists).await, (412, "PreconditionFailed".into()));

    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), old);
    server.settles_at(4).await;
    // All that was refused left the upload as it was; what is not listed goes.
    assert_eq!(upload.complete(&[(1, &big), (3, &last)]).await.unwrap().status(), 200);
    server.settles_at(2).await;
}

#[tokio::test]
async fn a_part_is_the_declared_bytes_or_none() {
    let server = server().await;
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let body = bytes(2000);
    let sum = || ("x-amz-checksum-sha256", base64(&Sha256::of(&body).0));
    let length = |length: usize| ("content-length", length.to_string());
    for (n, headers, code) in [
        (1, vec![length(2000), ("x-amz-checksum-sha256", base64(&[0; 32]))], "BadDigest"),
        (1, vec![("x-amz-checksum-crc32", "AAAAAA==".into())], "BadDigest"),
        (1, vec![("content-md5", base64(&[0; 16]))], "BadDigest"),
        (1, vec![("x-amz-checksum-sha256", "short".into())], "InvalidDigest"),
        (0, vec![sum()], "InvalidArgument"),
        (10_001, vec![sum()], "InvalidArgument"),
    ] {
        let answer = upload.put_with(n, &body, &headers).await.unwrap();
        assert_eq!(refusal(answer).await, (400, code.into()), "{n} {headers:?}");
    }
    // A header that was not signed.
    let n = [("partNumber", "1"), ("uploadId", &upload.id)];
    let stray = server.signed(Method::PUT, "k", &n, &[]).header(sum().0, sum().1).body(body.clone());
    assert_eq!(refusal(stray.send().await.unwrap()).await, (403, "AccessDenied".into()));
    assert_eq!(tags(&upload.list(&[]).await.unwrap().text().await.unwrap(), "PartNumber"), [] as [&str; 0]);
    server.settles_at(0).await;

    let first = upload.put(1, &bytes(1200)).await.unwrap();
    let second = upload.put(1, &body).await.unwrap();
    server.settles_at(1).await;
    assert_eq!(refusal(upload.complete(&[(1, &first)]).await.unwrap()).await, (400, "InvalidPart".into()));
    assert_eq!(upload.complete(&[(1, &second)]).await.unwrap().status(), 200);
    assert!(server.storage.get(&object("k"), 2000).await.unwrap() == body);
}

#[tokio::test]
async fn an_upload_that_is_gone_is_not_found_by_any_request() {
    let server = server().await;
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let tag = upload.put(1, &bytes(2000)).await.unwrap();
    assert_eq!(upload.abort().await.unwrap().status(), 204);
    server.settles_at(0).await;
    let gone = (404, "NoSuchUpload".to_owned());
    let unknown = upload.with_id("no-id");
    let done = Upload::begin(&server.signer(), "done").await.unwrap();
    let last = done.put(1, b"x").await.unwrap();
    assert_eq!(done.complete(&[(1, &last)]).await.unwrap().status(), 200);
    let of_other_key = Upload::begin(&server.signer(), "other").await.unwrap();
    let of_other_key = upload.with_id(&of_other_key.id);
    for upload in [&upload, &unknown, &done, &of_other_key] {
        assert_eq!(refusal(upload.put_with(1, b"x", &[]).await.unwrap()).await, gone, "{}", upload.key);
        assert_eq!(refusal(upload.list(&[]).await.unwrap()).await, gone);
        assert_eq!(refusal(upload.abort().await.unwrap()).await, gone);
        if upload.key != "done" {
            assert_eq!(refusal(upload.complete(&[(1, &tag)]).await.unwrap()).await, gone);
        }
    }
    server.settles_at(1).await;
}

#[tokio::test]
async fn parts_and_uploads_are_listed_in_pages() {
    let server = server().await;
    let upload = Upload::begin(&server.signer(), "a/1").await.unwrap();
    for n in [7, 2, 5, 9_999] {
        upload.put(n, &bytes(n as usize)).await.unwrap();
    }
    let (mut seen, mut marker) = (Vec::new(), "0".to_owned());
    loop {
        let page = upload
            .list(&[("max-parts", "2"), ("part-number-marker", &marker)])
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        seen.extend(tags(&page, "PartNumber"));
        assert_eq!(tags(&page, "ChecksumSHA256").len(), tags(&page, "PartNumber").len());
        let Some(next) = tags(&page, "NextPartNumberMarker").pop() else { break };
        marker = next;
    }
    assert_eq!(seen, ["2", "5", "7", "9999"]);
    let nothing = upload.list(&[("max-parts", "0")]).await.unwrap().text().await.unwrap();
    assert_eq!(tags(&nothing, "IsTruncated"), ["false"], "there is no marker to go on from");

    let mut ids = vec![Upload::begin(&server.signer(), "a/1").await.unwrap().id, upload.id.clone()];
    ids.sort();
    for key in ["a/2", "b", "c/1"] {
        ids.push(Upload::begin(&server.signer(), key).await.unwrap().id);
    }
    let list = async |query: &[(&str, &str)]| {
        let query: Vec<_> = [("uploads", "")].iter().chain(query).copied().collect();
        server.signed(Method::GET, "", &query, &[]).send().await.unwrap().text().await.unwrap()
    };
    let (mut seen, mut key, mut id) = (Vec::new(), String::new(), String::new());
    loop {
        let page = list(&[("max-uploads", "2"), ("key-marker", &key), ("upload-id-marker", &id)]).await;
        seen.extend(tags(&page, "UploadId"));
        if tags(&page, "IsTruncated") == ["false"] {
            break;
        }
        key = tags(&page, "NextKeyMarker").remove(0);
        id = tags(&page, "NextUploadIdMarker").remove(0);
    }
    assert_eq!(seen, ids);
    let folded = list(&[("delimiter", "/")]).await;
    assert_eq!(tags(&folded, "Key"), ["b"]);
    assert_eq!(tags(&folded, "CommonPrefixes").len(), 2);
    assert_eq!(tags(&list(&[("prefix", "a/")]).await, "Key"), ["a/1", "a/1", "a/2"]);
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
async fn what_a_client_keeps_with_an_object_comes_back() {
    let server = server().await;
    let meta = ("x-amz-meta-mtime", "1700000000.5".to_owned());
    let put = server.signed(Method::PUT, "single", &[], std::slice::from_ref(&meta)).body("x").send();
    assert_eq!(put.await.unwrap().status(), 200);
    let upload = Upload::begin_with(&server.signer(), "parts", std::slice::from_ref(&meta)).await.unwrap();
    let tag = upload.put(1, b"x").await.unwrap();
    upload.complete(&[(1, &tag)]).await.unwrap();
    for key in ["single", "parts"] {
        let head = server.signed(Method::HEAD, key, &[], &[]).send().await.unwrap();
        assert_eq!(head.headers()["x-amz-meta-mtime"], "1700000000.5", "{key}");
        let get = http().get(server.get_url(key)).send().await.unwrap();
        assert_eq!(get.headers()["x-amz-meta-mtime"], "1700000000.5", "{key}");
    }
    let much = [("x-amz-meta-much", "x".repeat(2049))];
    let put = server.signed(Method::PUT, "single", &[], &much).body("x").send().await.unwrap();
    assert_eq!(refusal(put).await, (400, "MetadataTooLarge".into()));
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
