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

#[tokio::test]
async fn both_forms_of_a_listing_page_through_keys_of_any_kind() {
    let server = Server::start().await;
    let keys = ["a b", "a+b", "b/1", "b/2", "c%20d", "e&<f>", "z/\u{e4}", "\u{65e5}\u{672c}"];
    for key in keys {
        let path: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let path = path.replace('+', "%20").replace("%2F", "/");
        assert_eq!(server.signed(Method::PUT, &path, &[], &[]).body("x").send().await.unwrap().status(), 200);
    }
    let decode = |text: &str| {
        let pair = format!("k={text}");
        url::form_urlencoded::parse(pair.as_bytes()).next().unwrap().1.into_owned()
    };
    for (v2, next, from) in
        [(true, "NextContinuationToken", "continuation-token"), (false, "NextMarker", "marker")]
    {
        for delimiter in [None, Some("/")] {
            let (mut seen, mut place) = (Vec::new(), None::<String>);
            loop {
                let mut query = vec![("max-keys", "1"), ("encoding-type", "url")];
                query.extend(v2.then_some(("list-type", "2")));
                query.extend(delimiter.map(|delimiter| ("delimiter", delimiter)));
                query.extend(place.as_deref().map(|place| (from, place)));
                let page = list(&server, &query).await.text().await.unwrap();
                seen.extend(tags(&page, "Key").iter().map(|key| decode(key)));
                seen.extend(
                    tags(&page, "CommonPrefixes").iter().map(|inner| decode(&tags(inner, "Prefix")[0])),
                );
                let Some(token) = tags(&page, next).pop() else { break };
                place = Some(if v2 { token } else { decode(&token) });
            }
            let folded = ["a b", "a+b", "b/", "c%20d", "e&<f>", "z/", "\u{65e5}\u{672c}"];
            assert_eq!(seen, if delimiter.is_some() { &folded[..] } else { &keys[..] }, "{v2} {delimiter:?}");
        }
    }
    let bad = list(&server, &[("list-type", "2"), ("continuation-token", "b/1")]).await;
    assert_eq!(refusal(bad).await, (400, "InvalidArgument".into()));
    let buckets = server.signed(Method::GET, "..", &[], &[]).send().await.unwrap().text().await.unwrap();
    assert_eq!(tags(&buckets, "Name"), [common::BUCKET]);
}

#[tokio::test]
async fn many_objects_go_in_one_request_and_bad_keys_are_named() {
    let server = Server::start().await;
    for key in ["a", "b", "c"] {
        let body = Bytes::from_static(b"abc");
        server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    let delete = async |keys: &[&str], more: &str| {
        let keys: String =
            keys.iter().map(|key| format!("<Object><Key>{key}</Key>{more}</Object>")).collect();
        let body = format!("<Delete>{keys}</Delete>");
        server.signed(Method::POST, "", &[("delete", "")], &[]).body(body).send().await.unwrap()
    };
    let answer = delete(&["a", "b", "none", "x/../y"], "").await;
    assert_eq!(answer.status(), 200);
    let answer = answer.text().await.unwrap();
    let errors = tags(&answer, "Error");
    assert_eq!((errors.len(), tags(&errors[0], "Key")), (1, vec!["x/../y".into()]));
    assert_eq!(tags(&answer, "Deleted").len(), 3);
    server.settles_at(1).await;
    let versioned = delete(&["c"], "<VersionId>1</VersionId>").await.text().await.unwrap();
    assert_eq!(tags(&versioned, "Code"), ["NotImplemented"]);
    let many = vec!["a"; 1001];
    assert_eq!(refusal(delete(&many, "").await).await, (400, "MalformedXML".into()));
    server.settles_at(1).await;
}

#[tokio::test]
async fn the_server_lists_what_comes_after_a_key_in_order_with_sizes() {
    let server = Server::start().await;
    for (key, size) in [("1/pack/b", 3), ("1/pack/a", 0), ("10/pack/a", 5)] {
        let body = Bytes::from(vec![b'x'; size]);
        server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    }
    let list = async |after: &str| {
        let listed = server.storage.list(after).await.unwrap();
        listed.into_iter().map(|object| (object.key, object.size)).collect::<Vec<_>>()
    };
    let all = [("1/pack/a".to_owned(), 0), ("1/pack/b".to_owned(), 3), ("10/pack/a".to_owned(), 5)];
    assert_eq!(list("").await, all);
    assert_eq!(list("1/pack/a").await, all[1..]);
    assert_eq!(list("10/pack/a").await, []);
}
