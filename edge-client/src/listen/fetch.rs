//! The bytes of one version, on their way into a partial file.

use std::io;
use std::path::Path;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::Pointer;
use serde::Deserialize;
use serde_json::json;

use crate::session::Session;
use crate::transfer::{Expected, Meter, Transfer, TransferError};

/// How long an ask for a fresh URL may take.
const ASK: Duration = Duration::from_secs(300);
/// URLs for one download.
const URLS: u32 = 10;

/// How a download ended that did not fail.
pub(super) enum Fetched {
    Whole,
    /// There is a newer result.
    Overtaken,
}

/// Downloads a version; its URLs run out, and there are fresh ones.
pub(super) async fn fetch(
    session: &Session,
    transfer: &Transfer,
    pointer: Pointer,
    partial: &Path,
    meter: &Meter,
) -> Result<Fetched, String> {
    #[derive(Deserialize)]
    struct Latest {
        result: Option<Pointer>,
    }
    let expected = Expected { size: pointer.size, sha256: pointer.sha256 };
    let mut url = pointer.url;
    for _ in 0..URLS {
        match transfer.fetch(&url, partial, &expected, meter).await {
            Ok(()) => return Ok(Fetched::Whole),
            Err(TransferError::Expired { .. }) => {
                // The next call counts what is there from the start.
                meter.take_back(meter.done());
                let latest: Latest =
                    session.ask(Op::Latest, &json!({}), ASK).await.map_err(|error| error.to_string())?;
                match latest.result {
                    Some(latest) if (latest.version, latest.sha256) == (pointer.version, pointer.sha256) => {
                        url = latest.url;
                    }
                    _ => return Ok(Fetched::Overtaken),
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("fresh URLs do not work either".to_owned())
}

/// Writes and syncs a small result.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = crate::spool::open_private(path)?;
    file.set_len(0)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}
