//! A publisher of large files.

use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Receipt, answer};
use millpond_protocol::{Code, Refusal, Role, Sha256};
pub use millpond_tests::Place;
use millpond_tests::{Api, Link, Server, recent_hour};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A connected member, and the API to fetch and send with.
pub struct Client {
    pub link: Link,
    pub api: Api,
}

impl Client {
    /// A new member of pool `demo`, connected.
    pub async fn join(server: &Server, name: &str, role: Role) -> Self {
        let who = server.member("demo", name, role).await;
        Self { link: Link::open(who).await.unwrap(), api: server.api() }
    }

    /// Another connection of the same member.
    pub async fn second(&self, server: &Server) -> Self {
        let mut who = self.link.who.clone();
        who.client_id = "second".into();
        Self { link: Link::open(who).await.unwrap(), api: server.api() }
    }

    /// Asks with a fresh id.
    pub async fn ask<T: DeserializeOwned>(&self, op: Op, ask: Value) -> Result<T, Refusal> {
        static ASKS: AtomicU64 = AtomicU64::new(0);
        let mut ask = ask;
        ask["id"] = json!(format!("a-{}", ASKS.fetch_add(1, Ordering::Relaxed)));
        self.link.ask(op, &ask).await.map_err(|error| match error.downcast::<Refusal>() {
            Ok(refusal) => refusal,
            // The gate says it with the acknowledgement.
            Err(error) if error.to_string().contains("NotAuthorized") => {
                Refusal::new(Code::Unauthorized, error.to_string())
            }
            Err(error) => panic!("{op}: {error:#}"),
        })
    }

    /// A grant for these bytes.
    pub async fn put(&self, upload: &str, bytes: &[u8]) -> Result<answer::Put, Refusal> {
        self.put_with(upload, bytes, json!({})).await
    }

    /// A grant with more keys in the ask.
    pub async fn put_with(&self, upload: &str, bytes: &[u8], more: Value) -> Result<answer::Put, Refusal> {
        let mut ask = json!({ "upload": upload, "size": bytes.len(), "sha256": Sha256::of(bytes),
            "event_time": recent_hour() });
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.ask(Op::Put, ask).await
    }

    /// Asks and sends, as a single PUT.
    pub async fn send(&self, upload: &str, bytes: &[u8]) {
        let put = self.put(upload, bytes).await.unwrap();
        let to = put.to.expect("a grant that is open");
        assert_eq!(self.api.send(&to, Bytes::copy_from_slice(bytes)).await, 200);
    }

    pub async fn commit(&self, uploads: &[&str]) -> Result<Vec<Receipt>, Refusal> {
        let answer: answer::Commit =
            self.ask(Op::Commit, json!({ "uploads": uploads, "wait_s": 30 })).await?;
        Ok(answer.uploads)
    }

    pub async fn status(&self, upload: &str) -> Result<answer::UploadInfo, Refusal> {
        self.ask(Op::Status, json!({ "upload": upload })).await
    }

    /// What becomes of an upload in the end.
    pub async fn settled(&self, upload: &str) -> Outcome {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < patience, "nothing becomes of {upload}");
            match self.status(upload).await.unwrap().outcome {
                Outcome::Granted | Outcome::Pending => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    }

    /// The next receipt for that upload.
    pub async fn receipt(&mut self, upload: &str) -> Receipt {
        loop {
            let message = self.link.next().await.unwrap();
            if !message.topic.ends_with("/receipt") {
                continue;
            }
            let receipt: Receipt = serde_json::from_slice(&message.payload).unwrap();
            if receipt.upload == upload {
                return receipt;
            }
        }
    }
}

/// The code that a call has to be refused with.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Refusal>, code: Code) -> Refusal {
    let refusal = outcome.unwrap_err();
    assert_eq!(refusal.code, code, "{refusal:?}");
    refusal
}

/// `len` bytes that differ from those of another `seed`.
pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}
