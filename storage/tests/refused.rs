//! Requests that are not kept: each gets its code and leaves no trace.
//!
//! Embedded only: its limits. What S3 itself refuses is in `contract/refused.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::parts::Upload;
use common::{Server, bytes, object, refusal};
use millpond_protocol::Sha256;
use reqwest::{Method, RequestBuilder, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A PUT of `sent` to a URL for `declared`.
fn put(server: &Server, declared: &[u8], sent: &[u8]) -> RequestBuilder {
    server.put_request("k", declared, sent.to_vec())
}

#[tokio::test]
async fn an_object_that_is_too_large_is_refused_before_or_while_it_is_sent() {
    let server = Server::start_with(|config| config.max_object = 100_000).await;
    let old = Bytes::from_static(b"old");
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    for size in [100_001, 5_000_000] {
        let body = bytes(size);
        let answer = put(&server, &body, &body).send().await.unwrap();
        assert_eq!(refusal(answer).await, (400, "EntityTooLarge".into()), "{size} bytes");
    }
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), old);
    server.settles_at(1).await;
}

#[tokio::test]
async fn a_refused_part_is_read_to_its_end_so_that_its_client_sees_why() {
    let server = Server::start().await;
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let gone = upload.with_id("00112233445566778899aabbccddeeff");
    let answer = gone.put_with(1, &bytes(8 << 20), &[]).await.unwrap();
    assert_eq!(refusal(answer).await, (404, "NoSuchUpload".into()));
    server.settles_at(0).await;
}

#[tokio::test]
async fn a_client_that_sends_a_byte_now_and_then_is_given_up() {
    let server = Server::start_with(|config| config.stall_timeout = Duration::from_millis(300)).await;
    let declared = bytes(10_000);
    let trickle = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
    });
    let started = std::time::Instant::now();
    let put = server.put_request("k", &declared, reqwest::Body::wrap_stream(trickle)).send().await;
    assert_eq!(refusal(put.unwrap()).await, (400, "RequestTimeout".into()));
    assert!(started.elapsed() < Duration::from_secs(10), "10,000 bytes would take 500 s");
    server.settles_at(0).await;
}

/// What a client reads that sends the head of a request and none of its body, until the server hangs up.
async fn silent(url: &Url, method: &str, headers: &str) -> String {
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let mut io = TcpStream::connect(&host).await.unwrap();
    let target = format!("{}?{}", url.path(), url.query().unwrap_or_default());
    let head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1\r\n{headers}\r\n");
    io.write_all(head.as_bytes()).await.unwrap();
    let mut said = String::new();
    let read = tokio::time::timeout(Duration::from_secs(60), io.read_to_string(&mut said)).await;
    read.expect("it waits for ever").unwrap();
    said
}

#[tokio::test]
async fn nobody_holds_a_place_with_a_body_that_does_not_come() {
    let server = Server::start_with(|config| config.stall_timeout = Duration::from_millis(300)).await;
    // With a signature that nobody has looked at yet.
    let now = jiff::Timestamp::now();
    let (day, time) = (now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ"));
    let unsigned = server.config.endpoint.join(&format!("{}/k", common::BUCKET)).unwrap();
    let headers = format!(
        "x-amz-date: {time}\r\nauthorization: AWS4-HMAC-SHA256 Credential=access/{day}/us-east-1/sts/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={}\r\n",
        "0".repeat(64)
    );
    let said = silent(&unsigned, "PUT", &headers).await;
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("<Code>InvalidRequest"), "{said}");
    // Where the body is XML.
    let upload = Upload::begin(&server.signer(), "k").await.unwrap();
    let complete = server.signer().url(&Method::POST, "k", &[("uploadId", &upload.id)], &[]);
    let said = silent(&complete, "POST", "").await;
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("<Code>RequestTimeout"), "{said}");
}

#[tokio::test]
async fn whoever_has_one_url_does_not_get_all_turns() {
    let server = Server::start_with(|config| config.max_uploads = 16).await;
    let body = bytes(1 << 20);
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..4 {
        // Enough to be written, and then no end.
        let first = Bytes::copy_from_slice(&body[..600_000]);
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(first)]);
        let stream = futures_util::StreamExt::chain(stream, futures_util::stream::pending());
        sending.spawn(server.put_request("k", &body, reqwest::Body::wrap_stream(stream)).send());
    }
    server.settles_at(4).await;
    let fifth = put(&server, &body, &body).send().await.unwrap();
    assert_eq!(refusal(fifth).await, (503, "SlowDown".into()));
    let other = server.put_request("other", &body, body.clone()).send().await.unwrap();
    assert_eq!(other.status(), 200);
    sending.shutdown().await;
    server.settles_at(1).await;
    assert_eq!(put(&server, &body, &body).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn whoever_sends_bodies_for_all_keys_it_has_leaves_turns_to_others() {
    let server = Server::start_with(|config| config.max_uploads = 16).await;
    let body = bytes(1 << 20);
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..16 {
        let first = Bytes::copy_from_slice(&body[..600_000]);
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(first)]);
        let stream = futures_util::StreamExt::chain(stream, futures_util::stream::pending());
        let key = format!("1/upload/7/{n}");
        sending.spawn(server.put_request(&key, &body, reqwest::Body::wrap_stream(stream)).send());
    }
    // Its share; the others wait.
    server.settles_at(6).await;
    for key in ["1/upload/8/a", "1/pack/a", "2/upload/9/a"] {
        let other = server.put_request(key, &body, body.clone()).send().await.unwrap();
        assert_eq!(other.status(), 200, "{key}");
    }
    sending.shutdown().await;
}

#[tokio::test]
async fn uploads_in_parts_of_one_prefix_keep_no_other_from_beginning() {
    let server = Server::start_with(|config| config.max_open = 2).await;
    let begin = async |key: &str| {
        let answer = server.signed(Method::POST, key, &[("uploads", "")], &[]).send().await.unwrap();
        answer.status().as_u16()
    };
    for (key, status) in [
        ("1/upload/a", 200),
        ("1/upload/b", 200),
        ("1/upload/c", 503),
        ("1/pack/a", 200),
        ("2/upload/a", 200),
        ("10/upload/a", 200),
    ] {
        assert_eq!(begin(key).await, status, "{key}");
    }
}

#[tokio::test]
async fn a_catalogue_that_cannot_be_written_costs_no_quota_and_leaves_no_file() {
    let body = bytes(10_000);
    let server = Server::start_with(|config| config.quota = 15_000).await;
    let locked = rusqlite::Connection::open(server.dir.path().join("catalog.sqlite")).unwrap();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = put(&server, &body, &body).send().await.unwrap();
    assert_eq!(refusal(refused).await, (500, "InternalError".into()));
    server.settles_at(0).await;
    locked.execute_batch("ROLLBACK").unwrap();
    // The quota is given back once the file is gone, by a task of its own.
    let patience = std::time::Instant::now() + Duration::from_secs(60);
    while put(&server, &body, &body).send().await.unwrap().status() != 200 {
        assert!(std::time::Instant::now() < patience, "its room is not given back");
    }
}
