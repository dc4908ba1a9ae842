//! A certificate authority of one's own, for servers that no public one knows. rcgen, with ring.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use millpond_storage::directory;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// Names of the files in the directory.
const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERT: &str = "server.crt";
const KEY: &str = "server.key";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Days that an authority lasts.
const CA_DAYS: u32 = 3_650;
/// How far a client's clock may be behind.
const BACKDATED: Duration = DAY;

/// Where everything was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Made {
    pub ca_file: PathBuf,
    pub ca_key_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// What the server's certificate is for.
    pub names: Vec<String>,
    /// Days from now until it ends.
    pub days: u32,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum Unmade {
    #[error("{} is there already, and nothing is ever written over", .0.display())]
    There(PathBuf),
    #[error("{0:?} is no host name or address")]
    Name(String),
    #[error("{}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// Makes an authority and a certificate for a server with these names and addresses, in `dir`, which is made too. Keys are
/// for their owner alone.
///
/// # Errors
/// A file is there already, a name is none, or the directory cannot be written.
pub fn init(dir: &Path, names: &[String], days: u32) -> Result<Made, Unmade> {
    let path = |name: &str| dir.join(name);
    let made = Made {
        ca_file: path(CA_CERT),
        ca_key_file: path(CA_KEY),
        cert_file: path(CERT),
        key_file: path(KEY),
        names: names.to_vec(),
        days,
    };
    // Before anything is made, so that a refusal leaves nothing behind.
    for file in [&made.ca_file, &made.ca_key_file, &made.cert_file, &made.key_file] {
        if file.symlink_metadata().is_ok() {
            return Err(Unmade::There(file.clone()));
        }
    }
    let ca = CertifiedIssuer::self_signed(ca_params(), KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = server_params(names, days)?.signed_by(&key, &ca)?;
    // The keys are closed by themselves, and the server may be another user.
    std::fs::create_dir_all(dir).map_err(|error| unwritten(dir, error))?;
    for (file, mode, text) in [
        (&made.ca_key_file, 0o600, ca.key().serialize_pem()),
        (&made.ca_file, 0o644, ca.pem()),
        (&made.key_file, 0o600, key.serialize_pem()),
        (&made.cert_file, 0o644, certificate.pem()),
    ] {
        write_new(file, mode, &text).map_err(|error| unwritten(file, error))?;
    }
    directory::sync_name_of(&made.cert_file).map_err(|error| unwritten(dir, error))?;
    directory::sync_name_of(dir).map_err(|error| unwritten(dir, error))?;
    Ok(made)
}

fn unwritten(path: &Path, error: io::Error) -> Unmade {
    Unmade::Write { path: path.to_owned(), error }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Millpond CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    last(&mut params, CA_DAYS);
    params
}

fn server_params(names: &[String], days: u32) -> Result<CertificateParams, Unmade> {
    for name in names {
        let host = url::Host::parse(name).or_else(|_| url::Host::parse(&format!("[{name}]")));
        if host.is_err() {
            return Err(Unmade::Name(name.clone()));
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Millpond server");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    last(&mut params, days);
    Ok(params)
}

fn last(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * days).into();
}

fn write_new(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
