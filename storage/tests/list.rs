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
