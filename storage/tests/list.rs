//! What the embedded server does not offer, and keys that it does not keep.
//!
//! Embedded only: which part of S3 it speaks. Listings are in `contract/lists.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use bytes::Bytes;
use common::{Server, http, object, refusal, tags};
use millpond_protocol::Sha256;
use reqwest::Method;

/// A GET of the bucket itself.
async fn list(server: &Server, query: &[(&'static str, &str)]) -> reqwest::Response {
    server.signed(Method::GET, "", query, &[]).send().await.unwrap()
}

#[tokio::test]
async fn paths_that_climb_get_a_coded_answer() {
    let server = Server::start().await;
    let signature = server.get_url("k").split_once('?').unwrap().1.to_owned();
    for path in
        ["/millpond/../other/x", "/millpond/%2e%2e/x", "/millpond/a%2F..%2Fb", "/../../etc/passwd", "/%00"]
    {
        // No library sends such a path: ask raw.
        let answer = raw_get(&server, &format!("{path}?{signature}")).await;
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("<Code>"), "{path}: {answer}");
    }
}

async fn raw_get(server: &Server, target: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn what_is_not_offered_says_so() {
    let server = Server::start().await;
    let other = server.signed(Method::GET, "../other-bucket", &[("list-type", "2")], &[]).send();
    assert_eq!(refusal(other.await.unwrap()).await, (404, "NoSuchBucket".into()));
    let acl = list(&server, &[("acl", "")]).await;
    assert_eq!(refusal(acl).await, (501, "NotImplemented".into()));
    for kind in ["multipart/form-data; boundary=x", "Multipart/Form-Data; boundary=x"] {
        let url = server.config.endpoint.join(common::BUCKET).unwrap();
        let form = http().post(url).header("content-type", kind).body("--x--").send().await.unwrap();
        assert_eq!(refusal(form).await, (501, "NotImplemented".into()), "{kind}");
    }
}

#[tokio::test]
async fn options_that_nobody_would_heed_are_refused_and_change_nothing() {
    let server = Server::start().await;
    let body = Bytes::from_static(b"abc");
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let send =
        async |method: Method, key: &str, query: &[(&str, &str)], header: Option<(&'static str, &str)>| {
            let headers: Vec<_> = header.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            server.signed(method, key, query, &headers).body("other").send().await.unwrap()
        };
    for (method, query, header) in [
        (Method::GET, ("versionId", "1"), None),
        (Method::GET, ("partNumber", "1"), None),
        (Method::GET, ("response-content-type", "text/html"), None),
        (Method::GET, ("response-content-disposition", "inline"), None),
        (Method::GET, ("response-expires", "Thu, 01 Jan 2026 00:00:00 GMT"), None),
        (Method::GET, ("response-cache-control", "public"), None),
        (
            Method::GET,
            ("x-id", "GetObject"),
            Some(("x-amz-server-side-encryption-customer-algorithm", "AES256")),
        ),
        (Method::DELETE, ("versionId", "1"), None),
        (Method::DELETE, ("x-id", "DeleteObject"), Some(("if-match", "\"x\""))),
        (Method::DELETE, ("x-id", "DeleteObject"), Some(("x-amz-if-match-size", "4"))),
        (
            Method::DELETE,
            ("x-id", "DeleteObject"),
            Some(("x-amz-if-match-last-modified-time", "Thu, 01 Jan 2026 00:00:00 GMT")),
        ),
    ] {
        let answer = send(method.clone(), "k", &[query], header).await;
        assert_eq!(refusal(answer).await, (501, "NotImplemented".into()), "{method} {query:?} {header:?}");
    }
    for query in [("versionId", "1"), ("partNumber", "1")] {
        assert_eq!(send(Method::HEAD, "k", &[query], None).await.status(), 501, "{query:?}");
    }
    for header in [
        ("x-amz-server-side-encryption-customer-key", "a2V5"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-aws-kms-key-id", "mine"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-object-lock-legal-hold", "ON"),
        ("x-amz-object-lock-retain-until-date", "2030-01-01T00:00:00Z"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-acl", "public-read"),
        ("x-amz-grant-read", "uri=http://acs.amazonaws.com/groups/global/AllUsers"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-website-redirect-location", "/"),
    ] {
        let begun = send(Method::POST, "k", &[("uploads", "")], Some(header)).await;
        assert_eq!(refusal(begun).await, (501, "NotImplemented".into()), "begin with {header:?}");
        let put = send(Method::PUT, "k", &[], Some(header)).await;
        assert_eq!(refusal(put).await, (501, "NotImplemented".into()), "put with {header:?}");
    }
    let upload = common::parts::Upload::begin(&server.signer(), "k").await.unwrap();
    let part = [("partNumber", "1"), ("uploadId", upload.id.as_str())];
    let encrypted = ("x-amz-server-side-encryption-customer-key", "a2V5");
    let part = send(Method::PUT, "k", &part, Some(encrypted)).await;
    assert_eq!(refusal(part).await, (501, "NotImplemented".into()));
    assert_eq!(server.storage.get(&object("k"), 3).await.unwrap(), body);
    server.settles_at(1).await;

    // What holds anyway may be said.
    for header in [
        ("x-amz-acl", "private"),
        ("x-amz-acl", "bucket-owner-full-control"),
        ("x-amz-storage-class", "STANDARD"),
    ] {
        assert_eq!(send(Method::PUT, "k", &[], Some(header)).await.status(), 200, "{header:?}");
    }
    for query in [
        ("response-content-type", "application/octet-stream"),
        ("response-content-disposition", "attachment"),
    ] {
        assert_eq!(send(Method::GET, "k", &[query], None).await.status(), 200, "{query:?}");
    }
}

#[tokio::test]
async fn a_key_that_climbs_and_a_version_are_named_where_many_objects_go_in_one_request() {
    let server = Server::start().await;
    for key in ["a", "c"] {
        let body = Bytes::from_static(b"abc");
        server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    let delete = async |keys: &[&str], more: &str| {
        let keys: String =
            keys.iter().map(|key| format!("<Object><Key>{key}</Key>{more}</Object>")).collect();
        let body = format!("<Delete>{keys}</Delete>");
        let answer = server.signed(Method::POST, "", &[("delete", "")], &[]).body(body).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let answer = delete(&["a", "none", "x/../y"], "").await;
    let errors = tags(&answer, "Error");
    assert_eq!((errors.len(), tags(&errors[0], "Key")), (1, vec!["x/../y".into()]));
    assert_eq!(tags(&answer, "Deleted").len(), 2);
    server.settles_at(1).await;
    assert_eq!(tags(&delete(&["c"], "<VersionId>1</VersionId>").await, "Code"), ["NotImplemented"]);
    server.settles_at(1).await;
    let buckets = server.signed(Method::GET, "..", &[], &[]).send().await.unwrap().text().await.unwrap();
    assert_eq!(tags(&buckets, "Name"), [common::BUCKET]);
}
