//! Clients of the library that devices use, `millpond-edge`.

mod keeper;
mod killed;
mod offline;

use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use millpond_edge::clock::Stamp;
use millpond_edge::session::{Config, Token};
use millpond_edge::spool::{About, Limits, Spool};
use millpond_protocol::{Sha256, Timestamp, UploadId};

pub(super) use keeper::Keeper;
pub(super) use killed::killed;
pub use killed::{Client, client};
pub(super) use offline::Offline;

use super::link::Credentials;

/// How the library connects as that member; every session is another client.
fn config(who: &Credentials) -> Config {
    let (host, port) = (who.mqtt.ip().to_string(), who.mqtt.port());
    Config::new(host, port, who.pool.clone(), who.member.clone(), Token::new(&who.token))
}

/// Puts a file into the spool, without a network, as `millpond-edge push --offline` does.
fn push(
    spool: &mut Spool,
    upload: &UploadId,
    event_time: Timestamp,
    from: impl Read,
) -> anyhow::Result<Sha256> {
    let name = upload.as_str().parse()?;
    let staged = spool.stage(from, |_sha256| About {
        upload: upload.clone(),
        name,
        event_time: Some(event_time),
        label: None,
        content_type: Some("application/octet-stream".to_owned()),
        meta: None,
        captured: Stamp::now(),
    })?;
    let sha256 = staged.document().sha256;
    spool.add(vec![staged])?;
    Ok(sha256)
}

fn open(directory: &Path) -> anyhow::Result<Spool> {
    Spool::open(directory, Limits::default()).with_context(|| format!("spool {}", directory.display()))
}
