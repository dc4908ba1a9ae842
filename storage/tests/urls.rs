//! What somebody can do who was given a URL, and what not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{MINUTE, Server, bytes, embedded_config, http, now, object, refusal};
use millpond_protocol::Sha256;
use millpond_storage::{PresignedPut, Secret, Storage, embedded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_url_reads_its_object_and_says_how_to_treat_it() {
    let server = Server::start().await;
    let body = Bytes::from(bytes(700_000));
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let response = http().get(server.get_url("k")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/octet-stream");
    assert_eq!(header("content-disposition"), "attachment");
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("cache-control"), "private, no-cache");
    assert_eq!(header("accept-ranges"), "bytes");
    assert_eq!(header("content-length"), "700000");
    assert_eq!(header("etag"), format!("\"{}-1\"", Sha256::of(&body)));
    assert!(response.bytes().await.unwrap() == body);
    // Some caches keep such an answer too, unless they are told.
    let none = http().get(server.get_url("none")).send().await.unwrap();
    assert_eq!(none.headers()["cache-control"], "private, no-cache");
    assert_eq!(refusal(none).await, (404, "NoSuchKey".into()));
}

#[tokio::test]
async fn ranges_are_those_of_http() {
    let server = Server::start().await;
    let body = Bytes::from(bytes(600_000));
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let get = |range: &'static str| http().get(server.get_url("k")).header("range", range).send();
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=599999-", 599_999, 600_000),
        ("bytes=-3", 599_997, 600_000),
        ("bytes=100-9999999", 100, 600_000),
        ("bytes=-9999999", 0, 600_000),
    ] {
        let response = get(range).await.unwrap();
        assert_eq!(response.status(), 206, "{range}");
        let said = response.headers()["content-range"].to_str().unwrap();
        assert_eq!(said, format!("bytes {start}-{}/600000", end - 1), "{range}");
        assert!(response.bytes().await.unwrap() == body[start..end], "{range}");
    }
    let beyond = get("bytes=600000-").await.unwrap();
    assert_eq!(beyond.headers()["content-range"], "bytes */600000");
    assert_eq!(refusal(beyond).await, (416, "InvalidRange".into()));
    for ignored in ["bytes=0-1,5-6", "lines=1-2", "bytes=5-3", "bytes=x"] {
        let response = get(ignored).await.unwrap();
        assert_eq!(response.status(), 200, "{ignored}");
        assert!(response.bytes().await.unwrap() == body, "{ignored}");
    }
    // Of nothing there is no last byte.
    server.storage.put(&object("k"), Bytes::new(), Sha256::of(b"")).await.unwrap();
    for range in ["bytes=-5", "bytes=0-"] {
        let response = get(range).await.unwrap();
        assert_eq!(response.headers()["content-range"], "bytes */0", "{range}");
        assert_eq!(refusal(response).await, (416, "InvalidRange".into()), "{range}");
    }
    assert_eq!(http().get(server.get_url("k")).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_put_may_call_its_body_what_it_likes() {
    let server = Server::start().await;
    let put = server.put_request("k", b"abc", "abc").header("content-type", "multipart/mixed; boundary=x");
    assert_eq!(put.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn conditions_spare_a_download_and_protect_a_continued_one() {
    let server = Server::start().await;
    let body = Bytes::from_static(b"abc");
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
    let tag = format!("\"{}-1\"", Sha256::of(&body));
    let get = |headers: &[(&'static str, &str)]| {
        headers
            .iter()
            .fold(http().get(server.get_url("k")), |get, (name, value)| get.header(*name, *value))
            .send()
    };
    let status = |response: Result<reqwest::Response, reqwest::Error>| response.unwrap().status().as_u16();
    let unchanged = get(&[("if-none-match", &tag)]).await.unwrap();
    assert_eq!(unchanged.status(), 304);
    assert_eq!(unchanged.headers()["etag"], tag);
    assert!(unchanged.headers()["last-modified"].to_str().unwrap().ends_with(" GMT"));
    assert_eq!(status(get(&[("if-none-match", "\"x\"")]).await), 200);
    assert_eq!(status(get(&[("if-match", &tag)]).await), 200);
    assert_eq!(status(get(&[("if-match", "\"x\"")]).await), 412);
    assert_eq!(status(get(&[("range", "bytes=1-"), ("if-range", &tag)]).await), 206);
    assert_eq!(status(get(&[("range", "bytes=1-"), ("if-range", "\"x\"")]).await), 200);
}

#[tokio::test]
async fn a_url_for_writing_takes_the_declared_bytes_and_no_others() {
    let server = Server::start().await;
    let declared = bytes(300_000);
    let mut other = declared.clone();
    other[299_999] ^= 1;

    let put = server.put_request("k", &declared, other).send().await.unwrap();
    assert_eq!(refusal(put).await, (400, "BadDigest".into()));
    assert_eq!(server.storage.stat(&object("k")).await, Ok(None));

    let put = server.put_request("k", &declared, declared.clone()).send().await.unwrap();
    assert_eq!(put.status(), 200);
    assert!(server.storage.get(&object("k"), 300_000).await.unwrap() == declared);

    let put = server.put_request("k", &declared, declared.clone()).send().await.unwrap();
    assert_eq!(put.status(), 200);
    server.settles_at(1).await;
}

#[tokio::test]
async fn changed_headers_or_urls_break_the_signature() {
    let server = Server::start().await;
    let body = bytes(1000);
    let signed = |expires| server.storage.presign_put(&object("k"), 1000, Sha256::of(&body), expires, now());
    let send = |url: String, headers: Vec<(&'static str, String)>, body: Vec<u8>| async move {
        let put = headers.into_iter().fold(http().put(url), |put, (name, value)| put.header(name, value));
        refusal(put.body(body).send().await.unwrap()).await
    };
    let wrong_signature = (403, "SignatureDoesNotMatch".to_owned());

    let put = signed(MINUTE);
    let shorter = vec![("content-length", "999".into()), put.headers[1].clone()];
    assert_eq!(send(put.url, shorter, body[..999].to_vec()).await, wrong_signature);

    let put = signed(MINUTE);
    let other = bytes(999);
    let checksum =
        server.storage.presign_put(&object("k"), 999, Sha256::of(&other), MINUTE, now()).headers[1].clone();
    assert_eq!(send(put.url, vec![put.headers[0].clone(), checksum], body.clone()).await, wrong_signature);

    let put = signed(MINUTE);
    assert_eq!(send(put.url, vec![put.headers[0].clone()], body.clone()).await, wrong_signature);

    let put = signed(MINUTE);
    let url = put.url.replace("/millpond/k?", "/millpond/j?");
    assert_eq!(send(url, put.headers, body.clone()).await, wrong_signature);

    let put = signed(MINUTE);
    let mut headers = put.headers;
    headers.push(("x-amz-copy-source", "/millpond/j".into()));
    assert_eq!(send(put.url, headers, body.clone()).await, (403, "AccessDenied".into()));

    // A second signature, whose list of headers would cover the stray one.
    let put = signed(MINUTE);
    let mut headers = put.headers;
    headers.push(("x-amz-copy-source", "/millpond/j".into()));
    let both = "AWS4-HMAC-SHA256 SignedHeaders=x-amz-checksum-sha256;x-amz-copy-source, Signature=x";
    headers.push(("authorization", both.into()));
    assert_eq!(send(put.url, headers, body.clone()).await, (403, "AccessDenied".into()));

    let hour_ago = now().before(MINUTE * 60);
    let put = server.storage.presign_put(&object("k"), 1000, Sha256::of(&body), MINUTE, hour_ago);
    assert_eq!(send(put.url, put.headers, body.clone()).await, (403, "AccessDenied".into()));
    let url = server.storage.presign_get(&object("k"), MINUTE, hour_ago).url;
    assert_eq!(refusal(http().get(url).send().await.unwrap()).await, (403, "AccessDenied".into()));

    let get = server.get_url("k");
    assert_eq!(refusal(http().delete(&get).send().await.unwrap()).await, wrong_signature);
    let unsigned = get.split('?').next().unwrap();
    assert_eq!(refusal(http().get(unsigned).send().await.unwrap()).await, (403, "AccessDenied".into()));
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
}

/// The head of a PUT as it stands on the wire, for a client that the test plays itself.
fn raw_put(server: &Server, put: PresignedPut, more: &str) -> String {
    let (host, target) = put.url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    assert_eq!(format!("http://{host}/"), server.config.endpoint.as_str());
    let headers: String = put.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("PUT /{target} HTTP/1.1\r\nhost: {host}\r\n{headers}{more}\r\n")
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.config.endpoint.socket_addrs(|| None).unwrap()[0]).await.unwrap()
}

#[tokio::test]
async fn a_refused_client_that_writes_before_it_reads_still_sees_why() {
    let server = Server::start().await;
    let body = bytes(8 << 20);
    let long_ago = now().before(MINUTE * 60);
    let put =
        server.storage.presign_put(&object("k"), body.len() as u64, Sha256::of(&body), MINUTE, long_ago);
    let mut stream = connect(&server).await;
    stream.write_all(raw_put(&server, put, "").as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn what_is_read_of_a_refused_body_ends_by_its_bytes_and_by_its_time() {
    const LONG: Duration = Duration::from_secs(3_600);
    for (bytes_read, time, sent) in
        [(1 << 20, LONG, (1 << 20) + 1), (1 << 30, Duration::from_millis(300), 10)]
    {
        let server = Server::start_with(|config| {
            (config.drain_bytes, config.drain_time) = (bytes_read, time);
            config.stall_timeout = LONG;
        })
        .await;
        let body = bytes(8 << 20);
        let long_ago = now().before(MINUTE * 60);
        let (size, sha256) = (body.len() as u64, Sha256::of(&body));
        let put = server.storage.presign_put(&object("k"), size, sha256, MINUTE, long_ago);
        let mut stream = connect(&server).await;
        stream.write_all(raw_put(&server, put, "").as_bytes()).await.unwrap();
        stream.write_all(&body[..sent]).await.unwrap();
        // The rest never comes, and nobody waits for it.
        let mut answer = String::new();
        let read = tokio::time::timeout(MINUTE, stream.read_to_string(&mut answer)).await;
        read.expect("it is read for ever").unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let server = Server::start_with(|config| config.stall_timeout = Duration::from_millis(200)).await;
    let declared = bytes(1000);
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    sender.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
    let body = futures_util::stream::unfold(receiver, |mut from| async { Some((from.recv().await?, from)) });
    let put = server.put_request("k", &declared, reqwest::Body::wrap_stream(body)).send();
    let started = std::time::Instant::now();
    assert_eq!(refusal(put.await.unwrap()).await, (400, "RequestTimeout".into()));
    assert!(started.elapsed() < Duration::from_secs(5), "nobody waits for the rest of it");
    server.settles_at(0).await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_before_it_sends() {
    let server = Server::start().await;
    let body = bytes(1000);
    let ask = async |at| {
        let put = server.storage.presign_put(&object("k"), 1000, Sha256::of(&body), MINUTE, at);
        let mut stream = connect(&server).await;
        stream.write_all(raw_put(&server, put, "expect: 100-continue\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        (stream, String::from_utf8(answer.to_vec()).unwrap())
    };
    let (_, answer) = ask(now().before(MINUTE * 60)).await;
    assert_eq!(answer, "HTTP/1.1 403");
    let (mut stream, answer) = ask(now()).await;
    assert_eq!(answer, "HTTP/1.1 100");
    stream.write_all(&body).await.unwrap();
    let mut rest = vec![0; " Continue\r\n\r\nHTTP/1.1 200".len()];
    stream.read_exact(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_nothing_gets_a_connection_of_its_own() {
    let server = Server::start().await;
    let put = server.storage.presign_put(&object("k"), 0, Sha256::of(b""), MINUTE, now());
    let mut stream = connect(&server).await;
    stream.write_all(raw_put(&server, put, "expect: 100-continue\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn of_two_that_race_to_be_the_first_one_is_and_whoever_names_the_old_object_replaces_that_alone() {
    let server = Server::start().await;
    let put = |body: Vec<u8>, condition: (&'static str, String)| {
        let put = server.signed(reqwest::Method::PUT, "k", &[], &[condition]).body(body).send();
        async { put.await.unwrap() }
    };
    let first = || ("if-none-match", "*".to_owned());
    let bodies = [bytes(300_000), bytes(299_999)];
    let (one, two) = tokio::join!(put(bodies[0].clone(), first()), put(bodies[1].clone(), first()));
    let statuses = [one.status().as_u16(), two.status().as_u16()];
    let won = statuses.iter().position(|status| *status == 200).unwrap();
    assert_eq!(statuses[1 - won], 412, "{statuses:?}");
    assert!(server.storage.get(&object("k"), 300_000).await.unwrap() == bodies[won]);
    server.settles_at(1).await;

    let tag = [one, two][won].headers()["etag"].to_str().unwrap().to_owned();
    let next = put(b"next".to_vec(), ("if-match", tag.clone())).await;
    assert_eq!(next.status(), 200);
    let stale = put(b"stale".to_vec(), ("if-match", tag)).await;
    assert_eq!(refusal(stale).await, (412, "PreconditionFailed".into()));
    assert_eq!(server.storage.get(&object("k"), 4).await.unwrap(), "next");
    server.settles_at(1).await;
}

#[tokio::test]
async fn a_session_token_is_part_of_what_is_signed() {
    let server = Server::start().await;
    let mut config = server.config.clone();
    config.session_token = Some(Secret::new("a/token+of=tests"));
    let storage = Storage::new(&config).unwrap();
    // Calls of the server's own, and URLs for others: whoever verifies the signature finds the token in it.
    let (key, body) = (object("with-token"), Bytes::from(vec![7; 1_000]));
    storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
    assert_eq!(storage.get(&key, 1_000).await, Ok(body));
    let signed = storage.presign_get(&key, MINUTE, now()).url;
    for (url, status) in [
        (signed.clone(), 200),
        (signed.replace("%2Bof", "%2Bon"), 403),
        (signed.replace("X-Amz-Security-Token=a%2Ftoken%2Bof%3Dtests&", ""), 403),
    ] {
        assert_eq!(url == signed, status == 200, "{url}");
        assert_eq!(http().get(&url).send().await.unwrap().status(), status, "{url}");
    }
}

#[tokio::test]
async fn a_url_that_says_whom_it_was_made_for_is_good_while_that_one_may_use_it() {
    let may = Arc::new(Mutex::new(None));
    let dir = tempfile::tempdir().unwrap();
    let answer = Arc::clone(&may);
    let embedded = embedded::open(dir.path(), embedded_config()).unwrap().asking(Arc::new(move |holder| {
        let known = (holder == "7.publisher").then(|| *answer.lock().unwrap()).flatten();
        Box::pin(async move { known })
    }));
    let server = Server::serve(dir, embedded).await;
    let mut config = server.config.clone();
    config.names_holders = true;
    let held = Storage::new(&config).unwrap().held_by("7.publisher");
    let body = Bytes::from_static(b"bytes");
    let get = held.presign_get(&object("k"), MINUTE, now()).url;
    let put = held.presign_put(&object("k"), body.len() as u64, Sha256::of(&body), MINUTE, now());
    let say = |known| *may.lock().unwrap() = known;
    let send = async || {
        let request = http().put(&put.url).body(body.clone());
        let request = put.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let sent = request.send().await.unwrap();
        let (kept, status) = (sent.headers()["cache-control"].clone(), sent.status());
        assert_eq!(kept, "private, no-cache");
        let read = http().get(&get).send().await.unwrap();
        if status == 200 {
            assert!(read.bytes().await.unwrap() == body);
            return (200, String::new());
        }
        let refused = refusal(sent).await;
        assert_eq!(refusal(read).await, refused);
        refused
    };
    say(Some(true));
    assert_eq!(send().await.0, 200);
    say(Some(false));
    assert_eq!(send().await, (403, "AccessDenied".into()));
    // Nobody can be asked now: whoever comes again may be let in.
    say(None);
    assert_eq!(send().await, (503, "ServiceUnavailable".into()));
    say(Some(true));
    assert_eq!(send().await.0, 200);
    // The server's own calls, and what is made for everybody, ask nobody.
    say(None);
    assert_eq!(http().get(server.get_url("k")).send().await.unwrap().status(), 200);
    server.storage.put(&object("k"), body.clone(), Sha256::of(&body)).await.unwrap();
}
