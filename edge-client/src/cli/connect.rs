//! Who connects, and where to: the options, named like the variables that `millpond member add --format env` prints.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Failure, USAGE};
use crate::session::{Config, Token};

#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connect {
    /// Host of the MQTT listener.
    #[arg(long, env = "MILLPOND_MQTT_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port of the MQTT listener.
    #[arg(long, env = "MILLPOND_MQTT_PORT", default_value_t = 1883)]
    port: u16,
    /// POOL/MEMBER.
    #[arg(long, env = "MILLPOND_MQTT_USER")]
    user: Option<String>,
    /// File with the device token. Without it the variable MILLPOND_MQTT_TOKEN counts: a token on the command line would be seen by all.
    #[arg(long, env = "MILLPOND_MQTT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl Connect {
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let usage = |what: String| Failure::new(USAGE, what);
        let user = self
            .user
            .as_deref()
            .ok_or_else(|| usage("who is this? --user POOL/MEMBER or MILLPOND_MQTT_USER".into()))?;
        let (pool, member) =
            user.split_once('/').ok_or_else(|| usage(format!("the user {user:?} is not POOL/MEMBER")))?;
        let token = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| usage(format!("the token file {}: {error}", path.display())))?,
            None => std::env::var("MILLPOND_MQTT_TOKEN")
                .map_err(|_| usage("no token: --token-file FILE or MILLPOND_MQTT_TOKEN".into()))?,
        };
        let pool = pool.parse().map_err(|error| usage(format!("{pool:?}: {error}")))?;
        let member = member.parse().map_err(|error| usage(format!("{member:?}: {error}")))?;
        Ok(Config::new(&self.host, self.port, pool, member, Token::new(token.trim())))
    }
}
