//! Reads what a backup says of itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;

use super::{END, End, FORMAT, HEADER, Header};
use crate::ledger;

/// Bytes of an entry that is JSON.
const JSON_MAX: u64 = 64 << 10;

/// Looks through a backup from entry to entry, without the bytes of objects, and says what it is if it is whole.
///
/// # Errors
/// It cannot be read, is no backup, breaks off, or says itself why it is not whole.
pub fn read_through(path: &Path) -> anyhow::Result<Header> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut entries = archive.entries_with_seek().context("it is no backup of Millpond")?;
    let header = header(entries.next())?;
    for entry in entries {
        let mut entry = entry.context("it breaks off")?;
        if entry.path_bytes().as_ref() == END.as_bytes() {
            end(&mut entry)?;
            return Ok(header);
        }
    }
    bail!("it breaks off: {END} is missing")
}

/// The first entry, of a backup that this program can restore.
pub(super) fn header<R: Read>(first: Option<std::io::Result<tar::Entry<'_, R>>>) -> anyhow::Result<Header> {
    let no_backup = || format!("it is no backup of Millpond: {HEADER} is not its first entry");
    let mut entry = first.and_then(Result::ok).with_context(no_backup)?;
    if entry.path_bytes().as_ref() == END.as_bytes() {
        // It could not even be begun.
        end(&mut entry)?;
    }
    ensure!(entry.path_bytes().as_ref() == HEADER.as_bytes(), no_backup());
    let header: Header = json(&mut entry)?;
    ensure!(
        header.format == FORMAT && header.schema <= ledger::SCHEMA,
        "millpond {} wrote it (format {}, schema {}), which is newer than this program: use that version",
        header.millpond,
        header.format,
        header.schema
    );
    Ok(header)
}

/// The last entry: an error where it says one.
pub(super) fn end<R: Read>(entry: &mut tar::Entry<'_, R>) -> anyhow::Result<()> {
    match json(entry)? {
        End::Whole => Ok(()),
        End::Error(refusal) => bail!("it could not be finished: {refusal}"),
    }
}

fn json<T: DeserializeOwned, R: Read>(entry: &mut tar::Entry<'_, R>) -> anyhow::Result<T> {
    let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let mut text = Vec::new();
    entry.take(JSON_MAX).read_to_end(&mut text).with_context(|| path.clone())?;
    serde_json::from_slice(&text).with_context(|| format!("{path} does not read"))
}
