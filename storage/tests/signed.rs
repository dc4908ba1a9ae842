//! Requests that are signed in a header, as tools send them: what of their bodies is compared, and what is said then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::header::HeaderSigner;
use common::parts::base64;
use common::{Server, bytes, refusal};
use millpond_protocol::Sha256;

const SIGNED_CHUNKS: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const WITH_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// The headers of a body in chunks that has `size` bytes without what is around them.
fn chunked(size: usize) -> Vec<(&'static str, String)> {
    vec![("content-encoding", "aws-chunked".into()), ("x-amz-decoded-content-length", size.to_string())]
}

/// Replaces some bytes once, by as many others.
fn tampered(mut body: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = body.windows(from.len()).position(|window| window == from).unwrap();
    body[at..at + to.len()].copy_from_slice(to);
    body
}

#[tokio::test]
async fn a_body_that_its_header_or_its_chunks_do_not_vouch_for_gets_its_code_and_is_not_kept() {
    let server = Server::start().await;
    let signer = HeaderSigner::new(&server.config.endpoint, Duration::ZERO);
    let body = bytes(100_000);
    let send = async |key: &str, content: &str, headers: Vec<(&'static str, String)>, sent: Vec<u8>| {
        let (request, _) = signer.put(key, content, &headers);
        let answer = request.body(sent).send().await.unwrap();
        if answer.status().is_success() { (200, String::new()) } else { refusal(answer).await }
    };
    let whole = Sha256::of(&body).to_string();
    assert_eq!(send("whole", &whole, vec![], body.clone()).await.0, 200);
    let wrong = (400, "XAmzContentSHA256Mismatch".to_owned());
    assert_eq!(send("k", &whole, vec![], bytes(99_999)).await.0, 400, "other bytes, and fewer");
    assert_eq!(send("k", &Sha256::of(b"x").to_string(), vec![], body.clone()).await, wrong);

    // In signed chunks: whole, with another byte in the second one, and with another signature of it.
    let put = |key| signer.put(key, SIGNED_CHUNKS, &chunked(body.len()));
    let (request, first) = put("chunks");
    let sent = signer.chunks(&first, &[&body[..70_000], &body[70_000..]]);
    assert_eq!(request.body(sent.clone()).send().await.unwrap().status(), 200);
    let wrong = (403, "SignatureDoesNotMatch".to_owned());
    let other = body[80_000..80_016].iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    for (from, to) in
        [(&body[80_000..80_016], &other[..]), (&b"7530;chunk-signature="[..], &b"7530;chunk-signature=x"[..])]
    {
        let (request, first) = put("k");
        let sent = signer.chunks(&first, &[&body[..70_000], &body[70_000..]]);
        let answer = request.body(tampered(sent, from, to)).send().await.unwrap();
        assert_eq!(refusal(answer).await, wrong);
    }

    // With a checksum behind the chunks: the right one, a wrong one, none.
    let trailer = |sha256: &[u8]| format!("x-amz-checksum-sha256:{}\r\n\r\n", base64(sha256));
    let framed = |trailer: &str| {
        let begin = format!("{:x}\r\n", body.len());
        [begin.as_bytes(), &body, b"\r\n0\r\n", trailer.as_bytes()].concat()
    };
    let mut headers = chunked(body.len());
    headers.push(("x-amz-trailer", "x-amz-checksum-sha256".into()));
    let right = framed(&trailer(&Sha256::of(&body).0));
    assert_eq!(send("trailer", WITH_TRAILER, headers.clone(), right).await.0, 200);
    let wrong = framed(&trailer(&Sha256::of(b"x").0));
    assert_eq!(send("k", WITH_TRAILER, headers.clone(), wrong).await, (400, "BadDigest".into()));
    let none = send("k", WITH_TRAILER, headers, framed("\r\n")).await;
    assert_eq!(none, (400, "MalformedTrailerError".into()));
    server.settles_at(3).await;
}

#[tokio::test]
async fn a_clock_that_is_wrong_by_more_than_15_minutes_is_told_so() {
    let server = Server::start().await;
    let put = async |behind: u64| {
        let signer = HeaderSigner::new(&server.config.endpoint, Duration::from_secs(behind));
        signer.put("k", &Sha256::of(b"abc").to_string(), &[]).0.body("abc").send().await.unwrap()
    };
    assert_eq!(refusal(put(16 * 60).await).await, (403, "RequestTimeTooSkewed".into()));
    server.settles_at(0).await;
    assert_eq!(put(14 * 60).await.status(), 200);
}
