//! URLs for others: what somebody can do who was given one, and what not.

use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_storage::{ObjectKey, PresignedPut, Secret, Storage};
use reqwest::{Method, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Place, fresh, outcome};
use crate::common::{MINUTE, bytes, now};

/// What a PUT as a client sends it comes to.
async fn send(place: &Place, put: &PresignedPut, body: &[u8]) -> String {
    let headers = put.headers.iter();
    let request = headers.fold(place.http.put(&put.url), |put, (name, value)| put.header(*name, value));
    outcome(request.body(body.to_vec()).send().await.unwrap()).await
}

async fn get(place: &Place, url: &str) -> Response {
    place.http.get(url).send().await.unwrap()
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("nothing", |value| value.to_str().unwrap())
}

pub async fn a_url_reads_its_object_and_says_how_to_treat_it(place: &Place) {
    let (key, body) = (fresh("read"), bytes(700_000));
    place.put(&key, &body).await;
    let whole = get(place, &place.get_url(&key)).await;
    assert_eq!(whole.status(), 200);
    for (name, s3) in [
        ("content-type", "application/octet-stream"),
        ("content-disposition", "attachment"),
        ("accept-ranges", "bytes"),
        ("content-length", "700000"),
    ] {
        place.says(&format!("{name} of a download"), header(&whole, name), s3);
    }
    assert!(header(&whole, "etag").starts_with('"') && header(&whole, "last-modified").ends_with(" GMT"));
    // S3 says no such thing, and the embedded server does.
    place.says("nosniff of a download", header(&whole, "x-content-type-options"), "nosniff");
    assert!(whole.bytes().await.unwrap() == body);
    let missing = outcome(get(place, &place.get_url(&fresh("none"))).await).await;
    place.says("a GET of nothing", missing, "404 NoSuchKey");
}

pub async fn ranges_are_those_of_http(place: &Place) {
    let (key, body) = (fresh("ranges"), bytes(600_000));
    place.put(&key, &body).await;
    let url = place.get_url(&key);
    let get = |range: &str| place.http.get(&url).header("range", range).send();
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=599999-", 599_999, 600_000),
        ("bytes=-3", 599_997, 600_000),
        ("bytes=100-9999999", 100, 600_000),
        ("bytes=-9999999", 0, 600_000),
    ] {
        let answer = get(range).await.unwrap();
        assert_eq!(answer.status(), 206, "{range}");
        assert_eq!(header(&answer, "content-range"), format!("bytes {start}-{}/600000", end - 1), "{range}");
        assert!(answer.bytes().await.unwrap() == body[start..end], "{range}");
    }
    let beyond = get("bytes=600000-").await.unwrap();
    place.says("the size, where a range is beyond it", header(&beyond, "content-range"), "bytes */600000");
    place.says("a range beyond the end", outcome(beyond).await, "416 InvalidRange");
    for ignored in ["bytes=0-1,5-6", "lines=1-2", "bytes=5-3", "bytes=x"] {
        let answer = get(ignored).await.unwrap();
        let claim = format!("range {ignored}");
        let whole = answer.status() == 200;
        place.says(&claim, if whole { "200".to_owned() } else { outcome(answer).await }, "200");
    }
    // Of nothing there is no last byte.
    place.put(&key, b"").await;
    for range in ["bytes=-5", "bytes=0-"] {
        let answer = get(range).await.unwrap();
        place.says(&format!("{range} of nothing"), outcome(answer).await, "416 InvalidRange");
    }
    assert_eq!(self::get(place, &url).await.status(), 200);
}

pub async fn conditions_spare_a_download_and_protect_a_continued_one(place: &Place) {
    let key = fresh("conditions");
    place.put(&key, b"abc").await;
    let url = place.get_url(&key);
    let tag = header(&get(place, &url).await, "etag").to_owned();
    let get = async |headers: &[(&'static str, &str)]| {
        let get = headers.iter().fold(place.http.get(&url), |get, (name, value)| get.header(*name, *value));
        get.send().await.unwrap()
    };
    let unchanged = get(&[("if-none-match", &tag)]).await;
    assert_eq!((unchanged.status().as_u16(), header(&unchanged, "etag")), (304, tag.as_str()));
    for (claim, headers, s3) in [
        ("another tag is there already", vec![("if-none-match", "\"x\"")], 200),
        ("that tag is still there", vec![("if-match", tag.as_str())], 200),
        ("another tag is still there", vec![("if-match", "\"x\"")], 412),
        ("the rest of what is still there", vec![("range", "bytes=1-"), ("if-range", &tag)], 206),
        ("the rest of what was replaced", vec![("range", "bytes=1-"), ("if-range", "\"x\"")], 200),
    ] {
        place.says(claim, get(&headers).await.status().as_u16(), s3);
    }
}

pub async fn a_url_for_writing_takes_the_declared_bytes_and_no_others(place: &Place) {
    let (key, declared) = (fresh("write"), bytes(300_000));
    let mut other = declared.clone();
    other[299_999] ^= 1;
    let put = place.storage.presign_put(&key, 300_000, Sha256::of(&declared), MINUTE, now());
    assert_eq!(send(place, &put, &other).await, "400 BadDigest");
    assert_eq!(place.storage.stat(&key).await, Ok(None));
    place.keeps(0).await;
    for _ in 0..2 {
        assert_eq!(send(place, &put, &declared).await, "200");
        assert!(place.storage.get(&key, 300_000).await.unwrap() == declared);
    }
    place.keeps(1).await;
}

pub async fn a_url_for_a_part_takes_the_declared_bytes_and_no_others(place: &Place) {
    let (key, declared) = (fresh("write-part"), bytes(300_000));
    let mut other = declared.clone();
    other[299_999] ^= 1;
    let upload = place.storage.create_multipart(&key).await.unwrap();
    let put = place.storage.presign_part(&key, &upload, 1, 300_000, Sha256::of(&declared), MINUTE, now());
    assert_eq!(send(place, &put, &other).await, "400 BadDigest");
    assert_eq!(place.storage.list_parts(&key, &upload).await, Ok(Vec::new()));
    let second = PresignedPut { url: put.url.replace("partNumber=1", "partNumber=2"), ..put.clone() };
    assert_eq!(send(place, &second, &declared).await, "403 SignatureDoesNotMatch");
    assert_eq!(send(place, &put, &declared).await, "200");
    place.storage.abort_multipart(&key, &upload).await.unwrap();
    place.keeps(0).await;
}

pub async fn changed_headers_or_urls_are_refused(place: &Place) {
    let (key, body) = (fresh("changed"), bytes(1000));
    let signed = |at| place.storage.presign_put(&key, 1000, Sha256::of(&body), MINUTE, at);
    let (wrong, denied) = ("403 SignatureDoesNotMatch", "403 AccessDenied");

    let mut shorter = signed(now());
    shorter.headers[0].1 = "999".into();
    place.says("a URL for more bytes", send(place, &shorter, &body[..999]).await, wrong);

    let mut other = signed(now());
    other.headers = place.storage.presign_put(&key, 1000, Sha256::of(b"x"), MINUTE, now()).headers;
    place.says("a URL for other bytes", send(place, &other, &body).await, wrong);

    let mut without = signed(now());
    without.headers.truncate(1);
    place.says("a URL without its checksum", send(place, &without, &body).await, wrong);

    let mut more = signed(now());
    more.headers.push(("x-amz-copy-source", "/millpond/j".into()));
    place.says("a URL with a header that is not signed", send(place, &more, &body).await, denied);

    // A second signature, whose list of headers would cover the stray one.
    let both = "AWS4-HMAC-SHA256 SignedHeaders=x-amz-checksum-sha256;x-amz-copy-source, Signature=x";
    more.headers.push(("authorization", both.into()));
    place.says("a URL beside another signature", send(place, &more, &body).await, denied);

    let mut elsewhere = signed(now());
    elsewhere.url = elsewhere.url.replace(key.as_str(), fresh("elsewhere").as_str());
    place.says("a URL with another key", send(place, &elsewhere, &body).await, wrong);

    let hour_ago = now().before(MINUTE * 60);
    place.says("a PUT to a URL that has expired", send(place, &signed(hour_ago), &body).await, denied);
    let expired = place.storage.presign_get(&key, MINUTE, hour_ago).url;
    place.says("a GET of a URL that has expired", outcome(get(place, &expired).await).await, denied);

    let url = place.get_url(&key);
    let deleted = outcome(place.http.delete(&url).send().await.unwrap()).await;
    place.says("a DELETE by a URL for reading", deleted, wrong);
    let unsigned = outcome(get(place, url.split('?').next().unwrap()).await).await;
    place.says("a GET without a signature", unsigned, denied);
    assert_eq!(place.storage.stat(&key).await, Ok(None));
    place.keeps(0).await;
}

pub async fn a_put_may_call_its_body_what_it_likes(place: &Place) {
    let put = place.put_request(&fresh("typed"), b"abc", "abc");
    let put = put.header("content-type", "multipart/mixed; boundary=x").send().await.unwrap();
    assert_eq!(put.status(), 200);
}

/// The head of a PUT as it stands on the wire, for a client that the test plays itself, and a connection for it.
async fn raw_put(place: &Place, put: PresignedPut, more: &str) -> TcpStream {
    let (host, target) = put.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let headers: String = put.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("PUT /{target} HTTP/1.1\r\nhost: {host}\r\n{headers}{more}\r\n");
    let to = place.config.proxy.as_ref().unwrap_or(&place.config.endpoint);
    let mut stream = TcpStream::connect(to.socket_addrs(|| None).unwrap()[0]).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

pub async fn a_client_that_asks_before_it_sends_is_told_before_it_sends(place: &Place) {
    let (key, body) = (fresh("asks"), bytes(1000));
    let ask = async |at| {
        let put = place.storage.presign_put(&key, 1000, Sha256::of(&body), MINUTE, at);
        let mut stream = raw_put(place, put, "expect: 100-continue\r\n").await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        (stream, String::from_utf8(answer.to_vec()).unwrap())
    };
    let (_, answer) = ask(now().before(MINUTE * 60)).await;
    place.says("what is said to who asks before it sends to a URL that has expired", answer, "HTTP/1.1 403");
    let (mut stream, answer) = ask(now()).await;
    assert_eq!(answer, "HTTP/1.1 100");
    stream.write_all(&body).await.unwrap();
    let mut rest = vec![0; " Continue\r\n\r\nHTTP/1.1 200".len()];
    stream.read_exact(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}

/// A PUT under a condition.
async fn put_if(place: &Place, key: &ObjectKey, body: Vec<u8>, condition: (&'static str, &str)) -> Response {
    let condition = [(condition.0, condition.1.to_owned())];
    place.signed(Method::PUT, key.as_str(), &[], &condition).body(body).send().await.unwrap()
}

pub async fn of_two_that_race_to_be_the_first_one_is_and_whoever_names_the_old_object_replaces_that_alone(
    place: &Place,
) {
    let (key, bodies) = (fresh("race"), [bytes(300_000), bytes(299_999)]);
    let put = |n: usize| put_if(place, &key, bodies[n].clone(), ("if-none-match", "*"));
    let (one, two) = tokio::join!(put(0), put(1));
    let statuses = [one.status().as_u16(), two.status().as_u16()];
    let won = statuses.iter().position(|status| *status == 200).unwrap();
    place.says("the second of two that want to be first", statuses[1 - won], 412);
    let is = place.storage.get(&key, 300_000).await.unwrap();
    assert!(bodies.iter().any(|body| is == body), "it is a mixture");
    place.keeps(1).await;

    let late = put_if(place, &key, b"late".to_vec(), ("if-none-match", "*")).await;
    place.says("a PUT that wants to be first later", outcome(late).await, "412 PreconditionFailed");
    let tag = header(&get(place, &place.get_url(&key)).await, "etag").to_owned();
    let next = put_if(place, &key, b"next".to_vec(), ("if-match", &tag)).await;
    place.says("a PUT that names the old object", outcome(next).await, "200");
    let stale = put_if(place, &key, b"stale".to_vec(), ("if-match", &tag)).await;
    place.says("a PUT that names one before it", outcome(stale).await, "412 PreconditionFailed");
    assert_eq!(place.storage.get(&key, 4).await.unwrap(), "next");
    place.keeps(1).await;
}

pub async fn what_is_to_replace_nothing_is_not_found(place: &Place) {
    let key = fresh("nothing");
    for tag in ["\"x\"", "*"] {
        let put = put_if(place, &key, b"abc".to_vec(), ("if-match", tag)).await;
        place.says("a PUT that names what is not there", outcome(put).await, "404 NoSuchKey");
    }
    place.storage.delete(&key).await.unwrap();
    let upload = crate::common::parts::Upload::begin(&place.signer(), key.as_str()).await.unwrap();
    let tag = upload.put(1, b"abc").await.unwrap();
    let parts = [(1, tag, String::new())];
    let completed = upload.complete_with(&parts, &[("if-match", "\"x\"".into())]).await.unwrap();
    place.says("completing what names what is not there", outcome(completed).await, "404 NoSuchKey");
    assert_eq!(place.storage.stat(&key).await, Ok(None));
    assert_eq!(outcome(upload.complete_with(&parts, &[]).await.unwrap()).await, "200");
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), "abc");
}

pub async fn a_session_token_is_part_of_what_is_signed(place: &Place) {
    let mut config = place.config.clone();
    let whose = if config.session_token.is_some() { "that it issued" } else { "that it never issued" };
    let token =
        config.session_token.get_or_insert_with(|| Secret::new("a/token+of=tests")).expose().to_owned();
    let storage = Storage::new(&config).unwrap();
    // Calls of the server's own, and URLs for others: whoever verifies the signature finds the token in it.
    let (key, body) = (fresh("with-token"), Bytes::from(vec![7; 1_000]));
    place.put(&key, &body).await;
    let again = storage.put(&key, body.clone(), Sha256::of(&body)).await;
    place.says(&format!("a session token {whose}"), if again.is_ok() { "taken" } else { "refused" }, "taken");
    let signed = url::Url::parse(&storage.presign_get(&key, MINUTE, now()).url).unwrap();
    let with = |token: Option<&str>| {
        let kept = signed.query_pairs().filter(|(name, _)| name != "X-Amz-Security-Token");
        let mut url = signed.clone();
        url.query_pairs_mut()
            .clear()
            .extend_pairs(kept)
            .extend_pairs(token.map(|token| ("X-Amz-Security-Token", token)));
        url.to_string()
    };
    let said = outcome(get(place, &with(Some(&token))).await).await;
    place.says(&format!("a URL with a session token {whose}"), said, "200");
    for other in [Some(token.to_uppercase()), None] {
        let url = with(other.as_deref());
        assert_eq!(get(place, &url).await.status(), 403, "{url}");
    }
}
