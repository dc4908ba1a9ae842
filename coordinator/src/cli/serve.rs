//! `millpond serve`

use std::path::PathBuf;

use super::failure::{Failure, USAGE};
use super::output::Out;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration; without it the defaults hold, and MILLPOND__SECTION__KEY.
    #[arg(long, value_name = "FILE", env = "MILLPOND_CONFIG")]
    config: Option<PathBuf>,
    /// The data directory, in place of `server.data_dir`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only check the configuration: exit 0 if it is good, else 2 with everything that is wrong.
    #[arg(long)]
    check_config: bool,
}

impl Args {
    fn load(&self) -> Result<Config, Failure> {
        let data =
            self.data.iter().map(|dir| ("MILLPOND__SERVER__DATA_DIR".to_owned(), dir.display().to_string()));
        // A variable whose name or value is no UTF-8 is none of ours.
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Config::load(self.config.as_deref(), env.chain(data)).map_err(|bad| {
            Failure::new(USAGE, format!("the configuration is wrong in {} places:\n{bad}", bad.0.len()))
                .hint("config/millpond.toml lists every key with its default, unit and meaning")
        })
    }
}

pub(super) fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let config = args.load()?;
    if args.check_config {
        out.show(&config, |out, _| out.line("the configuration is good"));
        return Ok(());
    }
    Err(Failure::new(USAGE, "only --check-config works yet"))
}
