//! Listings, and keys that are not kept.

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
async fn a_listing_is_in_order_in_pages_and_by_prefix() {
    let server = Server::start().await;
    for key in ["a", "b/1", "b/2", "b/3/x", "c", "d/1"] {
        let body = Bytes::from_static(b"abc");
        server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    let get = async |query: &[(&'static str, &str)]| list(&server, query).await.text().await.unwrap();

    let all = get(&[("list-type", "2")]).await;
    assert_eq!(tags(&all, "Key"), ["a", "b/1", "b/2", "b/3/x", "c", "d/1"]);
    assert_eq!(tags(&all, "IsTruncated"), ["false"]);

    let top = get(&[("list-type", "2"), ("delimiter", "/")]).await;
    assert_eq!(
        (tags(&top, "Key"), tags(&top, "Prefix")),
        (vec!["a".into(), "c".into()], vec!["b/".into(), "d/".into()])
    );

    let below = get(&[("list-type", "2"), ("delimiter", "/"), ("prefix", "b/")]).await;
    assert_eq!(tags(&below, "Key"), ["b/1", "b/2"]);
    assert_eq!(tags(&below, "Prefix").last().unwrap(), "b/3/");

    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut query = vec![("list-type", "2"), ("delimiter", "/"), ("max-keys", "1")];
        if let Some(token) = &token {
            query.push(("continuation-token", token));
        }
        let page = get(&query).await;
        assert_eq!(tags(&page, "KeyCount"), ["1"]);
        seen.extend(tags(&page, "Key"));
        seen.extend(tags(&page, "Prefix").into_iter().filter(|prefix| !prefix.is_empty()));
        token = tags(&page, "NextContinuationToken").pop();
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b/", "c", "d/"]);
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
