//! Secrets that the first start makes: files in the data directory that only their owner can read.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use millpond_failpoint::{Point, reach};
use millpond_storage::directory;

/// Makes a directory that only its owner can enter, or closes one that is there to everybody else: it holds what clients
/// sent and the keys to it.
///
/// # Errors
/// It cannot be made.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    directory::make_private(dir)?;
    if std::fs::metadata(dir)?.permissions().mode() & 0o077 != 0
        && let Err(error) = std::fs::set_permissions(dir, Permissions::from_mode(0o700))
    {
        // A volume that belongs to another user. The files in it are closed each by itself.
        tracing::warn!(%error, dir = %dir.display(), "others may list the data directory");
    }
    Ok(())
}

/// Characters of a secret that an operator chooses.
const LEAST: usize = 32;

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
/// The file cannot be read or written, or what it holds can be guessed.
pub fn load_or_create(path: &Path, prefix: &str) -> io::Result<String> {
    match File::open(path) {
        Ok(mut file) => {
            if file.metadata()?.permissions().mode() & 0o077 != 0 {
                tracing::warn!(file = %path.display(), "others may read this secret: chmod 600, better make a new one");
            }
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            match text.trim() {
                "" => {
                    Err(io::Error::other(format!("{} is empty: delete it to get a new one", path.display())))
                }
                secret if secret.len() < LEAST => Err(io::Error::other(format!(
                    "{} holds fewer than {LEAST} characters: write a longer secret, or delete it to get a new one",
                    path.display()
                ))),
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
    reach(Point::SecretWritten);
    std::fs::rename(&new, path)?;
    directory::sync_name_of(path)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_there_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        private_dir(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
        let new = dir.path().join("new/one");
        private_dir(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
    }

    #[test]
    fn a_secret_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.token");
        let made = load_or_create(&path, "mpa_").unwrap();
        assert!(made.starts_with("mpa_") && made.len() == 4 + 43, "{made}");
        assert_eq!(load_or_create(&path, "mpa_").unwrap(), made);
        let short = dir.path().join("short.token");
        std::fs::write(&short, "x\n").unwrap();
        assert!(load_or_create(&short, "mpa_").unwrap_err().to_string().contains("fewer than 32"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
