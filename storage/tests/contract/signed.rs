//! Requests that are signed in a header, as tools send them: what of their bodies is compared, and what is said then.

use std::time::Duration;

use bytes::Bytes;
use millpond_protocol::Sha256;

use super::{Place, fresh, outcome};
use crate::common::bytes;
use crate::common::header::HeaderSigner;
use crate::common::parts::base64;

pub const SIGNED_CHUNKS: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const WITH_TRAILER: &str = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// The headers of a body in chunks that has `size` bytes without what is around them.
pub fn chunked(size: usize) -> Vec<(&'static str, String)> {
    vec![("content-encoding", "aws-chunked".into()), ("x-amz-decoded-content-length", size.to_string())]
}

/// Replaces some bytes once, by as many others.
fn tampered(mut body: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = body.windows(from.len()).position(|window| window == from).unwrap();
    body[at..at + to.len()].copy_from_slice(to);
    body
}

/// One chunk that nobody signed, and what stands behind it.
fn framed(body: &[u8], trailer: &str) -> Vec<u8> {
    let begin = format!("{:x}\r\n", body.len());
    [begin.as_bytes(), body, b"\r\n0\r\n", trailer.as_bytes()].concat()
}

pub async fn a_body_that_its_header_or_its_chunks_do_not_vouch_for_gets_its_code_and_is_not_kept(
    place: &Place,
) {
    let signer = HeaderSigner::new(place.signer(), Duration::ZERO);
    let (key, body) = (fresh("vouched"), bytes(100_000));
    let send = async |content: &str, headers: Vec<(&'static str, String)>, sent: Vec<u8>| {
        let (request, _) = signer.put(key.as_str(), content, &headers);
        outcome(request.body(sent).send().await.unwrap()).await
    };
    let whole = Sha256::of(&body).to_string();
    assert_eq!(send(&whole, vec![], body.clone()).await, "200");
    let wrong = "400 XAmzContentSHA256Mismatch";
    place.says("fewer bytes than a header signs", &send(&whole, vec![], bytes(99_999)).await[..3], "400");
    let other = send(&Sha256::of(b"x").to_string(), vec![], body.clone()).await;
    place.says("other bytes than a header signs", other, wrong);

    // In signed chunks: whole, with another byte in the second one, and with another signature of it.
    let put = || signer.put(key.as_str(), SIGNED_CHUNKS, &chunked(body.len()));
    let (request, first) = put();
    let sent = signer.chunks(&first, &[&body[..70_000], &body[70_000..]]);
    assert_eq!(outcome(request.body(sent).send().await.unwrap()).await, "200");
    assert!(place.storage.get(&key, body.len()).await.unwrap() == body);
    let other = body[80_000..80_016].iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
    for (claim, from, to) in [
        ("another byte in a signed chunk", &body[80_000..80_016], &other[..]),
        ("another signature of a chunk", &b"7530;chunk-signature="[..], &b"7530;chunk-signature=x"[..]),
    ] {
        let (request, first) = put();
        let sent = signer.chunks(&first, &[&body[..70_000], &body[70_000..]]);
        let answer = request.body(tampered(sent, from, to)).send().await.unwrap();
        place.says(claim, outcome(answer).await, "403 SignatureDoesNotMatch");
    }

    // With a checksum behind the chunks: the right one, a wrong one, none.
    let trailer = |sha256: &[u8]| format!("x-amz-checksum-sha256:{}\r\n\r\n", base64(sha256));
    let mut headers = chunked(body.len());
    headers.push(("x-amz-trailer", "x-amz-checksum-sha256".into()));
    let right = framed(&body, &trailer(&Sha256::of(&body).0));
    place.says("a checksum behind chunks", send(WITH_TRAILER, headers.clone(), right).await, "200");
    let wrong = framed(&body, &trailer(&Sha256::of(b"x").0));
    let wrong = send(WITH_TRAILER, headers.clone(), wrong).await;
    place.says("a wrong checksum behind chunks", wrong, "400 BadDigest");
    let none = send(WITH_TRAILER, headers, framed(&body, "\r\n")).await;
    place.says("no checksum behind chunks", none, "400 MalformedTrailerError");
    place.keeps(1).await;
}

pub async fn a_chunk_without_a_signature_has_any_size(place: &Place) {
    let signer = HeaderSigner::new(place.signer(), Duration::ZERO);
    let (key, body) = (fresh("chunk"), bytes(3 << 20));
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &body) as u32;
    let trailer = format!("x-amz-checksum-crc32:{}\r\n\r\n", base64(&sum.to_be_bytes()));
    let mut headers = chunked(body.len());
    headers.push(("x-amz-trailer", "x-amz-checksum-crc32".into()));
    let (request, _) = signer.put(key.as_str(), WITH_TRAILER, &headers);
    assert_eq!(outcome(request.body(framed(&body, &trailer)).send().await.unwrap()).await, "200");
    assert!(place.storage.get(&key, body.len()).await.unwrap() == body);
    place.keeps(1).await;
}

pub async fn a_checksum_behind_the_body_is_compared_too(place: &Place) {
    use minio::s3::types::S3Api as _;
    // That client looks its bucket up by the path, and knows no proxy.
    if !place.config.path_style {
        return;
    }
    let body = bytes(700_000);
    let base = place.config.endpoint.as_str().parse().unwrap();
    let keys = minio::s3::creds::StaticProvider::new("access", crate::common::secret().expose(), None);
    let client = minio::s3::MinioClient::new(base, Some(keys), None, None).unwrap();
    for (name, signed) in [("unsigned", false), ("signed", true)] {
        let key = fresh(name);
        minio::s3::builders::UploadPart::builder()
            .client(client.clone())
            .bucket(minio::s3::types::BucketName::new(crate::common::BUCKET).unwrap())
            .object(minio::s3::types::ObjectKey::new(key.as_str()).unwrap())
            .data(std::sync::Arc::new(Bytes::from(body.clone()).into()))
            .checksum_algorithm(Some(minio::s3::utils::ChecksumAlgorithm::SHA256))
            .use_trailing_checksum(true)
            .use_signed_streaming(signed)
            .build()
            .send()
            .await
            .unwrap();
        assert!(place.storage.get(&key, body.len()).await.unwrap() == body, "{name}");
    }
}

pub async fn a_clock_that_is_wrong_by_more_than_15_minutes_is_told_so(place: &Place) {
    let key = fresh("clock");
    let put = async |behind: u64| {
        let signer = HeaderSigner::new(place.signer(), Duration::from_secs(behind));
        let (request, _) = signer.put(key.as_str(), &Sha256::of(b"abc").to_string(), &[]);
        outcome(request.body("abc").send().await.unwrap()).await
    };
    place.says("a clock that is 16 minutes behind", put(16 * 60).await, "403 RequestTimeTooSkewed");
    place.keeps(0).await;
    assert_eq!(put(14 * 60).await, "200");
}
