//! One page of a listing.

use s3s::dto::{CommonPrefix, ListObjectsV2Input, ListObjectsV2Output, Object as Listed};
use s3s::{S3Error, S3ErrorCode};

use super::catalog::LAST;
use super::conditions::{etag, modified};
use super::errors::said;
use super::store::{Store, StoreError};
use crate::limits::embedded as limits;

/// Lists objects in order of their keys, those below a delimiter as one prefix. Blocks.
pub(super) fn page(store: &Store, input: ListObjectsV2Input) -> Result<ListObjectsV2Output, S3Error> {
    if input.encoding_type.is_some() {
        return Err(said(S3ErrorCode::NotImplemented, "Listings are not URL-encoded here."));
    }
    let prefix = input.prefix.clone().unwrap_or_default();
    let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
    let max = usize::try_from(input.max_keys.unwrap_or(i32::MAX)).unwrap_or(0).min(limits::PAGE);
    let start = input.continuation_token.as_ref().or(input.start_after.as_ref());
    let (entries, next) = collect(
        |after, limit| store.page(&prefix, after, limit),
        &prefix,
        delimiter.as_deref(),
        start.map_or("", |start| start),
        max,
    )?;
    let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
    let count = entries.len();
    for entry in entries {
        match entry {
            Entry::Object(object) => contents.push(Listed {
                e_tag: Some(etag(&object)),
                last_modified: Some(modified(&object)),
                size: i64::try_from(object.size).ok(),
                key: Some(object.key),
                ..Default::default()
            }),
            Entry::Prefix(prefix) => prefixes.push(CommonPrefix { prefix: Some(prefix) }),
        }
    }
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: input.prefix,
        delimiter: input.delimiter,
        start_after: input.start_after,
        continuation_token: input.continuation_token,
        max_keys: i32::try_from(max).ok(),
        key_count: i32::try_from(count).ok(),
        is_truncated: Some(next.is_some()),
        next_continuation_token: next,
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        ..Default::default()
    })
}

type Row = super::catalog::Object;

enum Entry {
    Object(Row),
    Prefix(String),
}

/// Up to `max` entries after `start`, and where the next page starts if there is more. `fetch` gets objects after a key.
fn collect(
    fetch: impl Fn(&str, usize) -> Result<Vec<Row>, StoreError>,
    prefix: &str,
    delimiter: Option<&str>,
    start: &str,
    max: usize,
) -> Result<(Vec<Entry>, Option<String>), StoreError> {
    let mut entries = Vec::new();
    let mut after = start.to_owned();
    if max == 0 {
        return Ok((entries, None));
    }
    loop {
        let wanted = max - entries.len() + 1;
        let rows = fetch(&after, wanted)?;
        let exhausted = rows.len() < wanted;
        let mut jumped = false;
        for row in rows {
            if entries.len() == max {
                return Ok((entries, Some(after)));
            }
            let below = delimiter.and_then(|delimiter| {
                let rest = row.key.get(prefix.len()..)?;
                rest.find(delimiter).map(|at| row.key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            match below {
                Some(below) => {
                    after = format!("{below}{LAST}");
                    entries.push(Entry::Prefix(below));
                    // The rest of these rows may lie below it too: fetch again, behind them.
                    jumped = true;
                    break;
                }
                None => {
                    after.clone_from(&row.key);
                    entries.push(Entry::Object(row));
                }
            }
        }
        if exhausted && !jumped {
            return Ok((entries, None));
        }
    }
}
