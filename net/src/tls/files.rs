//! Certificate and key as files: what they must be, and what to do where they are not.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::clients::{self, Authorities};

/// Bytes of a file: a list of a hundred thousand revoked certificates has some 5 MiB.
const FILE_MAX: u64 = 16 << 20;

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate in PEM, then those that lead to its authority.
    pub cert: PathBuf,
    /// Its key in PEM, without a password.
    pub key: PathBuf,
    /// The directory of what speaks for members: `{pool}.crt`, `{pool}.crl`.
    pub clients: Option<PathBuf>,
}

/// Which of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Cert,
    Key,
    Clients,
}

/// What is wrong with a file, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WrongFile {
    pub part: Part,
    pub message: String,
}

/// What the files hold. Nothing shows it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bytes {
    cert: Vec<u8>,
    key: Vec<u8>,
    clients: clients::Files,
}

/// A certificate and its key that were looked at.
pub(super) struct Loaded {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) expires: Timestamp,
    pub(super) authorities: Option<Authorities>,
}

impl Files {
    /// Reads both.
    pub(super) fn read(&self) -> Result<Bytes, Vec<WrongFile>> {
        let cert = read(&self.cert).map_err(|error| self.unreadable(Part::Cert, &error));
        let key = read(&self.key).map_err(|error| self.unreadable(Part::Key, &error)).and_then(|key| {
            if is_open(&self.key) {
                return Err(self.wrong(Part::Key, "can be read by everybody on this machine: chmod 600 it"));
            }
            Ok(key)
        });
        let clients = self.clients.as_deref().map(clients::read).transpose();
        let clients = clients.map_err(|message| WrongFile { part: Part::Clients, message });
        match (cert, key, clients) {
            (Ok(cert), Ok(key), Ok(clients)) => Ok(Bytes { cert, key, clients: clients.unwrap_or_default() }),
            (cert, key, clients) => {
                Err([cert.err(), key.err(), clients.err()].into_iter().flatten().collect())
            }
        }
    }

    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Cert => &self.cert,
            Part::Key => &self.key,
            Part::Clients => self.clients.as_deref().unwrap_or(Path::new("")),
        }
    }

    fn wrong(&self, part: Part, what: impl fmt::Display) -> WrongFile {
        WrongFile { part, message: format!("{} {what}", self.path(part).display()) }
    }

    fn unreadable(&self, part: Part, error: &io::Error) -> WrongFile {
        let what = match error.kind() {
            io::ErrorKind::NotFound => {
                "is not there: `millpond tls init` makes a pair, or name the files of yours"
            }
            io::ErrorKind::PermissionDenied => {
                "may not be read by the user that runs the server: give it to that user (chown), with mode 600"
            }
            _ => return self.wrong(part, format!("cannot be read: {error}")),
        };
        self.wrong(part, what)
    }

    /// What rustls says of a pair that was looked at here.
    pub(super) fn refused(&self, error: &rustls::Error) -> WrongFile {
        match error {
            rustls::Error::InconsistentKeys(_) => self.wrong(
                Part::Key,
                format!(
                    "is not the key of the first certificate in {}: name the pair that was made together, and have the \
                     server's own certificate stand first in its file",
                    self.cert.display()
                ),
            ),
            error => self.wrong(Part::Key, format!("cannot be used: {error}")),
        }
    }
}

impl Bytes {
    /// Which files are other ones than in `old`, or are there no more.
    pub(super) fn changed(&self, old: &Self) -> Vec<String> {
        let mut changed: Vec<String> = Vec::new();
        changed.extend((self.cert != old.cert).then(|| "cert_file".to_owned()));
        changed.extend((self.key != old.key).then(|| "key_file".to_owned()));
        let names: BTreeSet<&String> = self.clients.keys().chain(old.clients.keys()).collect();
        let others = names.into_iter().filter(|name| self.clients.get(*name) != old.clients.get(*name));
        changed.extend(others.cloned());
        changed
    }

    /// Looks at all but whether the two fit.
    pub(super) fn check(&self, files: &Files) -> Result<Loaded, Vec<WrongFile>> {
        let certificates = self.chain(files);
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            files.wrong(
                Part::Key,
                "holds no private key in PEM that needs no password: \
                 `openssl pkey -in OLD -out NEW` takes a password off",
            )
        });
        let authorities = Authorities::of(&self.clients, &Arc::new(ring::default_provider()));
        let authorities = authorities
            .map_err(|what| files.wrong(Part::Clients, format!("holds what cannot be used: {what}")));
        match (certificates, key, authorities) {
            (Ok((chain, expires)), Ok(key), Ok(authorities)) => {
                Ok(Loaded { chain, key, expires, authorities })
            }
            (chain, key, authorities) => {
                Err([chain.err(), key.err(), authorities.err()].into_iter().flatten().collect())
            }
        }
    }

    fn chain(&self, files: &Files) -> Result<(Vec<CertificateDer<'static>>, Timestamp), WrongFile> {
        let wrong = |what: String| files.wrong(Part::Cert, what);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("is no PEM: {error}")))?;
        let Some(first) = chain.first() else {
            return Err(wrong("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".into()));
        };
        let (_, certificate) = X509Certificate::from_der(first)
            .map_err(|error| wrong(format!("holds a certificate that does not read: {error}")))?;
        let validity = certificate.validity();
        let from = timestamp(validity.not_before.timestamp());
        let to = timestamp(validity.not_after.timestamp());
        let now = Timestamp::now();
        if now > to {
            return Err(wrong(format!("ended on {to}: put a renewed certificate there")));
        }
        if now < from {
            return Err(wrong(format!(
                "holds from {from} on, and it is {now} here: is this machine's clock right?"
            )));
        }
        Ok((chain, to))
    }
}

/// The certificates of an authority, as PEM, where clients are handed them.
///
/// # Errors
/// The file cannot be read or holds none.
pub fn authority(path: &Path) -> Result<String, String> {
    let wrong = |what: String| format!("{} {what}", path.display());
    let bytes = read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut certificates = CertificateDer::pem_slice_iter(&bytes);
    if !matches!(certificates.next(), Some(Ok(_))) {
        return Err(wrong("holds no certificate in PEM (-----BEGIN CERTIFICATE-----)".into()));
    }
    String::from_utf8(bytes).map_err(|_| wrong("is no text".into()))
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        let what = format!("it is longer than {FILE_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// Whether users who are neither the owner nor of the file's group may read it.
fn is_open(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0)
}

#[cfg(test)]
#[path = "files_tests.rs"]
pub(super) mod tests;
