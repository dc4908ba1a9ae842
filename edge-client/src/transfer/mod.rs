//! Large files by presigned URL.
//!
//! An upload takes a file and the requests of a grant: one PUT, or one for each part, several at a time. Each is repeated by
//! itself, after pauses, until it is through. A download goes to a partial file that a later call, also of another
//! process, continues by range; [`Transfer::fetch`] returns only when size and SHA-256 are right and the file is synced.
//!
//! There is no time limit on a transfer, only on a transfer that stands still: [`Options::stall`] without a byte ends an
//! attempt, and [`Options::attempts`] attempts without a new byte end the transfer. URLs expire in the meantime; then the
//! error is [`TransferError::Expired`], and the same call with fresh URLs goes on where it was.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use millpond_edge::transfer::{self, Expected, Meter, Options, Transfer};
//! # use millpond_edge::{large, session::{self, Config, Token}};
//! # use millpond_protocol::access::Op;
//! # use serde_json::{Value, json};
//!
//! # let stage = millpond::demo::Stage::start().await?;
//! # let who = stage.member("edge-7", millpond_protocol::Role::Publisher).await?;
//! # let (host, port, token) = (who.mqtt.ip().to_string(), who.mqtt.port(), who.token);
//! # let directory = tempfile::tempdir()?;
//! # let directory = directory.path();
//! # let config = Config::new(host, port, "demo".parse()?, "edge-7".parse()?, Token::new(token));
//! # let (session, _inbox) = session::open(config);
//! # let map = directory.join("map.bin");
//! # std::fs::write(&map, vec![7; 300_000])?;
//! let sha256 = transfer::digest(&map, 300_000, None)?.sha256;
//! let transfer = Transfer::new(Options::default());
//! # let put = serde_json::from_value(json!({ "name": "map.bin", "size": 300_000, "sha256": sha256 }))?;
//! # let (meter, patience) = (Meter::silent(), Duration::from_secs(30));
//! # large::upload(&session, &transfer, &map, &"map-1".parse()?, put, &meter, patience).await?;
//! let answer: Value = session.ask(Op::Get, &json!({ "upload": "map-1" }), Duration::from_secs(30)).await?;
//! let url = answer["url"].as_str().expect("larger files come by URL");
//! let (partial, file) = (directory.join("map.part"), directory.join("map"));
//! let meter = Meter::new(300_000, |done, total| eprintln!("{done} of {total} bytes"));
//! transfer.fetch(url, &partial, &Expected { size: 300_000, sha256 }, &meter).await?;
//! transfer::place(&partial, &file)?;
//! assert_eq!(std::fs::read(&file)?, std::fs::read(&map)?);
//! # Ok(()) }
//! ```

mod attempt;
mod digest;
mod download;
mod meter;
mod throttle;
mod upload;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millpond_protocol::Sha256;

pub(crate) use attempt::told;
pub(crate) use download::{parent, sync_directory};

pub use digest::{Digests, Hasher, digest, digest_of};
pub use download::{Expected, place};
pub use meter::{Meter, Meters};
pub use throttle::Throttle;
pub use upload::Put;

use crate::backoff::Backoff;
use crate::session::RATE_MIN;

/// How a [`Transfer`] behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long an attempt may stand still, the wait for the server's answer included.
    pub stall: Duration,
    /// Bytes per second of the slowest line: beside `stall`, the last bytes of an upload, up to 1 MiB, may take as long as they need
    /// at that rate, for nobody sees them move.
    pub slowest: u64,
    /// How long it may take to connect.
    pub connect: Duration,
    /// Attempts in a row that bring no byte further than the ones before; then the transfer fails.
    pub attempts: u32,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Parts that are sent at the same time.
    pub parallel: usize,
    /// Bytes per second, over everything that shares the value.
    pub throttle: Arc<Throttle>,
    /// What storage's certificate may come from, beside the public authorities.
    pub authorities: Vec<reqwest::Certificate>,
}

impl Default for Options {
    /// 60 s without a byte at 2 KiB/s or more, 10 attempts without progress, pauses up to 30 s, 4 parts at a time, no limit of the rate.
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(60),
            slowest: RATE_MIN,
            connect: Duration::from_secs(15),
            attempts: 10,
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(30)),
            parallel: 4,
            throttle: Arc::new(Throttle::unlimited()),
            authorities: Vec::new(),
        }
    }
}

/// Why a transfer did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Storage does not honour the URL (any more). Ask for a fresh one and call again; what is there already is kept.
    #[error("storage does not honour the URL, which may have expired (HTTP {status}){why}")]
    Expired { status: u16, why: Why },
    /// Storage refused for good.
    #[error("storage refused (HTTP {status}){why}")]
    Refused { status: u16, why: Why },
    /// Storage takes no more bytes now, whatever way they come.
    #[error("storage has no room: {why}")]
    Full { why: String },
    /// No attempt brought a byte further. Trying later can help.
    #[error("given up after {attempts} attempts without progress: {last}")]
    Stuck { attempts: u32, last: String },
    /// What came is not what was promised; nothing of it is shown.
    #[error("{} has the SHA-256 {found}, not {expected}", .path.display())]
    Mismatch { path: PathBuf, expected: Sha256, found: Sha256 },
    /// More bytes came than were promised.
    #[error("storage sends more than the {expected} bytes that were promised")]
    TooLong { expected: u64 },
    /// This machine's files.
    #[error("{}: {source}", .path.display())]
    Local { path: PathBuf, source: io::Error },
}

impl TransferError {
    fn local(path: &Path, source: io::Error) -> Self {
        Self::Local { path: path.to_owned(), source }
    }

    /// Whether the same call can succeed later, as it is or with a fresh URL.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Expired { .. } | Self::Full { .. } | Self::Stuck { .. } => true,
            Self::Refused { .. } | Self::Mismatch { .. } | Self::TooLong { .. } => false,
            Self::Local { source, .. } => is_full(source),
        }
    }
}

/// Whether a disk of this machine has no room, at all or for this user: that may change, and nothing is wrong with what was written.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What storage said beside a status: the beginning of the answer's body, perhaps nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Why(pub String);

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Moves files. Cheap to make: connections and TLS are set up when they are needed.
#[derive(Debug)]
pub struct Transfer {
    options: Options,
    /// For this machine: whatever proxies the environment names, they cannot reach it.
    loopback: OnceLock<reqwest::Client>,
    network: OnceLock<reqwest::Client>,
}

impl Transfer {
    /// With these options.
    pub fn new(options: Options) -> Self {
        Self { options, loopback: OnceLock::new(), network: OnceLock::new() }
    }

    /// The limit that it keeps, for what else is to keep it.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.options.throttle
    }

    /// The client for that address.
    fn client(&self, url: &reqwest::Url) -> Result<&reqwest::Client, TransferError> {
        let slot = if is_loopback(url) { &self.loopback } else { &self.network };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let client = http_client(url, &self.options.authorities, self.options.connect, self.options.stall)
            .map_err(|error| TransferError::Stuck { attempts: 0, last: error.to_string() })?;
        Ok(slot.get_or_init(|| client))
    }
}

/// The authorities in a PEM file. The error names the file.
pub(crate) fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(&error))
}

/// A client for that address, which goes to no other one. It trusts the authorities beside the public ones. A connection whose
/// peer acknowledges no byte for as long as `stall` ends.
pub(crate) fn http_client(
    url: &reqwest::Url,
    authorities: &[reqwest::Certificate],
    connect: Duration,
    stall: Duration,
) -> reqwest::Result<reqwest::Client> {
    let builder = authorities
        .iter()
        .cloned()
        .fold(reqwest::Client::builder(), reqwest::ClientBuilder::add_root_certificate)
        .connect_timeout(connect)
        .tcp_user_timeout(stall)
        .redirect(reqwest::redirect::Policy::none());
    if is_loopback(url) { builder.no_proxy() } else { builder }.build()
}

fn is_loopback(url: &reqwest::Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
            ip.is_ok_and(|ip| ip.is_loopback())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_where_it_has_no_room_and_where_it_has_none_for_this_user() {
        use rustix::io::Errno;
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            assert!(is_full(&error(errno)), "{errno}");
            let local = TransferError::local(Path::new("part"), error(errno));
            assert!(local.is_temporary(), "{local}");
        }
        assert!(!is_full(&error(Errno::IO)));
    }
}
