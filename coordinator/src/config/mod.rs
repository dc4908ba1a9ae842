//! The server's configuration: one typed structure, from defaults, a TOML file and the environment.
//!
//! Every key has a default, so no file is needed. `config/millpond.toml` in the repository lists each key with its default,
//! unit and meaning. A setting of the environment (`MILLPOND__SECTION__KEY`) wins over the file. Whatever is wrong is
//! reported at once, each problem with its key and where it came from.

mod check;
mod client;
#[cfg(test)]
mod fuzz;
mod load;
mod pool_file;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use millpond_protocol::limits;
use serde::{Deserialize, Serialize};
use url::Url;

pub use load::{BadConfig, Problem};
pub use millpond_storage::Secret;
pub use pool_file::PoolFile;
pub use tls::Tls;

/// Everything that can be configured about a server. What concerns one pool is its [`crate::rounds::Policy`] instead,
/// and lives in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: Server,
    pub tls: Tls,
    pub mqtt: Mqtt,
    pub http: Http,
    pub storage: Storage,
    pub log: Log,
    pub limits: Limits,
}

/// The process as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The directory of ledger, admin token and embedded storage; made at first start (0700), locked by one process.
    pub data_dir: PathBuf,
    /// Whether listeners without TLS may be reachable from other machines.
    pub allow_plaintext: bool,
    /// Seconds that a stop waits for acknowledgements and open requests. Raising it makes restarts slower and resends fewer.
    pub shutdown_grace_s: u64,
}

/// The gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Where MQTT 3.1.1 and 5 clients connect.
    pub listen: SocketAddr,
    /// Where they connect with TLS, if `[tls]` names a certificate; empty: nowhere.
    #[serde(with = "optional")]
    pub tls_listen: Option<SocketAddr>,
    /// Host that `member add` prints for clients; empty: the listener's own address, or the host of `storage.public_url` where
    /// that is every address.
    pub public_host: String,
    /// Bytes of a file in one PUBLISH. Raising it lets one packet hold a slow link longer.
    pub publish_max: usize,
    /// Bytes of a bundle. Raising it lets clients that were offline catch up in fewer messages, at more memory each.
    pub bundle_max: usize,
    /// What the members of a pool may publish and subscribe to among themselves: filters such as `app/+/#`, in which `+`
    /// stands for the pool's own name. More of them: more of the server's memory is the members'.
    pub app_topics: Vec<String>,
    /// Seconds of the longest keep-alive of an MQTT 5 client; 0: any. Raising it finds out later who has vanished.
    pub keep_alive_max_s: u16,
}

/// The HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Where `/v1`, `/healthz`, `/readyz` and `/metrics` answer.
    pub listen: SocketAddr,
    /// Whether it speaks TLS there, if `[tls]` names a certificate.
    pub tls: bool,
    /// Seconds until a request is given up with `unavailable`; event streams are not concerned. Raising it helps slow disks.
    pub request_timeout_s: u64,
    /// Event streams at once, of which a pool may have as many as are free; one more is told `quota`. Each holds a connection and reads the
    /// ledger up to five times a second while something happens.
    pub event_streams_max: usize,
    /// Connections at once; later ones wait. Raising it costs some 100 KiB each.
    pub connections_max: usize,
    /// The same from one address; what comes beyond that waits alone. Raising it helps proxies, and lets one address keep
    /// more others waiting.
    pub connections_per_address: usize,
    /// A file that holds the token which `/metrics` asks for; empty: it asks for none on this machine, and elsewhere for the
    /// admin's.
    #[serde(with = "optional")]
    pub metrics_token_file: Option<String>,
    /// What it holds.
    #[serde(skip)]
    pub metrics_token: Secret,
}

/// Where files live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Whose storage it is.
    pub mode: StorageMode,
    /// Where the embedded server listens. `mode = "embedded"`.
    pub listen: SocketAddr,
    /// Whether it speaks TLS there, if `[tls]` names a certificate. `mode = "embedded"`.
    pub tls: bool,
    /// What the server calls. `mode = "external"`.
    #[serde(with = "optional")]
    pub endpoint: Option<Url>,
    /// What URLs for clients are signed for; empty: the embedded server's address, or `endpoint`.
    #[serde(with = "optional")]
    pub public_url: Option<Url>,
    /// The region that signatures name.
    pub region: String,
    /// The bucket that holds everything. An external one must exist.
    pub bucket: String,
    /// Whether the bucket stands in the path rather than in the host name. `mode = "external"`.
    pub path_style: bool,
    /// The public half of the credentials; empty with the embedded server: made at first start.
    pub access_key: String,
    /// The secret half of the credentials.
    pub secret_key: Secret,
    /// A file that holds `secret_key` instead.
    #[serde(with = "optional")]
    pub secret_key_file: Option<String>,
    /// The token that belongs to temporary credentials. `mode = "external"`.
    pub session_token: Secret,
    /// A file of certificates in PEM: authorities that storage's certificate may come from, beside the public ones.
    #[serde(with = "optional")]
    pub ca_file: Option<String>,
    /// The HTTP proxy that the server's calls go through; those of the environment are not used.
    #[serde(with = "optional")]
    pub proxy: Option<Url>,
    /// Seconds that one call may take, retries included. Raising it keeps clients waiting longer when storage is away.
    pub call_timeout_s: u64,
    /// Bytes of all objects of the embedded server; 0: as many as the disk holds. Raising it leaves less to the ledger.
    pub quota_bytes: u64,
    /// Connections at once to the embedded server; later ones wait. Raising it costs up to 1 MiB each.
    pub connections_max: usize,
    /// The same from one address; what comes beyond that waits alone. Raising it helps proxies, and lets one address keep
    /// more others waiting.
    pub connections_per_address: usize,
    /// Origins whose pages may use URLs of the embedded server; `*`: all. More: more pages may.
    pub cors_origins: Vec<String>,
}

/// Who serves the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageMode {
    /// The S3 server inside this process, on the disk under `data_dir`.
    Embedded,
    /// Any S3 endpoint.
    External,
}

/// What is written to standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// In which shape.
    pub format: LogFormat,
    /// What is logged: a level, or `target=level` pairs separated by commas.
    pub filter: String,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line, with the field names of the Elastic Common Schema.
    Json,
    /// For people.
    Text,
}

/// Numbers that bound what clients can make the server hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of one member. Raising it lets one credential hold more of the server.
    pub connections_per_member: usize,
    /// Connections in all that have signed in. Raising it needs more memory and descriptors.
    pub connections_max: usize,
    /// The same from one address (an IPv6 network of /64 is one). Raising it helps large fleets behind one address.
    pub connections_per_address: usize,
    /// Connections that have not signed in yet; four times as many wait. Raising it helps reconnect storms, at 16 KiB each.
    pub strangers_max: usize,
    /// The same from one address. Raising it helps fleets behind one address, and lets one address keep more others waiting.
    pub strangers_per_address: usize,
    /// Sign-ins with wrong credentials that one name may have from one address at once; later one in 30 s. Raising it lets
    /// badly configured devices take more of the server.
    pub sign_in_failures_per_name: u32,
    /// Names that may begin to fail from one address; later one a second. Raising it helps fleets behind one address.
    pub sign_in_failures_per_address: u32,
    /// Seconds that a new connection has for a TLS handshake, on every listener, and then for its CONNECT.
    pub connect_timeout_s: u64,
    /// Bytes read but not committed, over all connections, a quarter of them for packets up to 64 KiB. Raising it costs
    /// that much memory when the disk is slow.
    pub uncommitted_bytes_max: usize,
    /// Messages of one connection that are not committed. Raising it helps single fast clients.
    pub uncommitted_per_connection: usize,
    /// Packets a second of one member, acknowledgements aside; 0: any. Over its rate its connections are not read for a
    /// while. Raising it lets single clients take more of the server.
    pub messages_per_member_s: u64,
    /// Bytes a second of one member; 0: any.
    pub bytes_per_member_s: u64,
    /// Packets a second of one pool; 0: any. Over its rate, those members wait that send more than their share. Raising it
    /// leaves less to other pools.
    pub messages_per_pool_s: u64,
    /// Bytes a second of one pool; 0: any.
    pub bytes_per_pool_s: u64,
    /// Seconds that a grant of `put` holds from the ask that named it last. Raising it lets slow clients resume later, and
    /// keeps what never becomes whole longer.
    pub grant_s: u64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            data_dir: "millpond-data".into(),
            allow_plaintext: false,
            shutdown_grace_s: limits::SHUTDOWN_GRACE.as_secs(),
        }
    }
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: loopback(1883),
            tls_listen: Some(loopback(8883)),
            public_host: String::new(),
            publish_max: limits::PUBLISH_MAX,
            bundle_max: limits::BUNDLE_MAX,
            app_topics: Vec::new(),
            keep_alive_max_s: 0,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: loopback(8080),
            tls: true,
            request_timeout_s: 30,
            event_streams_max: 100,
            connections_max: limits::HTTP_CONNECTIONS,
            connections_per_address: limits::HTTP_CONNECTIONS_PER_ADDRESS,
            metrics_token_file: None,
            metrics_token: Secret::default(),
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            mode: StorageMode::Embedded,
            listen: loopback(9000),
            tls: true,
            endpoint: None,
            public_url: None,
            region: "us-east-1".into(),
            bucket: "millpond".into(),
            path_style: true,
            access_key: String::new(),
            secret_key: Secret::default(),
            secret_key_file: None,
            session_token: Secret::default(),
            ca_file: None,
            proxy: None,
            call_timeout_s: limits::STORAGE_TIMEOUT.as_secs(),
            quota_bytes: 0,
            connections_max: millpond_storage::limits::embedded::CONNECTIONS,
            connections_per_address: millpond_storage::limits::embedded::CONNECTIONS_PER_ADDRESS,
            cors_origins: Vec::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info,rumqttd=off".into() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_member: limits::CONNECTIONS_PER_MEMBER,
            connections_max: limits::CONNECTIONS_MAX,
            connections_per_address: limits::CONNECTIONS_PER_ADDRESS,
            strangers_max: limits::STRANGERS_MAX,
            strangers_per_address: limits::STRANGERS_PER_ADDRESS,
            sign_in_failures_per_name: limits::SIGN_IN_FAILURES_PER_NAME,
            sign_in_failures_per_address: limits::SIGN_IN_FAILURES_PER_ADDRESS,
            connect_timeout_s: limits::CONNECT_TIMEOUT.as_secs(),
            uncommitted_bytes_max: limits::UNCOMMITTED_BYTES_MAX,
            uncommitted_per_connection: limits::UNCOMMITTED_PER_CONNECTION,
            messages_per_member_s: 0,
            bytes_per_member_s: 0,
            messages_per_pool_s: 0,
            bytes_per_pool_s: 0,
            grant_s: limits::GRANT.as_secs(),
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// TOML has no null: an empty text says "not set".
mod optional {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        D: Deserializer<'de>,
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }

    pub(super) fn serialize<S: Serializer, T: std::fmt::Display>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_str(""),
        }
    }
}
