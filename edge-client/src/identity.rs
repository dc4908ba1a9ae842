//! Who this device is, in a directory of its own: what an enrolment leaves there, and what sessions are opened with.
//!
//! # The format, version 1
//!
//! ```text
//! DIR/              mode 0700
//!   lock            flock, exclusive, while an enrolment runs
//!   identity.json   mode 0600: { "version": 1, "user": "POOL/MEMBER", "token": "mpd_…", "url"?: "mqtts://HOST:PORT" }
//!   ca.crt          the authority, in PEM, that the server's certificate comes from; absent: a public one
//!   scratch         one of the two while it is written
//! ```
//!
//! Both files are replaced as a whole: written, synced, renamed, and the directory is synced. Without a `url` the server was
//! asked to make this token the member's, and what it answered is not known: [`crate::enrol`] asks again with the same one.
//! `ca.crt` is there before the `url` is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use millpond_protocol::{MemberName, PoolName};
use serde::{Deserialize, Serialize};

use crate::session::{Address, Config, Token, Trust};
use crate::spool::{open_private, private_directories, write_synced};
use crate::transfer::sync_directory;

const VERSION: u32 = 1;

/// A member, as its device knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub pool: PoolName,
    pub member: MemberName,
    pub token: Token,
    /// Where the server is; none: it has not answered yet.
    pub address: Option<Address>,
    /// The authority that its certificate comes from; none: a public one.
    pub ca: Option<PathBuf>,
}

/// Why there is no identity to be had from a directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nobody wrote that, or a later version did.
    #[error("{} is no identity of this version: {why}", .path.display())]
    Foreign { path: PathBuf, why: String },
    /// What the system said.
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The JSON. Never shown: it holds the token.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    user: String,
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl Identity {
    /// What the directory holds; none if it holds nothing, or is not there.
    ///
    /// # Errors
    /// As they say.
    pub fn read(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join("identity.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => at(&path, text)?,
        };
        let foreign = |why: String| IdentityError::Foreign { path: path.clone(), why };
        // What serde says may quote the token.
        let Stored { version, user, token, url } =
            serde_json::from_str(&text).map_err(|_| foreign("it is not understood".to_owned()))?;
        if version != VERSION {
            return Err(foreign(format!("it has version {version}")));
        }
        let (pool, member) = parse_user(&user).map_err(&foreign)?;
        let address = url.map(|url| url.parse()).transpose().map_err(&foreign)?;
        let ca = Some(directory.join("ca.crt")).filter(|ca| ca.exists());
        Ok(Some(Self { pool, member, token: Token::new(token), address, ca }))
    }

    /// How a session of this member connects. None before the server has answered.
    ///
    /// # Errors
    /// What is wrong with the authority's file.
    pub fn config(&self) -> Result<Option<Config>, String> {
        let Some(address) = self.address.clone() else { return Ok(None) };
        let (pool, member) = (self.pool.clone(), self.member.clone());
        let mut config = Config::new("", 0, pool, member, self.token.clone());
        if address.scheme.is_encrypted() {
            config.trust = Some(Trust::new(self.ca.as_deref(), None)?);
        }
        config.address = address;
        Ok(Some(config))
    }

    /// Writes it in place of what the directory holds. When it returns, it is there after a power cut.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), IdentityError> {
        let stored = Stored {
            version: VERSION,
            user: format!("{}/{}", self.pool, self.member),
            token: self.token.reveal().to_owned(),
            url: self.address.as_ref().map(ToString::to_string),
        };
        let json = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        replace(directory, "identity.json", Some(&json))
    }
}

/// Writes the authority's file, or removes it.
pub(crate) fn write_authority(directory: &Path, pem: Option<&[u8]>) -> Result<(), IdentityError> {
    replace(directory, "ca.crt", pem)
}

/// Forgets an identity that the server does not know.
pub(crate) fn forget(directory: &Path) -> Result<(), IdentityError> {
    replace(directory, "identity.json", None)
}

/// Makes the directory for its owner alone, and holds it for one enrolment until the value is dropped.
pub(crate) fn hold(directory: &Path) -> Result<File, IdentityError> {
    at(directory, private_directories(directory))?;
    let path = directory.join("lock");
    let lock = at(&path, open_private(&path))?;
    at(&path, lock.lock())?;
    Ok(lock)
}

fn replace(directory: &Path, name: &str, content: Option<&[u8]>) -> Result<(), IdentityError> {
    let (path, scratch) = (directory.join(name), directory.join("scratch"));
    let write = || {
        match content {
            Some(content) => return write_synced(&path, &scratch, content, || {}),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            },
        }
        sync_directory(directory)
    };
    at(&path, write())
}

/// `POOL/MEMBER`.
pub(crate) fn parse_user(user: &str) -> Result<(PoolName, MemberName), String> {
    let (pool, member) = user.split_once('/').ok_or_else(|| format!("{user:?} is not POOL/MEMBER"))?;
    let pool = pool.parse().map_err(|error| format!("{pool:?}: {error}"))?;
    let member = member.parse().map_err(|error| format!("{member:?}: {error}"))?;
    Ok((pool, member))
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, IdentityError> {
    result.map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}
