//! `millpond backup`

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use millpond_storage::directory;

use super::client::Client;
use super::failure::{FAILED, Failure, RETRY, USAGE};
use super::output::{Out, bytes};
use super::shown::Shown;
use crate::backup;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The archive to write; there must be none of the name.
    file: PathBuf,
    /// Leave the objects in storage out: where external storage keeps copies of its own.
    #[arg(long)]
    ledger_only: bool,
}

/// Takes the archive to a file that gets its name once it is whole and on disk.
pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let file = &args.file;
    if file.exists() {
        return Err(Failure::new(USAGE, format!("{} exists: name another file", file.display())));
    }
    let part = PathBuf::from(format!("{}.part", file.display()));
    match fetch(args, client, &part).await {
        Ok(header) => {
            std::fs::rename(&part, file)?;
            directory::sync_name_of(file)?;
            out.show(&header, |out, header| {
                out.line(format!("{}: what was acknowledged by {}", file.display(), header.made));
                let objects = header.objects.map_or_else(
                    || "no objects".to_owned(),
                    |objects| format!("{} objects, {}", objects.count, bytes(objects.bytes)),
                );
                out.line(format!("ledger {}, {objects}", bytes(header.ledger.size)));
            });
            Ok(())
        }
        Err(failure) => {
            // Why it failed says more than that it is still there.
            let _ = std::fs::remove_file(&part);
            Err(failure)
        }
    }
}

async fn fetch(args: &Args, client: &Client, part: &Path) -> Result<backup::Header, Failure> {
    let written = |error: std::io::Error| Failure::new(FAILED, format!("{}: {error}", part.display()));
    // That of a command which was killed; there may be none.
    let _ = std::fs::remove_file(part);
    // It holds what clients sent.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(part).map_err(written)?;
    let mut answer = client.stream("backup", &[("objects", (!args.ledger_only).to_string())]).await?;
    let (mut shown, mut size) = (Shown::new(), 0);
    let broken = |error: reqwest::Error| {
        Failure::new(RETRY, format!("the backup broke off: {error}")).hint("the server's log says why")
    };
    while let Some(piece) = answer.chunk().await.map_err(broken)? {
        file.write_all(&piece).map_err(written)?;
        size += piece.len() as u64;
        shown.progress("backup", bytes(size));
    }
    shown.clear();
    file.sync_all().map_err(written)?;
    backup::read_through(part)
        .map_err(|error| Failure::new(FAILED, format!("the backup is not whole: {error:#}")))
}
