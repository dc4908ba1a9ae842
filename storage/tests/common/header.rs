//! Requests that are signed in a header, and bodies in chunks, by the rule of AWS and with nothing of the server's.

use std::time::Duration;

use jiff::Timestamp;
use millpond_protocol::Sha256;

use super::{Signer, secret};

/// A signature of a request, which those of its chunks go on from.
pub struct HeaderSigner {
    signer: Signer,
    at: Timestamp,
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::of(&[&block.map(|byte| byte ^ 0x36), text].concat());
    Sha256::of(&[&block.map(|byte| byte ^ 0x5c)[..], &inner.0].concat()).0
}

fn hex(bytes: [u8; 32]) -> String {
    Sha256(bytes).to_string()
}

impl HeaderSigner {
    /// One whose clock is so far behind.
    pub fn new(signer: Signer, behind: Duration) -> Self {
        Self { signer, at: Timestamp::now() - behind }
    }

    fn time(&self) -> String {
        self.at.strftime("%Y%m%dT%H%M%SZ").to_string()
    }

    fn scope(&self) -> String {
        format!("{}/us-east-1/s3/aws4_request", self.at.strftime("%Y%m%d"))
    }

    fn sign(&self, text: &str) -> String {
        let mut key = hmac(format!("AWS4{}", secret().expose()).as_bytes(), &self.time().as_bytes()[..8]);
        for step in ["us-east-1", "s3", "aws4_request"] {
            key = hmac(&key, step.as_bytes());
        }
        hex(hmac(&key, text.as_bytes()))
    }

    /// A PUT of `key`, and its signature. `content` is what its `x-amz-content-sha256` says.
    pub fn put(
        &self,
        key: &str,
        content: &str,
        headers: &[(&str, String)],
    ) -> (reqwest::RequestBuilder, String) {
        let url = self.signer.bucket.join(key).unwrap();
        let host = url.authority().to_owned();
        let mut all =
            vec![("host", host), ("x-amz-content-sha256", content.to_owned()), ("x-amz-date", self.time())];
        all.extend_from_slice(headers);
        all.sort();
        let lines: String = all.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let canonical = format!("PUT\n{}\n\n{lines}\n{names}\n{content}", url.path());
        let digest = Sha256::of(canonical.as_bytes());
        let (time, scope) = (self.time(), self.scope());
        let signature = self.sign(&format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=access/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        let request = self.signer.http.put(url).header("authorization", authorization);
        let sent = all.into_iter().filter(|(name, _)| *name != "host");
        let request = sent.fold(request, |request, (name, value)| request.header(name, value));
        (request, signature)
    }

    /// A body in signed chunks, the last one empty.
    pub fn chunks(&self, first: &str, chunks: &[&[u8]]) -> Vec<u8> {
        let (mut body, mut before) = (Vec::new(), first.to_owned());
        for chunk in chunks.iter().chain([&&b""[..]]) {
            let (time, scope) = (self.time(), self.scope());
            let (empty, digest) = (Sha256::of(b""), Sha256::of(chunk));
            before =
                self.sign(&format!("AWS4-HMAC-SHA256-PAYLOAD\n{time}\n{scope}\n{before}\n{empty}\n{digest}"));
            body.extend_from_slice(format!("{:x};chunk-signature={before}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body
    }
}
