//! Bodies in chunks of S3's own: whatever a chunk announces, none of that size is held in memory.
//!
//! Embedded only: its limit. What such bodies are otherwise is in `contract/signed.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::header::HeaderSigner;
use common::{Server, bytes, object, refusal};

#[tokio::test]
async fn a_signed_chunk_that_is_too_long_is_refused() {
    let server = Server::start().await;
    let signer = HeaderSigner::new(server.signer(), Duration::ZERO);
    let body = bytes(3 << 20);
    let put = async |size: usize| {
        let length = [("x-amz-decoded-content-length", body.len().to_string())];
        let (request, first) = signer.put("k", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", &length);
        let chunks: Vec<_> = body.chunks(size).collect();
        request.body(signer.chunks(&first, &chunks)).send().await.unwrap()
    };
    assert_eq!(put(1 << 20).await.status(), 200);
    assert!(server.storage.get(&object("k"), body.len()).await.unwrap() == body);
    server.storage.delete(&object("k")).await.unwrap();
    assert_eq!(refusal(put(2 << 20).await).await, (400, "EntityTooLarge".into()));
    server.settles_at(0).await;
}
