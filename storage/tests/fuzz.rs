//! The fuzz target of the embedded S3 server: requests that are signed whatever is in them, and bytes that are no request at all, over
//! a real connection.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::{Server, object};
use millpond_fuzz::{Seen, Target, run};
use millpond_protocol::Sha256;
use millpond_storage::{Error, ObjectKey, Storage, StorageConfig};
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const WORDS: &[&[u8]] = &[
    b"signed GET ", b"signed PUT ", b"signed POST ", b"signed DELETE ", b"signed HEAD ", b"raw\n", b"\n----\n", b"?uploads", b"?delete",
    b"?list-type=2", b"&prefix=", b"&max-keys=", b"&continuation-token=", b"?partNumber=1&uploadId={upload}", b"?uploadId={upload}",
    b"content-length: ", b"content-md5: ", b"x-amz-checksum-sha256: {sha256}\n", b"x-amz-checksum-crc32: AAAAAA==\n",
    b"x-amz-checksum-algorithm: SHA256\n", b"x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\n",
    b"x-amz-trailer: x-amz-checksum-crc32\n", b"x-amz-decoded-content-length: 5\n", b"content-encoding: aws-chunked\n",
    b"transfer-encoding: chunked\n", b"x-amz-copy-source: /millpond/a\n", b"if-none-match: *\n", b"if-match: {etag}\n",
    b"range: bytes=0-1\n", b"expect: 100-continue\n", b"x-amz-meta-a: b\n", b"origin: https://app.example.org\n",
    b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>",
    b"<Delete><Object><Key>a</Key></Object></Delete>", b"%00", b"%2e%2e/", b"../", b"//", b"HTTP/1.1\r\n", b"\r\n\r\n", b"5\r\nhello\r\n0\r\n",
];

/// Headers that are signed where a request has them.
const SIGNED: &[&str] = &[
    "content-length",
    "content-md5",
    "x-amz-checksum-sha256",
    "x-amz-checksum-sha1",
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-crc64nvme",
    "x-amz-checksum-algorithm",
    "x-amz-content-sha256",
    "x-amz-trailer",
    "x-amz-decoded-content-length",
    "x-amz-copy-source",
    "x-amz-meta-a",
    "if-none-match",
    "if-match",
    "range",
    "content-type",
];

/// Longest time until a connection has its answer or its end: many times the server's own limits here.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 4 << 20;
/// An object that no input names.
const KEPT: &str = "kept-object-that-no-input-names";

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// Whether another answer follows already.
    has_more: bool,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The text between two tags.
    fn tag(&self, name: &str) -> Option<String> {
        let text = self.text();
        Some(text.split(&format!("<{name}>")).nth(1)?.split('<').next()?.to_owned())
    }

    fn header(&self, name: &str) -> Option<&str> {
        let found =
            self.head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(found.split_once(':')?.1.trim())
    }
}

/// Reads one answer; none if the connection ends without.
async fn answer(io: &mut TcpStream, is_head: bool) -> Option<Answer> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).expect("a head of text");
            let (status, body) =
                (head.split(' ').nth(1).unwrap().parse().expect("a status"), bytes.split_off(end + 4));
            let mut answer = Answer { status, head, body, has_more: false };
            if status == 100 {
                bytes = answer.body;
                continue;
            }
            let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
            let chunked = answer.header("transfer-encoding").is_some();
            assert!(length.is_none() || !chunked, "one length");
            let is_whole = |body: &[u8]| match (is_head || [204, 304].contains(&status), length) {
                (true, _) => true,
                (false, Some(length)) => body.len() >= length,
                (false, None) => chunked && body.ends_with(b"0\r\n\r\n"),
            };
            while !is_whole(&answer.body) {
                assert!(answer.body.len() < ANSWER_MAX, "an answer without end");
                if io.read_buf(&mut answer.body).await.unwrap_or(0) == 0 {
                    assert!(length.is_none() && !chunked, "half an answer: {}", answer.head);
                    break;
                }
            }
            let end = if is_head || [204, 304].contains(&status) { Some(0) } else { length };
            if let Some(end) = end.filter(|end| *end < answer.body.len()) {
                answer.has_more = true;
                answer.body.truncate(end);
            }
            return Some(answer);
        }
        assert!(bytes.len() < 64 << 10, "a head without end");
        if io.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            assert!(bytes.is_empty(), "half a head");
            return None;
        }
    }
}

/// What earlier answers gave, for `{upload}` and `{etag}`.
#[derive(Default)]
struct Given {
    upload: String,
    etag: String,
}

struct Request {
    method: Method,
    key: String,
    has_query: bool,
    is_plain: bool,
    /// Whether it says itself where it ends, truly or not.
    has_length: bool,
    wire: Vec<u8>,
    body: Vec<u8>,
}

impl Request {
    /// `METHOD KEY?QUERY`, headers, an empty line, the body. None if it cannot be signed.
    fn signed(server: &Server, text: &[u8], given: &Given) -> Option<Self> {
        let (head, body) = match text.windows(2).position(|window| window == b"\n\n") {
            Some(end) => (&text[..end], text[end + 2..].to_vec()),
            None => (text, Vec::new()),
        };
        let sha256 = STANDARD.encode(Sha256::of(&body).0);
        let fill = |text: &str| {
            text.replace("{upload}", &given.upload)
                .replace("{etag}", &given.etag)
                .replace("{sha256}", &sha256)
        };
        let body = match std::str::from_utf8(&body) {
            Ok(text) => fill(text).into_bytes(),
            Err(_) => body,
        };
        let head = fill(std::str::from_utf8(head).ok()?);
        let mut lines = head.lines();
        let (method, target) = lines.next()?.split_once(' ')?;
        let method = ["GET", "HEAD", "PUT", "POST", "DELETE"].into_iter().find(|known| *known == method)?;
        let (key, query) = target.split_once('?').unwrap_or((target, ""));
        let query: Vec<(&str, &str)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        let mut headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
            .filter(|(name, _)| {
                !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
            .filter(|(name, value)| name != "host" && value.bytes().all(|byte| (b' '..0x7F).contains(&byte)))
            .collect();
        let is_plain = headers
            .iter()
            .all(|(name, _)| name.starts_with("x-amz-checksum-") || name.starts_with("x-amz-meta-"));
        let has_length =
            headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding");
        if !has_length && (!body.is_empty() || method == "PUT" || method == "POST") {
            headers.push(("content-length".into(), body.len().to_string()));
        }
        let signed: Vec<(&'static str, String)> = SIGNED
            .iter()
            .filter_map(|known| Some((*known, headers.iter().find(|(name, _)| name == known)?.1.clone())))
            .collect();
        let method: Method = method.parse().unwrap();
        // A key may read as a URL of its own: of no server, or of a scheme that nobody signs for.
        let bucket = server.config.endpoint.join(&format!("{}/", common::BUCKET)).ok()?;
        let read = bucket.join(key).ok()?;
        (read.has_host() && matches!(read.scheme(), "http" | "https")).then_some(())?;
        let url = server.signer().url(&method, key, &query, &signed);
        let target = &url[url::Position::BeforePath..];
        let authority = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let mut wire = format!("{method} {target} HTTP/1.1\r\nhost: {authority}\r\n");
        headers.iter().for_each(|(name, value)| wire.push_str(&format!("{name}: {value}\r\n")));
        let wire = [wire.as_bytes(), b"\r\n", &body].concat();
        Some(Self {
            key: key.to_owned(),
            has_query: !query.is_empty(),
            is_plain,
            has_length,
            method,
            wire,
            body,
        })
    }
}

async fn connect(server: &Server) -> TcpStream {
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    TcpStream::connect(address).await.unwrap()
}

async fn stored(server: &Server, key: &ObjectKey) -> Option<Bytes> {
    match server.storage.get(key, ANSWER_MAX).await {
        Ok(bytes) => Some(bytes),
        Err(Error::NotFound) => None,
        Err(error) => panic!("{key}: {error}"),
    }
}

/// Sends one request and looks at its answer, and whether the connection is good for another one.
async fn signed(server: &Server, text: &[u8], given: &mut Given, seen: &mut Seen) {
    let Some(request) = Request::signed(server, text, given) else { return seen.note("not signed") };
    let key = request
        .key
        .parse()
        .ok()
        .filter(|_| !request.has_query && !request.key.contains(['%', '\\', '#', '?']));
    let before = match &key {
        Some(key) => stored(server, key).await,
        None => None,
    };
    let mut io = connect(server).await;
    // Whoever is refused may find the connection closed while it writes.
    let _ = io.write_all(&request.wire).await;
    let Some(answer) = answer(&mut io, request.method == Method::HEAD).await else {
        return seen.note("closed");
    };
    let code = answer.tag("Code");
    seen.note((request.method.as_str(), answer.status, &code));
    assert!(
        answer.status != 500 && code.as_deref() != Some("InternalError"),
        "{}\n{}",
        answer.head,
        answer.text()
    );
    if answer.status >= 400 && request.method != Method::HEAD && !answer.body.is_empty() {
        assert!(code.is_some(), "an error without its code: {}\n{}", answer.head, answer.text());
    }
    if let Some(upload) = answer.tag("UploadId") {
        given.upload = upload;
    }
    if let Some(etag) = answer.header("etag") {
        given.etag = etag.to_owned();
    }
    if let Some(key) = &key
        && request.method == Method::PUT
    {
        let after = stored(server, key).await;
        match answer.status {
            200 if request.is_plain => {
                assert_eq!(after.as_deref(), Some(&request.body[..]), "what was accepted is there")
            }
            200 => {}
            _ => assert_eq!(after, before, "what was refused changes nothing: {}", answer.head),
        }
    }
    // What follows the bytes that the request said it has is another request to the server.
    assert!(!answer.has_more || request.has_length, "two answers");
    let is_closed = answer.has_more
        || answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let url = server.signer().url(&Method::GET, KEPT, &[], &[]);
    let again = format!(
        "GET {} HTTP/1.1\r\nhost: {}\r\n\r\n",
        &url[url::Position::BeforePath..],
        &url[url::Position::BeforeHost..url::Position::AfterPort]
    );
    if !is_closed && io.write_all(again.as_bytes()).await.is_ok() {
        match self::answer(&mut io, false).await {
            Some(answer) if request.has_length && (400..500).contains(&answer.status) => {
                seen.note("another request")
            }
            Some(answer) => assert!(answer.status == 200 && answer.body == b"kept", "{}", answer.head),
            None => seen.note("closed afterwards"),
        }
    }
}

/// Sends bytes that are perhaps a request.
async fn raw(server: &Server, bytes: &[u8], seen: &mut Seen) {
    let mut io = connect(server).await;
    let _ = io.write_all(bytes).await;
    let _ = io.shutdown().await;
    let mut said = Vec::new();
    let _ = (&mut io).take(ANSWER_MAX as u64).read_to_end(&mut said).await;
    assert!(said.len() < ANSWER_MAX);
    let line = String::from_utf8_lossy(&said[..said.len().min(12)]).into_owned();
    assert!(said.is_empty() || line.starts_with("HTTP/1.") && !line.ends_with("500"), "{line}");
    seen.note(line);
}

/// Every object is whole, and nothing is left of what was not kept.
async fn settle(server: &Server) {
    let incoming = server.dir.path().join("incoming");
    common::settles(|| std::fs::read_dir(&incoming).unwrap().next().is_none(), || "a body is left".into())
        .await;
    for listed in server.storage.list("").await.unwrap() {
        let Ok(key) = listed.key.parse() else { continue };
        let bytes = server.storage.get(&key, ANSWER_MAX).await.unwrap();
        assert_eq!(bytes.len() as u64, listed.size, "{} is whole", listed.key);
        if listed.key == KEPT {
            assert_eq!(bytes, "kept");
        } else {
            server.storage.delete(&key).await.unwrap();
        }
    }
    assert_eq!(server.storage.get(&object(KEPT), 10).await.unwrap(), "kept");
}

#[test]
fn fuzz_s3() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let start = async || {
        let mut server = Server::start_with(|config| {
            config.max_object = 20_000;
            config.min_part = 1;
            config.stall_timeout = Duration::from_millis(200);
        })
        .await;
        // On a machine that is busy with other things, what looks at storage may stand still as well.
        let patient = StorageConfig { attempts: 10, ..server.config.clone() };
        server.storage = Storage::new(&patient).unwrap();
        let kept = Bytes::from_static(b"kept");
        server.storage.put(&object(KEPT), kept.clone(), Sha256::of(&kept)).await.unwrap();
        server
    };
    let mut server = runtime.block_on(start());
    let mut inputs = 0;
    run(&Target { name: "s3", words: WORDS, max: 8_192 }, |bytes, seen| {
        runtime.block_on(async {
            inputs += 1;
            if inputs % 500 == 0 {
                // Uploads in parts that nobody ends stay until they are abandoned.
                server = start().await;
            }
            let mut given = Given::default();
            let requests = String::from_utf8_lossy(bytes).into_owned();
            let work = async {
                for request in requests.split("\n----\n").take(8) {
                    match request.split_once(['\n', ' ']) {
                        Some(("raw", rest)) => raw(&server, rest.as_bytes(), seen).await,
                        Some(("signed", rest)) => signed(&server, rest.as_bytes(), &mut given, seen).await,
                        _ => {}
                    }
                }
                settle(&server).await;
            };
            tokio::time::timeout(PATIENCE, work)
                .await
                .expect("every request has its answer or its end in time");
        });
    });
}
