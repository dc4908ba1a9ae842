//! `millpond restore`

use std::path::PathBuf;

use super::failure::{FAILED, Failure};
use super::output::{Out, bytes};
use super::serve::Settings;
use super::shown::Shown;
use crate::backup;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What `millpond backup` wrote.
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

/// Restores to the data directory and the storage that the configuration names; no server may run there.
pub(super) fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let config = args.settings.load()?;
    let data = config.server.data_dir.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut shown = Shown::new();
    let tell = move |read| shown.progress("restored", bytes(read));
    let restored = runtime.block_on(backup::restore(args.file.clone(), &config, tell));
    Shown::new().clear();
    let restored = restored.map_err(|error| {
        Failure::new(FAILED, format!("{} is not restored: {error:#}", args.file.display()))
    })?;
    out.show(&restored, |out, restored| {
        let objects = restored.objects.map_or_else(
            || "no objects: they have to be in storage already".to_owned(),
            |objects| format!("{} objects, {}", objects.count, bytes(objects.bytes)),
        );
        out.line(format!("{}: ledger {}, {objects}", data.display(), bytes(restored.ledger.size)));
        out.line(format!("what was acknowledged after {} is not in it", restored.made));
        out.line("start the server, then compare ledger and storage: millpond check");
    });
    Ok(())
}
