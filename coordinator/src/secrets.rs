//! Secrets that the first start makes: files in the data directory that only their owner can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use data_encoding::BASE64URL_NOPAD;

/// A random text of 256 bits with a prefix that says what it is, such as `mpd_` for device tokens.
///
/// # Errors
/// The system has no randomness.
pub fn random(prefix: &str) -> io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{prefix}{}", BASE64URL_NOPAD.encode(&bytes)))
}

/// Reads the secret in `path`, or makes it: durable, and readable by its owner alone.
///
/// # Errors
/// The file cannot be read or written.
pub fn load_or_create(path: &Path, prefix: &str) -> io::Result<String> {
    match File::open(path) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            match text.trim() {
                "" => {
                    Err(io::Error::other(format!("{} is empty: delete it to get a new one", path.display())))
                }
                secret => Ok(secret.to_owned()),
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path, prefix),
        Err(e) => Err(e),
    }
}

/// A crash leaves no file or a whole one.
fn create(path: &Path, prefix: &str) -> io::Result<String> {
    let secret = random(prefix)?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        let made = load_or_create(&path, "mpa_").unwrap();
        assert!(made.starts_with("mpa_") && made.len() == 4 + 43, "{made}");
        assert_eq!(load_or_create(&path, "mpa_").unwrap(), made);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
