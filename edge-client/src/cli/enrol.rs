//! `enrol`.

use std::path::PathBuf;

use serde_json::json;

use super::connect::usage;
use super::failure::Failure;
use super::{Cli, say};
use crate::enrol::{Request, enrol};
use crate::identity::parse_user;
use crate::session::Token;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Who the device wants to be.
    #[arg(value_name = "POOL/MEMBER")]
    user: String,
    /// Where the server's HTTP listener is: https://HOST[:PORT], or http:// where plain text is meant.
    #[arg(long, env = "MILLPOND_SERVER", value_name = "URL")]
    server: String,
    /// File with the join token. Without it the variable MILLPOND_JOIN_TOKEN counts: a token on the command line would be seen by all.
    #[arg(long, env = "MILLPOND_JOIN_TOKEN_FILE", value_name = "FILE")]
    join_token_file: Option<PathBuf>,
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let (pool, member) = parse_user(&args.user).map_err(usage)?;
    let join =
        super::connect::secret(args.join_token_file.as_deref(), "MILLPOND_JOIN_TOKEN", "the join token")?
            .ok_or_else(|| usage("no join token: --join-token-file FILE or MILLPOND_JOIN_TOKEN"))?;
    let directory = cli.connect.identity()?;
    let request = Request {
        server: args.server.clone(),
        pool,
        member,
        join: Token::new(join),
        ca: cli.connect.ca_file.clone(),
    };
    let identity = enrol(&directory, &request, cli.spool.patience()).await?;
    let url = identity.address.as_ref().map_or_else(String::new, ToString::to_string);
    if cli.json {
        say(format_args!("{}", json!({ "user": args.user, "url": url, "identity": directory })))
    } else {
        say(format_args!("enrolled  {}  at {url}; {} holds its token", args.user, directory.display()))
    }
}
