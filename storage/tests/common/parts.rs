//! The client's side of an upload in parts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millpond_protocol::Sha256;
use reqwest::{Method, Response, Result};

use super::{Signer, tags};

pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// One upload.
#[derive(Clone)]
pub struct Upload {
    pub signer: Signer,
    pub key: String,
    pub id: String,
    /// The SHA-256 of what was sent, by its tag: S3 wants to hear it again.
    pub sums: Arc<Mutex<HashMap<String, String>>>,
}

impl Upload {
    /// With the checksum that grants have.
    pub async fn begin(signer: &Signer, key: &str) -> Result<Self> {
        Self::begin_with(signer, key, &[("x-amz-checksum-algorithm", "SHA256".into())]).await
    }

    pub async fn begin_with(signer: &Signer, key: &str, headers: &[(&'static str, String)]) -> Result<Self> {
        let answer = signer.request(Method::POST, key, &[("uploads", "")], headers).send().await?;
        assert_eq!(answer.status(), 200);
        let id = tags(&answer.text().await?, "UploadId").pop().unwrap();
        Ok(Self { signer: signer.clone(), key: key.into(), id, sums: Arc::default() })
    }

    pub fn with_id(&self, id: &str) -> Self {
        Self { id: id.into(), ..self.clone() }
    }

    pub async fn put_with(
        &self,
        n: u32,
        body: &[u8],
        headers: &[(&'static str, String)],
    ) -> Result<Response> {
        let n = n.to_string();
        let query = [("partNumber", n.as_str()), ("uploadId", &self.id)];
        self.signer.request(Method::PUT, &self.key, &query, headers).body(body.to_vec()).send().await
    }

    /// Sends a part as a grant would have it, with its length and SHA-256 signed; returns its tag.
    pub async fn put(&self, n: u32, body: &[u8]) -> Result<String> {
        let headers = [
            ("content-length", body.len().to_string()),
            ("x-amz-checksum-sha256", base64(&Sha256::of(body).0)),
        ];
        let answer = self.put_with(n, body, &headers).await?;
        assert_eq!(answer.status(), 200, "part {n}");
        let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
        self.sums.lock().unwrap().insert(tag.clone(), base64(&Sha256::of(body).0));
        Ok(tag)
    }

    /// With other XML behind the tag of each part than its checksum, where there is any.
    pub async fn complete_with(
        &self,
        parts: &[(u32, String, String)],
        headers: &[(&'static str, String)],
    ) -> Result<Response> {
        let parts: String = parts
            .iter()
            .map(|(n, tag, more)| {
                let sums = self.sums.lock().unwrap();
                let sum = sums.get(tag).filter(|_| more.is_empty());
                let sum =
                    sum.map(|sum| format!("<ChecksumSHA256>{sum}</ChecksumSHA256>")).unwrap_or_default();
                format!("<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag>{more}{sum}</Part>")
            })
            .collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>");
        let query = [("uploadId", self.id.as_str())];
        self.signer.request(Method::POST, &self.key, &query, headers).body(body).send().await
    }

    pub async fn complete(&self, parts: &[(u32, &str)]) -> Result<Response> {
        let parts: Vec<_> = parts.iter().map(|(n, tag)| (*n, (*tag).to_owned(), String::new())).collect();
        self.complete_with(&parts, &[]).await
    }

    pub async fn abort(&self) -> Result<Response> {
        self.signer.request(Method::DELETE, &self.key, &[("uploadId", &self.id)], &[]).send().await
    }

    pub async fn list(&self, more: &[(&str, &str)]) -> Result<Response> {
        let query: Vec<_> =
            [("uploadId", self.id.as_str())].into_iter().chain(more.iter().copied()).collect();
        self.signer.request(Method::GET, &self.key, &query, &[]).send().await
    }
}
