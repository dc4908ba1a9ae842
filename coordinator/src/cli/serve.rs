//! `millpond serve`

use std::path::PathBuf;

use millpond_storage::Storage;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::failure::{FAILED, Failure, USAGE};
use super::output::Out;
use crate::config::Config;
use crate::{logging, server};

/// Which configuration.
#[derive(Debug, clap::Args)]
pub(super) struct Settings {
    /// The configuration; without it the defaults hold, and MILLPOND__SECTION__KEY.
    #[arg(long, value_name = "FILE", env = "MILLPOND_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory, in place of `server.data_dir`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Only check the configuration, and external storage with test objects: exit 0 if all is good, else 2 with
    /// everything that is wrong.
    #[arg(long)]
    check_config: bool,
}

impl Settings {
    pub(super) fn load(&self) -> Result<Config, Failure> {
        let data =
            self.data.iter().map(|dir| ("MILLPOND__SERVER__DATA_DIR".to_owned(), dir.display().to_string()));
        Config::load(self.config.as_deref(), environment().chain(data)).map_err(|bad| {
            Failure::new(USAGE, format!("the configuration is wrong in {} places:\n{bad}", bad.0.len()))
                .hint("config/millpond.toml lists every key with its default, unit and meaning")
        })
    }
}

/// The environment; a variable whose name or value is no UTF-8 is none of ours.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
}

pub(super) fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let config = args.settings.load()?;
    if args.check_config {
        check_storage(&config)?;
        out.show(&config, |out, _| out.line("the configuration is good"));
        return Ok(());
    }
    logging::init(&config.log);
    let runtime = server::runtime()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signal(shutdown.clone())?;
        // Whoever wants the addresses reads DATA/ports.json.
        let (ready, _) = oneshot::channel();
        server::run(config, shutdown, ready).await.map_err(|error| Failure::new(FAILED, format!("{error:#}")))
    })
}

/// Tries external storage. The embedded one belongs to the server that may be running.
fn check_storage(config: &Config) -> Result<(), Failure> {
    let wrong = |what: String| {
        Failure::new(USAGE, format!("storage does not work:\n{what}"))
            .hint("docs/storage.md has the settings of each storage, and the rights that it must grant")
    };
    let client = config.storage.external().map_err(|bad| wrong(bad.to_string()))?;
    let Some(client) = client else { return Ok(()) };
    let storage = Storage::new(&client).map_err(|bad| wrong(bad.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(storage.check());
    for warning in &found.warnings {
        eprintln!("warning: {warning}");
    }
    if found.problems.is_empty() { Ok(()) } else { Err(wrong(found.problems.join("\n"))) }
}

/// Begins the shutdown at the first SIGTERM or SIGINT, and ends the process at the second.
///
/// # Errors
/// The signals cannot be watched.
pub(super) fn stop_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for begun in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if begun {
                // Nothing that was acknowledged is lost by this; the next start recovers.
                std::process::exit(i32::from(FAILED));
            }
            tracing::info!("stopping: what was begun is finished first; a second signal ends it at once");
            shutdown.cancel();
        }
    });
    Ok(())
}
