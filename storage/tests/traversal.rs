//! Keys that would climb out of a bucket or out of its directory, in requests that are signed as they should be.
//!
//! No library sends such a path, so both the signature and the request are made by hand. Embedded only: what it does with paths.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{BUCKET, Server, bytes, now, secret, tags};
use millpond_protocol::Sha256;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len().min(64)].copy_from_slice(&key[..key.len().min(64)]);
    let inner = Hasher::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    Hasher::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// As AWS writes a path in what is signed: everything but letters, digits, `-._~` and `/` escaped once.
fn canonical(target: &str) -> String {
    let mut decoded = Vec::new();
    let mut bytes = target.bytes();
    while let Some(byte) = bytes.next() {
        let escaped = (byte == b'%').then(|| [bytes.next().unwrap(), bytes.next().unwrap()]);
        decoded.push(match escaped {
            Some(hex) => u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap(),
            None => byte,
        });
    }
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            (byte as char).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    decoded.into_iter().map(escape).collect()
}

/// Sends a PUT of `body` to a target, signed in its headers; the answer as it came.
async fn put(server: &Server, target: &str, body: &[u8]) -> String {
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let stamp = now().to_string().replace(['-', ':'], "");
    let (date, stamp) = (&stamp[..8], format!("{}Z", &stamp[..15]));
    let hash = Sha256::of(body);
    let headers = format!("host:{address}\nx-amz-content-sha256:{hash}\nx-amz-date:{stamp}\n");
    let names = "host;x-amz-content-sha256;x-amz-date";
    let request = format!("PUT\n{}\n\n{headers}\n{names}\n{hash}", canonical(target));
    let scope = format!("{date}/us-east-1/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", Sha256::of(request.as_bytes()));
    let secret = format!("AWS4{}", secret().expose());
    let steps = [date, "us-east-1", "s3", "aws4_request", text.as_str()];
    let signature = steps.iter().fold(secret.into_bytes(), |key, step| hmac(&key, step.as_bytes()).to_vec());
    let signature = data_encoding::HEXLOWER.encode(&signature);
    let head = format!(
        "PUT {target} HTTP/1.1\r\nhost: {address}\r\nx-amz-content-sha256: {hash}\r\nx-amz-date: {stamp}\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=access/{scope}, SignedHeaders={names}, Signature={signature}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn a_signed_put_never_leaves_the_bucket_and_its_directory() {
    let server = Server::start().await;
    let body = bytes(1_000);
    assert_eq!(status(&put(&server, &format!("/{BUCKET}/k"), &body).await), "200", "the signature is right");
    // Slashes in a row are part of a key, as everywhere in S3; keys are no paths here.
    for target in ["a//b", "a%2Fb", "a%2f%2fc", "%C3%A4 b".replace(' ', "%20").as_str()] {
        let answer = put(&server, &format!("/{BUCKET}/{target}"), &body).await;
        assert_eq!(status(&answer), "200", "{target}: {answer}");
    }

    let long = format!("/{BUCKET}/{}", "k".repeat(1_025));
    for (target, expected, code) in [
        ("/millpond/../millpond/k", "400", "InvalidArgument"),
        ("/millpond/../../etc/passwd", "400", "InvalidArgument"),
        ("/millpond/a/../../../other", "400", "InvalidArgument"),
        ("/millpond/a/..", "400", "InvalidArgument"),
        ("/millpond/.", "400", "InvalidArgument"),
        ("/millpond/%2e%2e/x", "400", "InvalidArgument"),
        ("/millpond/a%2F..%2Fb", "400", "InvalidArgument"),
        ("/millpond/..%2f..%2fcatalog.sqlite", "400", "InvalidArgument"),
        ("/millpond//etc/passwd", "400", "InvalidArgument"),
        ("/millpond/%2Fetc%2Fpasswd", "400", "InvalidArgument"),
        ("/millpond/a%00b", "400", "InvalidArgument"),
        ("/millpond/a%0d%0ab", "400", "InvalidArgument"),
        (&long, "400", "KeyTooLongError"),
        ("/other/k", "404", "NoSuchBucket"),
        ("/../millpond/k", "400", "InvalidBucketName"),
        ("/millpond%2F..%2Fother/k", "400", "InvalidArgument"),
    ] {
        let answer = put(&server, target, &body).await;
        let found = (status(&answer), tags(&answer, "Code"));
        assert_eq!(found, (expected, vec![code.to_owned()]), "{target}: {answer}");
    }
    let listed = server.signed(reqwest::Method::GET, "", &[("list-type", "2")], &[]).send().await.unwrap();
    assert_eq!(tags(&listed.text().await.unwrap(), "Key"), ["a//b", "a//c", "a/b", "k", "ä b"]);
    server.settles_at(5).await;
    let mut there: Vec<_> = std::fs::read_dir(server.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("catalog.sqlite"))
        .collect();
    there.sort_unstable();
    assert_eq!(there, ["blobs", "incoming", "lock"], "nothing beside what the format names");
}
