//! From files to entries of the spool.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::path::Path;

use millpond_protocol::{FileName, Sha256, UploadId};
use serde_json::json;

use super::failure::{FAILED, Failure};
use super::progress::Step;
use super::push::Args;
use crate::backoff::random;
use crate::clock::Stamp;
use crate::spool::{About, Document, Entry, Spool, Staged};
use crate::transfer::digest;

/// Files that are in the spool.
pub(super) struct Taken {
    /// Of each, in the order in which they were named.
    pub(super) ids: Vec<UploadId>,
    pub(super) digests: Vec<Sha256>,
    pub(super) ours: Vec<Entry>,
    /// What left for them.
    pub(super) dropped: Vec<Entry>,
}

/// Puts the files into the spool, all or none. Those that wait there already are not copied once more.
pub(super) fn all(spool: &mut Spool, args: &Args, spooling: &Step) -> Result<Taken, Failure> {
    let sizes: HashSet<u64> = spool.entries()?.map(|entry| entry.size).collect();
    let (mut staged, mut waiting) = (Vec::new(), Vec::new());
    let (mut ids, mut digests) = (Vec::new(), Vec::new());
    for path in &args.files {
        if let Some((entry, sha256)) = look(spool, args, path, &sizes)? {
            ids.push(entry.upload.clone());
            digests.push(sha256);
            waiting.push((entry, path));
        } else {
            let file = stage(spool, args, path)?;
            let Document { about, sha256, .. } = file.document();
            ids.push(about.upload.clone());
            digests.push(*sha256);
            staged.push(file);
        }
        spooling.advance();
    }
    // Another process may have sent or dropped some that waited when they were looked at.
    for (entry, path) in &waiting {
        if !spool.holds(entry) {
            staged.push(stage(spool, args, path)?);
        }
    }
    let added = spool.add(staged)?;
    let mut ours = [added.new, added.known].concat();
    ours.extend(waiting.into_iter().map(|(entry, _)| entry));
    Ok(Taken { ids, digests, ours, dropped: added.dropped })
}

/// The entry of a file that waits already: it is not copied once more, and needs no room. Only a file that is as long as one that
/// waits is read for that.
fn look(
    spool: &mut Spool,
    args: &Args,
    path: &Path,
    sizes: &HashSet<u64>,
) -> Result<Option<(Entry, Sha256)>, Failure> {
    let (found, name) = regular(path)?;
    if args.again || !sizes.contains(&found.len()) {
        return Ok(None);
    }
    // What goes wrong here goes wrong once more where it is copied.
    let Ok(digests) = digest(path, found.len(), None) else { return Ok(None) };
    let upload = args.id.clone().unwrap_or_else(|| id(args, &name, digests.sha256));
    Ok(spool.waiting(&upload, &digests.sha256)?.map(|entry| (entry, digests.sha256)))
}

/// What is known of a file that is one, and has a name that can be told.
fn regular(path: &Path) -> Result<(Metadata, FileName), Failure> {
    let failed = |what: String| Failure::new(FAILED, format!("{}: {what}", path.display()));
    // Before it is opened: opening a pipe would wait for its writer.
    let found = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !found.is_file() {
        return Err(failed("is not a file".into()));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok((found, name.parse().map_err(|error| failed(format!("{error}")))?))
}

fn stage(spool: &mut Spool, args: &Args, path: &Path) -> Result<Staged, Failure> {
    let failed = |what: String| Failure::new(FAILED, format!("{}: {what}", path.display()));
    let (found, name) = regular(path)?;
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let captured = Stamp::now();
    Ok(spool.stage_sized(file, found.len(), |sha256| About {
        upload: args.id.clone().unwrap_or_else(|| id(args, &name, sha256)),
        name,
        event_time: args.event_time,
        label: args.label.clone(),
        content_type: args.content_type.clone(),
        meta: args.meta.clone(),
        captured,
    })?)
}

/// The id of a file that was given none: the same for the same file, so that it is sent once.
fn id(args: &Args, name: &FileName, sha256: Sha256) -> UploadId {
    let key = json!([sha256, name, args.event_time, args.label]);
    let mut digits = Sha256::of(key.to_string().as_bytes()).to_string();
    if args.again {
        digits = format!("{:016x}", random());
    }
    let readable: String =
        name.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect();
    let readable: String = readable.trim_start_matches(['.', '-', '_']).chars().take(40).collect();
    let digits = &digits[..16];
    let id = if readable.is_empty() { digits.to_owned() } else { format!("{readable}-{digits}") };
    // Only such characters, a letter or digit first, and at most 57 of them.
    id.parse().expect("an id of ASCII letters, digits, dots, dashes and underscores")
}
