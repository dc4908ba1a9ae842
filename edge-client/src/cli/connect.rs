//! Who connects, and where to: the options, named like the variables that `millpond member add --format env` prints.

use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::{Failure, USAGE};
use crate::session::{Address, Config, Token, Trust};

#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connect {
    /// Where the server is, in place of host and port: mqtt://, mqtts:// (TLS), ws:// or wss:// HOST[:PORT][/PATH].
    #[arg(long, env = "MILLPOND_MQTT_URL", value_name = "URL")]
    url: Option<Address>,
    /// Host of the MQTT listener without TLS.
    #[arg(long, env = "MILLPOND_MQTT_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port of the MQTT listener without TLS.
    #[arg(long, env = "MILLPOND_MQTT_PORT", default_value_t = 1883)]
    port: u16,
    /// POOL/MEMBER.
    #[arg(long, env = "MILLPOND_MQTT_USER")]
    user: Option<String>,
    /// File with the device token. Without it the variable MILLPOND_MQTT_TOKEN counts: a token on the command line would be seen by all.
    #[arg(long, env = "MILLPOND_MQTT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authorities in PEM that the server's certificate comes from, in place of the public ones; storage's may come from either.
    #[arg(long, env = "MILLPOND_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The member's certificate in PEM; with it no token is needed.
    #[arg(long, env = "MILLPOND_CERT_FILE", value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[arg(long, env = "MILLPOND_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl Connect {
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let user = self
            .user
            .as_deref()
            .ok_or_else(|| usage("who is this? --user POOL/MEMBER or MILLPOND_MQTT_USER"))?;
        let (pool, member) =
            user.split_once('/').ok_or_else(|| usage(format!("the user {user:?} is not POOL/MEMBER")))?;
        let pool = pool.parse().map_err(|error| usage(format!("{pool:?}: {error}")))?;
        let member = member.parse().map_err(|error| usage(format!("{member:?}: {error}")))?;
        let address = self.url.clone().unwrap_or_else(|| Address::plain(&self.host, self.port));
        let mut config = Config::new(&address.host, address.port, pool, member, Token::new(""));
        config.token = self.token()?.map(Token::new);
        let own = self.cert_file.as_deref().zip(self.key_file.as_deref());
        if address.scheme.is_encrypted() {
            config.trust = Some(Trust::new(self.ca_file.as_deref(), own).map_err(usage)?);
        } else if own.is_some() {
            return Err(usage("a certificate is shown over TLS alone: --url mqtts://HOST"));
        } else if self.ca_file.is_some() && self.url.is_none() {
            let what = "--ca-file is for TLS: --url mqtts://HOST, or mqtt://HOST where plain text is meant";
            return Err(usage(what));
        }
        config.address = address;
        Ok(config)
    }

    /// None: the certificate takes its place.
    fn token(&self) -> Result<Option<String>, Failure> {
        let token = match &self.token_file {
            Some(path) => Some(read(path).map_err(|error| usage(format!("the token file {error}")))?),
            None => std::env::var("MILLPOND_MQTT_TOKEN").ok().map(String::into_bytes),
        };
        match token.map(String::from_utf8) {
            Some(Ok(token)) => Ok(Some(token.trim().to_owned())),
            Some(Err(_)) => Err(usage("the token is no text")),
            None if self.cert_file.is_some() => Ok(None),
            None => Err(usage("no token: --token-file FILE or MILLPOND_MQTT_TOKEN")),
        }
    }

    /// What storage's certificate may come from beside the public authorities.
    pub(super) fn authorities(&self) -> Result<Vec<reqwest::Certificate>, Failure> {
        let Some(path) = &self.ca_file else { return Ok(Vec::new()) };
        let pem = read(path).map_err(usage)?;
        reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|error| usage(format!("{}: {error}", path.display())))
    }
}

fn usage(what: impl Into<String>) -> Failure {
    Failure::new(USAGE, what)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
