//! What pages of other origins may do with the URLs that they were given.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use bytes::Bytes;
use common::{Server, http, object, refusal};
use millpond_protocol::Sha256;
use reqwest::Method;

const PAGE: &str = "https://app.example.org";

async fn server() -> Server {
    Server::start_with(|config| config.cors_origins = vec![PAGE.into()]).await
}

fn asks(server: &Server, origin: &str, method: &str) -> reqwest::RequestBuilder {
    http()
        .request(Method::OPTIONS, server.get_url("k"))
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "x-amz-checksum-sha256")
}

#[tokio::test]
async fn a_page_that_is_listed_may_ask_send_and_read() {
    let server = server().await;
    for method in ["GET", "PUT", "HEAD"] {
        let answer = asks(&server, PAGE, method).send().await.unwrap();
        assert_eq!(answer.status(), 204, "{method}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("access-control-allow-origin"), PAGE);
        assert!(header("access-control-allow-methods").contains(method));
        assert_eq!(header("access-control-allow-headers"), "x-amz-checksum-sha256");
        assert_eq!(header("vary"), "Origin");
    }
    let body = b"abc".to_vec();
    let put = server.put_request("k", &body, body.clone()).header("origin", PAGE).send().await.unwrap();
    assert_eq!(
        (put.status().as_u16(), &put.headers()["access-control-allow-origin"]),
        (200, &PAGE.parse().unwrap())
    );
    let get = http().get(server.get_url("k")).header("origin", PAGE).send().await.unwrap();
    assert_eq!(get.headers()["access-control-allow-origin"], PAGE);
    assert!(get.headers()["access-control-expose-headers"].to_str().unwrap().contains("ETag"));
    // Also the reason of a refusal can be read.
    let missing = http().get(server.get_url("none")).header("origin", PAGE).send().await.unwrap();
    assert_eq!(missing.headers()["access-control-allow-origin"], PAGE);
}

#[tokio::test]
async fn another_page_is_told_nothing_and_needs_a_signature_like_all() {
    let server = server().await;
    let body = Bytes::from_static(b"abc");
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    for (origin, method) in [("https://evil.example", "GET"), ("null", "PUT"), (PAGE, "PATCH")] {
        let answer = asks(&server, origin, method).send().await.unwrap();
        assert!(origin == PAGE || !answer.headers().contains_key("access-control-allow-origin"), "{origin}");
        assert_eq!(refusal(answer).await, (403, "AccessDenied".into()), "{origin} {method}");
    }
    let get = http().get(server.get_url("k")).header("origin", "https://evil.example").send().await.unwrap();
    assert!(!get.headers().contains_key("access-control-allow-origin"));
    // A cache must not hand this answer, or that to a program, to the page that may.
    let plain = http().get(server.get_url("k")).send().await.unwrap();
    for answer in [&get, &plain] {
        assert_eq!(answer.headers()["vary"], "Origin");
    }
    let url = server.get_url("k").split_once('?').unwrap().0.to_owned();
    let unsigned = http().get(url).header("origin", PAGE).send().await.unwrap();
    assert_eq!(refusal(unsigned).await, (403, "AccessDenied".into()));
}
