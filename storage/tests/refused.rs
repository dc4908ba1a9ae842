//! Requests that are not kept: each gets its code and leaves no trace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::parts::{Upload, base64};
use common::{MINUTE, Server, bytes, http, now, object, refusal};
use millpond_protocol::Sha256;
use reqwest::{Method, RequestBuilder, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

type Change = fn(&Server, &[u8]) -> RequestBuilder;

/// A PUT of `sent` to a URL for `declared`.
fn put(server: &Server, declared: &[u8], sent: &[u8]) -> RequestBuilder {
    server.put_request("k", declared, sent.to_vec())
}

fn with(server: &Server, name: &'static str, value: String, body: &[u8]) -> RequestBuilder {
    server.signed(Method::PUT, "k", &[], &[(name, value)]).body(body.to_vec())
}

/// The same request with another URL.
fn at(server: &Server, body: &[u8], change: impl FnOnce(String) -> String) -> RequestBuilder {
    let url = server.signer().url(&Method::PUT, "k", &[], &[]).to_string();
    http().put(change(url)).body(body.to_vec())
}

#[tokio::test]
async fn a_put_that_is_not_what_was_signed_or_declared_gets_its_code_and_changes_nothing() {
    let server = Server::start_with(|config| {
        config.max_object = 100_000;
        config.stall_timeout = Duration::from_millis(300);
    })
    .await;
    let old = Bytes::from_static(b"old");
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let cases: [(&str, u16, &str, Change); 17] = [
        ("no signature", 403, "AccessDenied", |s, b| at(s, b, |url| url.split('?').next().unwrap().into())),
        ("another signature", 403, "SignatureDoesNotMatch", |s, b| {
            at(s, b, |mut url| {
                let last = url.pop();
                url + if last == Some('0') { "1" } else { "0" }
            })
        }),
        ("another key", 403, "SignatureDoesNotMatch", |s, b| at(s, b, |url| url.replace("/k?", "/j?"))),
        ("another method", 403, "SignatureDoesNotMatch", |s, b| http().put(s.get_url("k")).body(b.to_vec())),
        ("longer life", 403, "SignatureDoesNotMatch", |s, b| {
            at(s, b, |url| url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))
        }),
        ("an unknown key pair", 403, "InvalidAccessKeyId", |s, b| {
            at(s, b, |url| url.replace("Credential=access", "Credential=nobody"))
        }),
        ("an expired URL", 403, "AccessDenied", |s, b| {
            let then = now().before(MINUTE * 60);
            let signed = s.storage.presign_put(&object("k"), b.len() as u64, Sha256::of(b), MINUTE, then);
            let request = http().put(signed.url).body(b.to_vec());
            signed.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
        }),
        ("an unsigned header", 403, "AccessDenied", |s, b| put(s, b, b).header("x-amz-meta-more", "x")),
        ("fewer bytes", 403, "SignatureDoesNotMatch", |s, b| {
            let signed = s.storage.presign_put(&object("k"), b.len() as u64, Sha256::of(b), MINUTE, now());
            http().put(signed.url).header(signed.headers[1].0, &signed.headers[1].1).body(b[1..].to_vec())
        }),
        ("other bytes", 400, "BadDigest", |s, b| put(s, b, &vec![0; b.len()])),
        ("a wrong CRC", 400, "BadDigest", |s, b| with(s, "x-amz-checksum-crc64nvme", base64(&[0; 8]), b)),
        ("a wrong MD5", 400, "BadDigest", |s, b| with(s, "content-md5", base64(&[0; 16]), b)),
        ("half a checksum", 400, "InvalidDigest", |s, b| with(s, "x-amz-checksum-sha1", base64(&[0; 8]), b)),
        ("no checksum behind the body", 400, "MalformedTrailerError", |s, b| {
            with(s, "x-amz-trailer", "x-amz-checksum-crc32".into(), b)
        }),
        ("too much", 400, "EntityTooLarge", |s, _| {
            let body = bytes(100_001);
            put(s, &body, &body)
        }),
        ("no length", 411, "MissingContentLength", |s, b| {
            let body = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(b))]);
            let url = s.signer().url(&Method::PUT, "k", &[], &[]);
            http().put(url).body(reqwest::Body::wrap_stream(body))
        }),
        ("a condition", 412, "PreconditionFailed", |s, b| with(s, "if-none-match", "*".into(), b)),
    ];
    for (what, status, code, change) in cases {
        // Small ones, and those of which the client is still sending when the answer is ready.
        for size in [10, 90_000] {
            let answer = change(&server, &bytes(size)).send().await;
            let answer = answer.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            assert_eq!(refusal(answer).await, (status, code.into()), "{what}, {size} bytes");
        }
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
