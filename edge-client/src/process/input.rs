//! The files of a round, from the lease's URLs to `input/{member}/{upload}`. Nothing is whole in memory, and nothing is
//! believed: each object has the lease's SHA-256, and all files together are exactly those that the manifest lists.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use millpond_protocol::access::Op;
use millpond_protocol::message::answer::FilesPage;
use millpond_protocol::message::{Lease, LeaseFile, LeaseFileKind, ask};
use millpond_protocol::{MemberName, Sha256, UploadId};
use serde::Deserialize;

use super::job::held;
use super::{ASK, AttemptError, Options};
use crate::session::Session;
use crate::transfer::{Expected, Hasher, Meter, Transfer, TransferError};

/// URLs that may run out on one page of files, or on the manifest.
const RENEWALS: u32 = 20;

/// Where things are for the command.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) input: PathBuf,
    pub(super) manifest: PathBuf,
    pub(super) output: PathBuf,
    scratch: PathBuf,
}

impl Paths {
    /// Under the directory of one attempt.
    pub(super) fn under(root: &Path) -> Self {
        let at = |name: &str| root.join(name);
        Self {
            input: at("input"),
            manifest: at("manifest.jsonl"),
            output: at("output"),
            scratch: at("scratch"),
        }
    }
}

/// A set of files as one number that does not depend on their order: a million of them take no memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    count: u64,
    bytes: u64,
    sum: [u64; 4],
}

impl Tally {
    fn add(&mut self, member: &MemberName, upload: &UploadId, size: u64, sha256: Sha256) {
        let digest = Sha256::of(format!("{member}/{upload} {size} {sha256}").as_bytes());
        for (sum, eight) in self.sum.iter_mut().zip(digest.0.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*eight));
        }
        self.count += 1;
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// A line of the manifest.
#[derive(Debug, Deserialize)]
struct Line {
    member: MemberName,
    upload: UploadId,
    size: u64,
    sha256: Sha256,
    #[serde(default)]
    superseded: bool,
}

/// Fetches everything of a ready lease.
pub(super) async fn fetch(
    session: &Session,
    transfer: &Transfer,
    options: &Options,
    lease: &Lease,
    paths: &Paths,
) -> Result<(), AttemptError> {
    fs::create_dir_all(&paths.input)?;
    fs::create_dir_all(&paths.scratch)?;
    let size = manifest(session, transfer, lease, &paths.manifest, options.disk_max).await?;
    let path = paths.manifest.clone();
    let listed = blocking(move || listed(&path)).await?;
    if listed.bytes.saturating_add(size) > options.disk_max {
        return Err(AttemptError::Room(format!(
            "the round has {} bytes and a manifest of {size}, and {} may be used",
            listed.bytes, options.disk_max
        )));
    }
    let mut found = Tally::default();
    let (mut page, mut cursor) =
        (FilesPage { files: lease.files.clone(), cursor: lease.cursor.clone() }, None::<String>);
    loop {
        let (mut at, mut renewals) = (0, 0);
        while let Some(file) = page.files.get(at) {
            match object(transfer, file, paths, &mut found).await {
                Ok(()) => at += 1,
                Err(AttemptError::Transfer(TransferError::Expired { .. })) if renewals < RENEWALS => {
                    renewals += 1;
                    page = files(session, lease, cursor.clone()).await?;
                }
                Err(error) => return Err(error),
            }
        }
        let Some(next) = page.cursor.take() else { break };
        page = files(session, lease, Some(next.clone())).await?;
        cursor = Some(next);
    }
    fs::remove_dir_all(&paths.scratch)?;
    if found == listed {
        return Ok(());
    }
    let (n, m) = (found.count, listed.count);
    Err(AttemptError::Input(format!("the round's {n} files are not the {m} that its manifest lists")))
}

/// Fetches the manifest; how many bytes it has, which are no more than so many.
async fn manifest(
    session: &Session,
    transfer: &Transfer,
    lease: &Lease,
    to: &Path,
    at_most: u64,
) -> Result<u64, AttemptError> {
    let (mut url, mut renewals) = (lease.manifest_url.clone(), 0);
    loop {
        let (Some(from), Some(sha256)) = (&url, lease.manifest_sha256) else {
            return Err(AttemptError::Input("the lease is ready and has no manifest".into()));
        };
        match transfer.fetch_whole(from, to, sha256, at_most).await {
            Ok(()) => return Ok(fs::metadata(to)?.len()),
            Err(TransferError::Expired { .. }) if renewals < RENEWALS => {
                renewals += 1;
                url = held(session, lease, 0).await?.manifest_url;
            }
            Err(TransferError::TooLong { .. }) => {
                let what = format!("the round's manifest has more than the {at_most} bytes that may be used");
                return Err(AttemptError::Room(what));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A page of the lease's files with fresh URLs.
async fn files(session: &Session, lease: &Lease, cursor: Option<String>) -> Result<FilesPage, AttemptError> {
    let ask = ask::Files { round: lease.round, attempt: lease.attempt, cursor };
    Ok(session.ask(Op::Files, &ask, ASK).await?)
}

async fn object(
    transfer: &Transfer,
    file: &LeaseFile,
    paths: &Paths,
    found: &mut Tally,
) -> Result<(), AttemptError> {
    let partial = paths.scratch.join(file.sha256.to_string());
    let expected = Expected { size: file.size, sha256: file.sha256 };
    transfer.fetch(&file.url, &partial, &expected, &Meter::silent()).await?;
    match file.kind {
        LeaseFileKind::Large => {
            let (Some(member), Some(upload)) = (&file.member, &file.upload) else {
                return Err(AttemptError::Input("a large file of the lease has no owner".into()));
            };
            fs::create_dir_all(paths.input.join(member.as_str()))?;
            fs::rename(&partial, place(&paths.input, member, upload))?;
            found.add(member, upload, file.size, file.sha256);
        }
        LeaseFileKind::Pack => {
            let (input, mut tally) = (paths.input.clone(), *found);
            *found = blocking(move || {
                unpack(&partial, &input, &mut tally)?;
                fs::remove_file(&partial)?;
                Ok(tally)
            })
            .await?;
        }
    }
    Ok(())
}

fn place(input: &Path, member: &MemberName, upload: &UploadId) -> PathBuf {
    input.join(member.as_str()).join(upload.as_str())
}

/// Unpacks a tar of `{member}/{upload}`; other paths and other kinds of entries are refused.
fn unpack(pack: &Path, input: &Path, tally: &mut Tally) -> io::Result<()> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(pack)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a pack has {what}"));
        let path = entry.path_bytes().into_owned();
        let path = std::str::from_utf8(&path).map_err(|_| bad("a path that is no text"))?;
        let (member, upload) = path.split_once('/').ok_or_else(|| bad("a path without a member"))?;
        let member: MemberName = member.parse().map_err(|_| bad("a path with no member's name"))?;
        let upload: UploadId = upload.parse().map_err(|_| bad("a path with no upload's id"))?;
        if !entry.header().entry_type().is_file() {
            return Err(bad("an entry that is no file"));
        }
        fs::create_dir_all(input.join(member.as_str()))?;
        let mut file = File::create_new(place(input, &member, &upload))?;
        let (mut digest, mut size, mut buffer) = (Hasher::default(), 0, vec![0; 64 << 10]);
        loop {
            let n = entry.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n])?;
            digest.add(&buffer[..n]);
            size += n as u64;
        }
        tally.add(&member, &upload, size, digest.finish());
    }
    Ok(())
}

/// What the manifest lists as the round's files.
fn listed(manifest: &Path) -> io::Result<Tally> {
    let mut tally = Tally::default();
    for line in BufReader::new(File::open(manifest)?).lines().skip(1) {
        let line: Line = serde_json::from_str(&line?)?;
        if !line.superseded {
            tally.add(&line.member, &line.upload, line.size, line.sha256);
        }
    }
    Ok(tally)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, AttemptError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
        for (path, bytes) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            // As hostile as it may be.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_pack_is_unpacked_and_its_tally_is_the_manifests_in_any_order() {
        let root = tempfile::tempdir().unwrap();
        let mut tally = Tally::default();
        unpack(pack(&[("b/two", b"2"), ("a/one", b"1")]).path(), root.path(), &mut tally).unwrap();
        assert_eq!(fs::read(root.path().join("a/one")).unwrap(), b"1");
        let manifest = root.path().join("manifest");
        let line = |member: &str, upload: &str, bytes: &[u8], superseded: bool| {
            let sha256 = Sha256::of(bytes);
            let size = bytes.len();
            serde_json::json!({ "member": member, "upload": upload, "size": size, "sha256": sha256, "superseded": superseded })
        };
        let lines = [
            serde_json::json!({ "header": true }),
            line("a", "one", b"1", false),
            line("a", "old", b"0", true),
            line("b", "two", b"2", false),
        ];
        fs::write(&manifest, lines.map(|line| line.to_string()).join("\n")).unwrap();
        assert_eq!(listed(&manifest).unwrap(), tally);
        tally.add(&"a".parse().unwrap(), &"one".parse().unwrap(), 1, Sha256::of(b"1"));
        assert_ne!(listed(&manifest).unwrap(), tally);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["../x", "/etc/x", "a", "a/../b", "a/b/c", "a/.x", "a/"] {
            let root = tempfile::tempdir().unwrap();
            let input = root.path().join("deep/input");
            fs::create_dir_all(&input).unwrap();
            let refused = unpack(pack(&[(path, b"x")]).path(), &input, &mut Tally::default());
            assert!(refused.is_err(), "{path}");
            assert_eq!(fs::read_dir(root.path().join("deep")).unwrap().count(), 1, "{path}");
        }
    }

    #[test]
    fn a_pack_cannot_replace_a_file() {
        let root = tempfile::tempdir().unwrap();
        let twice = pack(&[("a/one", b"1"), ("a/one", b"2")]);
        assert!(unpack(twice.path(), root.path(), &mut Tally::default()).is_err());
        assert_eq!(fs::read(root.path().join("a/one")).unwrap(), b"1");
    }
}
