//! The command line. `serve`, `dev` and `demo` run a server, `tls` and `restore` make files; everything else speaks HTTP `/v1` to a
//! running one, never to its files.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 75 retry later. What was asked for goes to standard output,
//! errors with what to do about them to standard error.

mod audit;
mod backup;
mod batch;
mod check;
mod client;
mod demo;
mod dev;
mod events;
mod failure;
mod gc;
mod join;
mod member;
mod output;
mod pool;
mod restore;
mod result;
mod round;
mod serve;
mod shown;
mod status;
mod tls;
mod token;
mod upload;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use client::{Client, Target};
use failure::Failure;
use output::Out;

/// Collects files from fleets over MQTT, hands each group to a processor, and returns its one file to everyone.
#[derive(Debug, Parser)]
#[command(name = "millpond", version, about)]
struct Cli {
    #[command(flatten)]
    target: Target,
    /// Write JSON instead of text.
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play the whole story on this machine: a server, publishers, a processor, listeners.
    Demo(demo::Args),
    /// What `demo` starts to have somebody to kill.
    #[command(hide = true)]
    DemoClient(crate::demo::Client),
    /// Run a server.
    Serve(serve::Args),
    /// Run a server on loopback with a pool and members to play with.
    Dev(dev::Args),
    /// Certificates for the listeners.
    #[command(subcommand)]
    Tls(tls::Command),
    /// Pools and their policies.
    #[command(subcommand)]
    Pool(pool::Command),
    /// Members of a pool.
    #[command(subcommand)]
    Member(member::Command),
    /// Tokens by which devices become members.
    #[command(subcommand)]
    Join(join::Command),
    /// Tokens of a member.
    #[command(subcommand)]
    Token(token::Command),
    /// What became of uploads.
    #[command(subcommand)]
    Upload(upload::Command),
    /// Batches of a pool.
    #[command(subcommand)]
    Batch(batch::Command),
    /// Rounds of a pool.
    #[command(subcommand)]
    Round(round::Command),
    /// Results of a pool.
    #[command(subcommand)]
    Result(result::Command),
    /// The server and its pools at a glance.
    Status(status::Args),
    /// Who did what, from where, when.
    Audit(audit::Args),
    /// The event feed of a pool.
    Events(events::Args),
    /// Delete what the policies of pools do not keep any more, or say what and why.
    Gc(gc::Args),
    /// Compare ledger and storage with what they should be; exits with 1 if something differs.
    Check(check::Args),
    /// Copy everything to one file while the server works.
    Backup(backup::Args),
    /// Make a data directory, and the objects in storage, from a backup.
    Restore(restore::Args),
}

/// Runs the command line that the process was started with.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs a command line; the first argument is the program's name.
fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come this way too. Nobody is left to tell if the terminal is gone.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    let out = Out::new(cli.json);
    match dispatch(cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit)
        }
    }
}

fn dispatch(cli: Cli, out: &Out) -> Result<(), Failure> {
    let command = match cli.command {
        Command::Demo(args) => return demo::run(&args, out),
        Command::DemoClient(args) => return demo::client(args),
        Command::Serve(args) => return serve::run(&args, out),
        Command::Dev(args) => return dev::run(&args, out),
        Command::Tls(command) => return tls::run(command, out),
        Command::Restore(args) => return restore::run(&args, out),
        command => command,
    };
    // One request at a time: one thread is enough.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(&cli.target)?;
        match command {
            Command::Demo(_)
            | Command::DemoClient(_)
            | Command::Serve(_)
            | Command::Dev(_)
            | Command::Restore(_)
            | Command::Tls(_) => Ok(()),
            Command::Pool(command) => pool::run(command, &client, out).await,
            Command::Member(command) => member::run(command, &client, out).await,
            Command::Join(command) => join::run(command, &client, out).await,
            Command::Audit(args) => audit::run(&args, &client, out).await,
            Command::Token(command) => token::run(command, &client, out).await,
            Command::Upload(command) => upload::run(command, &client, out).await,
            Command::Batch(command) => batch::run(command, &client, out).await,
            Command::Round(command) => round::run(command, &client, out).await,
            Command::Result(command) => result::run(command, &client, out).await,
            Command::Status(args) => status::run(&args, &client, out).await,
            Command::Events(args) => events::run(&args, &client, out).await,
            Command::Gc(args) => gc::run(&args, &client, out).await,
            Command::Check(args) => check::run(&args, &client, out).await,
            Command::Backup(args) => backup::run(&args, &Client::patient(&cli.target)?, out).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_this_version_is_understood() {
        for line in [
            "demo --clients 5 --rounds 3 --json",
            "serve --config a.toml --data d --check-config",
            "dev",
            "dev --ports auto --data d",
            "tls init",
            "tls init --dir d --name mill.example.org --name 192.0.2.1 --days 90",
            "pool apply pool.toml",
            "pool add p window_s=60 grouping=label",
            "pool list",
            "pool show p --json",
            "pool set p window_s=60",
            "pool remove p --force",
            "member add p m --role publisher --format env",
            "member list p --all",
            "member revoke p m",
            "token new p m",
            "token rotate p m",
            "upload show p m u",
            "upload list p --member m --batch 3 --limit 10 --cursor 5",
            "batch list p",
            "batch show p 1",
            "round list p",
            "round show p 1",
            "round retry p 1",
            "result list p",
            "result rollback p 1",
            "status",
            "status p",
            "events p -f --since 7",
            "gc",
            "gc p --dry-run --json",
            "check",
            "check --deep --json",
            "backup mill.tar",
            "backup mill.tar --ledger-only --json",
            "restore mill.tar --data d --config a.toml",
            "--server http://h:1 --token-file t status",
            "status --server http://h:1 --token-file t --json",
        ] {
            let args = std::iter::once("millpond").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(args) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn the_commands_in_the_operators_manual_are_understood() {
        let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operate.md");
        let manual = std::fs::read_to_string(manual).unwrap();
        let mut seen = 0;
        for line in manual.lines().filter(|line| line.starts_with("millpond ")) {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
            seen += 1;
        }
        assert!(seen >= 15, "{seen} commands");
    }

    #[test]
    fn names_are_checked_before_anything_is_sent() {
        for line in [
            "pool show Pool",
            "member add p a/b --role publisher",
            "member add p m --role king",
            "round show p -1",
        ] {
            assert!(
                Cli::try_parse_from(std::iter::once("millpond").chain(line.split(' '))).is_err(),
                "{line}"
            );
        }
    }

    #[test]
    fn a_wrong_command_line_exits_with_2_and_help_with_0() {
        let run = |line: &str| run(std::iter::once("millpond").chain(line.split(' ')).map(OsString::from));
        assert_eq!(run("no-such-command"), ExitCode::from(2));
        assert_eq!(run("--help"), ExitCode::SUCCESS);
    }
}
