//! Writes a backup, piece by piece, as fast as it is taken.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use millpond_protocol::{Refusal, Sha256};
use millpond_storage::{Error, Storage};
use serde::Serialize;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::{Count, END, End, FORMAT, HEADER, Header, LEDGER, OBJECTS, Sum};
use crate::ledger::objects::Object;
use crate::ledger::snapshot::Snapshot;
use crate::ledger::{self, Ledger};
use crate::stopped::{Done, Stopped};
use crate::ustar;

/// Bytes read of the ledger at a time.
const READ: usize = 256 << 10;
/// Longest time for the client to take a piece, and bytes a second that it takes at the least, once it has had this time:
/// meanwhile nothing is deleted from storage.
const STALL: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 64 << 10;
/// Times that the rest of an object is asked for without a byte of it coming.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
const BLOCK: usize = 512;

/// Where the pieces go; an error ends the client's download.
pub(crate) type Out = mpsc::Sender<io::Result<Bytes>>;

/// Writes a backup to `out`, with the objects or of the ledger alone. One at a time: the caller sees to that.
pub(crate) async fn make(ledger: Ledger, storage: Storage, objects: bool, out: Out) {
    let client = out.clone();
    let mut archive = Archive { out, left: 0, size: 0, waited: Duration::ZERO };
    let made = tokio::select! {
        made = whole(&ledger, &storage, objects, &mut archive) => made,
        // Also while there is nothing to take yet.
        () = client.closed() => Err(Stopped::Gone),
    };
    let end = match made {
        Ok(()) => End::Whole,
        Err(Stopped::Gone) => return tracing::warn!("backup: the client went, or stopped reading"),
        Err(Stopped::Refused(refusal)) => {
            tracing::error!(%refusal, "backup: not finished");
            if archive.left > 0 {
                // In the middle of an entry nothing else can be said.
                let _ = archive.out.send(Err(io::Error::other(refusal.message))).await;
                return;
            }
            End::Error(refusal)
        }
    };
    // Whoever took it may go just now.
    if archive.json(END, &end).await.is_ok()
        && archive.send(Bytes::from_static(&[0; 2 * BLOCK])).await.is_ok()
    {
        tracing::info!(bytes = archive.size, whole = end == End::Whole, "backup: written");
    }
}

async fn whole(ledger: &Ledger, storage: &Storage, objects: bool, archive: &mut Archive) -> Done {
    let made = ledger::now();
    let snapshot = ledger.snapshot().await?;
    let (count, bytes) = snapshot.sum().await?;
    let header = Header {
        format: FORMAT,
        millpond: env!("CARGO_PKG_VERSION").to_owned(),
        made,
        schema: ledger::SCHEMA,
        ledger: Sum { size: snapshot.size, sha256: snapshot.sha256 },
        objects: objects.then_some(Count { count, bytes }),
    };
    archive.json(HEADER, &header).await?;
    archive.file(&snapshot).await?;
    if !objects {
        return Ok(());
    }
    let mut last = 0;
    loop {
        let page = snapshot.objects(last).await?;
        let Some(object) = page.last() else { return Ok(()) };
        last = object.id;
        for object in page {
            archive.object(storage, &object).await?;
        }
    }
}

/// A tar archive on its way out.
struct Archive {
    out: Out,
    /// Bytes of the entry that are still to come.
    left: u64,
    /// Bytes so far, and how long the client took to take them.
    size: u64,
    waited: Duration,
}

impl Archive {
    async fn send(&mut self, bytes: Bytes) -> Done {
        self.size += bytes.len() as u64;
        let asked = Instant::now();
        let sent = tokio::time::timeout(STALL, self.out.send(Ok(bytes))).await;
        self.waited += asked.elapsed();
        let is_slow = self.waited > STALL + Duration::from_secs(self.size / SLOWEST);
        if is_slow || !matches!(sent, Ok(Ok(()))) { Err(Stopped::Gone) } else { Ok(()) }
    }

    async fn begin(&mut self, path: &str, size: u64) -> Done {
        let header = ustar::header(path, size, 0o600)
            .map_err(|error| Refusal::unavailable(format!("{path}: {error}")))?;
        self.left = size;
        self.send(Bytes::copy_from_slice(header.as_bytes())).await
    }

    /// More of the entry.
    async fn more(&mut self, path: &str, bytes: Bytes) -> Done {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| longer(path))?;
        self.send(bytes).await
    }

    async fn finish(&mut self, size: u64) -> Done {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
        if over > 0 { self.send(Bytes::from_static(&[0; BLOCK]).slice(over..)).await } else { Ok(()) }
    }

    async fn json<T: Serialize>(&mut self, path: &str, value: &T) -> Done {
        let json = serde_json::to_vec(value).map_err(|error| Refusal::unavailable(error.to_string()))?;
        let size = json.len() as u64;
        self.begin(path, size).await?;
        self.more(path, json.into()).await?;
        self.finish(size).await
    }

    /// The ledger's copy.
    async fn file(&mut self, snapshot: &Snapshot) -> Done {
        let failed = |error: io::Error| Refusal::unavailable(format!("the copy of the ledger: {error}"));
        self.begin(LEDGER, snapshot.size).await?;
        let mut file = tokio::fs::File::open(snapshot.path()).await.map_err(failed)?;
        while self.left > 0 {
            let mut piece = bytes::BytesMut::with_capacity(READ);
            if file.read_buf(&mut piece).await.map_err(failed)? == 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()).into());
            }
            self.more(LEDGER, piece.freeze()).await?;
        }
        self.finish(snapshot.size).await
    }

    /// An object, read on from where it broke off, and compared with its hash.
    async fn object(&mut self, storage: &Storage, object: &Object) -> Done {
        let path = format!("{OBJECTS}{}", object.key);
        let (mut hasher, mut done, mut tries) = (Hasher::new(), 0, 0);
        let mut begun = false;
        while done < object.size || !begun {
            let failed = match storage.get_stream(&object.key, (done > 0).then_some(done..object.size)).await
            {
                Ok(stream) if stream.size != object.size - done => return Err(longer(&path).into()),
                Ok(mut stream) => {
                    // Only now: of what cannot be opened the client is told why.
                    if !begun {
                        self.begin(&path, object.size).await?;
                        begun = true;
                    }
                    loop {
                        match stream.next().await {
                            Some(Ok(bytes)) => {
                                (done, tries) = (done + bytes.len() as u64, 0);
                                hasher.update(&bytes);
                                self.more(&path, bytes).await?;
                            }
                            Some(Err(error)) => break Some(error),
                            None => break None,
                        }
                    }
                }
                Err(error) => Some(error),
            };
            match failed {
                Some(error) if error.is_temporary() && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Some(error) => return Err(unreadable(&path, &error).into()),
                None if done < object.size => return Err(longer(&path).into()),
                None => {}
            }
        }
        self.finish(object.size).await?;
        if Sha256(hasher.finalize().into()) == object.sha256 {
            return Ok(());
        }
        Err(unreadable(&path, &Error::Mismatch("its bytes are not those of its SHA-256".into())).into())
    }
}

fn longer(path: &str) -> Refusal {
    unreadable(path, &Error::Mismatch("it has another size than the ledger says".into()))
}

fn unreadable(path: &str, error: &Error) -> Refusal {
    Refusal::unavailable(format!("{path}: {error}")).hint(
        "`millpond check --deep` finds everything that storage has lost; the ledger alone can be saved meanwhile",
    )
}
