//! Who connects, and where to: the options, named like the variables that `millpond member add --format env` prints, or else
//! what `enrol` left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::failure::{Failure, USAGE};
use crate::identity::{Identity, parse_user};
use crate::session::{Address, Config, Token, Trust};

#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connect {
    /// Where the server is, in place of host and port: mqtt://, mqtts:// (TLS), ws:// or wss:// HOST[:PORT][/PATH].
    #[arg(long, global = true, env = "MILLPOND_MQTT_URL", value_name = "URL")]
    url: Option<Address>,
    /// Host of the MQTT listener without TLS [default: 127.0.0.1].
    #[arg(long, global = true, env = "MILLPOND_MQTT_HOST")]
    host: Option<String>,
    /// Port of the MQTT listener without TLS [default: 1883].
    #[arg(long, global = true, env = "MILLPOND_MQTT_PORT")]
    port: Option<u16>,
    /// POOL/MEMBER. Without it this is who was enrolled, with its token, and its server where no other one is named.
    #[arg(long, global = true, env = "MILLPOND_MQTT_USER")]
    user: Option<String>,
    /// File with the device token. Without it the variable MILLPOND_MQTT_TOKEN counts: a token on the command line would be seen by all.
    #[arg(long, global = true, env = "MILLPOND_MQTT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authorities in PEM that the server's certificate comes from, in place of the public ones; storage's may come from either.
    #[arg(long, global = true, env = "MILLPOND_CA_FILE", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// The member's certificate in PEM; with it no token is needed.
    #[arg(long, global = true, env = "MILLPOND_CERT_FILE", value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[arg(long, global = true, env = "MILLPOND_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// Seconds after which the server is asked whether it is there; after one and a half times as long without a word it is gone.
    #[arg(long, global = true, env = "MILLPOND_KEEP_ALIVE", default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=43_200))]
    keep_alive: u64,
    /// The directory in which `enrol` leaves who this is [default: $XDG_CONFIG_HOME or ~/.config, then millpond-edge].
    #[arg(long, global = true, env = "MILLPOND_IDENTITY", value_name = "DIR")]
    identity: Option<PathBuf>,
}

impl Connect {
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let enrolled = self.enrolled()?;
        let (pool, member) = match (&self.user, &enrolled) {
            (Some(user), _) => parse_user(user).map_err(|error| usage(format!("the user: {error}")))?,
            (None, Some(who)) => (who.pool.clone(), who.member.clone()),
            (None, None) => {
                let what = "who is this? --user POOL/MEMBER or MILLPOND_MQTT_USER, or `millpond-edge enrol`";
                return Err(usage(what));
            }
        };
        let address = match (&self.url, &self.host, self.port, &enrolled) {
            (Some(url), ..) => url.clone(),
            (None, None, None, Some(who)) => who.address.clone().ok_or_else(|| {
                usage("the server's answer to the enrolment is not known: repeat `millpond-edge enrol`")
            })?,
            (None, host, port, _) => {
                if self.ca_file.is_some() {
                    let what =
                        "--ca-file is for TLS: --url mqtts://HOST, or mqtt://HOST where plain text is meant";
                    return Err(usage(what));
                }
                Address::plain(host.as_deref().unwrap_or("127.0.0.1"), port.unwrap_or(1883))
            }
        };
        let mut config = Config::new(&address.host, address.port, pool, member, Token::new(""));
        config.keep_alive = Duration::from_secs(self.keep_alive);
        config.token = self.token(enrolled.as_ref())?;
        let own = self.cert_file.as_deref().zip(self.key_file.as_deref());
        if address.scheme.is_encrypted() {
            config.trust = Some(Trust::new(self.authority(enrolled.as_ref()), own).map_err(usage)?);
        } else if own.is_some() {
            return Err(usage("a certificate is shown over TLS alone: --url mqtts://HOST"));
        }
        config.address = address;
        Ok(config)
    }

    /// Who was enrolled, where no other one is named.
    fn enrolled(&self) -> Result<Option<Identity>, Failure> {
        if self.user.is_some() || (self.identity.is_none() && default_identity().is_none()) {
            return Ok(None);
        }
        Ok(Identity::read(&self.identity()?)?)
    }

    /// Where `enrol` leaves who this is.
    pub(super) fn identity(&self) -> Result<PathBuf, Failure> {
        self.identity
            .clone()
            .or_else(default_identity)
            .ok_or_else(|| usage("where is it to be kept who this is? --identity DIR"))
    }

    /// None: the certificate takes its place.
    fn token(&self, enrolled: Option<&Identity>) -> Result<Option<Token>, Failure> {
        let stated = secret(self.token_file.as_deref(), "MILLPOND_MQTT_TOKEN", "the token")?;
        match (stated, enrolled) {
            (Some(token), _) => Ok(Some(Token::new(token))),
            (None, _) if self.cert_file.is_some() => Ok(None),
            (None, Some(who)) => Ok(Some(who.token.clone())),
            (None, None) => Err(usage("no token: --token-file FILE or MILLPOND_MQTT_TOKEN")),
        }
    }

    fn authority<'a>(&'a self, enrolled: Option<&'a Identity>) -> Option<&'a Path> {
        self.ca_file.as_deref().or_else(|| enrolled?.ca.as_deref())
    }

    /// What storage's certificate may come from beside the public authorities.
    pub(super) fn authorities(&self) -> Result<Vec<reqwest::Certificate>, Failure> {
        let enrolled = self.enrolled()?;
        let Some(path) = self.authority(enrolled.as_ref()) else { return Ok(Vec::new()) };
        crate::transfer::authorities(path).map_err(usage)
    }
}

/// A secret from a file, or else from a variable.
pub(super) fn secret(file: Option<&Path>, variable: &str, what: &str) -> Result<Option<String>, Failure> {
    let found = match file {
        Some(path) => {
            Some(std::fs::read(path).map_err(|error| usage(format!("{what}: {}: {error}", path.display())))?)
        }
        None => std::env::var_os(variable).map(std::os::unix::ffi::OsStringExt::into_vec),
    };
    let text = found.map(String::from_utf8).transpose().map_err(|_| usage(format!("{what} is no text")))?;
    Ok(text.map(|text| text.trim().to_owned()))
}

fn default_identity() -> Option<PathBuf> {
    super::home("XDG_CONFIG_HOME", ".config")
}

pub(super) fn usage(what: impl Into<String>) -> Failure {
    Failure::new(USAGE, what)
}
