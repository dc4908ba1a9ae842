//! How the embedded server behaves.

use std::time::Duration;

use crate::config::{BadConfig, Secret, bucket_rule};
use crate::limits::embedded as limits;

/// How the embedded server behaves: who may use it and what it spends on them.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The one bucket.
    pub bucket: String,
    /// The region that signatures must name.
    pub region: String,
    /// The one access key.
    pub access_key: String,
    /// Its secret, at least 16 characters.
    pub secret_key: Secret,
    /// Origins whose pages may use presigned URLs, such as `https://app.example.org`; `*`: all.
    pub cors_origins: Vec<String>,
    /// Largest object of one PUT, in bytes.
    pub max_object: u64,
    /// Bytes that every part of an upload has at least, but for the last.
    pub min_part: u64,
    /// Bytes of all objects, of parts whose upload has not ended, and of bodies on their way; what would be more gets 507.
    pub quota: u64,
    /// Free bytes of the disk that uploads leave alone: an upload that would take more gets 507. Raising it leaves more
    /// room for the ledger.
    pub min_free: u64,
    /// Connections at once; later ones wait. Each costs up to 1 MiB of memory while it moves a body.
    pub max_connections: usize,
    /// Connections of one address at once (an IPv6 network of /64 is one); half as many as `max_connections` wait beside
    /// those for `idle_timeout`, then they are closed. That keeps no other address waiting.
    pub max_connections_per_address: usize,
    /// Uploads at once; later ones wait a while, then are told to slow down.
    pub max_uploads: usize,
    /// Uploads in parts that have not ended, at once, of keys that are alike up to their last `/`.
    pub max_open: usize,
    /// How long a connection may take to send a request's head, or stay idle.
    pub idle_timeout: Duration,
    /// How long a body may stand still, in either direction.
    pub stall_timeout: Duration,
    /// Bytes that are read of a refused body, so that clients which write before they read still see the answer. Raising
    /// it lets whoever is refused send more for nothing.
    pub drain_bytes: u64,
    /// How long that may take.
    pub drain_time: Duration,
    /// How long after its last part an upload in parts is ended by the server, and its parts removed.
    pub abandoned: Duration,
    /// How often such uploads and files without a row are looked for.
    pub sweep: Duration,
    /// How long requests may go on after the server was told to stop.
    pub grace: Duration,
}

impl EmbeddedConfig {
    /// A configuration with the default limits and region `us-east-1`.
    pub fn new(bucket: &str, access_key: &str, secret_key: Secret) -> Self {
        Self {
            bucket: bucket.into(),
            region: "us-east-1".into(),
            access_key: access_key.into(),
            secret_key,
            cors_origins: Vec::new(),
            max_object: limits::OBJECT,
            min_part: limits::MIN_PART,
            quota: limits::QUOTA,
            min_free: limits::MIN_FREE,
            max_connections: limits::CONNECTIONS,
            max_connections_per_address: limits::CONNECTIONS_PER_ADDRESS,
            max_uploads: limits::UPLOADS,
            max_open: limits::OPEN_UPLOADS,
            idle_timeout: limits::IDLE,
            stall_timeout: limits::STALL,
            drain_bytes: limits::DRAIN_BYTES,
            drain_time: limits::DRAIN_TIME,
            abandoned: limits::ABANDONED,
            sweep: limits::SWEEP,
            grace: limits::GRACE,
        }
    }

    /// Finds everything that is wrong.
    pub fn validate(&self) -> Result<(), BadConfig> {
        let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        let mut wrong = Vec::new();
        let mut rule = |holds: bool, said: &str| {
            if !holds {
                wrong.push(said.to_owned());
            }
        };
        rule(
            bucket_rule(&self.bucket),
            "bucket is 3–63 of a–z, 0–9, - and ., and starts and ends with a letter or digit",
        );
        rule(word(&self.region), "region is visible ASCII without /");
        rule(word(&self.access_key), "access_key is visible ASCII without /");
        rule(self.secret_key.expose().len() >= 16, "secret_key has at least 16 characters");
        rule(self.max_object > 0, "max_object is more than zero");
        rule(self.max_connections > 0, "max_connections is at least 1");
        rule(self.max_connections_per_address > 0, "max_connections_per_address is at least 1");
        rule(self.max_uploads > 0, "max_uploads is at least 1");
        rule(self.max_open > 0, "max_open is at least 1");
        rule(!self.idle_timeout.is_zero(), "idle_timeout is more than zero");
        rule(!self.stall_timeout.is_zero(), "stall_timeout is more than zero");
        rule(!self.sweep.is_zero(), "sweep is more than zero");
        if wrong.is_empty() { Ok(()) } else { Err(BadConfig(wrong)) }
    }
}
