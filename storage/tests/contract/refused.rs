//! PUTs that are not kept: each gets its code and changes nothing.

use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_storage::ObjectKey;
use reqwest::{Method, RequestBuilder};

use super::{Place, fresh, outcome};
use crate::common::parts::base64;
use crate::common::{MINUTE, bytes, now};

type Change = fn(&Place, &ObjectKey, &[u8]) -> RequestBuilder;

fn with(place: &Place, key: &ObjectKey, name: &'static str, value: String, body: &[u8]) -> RequestBuilder {
    place.signed(Method::PUT, key.as_str(), &[], &[(name, value)]).body(body.to_vec())
}

/// The same request with another URL.
fn at(place: &Place, key: &ObjectKey, body: &[u8], change: impl FnOnce(String) -> String) -> RequestBuilder {
    let url = place.signer().url(&Method::PUT, key.as_str(), &[], &[]).to_string();
    place.http.put(change(url)).body(body.to_vec())
}

pub async fn a_put_that_is_not_what_was_signed_or_declared_gets_its_code_and_changes_nothing(place: &Place) {
    let cases: [(&str, &str, Change); 16] = [
        ("no signature", "403 AccessDenied", |p, k, b| {
            at(p, k, b, |url| url.split('?').next().unwrap().into())
        }),
        ("another signature", "403 SignatureDoesNotMatch", |p, k, b| {
            at(p, k, b, |mut url| {
                let last = url.pop();
                url + if last == Some('0') { "1" } else { "0" }
            })
        }),
        ("another key", "403 SignatureDoesNotMatch", |p, k, b| at(p, k, b, |url| url.replace("?", "x?"))),
        ("another method", "403 SignatureDoesNotMatch", |p, k, b| p.http.put(p.get_url(k)).body(b.to_vec())),
        ("longer life", "403 SignatureDoesNotMatch", |p, k, b| {
            at(p, k, b, |url| url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"))
        }),
        ("an unknown key pair", "403 InvalidAccessKeyId", |p, k, b| {
            at(p, k, b, |url| url.replace("Credential=access", "Credential=nobody"))
        }),
        ("an expired URL", "403 AccessDenied", |p, k, b| {
            let then = now().before(MINUTE * 60);
            let signed = p.storage.presign_put(k, b.len() as u64, Sha256::of(b), MINUTE, then);
            let request = p.http.put(signed.url).body(b.to_vec());
            signed.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
        }),
        ("an unsigned header", "403 AccessDenied", |p, k, b| {
            p.put_request(k, b, b.to_vec()).header("x-amz-meta-more", "x")
        }),
        ("fewer bytes", "403 SignatureDoesNotMatch", |p, k, b| {
            let signed = p.storage.presign_put(k, b.len() as u64, Sha256::of(b), MINUTE, now());
            p.http.put(signed.url).header(signed.headers[1].0, &signed.headers[1].1).body(b[1..].to_vec())
        }),
        ("other bytes", "400 BadDigest", |p, k, b| p.put_request(k, b, vec![0; b.len()])),
        ("a wrong CRC", "400 BadDigest", |p, k, b| {
            with(p, k, "x-amz-checksum-crc64nvme", base64(&[0; 8]), b)
        }),
        ("a wrong MD5", "400 BadDigest", |p, k, b| with(p, k, "content-md5", base64(&[0; 16]), b)),
        ("half a checksum", "400 InvalidDigest", |p, k, b| {
            with(p, k, "x-amz-checksum-sha1", base64(&[0; 8]), b)
        }),
        ("no checksum behind the body", "400 MalformedTrailerError", |p, k, b| {
            with(p, k, "x-amz-trailer", "x-amz-checksum-crc32".into(), b)
        }),
        ("no length", "411 MissingContentLength", |p, k, b| {
            let body = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(b))]);
            let url = p.signer().url(&Method::PUT, k.as_str(), &[], &[]);
            p.http.put(url).body(reqwest::Body::wrap_stream(body))
        }),
        ("a condition", "412 PreconditionFailed", |p, k, b| with(p, k, "if-none-match", "*".into(), b)),
    ];
    for (claim, s3, change) in cases {
        // Small ones, and those of which the client is still sending when the answer is ready.
        for size in [10, 90_000] {
            let key = fresh("refused");
            place.put(&key, b"old").await;
            let answer = change(place, &key, &bytes(size)).send().await;
            let answer = answer.unwrap_or_else(|error| panic!("{claim}: {error:?}"));
            let said = outcome(answer).await;
            let taken = said == "200";
            place.says(claim, said, s3);
            if !taken {
                assert_eq!(place.storage.get(&key, 3).await.unwrap(), "old", "{claim}, {size} bytes");
            }
            place.storage.delete(&key).await.unwrap();
        }
    }
    place.keeps(0).await;
}
