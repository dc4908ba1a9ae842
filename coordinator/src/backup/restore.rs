//! Makes a data directory, and the objects in storage, from a backup.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use millpond_protocol::{Sha256, Timestamp};
use millpond_storage::{ObjectKey, Storage, Writer, directory};
use rusqlite::Connection;
use serde::Serialize;
use sha2::{Digest as _, Sha256 as Hasher};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Count, END, Header, LEDGER, OBJECTS, Sum, read};
use crate::config::Config;
use crate::ledger::snapshot;
use crate::{ledger, secrets, store};

/// The ledger while the rest is restored: a server would not take it for one.
const RESTORING: &str = "ledger.db.restoring";
/// Bytes read at a time.
const READ: usize = 1 << 20;

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// What was acknowledged later is not in the backup.
    pub made: Timestamp,
    pub ledger: Sum,
    /// None: the backup has the ledger alone.
    pub objects: Option<Count>,
}

/// Restores the backup in the file `from` to the data directory and the storage of `config`, comparing every byte with its
/// SHA-256. The ledger takes its place at the very end, so that what breaks off can simply be begun again. `tell` is told
/// how many bytes were read.
///
/// # Errors
/// The directory has a ledger or is in use; the backup is damaged or not whole; disk or storage fail.
pub async fn restore(
    from: PathBuf,
    config: &Config,
    tell: impl FnMut(u64) + Send + 'static,
) -> anyhow::Result<Restored> {
    let dir = config.server.data_dir.clone();
    secrets::private_dir(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let _lock = ledger::lock(&dir)?;
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-journal"] {
        // SQLite would lay the log of another ledger over this one.
        let there = dir.join(name).exists();
        ensure!(
            !there,
            "{} has a ledger ({name}): name a directory without one, or move it away",
            dir.display()
        );
    }

    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let storage = store::open_alone(config, &mut tasks, &stop).await?;
    let (runtime, restoring) = (Handle::current(), dir.join(RESTORING));
    let unpack = move || {
        let mut unpack = Unpack { runtime, storage, restoring, tell, read: 0 };
        let done = unpack.all(&from);
        if done.is_err() {
            // Why it failed says more than that it is still there.
            let _ = std::fs::remove_file(&unpack.restoring);
        }
        done
    };
    let restored = tokio::task::spawn_blocking(unpack).await??;
    // Storage has synced what it took; let it end before anybody else opens its files.
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let ledger = dir.join("ledger.db");
    std::fs::rename(dir.join(RESTORING), &ledger)?;
    directory::sync_name_of(&ledger)?;
    Ok(restored)
}

struct Unpack<T> {
    runtime: Handle,
    storage: Storage,
    restoring: PathBuf,
    tell: T,
    read: u64,
}

impl<T: FnMut(u64)> Unpack<T> {
    fn all(&mut self, from: &Path) -> anyhow::Result<Restored> {
        let file = File::open(from)?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(READ, file));
        let mut entries = archive.entries().context("it is no backup of Millpond")?;
        let Header { made, ledger: sum, objects, .. } = read::header(entries.next())?;
        let mut entry = entries.next().context("it breaks off before the ledger")??;
        ensure!(entry.path_bytes().as_ref() == LEDGER.as_bytes(), "{LEDGER} is not its second entry");
        self.ledger(&mut entry, sum)?;
        let sql = snapshot::open(&self.restoring)?;

        let (mut last, mut found) = (0, Count::default());
        for entry in entries {
            let mut entry = entry.context("it breaks off")?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if path == END {
                read::end(&mut entry)?;
                let (count, bytes) = snapshot::sum(&sql)?;
                let all = objects.is_none() || found == Count { count, bytes };
                ensure!(all, "it has {} objects, and its ledger needs {count}", found.count);
                drop(sql);
                snapshot::forget_transfers(&self.restoring)?;
                return Ok(Restored { made, ledger: sum, objects });
            }
            let key = path.strip_prefix(OBJECTS).with_context(|| format!("{path} belongs to no backup"))?;
            let id = self.object(&sql, key, &mut entry).with_context(|| path.clone())?;
            ensure!(id > last, "{path} is not in its place");
            last = id;
            found = Count { count: found.count + 1, bytes: found.bytes + entry.size() };
        }
        bail!("it breaks off: {END} is missing")
    }

    fn ledger(&mut self, entry: &mut impl Read, sum: Sum) -> anyhow::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.restoring)?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        while let Some(piece) = self.piece(entry)? {
            hasher.update(&piece);
            size += piece.len() as u64;
            io::Write::write_all(&mut file, &piece).with_context(|| self.restoring.display().to_string())?;
        }
        ensure!(size == sum.size, "{LEDGER} breaks off");
        ensure!(
            Sum { size, sha256: Sha256(hasher.finalize().into()) } == sum,
            "{LEDGER} is damaged: its bytes are not those of its SHA-256"
        );
        Ok(file.sync_all()?)
    }

    /// Stores an object; its id in the ledger.
    fn object<R: Read>(
        &mut self,
        sql: &Connection,
        key: &str,
        entry: &mut tar::Entry<'_, R>,
    ) -> anyhow::Result<i64> {
        let object = snapshot::object(sql, key).context("the backup's ledger needs no such object")?;
        let key: ObjectKey = key.parse()?;
        let mut writer = self.storage.writer_of(&key, object.size);
        match self.fill(&mut writer, entry) {
            Ok(()) if writer.written() == (object.size, object.sha256) => {
                self.runtime.block_on(writer.finish())?;
                Ok(object.id)
            }
            outcome => {
                let (size, _) = writer.written();
                self.runtime.block_on(writer.abort());
                outcome?;
                ensure!(size == entry.size(), "it breaks off");
                bail!("it is damaged: its bytes are not those of its SHA-256")
            }
        }
    }

    fn fill(&mut self, writer: &mut Writer, entry: &mut impl Read) -> anyhow::Result<()> {
        while let Some(piece) = self.piece(entry)? {
            self.runtime.block_on(writer.write(piece))?;
        }
        Ok(())
    }

    /// The next bytes of an entry; none at its end.
    fn piece(&mut self, entry: &mut impl Read) -> anyhow::Result<Option<Bytes>> {
        let mut piece = Vec::new();
        let read = entry.take(READ as u64).read_to_end(&mut piece).context("it breaks off")?;
        self.read += read as u64;
        (self.tell)(self.read);
        Ok((read > 0).then(|| piece.into()))
    }
}
