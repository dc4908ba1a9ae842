//! Signatures of the server's own calls: AWS Signature Version 4 in the `authorization` header.
//!
//! URLs for others are signed in their query (`presign`). For calls of one's own the header is the better place: every
//! server knows it for every operation, and it covers the hash of the body.

use data_encoding::HEXLOWER;
use hmac::{Hmac, Mac as _};
use jiff::Timestamp;
use millpond_protocol::Sha256;

use crate::config::{Secret, StorageConfig};

/// Whose signatures, and for which region.
pub(crate) struct Signer {
    access_key: String,
    secret_key: Secret,
    session_token: Option<Secret>,
    region: String,
}

/// What a signature covers.
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a str,
    /// Host and port as the `host` header says them.
    pub(crate) host: &'a str,
    /// The path, percent-encoded.
    pub(crate) path: &'a str,
    /// The query as [`query`] writes it.
    pub(crate) query: &'a str,
    /// Headers to be sent, with lower-case names.
    pub(crate) headers: &'a [(&'static str, String)],
    /// The SHA-256 of the body.
    pub(crate) body: Sha256,
}

impl Signer {
    pub(crate) fn new(config: &StorageConfig) -> Self {
        Self {
            access_key: config.access_key.clone(),
            secret_key: config.secret_key.clone(),
            session_token: config.session_token.clone(),
            region: config.region.clone(),
        }
    }

    /// All headers that the request needs, those that it came with among them.
    pub(crate) fn sign(&self, request: &Unsigned<'_>, now: Timestamp) -> Vec<(&'static str, String)> {
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let (date, _) = time.split_at(8);
        let body = request.body.to_string();

        let mut headers = request.headers.to_vec();
        headers.push(("x-amz-content-sha256", body.clone()));
        headers.push(("x-amz-date", time.clone()));
        if let Some(token) = &self.session_token {
            headers.push(("x-amz-security-token", token.expose().to_owned()));
        }

        let mut covered: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.trim())).collect();
        covered.push(("host", request.host));
        covered.sort_unstable();
        let names = covered.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = covered.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();

        let canonical =
            format!("{}\n{}\n{}\n{lines}\n{names}\n{body}", request.method, request.path, request.query);
        let scope = format!("{date}/{}/s3/aws4_request", self.region);
        let hash = Sha256::of(canonical.as_bytes());
        let signature = hmac(&self.key(date), &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}"));
        headers.push((
            "authorization",
            format!(
                "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={}",
                self.access_key,
                HEXLOWER.encode(&signature)
            ),
        ));
        headers
    }

    fn key(&self, date: &str) -> [u8; 32] {
        let secret = format!("AWS4{}", self.secret_key.expose());
        ["s3", "aws4_request"]
            .iter()
            .fold(hmac(&hmac(secret.as_bytes(), date), &self.region), |key, text| hmac(&key, text))
    }
}

/// A query as signatures and URLs write it: sorted, with everything escaped that may be.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

fn hmac(key: &[u8], text: &str) -> [u8; 32] {
    // HMAC takes keys of any length, so there is no error to meet.
    let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            session_token: None,
            region: "us-east-1".into(),
        }
    }

    fn signed(request: &Unsigned<'_>) -> String {
        let headers = signer().sign(request, "2013-05-24T00:00:00Z".parse().unwrap());
        headers.last().unwrap().1.rsplit_once('=').unwrap().1.to_owned()
    }

    /// The examples of AWS's own documentation ("Signature Calculations for the Authorization Header").
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let host = "examplebucket.s3.amazonaws.com";
        let get = Unsigned {
            method: "GET",
            host,
            path: "/test.txt",
            query: "",
            headers: &[("range", "bytes=0-9".into())],
            body: Sha256::of(b""),
        };
        assert_eq!(signed(&get), "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
        let put = Unsigned {
            method: "PUT",
            host,
            path: "/test%24file.text",
            query: "",
            headers: &[
                ("date", "Fri, 24 May 2013 00:00:00 GMT".into()),
                ("x-amz-storage-class", "REDUCED_REDUNDANCY".into()),
            ],
            body: Sha256::of(b"Welcome to Amazon S3."),
        };
        assert_eq!(signed(&put), "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
        let list = Unsigned {
            method: "GET",
            host,
            path: "/",
            query: &query(&[("prefix", "J"), ("max-keys", "2")]),
            headers: &[],
            body: Sha256::of(b""),
        };
        assert_eq!(signed(&list), "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }

    #[test]
    fn a_query_is_sorted_and_escaped() {
        assert_eq!(
            query(&[("uploadId", "a/b+c=~"), ("partNumber", "7")]),
            "partNumber=7&uploadId=a%2Fb%2Bc%3D~"
        );
        assert_eq!(query(&[("uploads", "")]), "uploads=");
    }

    #[test]
    fn a_session_token_is_sent_and_covered() {
        let with = Signer { session_token: Some(Secret::new("token")), ..signer() };
        let request =
            Unsigned { method: "GET", host: "h", path: "/", query: "", headers: &[], body: Sha256::of(b"") };
        let headers = with.sign(&request, Timestamp::UNIX_EPOCH);
        assert!(headers.contains(&("x-amz-security-token", "token".to_owned())));
        assert!(headers.last().unwrap().1.contains("x-amz-date;x-amz-security-token,"));
    }
}
