//! Bodies in chunks of S3's own: whatever a chunk announces, none of that size is held in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{BUCKET, Server, bytes, http, object, refusal};
use data_encoding::HEXLOWER;
use reqwest::Response;
use sha2::{Digest as _, Sha256};

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// HMAC-SHA-256 of a key of up to 64 bytes.
fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::digest([&pad(0x36)[..], text.as_bytes()].concat());
    Sha256::digest([&pad(0x5C)[..], &inner].concat()).to_vec()
}

/// PUTs `body` in chunks of `size` bytes, with the encoding that the header names; signed chunk by chunk where that says so.
async fn put(server: &Server, encoding: &str, body: &[u8], size: usize) -> Response {
    let now = jiff::Timestamp::now();
    let (day, time) = (now.strftime("%Y%m%d").to_string(), now.strftime("%Y%m%dT%H%M%SZ").to_string());
    let scope = format!("{day}/us-east-1/s3/aws4_request");
    let first = "AWS4a-secret-of-the-tests";
    let key = ["us-east-1", "s3", "aws4_request"]
        .iter()
        .fold(hmac(first.as_bytes(), &day), |key, part| hmac(&key, part));
    let sign = |text: String| HEXLOWER.encode(&hmac(&key, &text));
    let url = server.config.endpoint.join(&format!("{BUCKET}/k")).unwrap();
    let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
    let is_signed = !encoding.contains("UNSIGNED");
    let (trailer, trailer_name) =
        if is_signed { ("", "") } else { ("x-amz-trailer:x-amz-checksum-crc32\n", ";x-amz-trailer") };
    let names = format!("host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length{trailer_name}");
    let length = body.len();
    let canonical = format!(
        "PUT\n/{BUCKET}/k\n\nhost:{host}\nx-amz-content-sha256:{encoding}\nx-amz-date:{time}\n\
         x-amz-decoded-content-length:{length}\n{trailer}\n{names}\n{encoding}"
    );
    let seed = sign(format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hash(canonical.as_bytes())));
    let (mut encoded, mut before) = (Vec::new(), seed.clone());
    for chunk in body.chunks(size).chain([&[][..]]) {
        before = sign(format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{time}\n{scope}\n{before}\n{}\n{}",
            hash(b""),
            hash(chunk)
        ));
        let signature = if is_signed { format!(";chunk-signature={before}") } else { String::new() };
        encoded.extend_from_slice(format!("{:x}{signature}\r\n", chunk.len()).as_bytes());
        encoded.extend_from_slice(chunk);
        if !chunk.is_empty() || is_signed {
            encoded.extend_from_slice(b"\r\n");
        }
    }
    if !is_signed {
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body) as u32;
        let sum = data_encoding::BASE64.encode(&sum.to_be_bytes());
        encoded.extend_from_slice(format!("x-amz-checksum-crc32:{sum}\r\n\r\n").as_bytes());
    }
    let mut request = http()
        .put(url)
        .header("x-amz-content-sha256", encoding)
        .header("x-amz-date", time)
        .header("x-amz-decoded-content-length", length)
        .header(
            "authorization",
            format!("AWS4-HMAC-SHA256 Credential=access/{scope}, SignedHeaders={names}, Signature={seed}"),
        );
    if !is_signed {
        request = request.header("x-amz-trailer", "x-amz-checksum-crc32");
    }
    request.body(encoded).send().await.unwrap()
}

#[tokio::test]
async fn a_chunk_without_a_signature_has_any_size_and_a_signed_one_that_is_too_long_is_refused() {
    let server = Server::start().await;
    let body = bytes(3 << 20);
    for (encoding, size) in
        [("STREAMING-UNSIGNED-PAYLOAD-TRAILER", body.len()), ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", 64 << 10)]
    {
        let answer = put(&server, encoding, &body, size).await;
        let status = answer.status();
        assert_eq!(status, 200, "{encoding}: {}", answer.text().await.unwrap());
        let kept = server.storage.get(&object("k"), body.len()).await.unwrap();
        assert!(kept == body, "{encoding}: other bytes were kept");
        server.storage.delete(&object("k")).await.unwrap();
    }
    let long = put(&server, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", &body, 2 << 20).await;
    assert_eq!(refusal(long).await, (400, "EntityTooLarge".into()));
    server.settles_at(0).await;
}
