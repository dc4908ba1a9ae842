//! The program `millpond-edge`.

mod complete;
mod connect;
mod copy;
mod enrol;
mod export;
mod failure;
mod follow;
mod import;
mod listen;
mod process;
mod progress;
mod push;
mod spool;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::{FAILED, Failure};

use crate::session::Cause;

/// Sends files to a Millpond pool, from a spool that survives the loss of network and power.
#[derive(Debug, Parser)]
#[command(name = "millpond-edge", version, about)]
struct Cli {
    #[command(flatten)]
    connect: connect::Connect,
    #[command(flatten)]
    spool: spool::At,
    /// Write JSON lines instead of text.
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// How files are moved.
    fn options(&self, progress: &progress::Progress) -> Result<crate::sender::Options, Failure> {
        Ok(self.spool.options(progress, self.connect.authorities()?))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Become a member by a join token, with a token that this device makes itself.
    Enrol(enrol::Args),
    /// Put files into the spool and send them.
    Push(push::Args),
    /// Say that nothing more comes, once everything that was spooled up to then is sent.
    Complete(complete::Args),
    /// Make a program the pool's processor.
    Process(process::Args),
    /// Keep the newest result in a directory.
    Listen(listen::Args),
    /// What waits in the spool.
    #[command(subcommand)]
    Spool(spool::Command),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Failure::from).and_then(|runtime| {
        let done = runtime.block_on(execute(&cli));
        // What is left on other threads has nothing to say any more.
        runtime.shutdown_background();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("millpond-edge: {}", failure.message);
            ExitCode::from(failure.exit)
        }
    }
}

async fn execute(cli: &Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::Enrol(args) => enrol::run(cli, args).await,
        Command::Push(args) => push::run(cli, args).await,
        Command::Complete(args) => complete::run(cli, args).await,
        Command::Listen(args) => listen::run(cli, args).await,
        Command::Process(args) => process::run(cli, args).await,
        Command::Spool(command) => spool::run(cli, command).await,
    }
}

/// Seconds, up to a year: as many as a clock can be moved on.
fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=366 * 86_400)
}

/// This program's own directory below one of the user's: `$variable`, or else the other name in the home directory.
fn home(variable: &str, other: &str) -> Option<PathBuf> {
    let base = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(other)))?;
    Some(base.join("millpond-edge"))
}

/// Returns at SIGTERM or SIGINT.
async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// What a command says that goes on without a connection.
fn offline(cause: &Cause) -> String {
    format!("millpond-edge: no connection to the server, and another attempt follows: {cause}")
}

/// Writes one line of output. That nobody reads it any more is a failure like any other.
fn say(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Failure::new(FAILED, format!("standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn options_of_the_connection_stand_before_the_command_or_after_it() {
        Cli::command().debug_assert();
        let options = ["--user", "demo/a", "--url", "mqtts://mill", "--cert-file", "c", "--key-file", "k"];
        for line in [
            [&["millpond-edge", "push"], &options[..], &["file"]].concat(),
            [&["millpond-edge"], &options[..], &["push", "file"]].concat(),
        ] {
            let cli = Cli::try_parse_from(&line).unwrap();
            assert!(format!("{:?}", cli.connect).contains(r#"user: Some("demo/a")"#), "{line:?}");
        }
        assert!(Cli::try_parse_from(["millpond-edge", "push", "--cert-file", "c", "file"]).is_err());
    }
}
