//! `put`: a URL for a file that goes to storage by itself.
//!
//! URLs are minted when an answer is made, never kept; what the ask decides is the grant's row, and the same ask finds
//! it again. So this op needs no memory of its ids.

use std::collections::BTreeMap;

use millpond_failpoint::{Point, reach};
use millpond_protocol::message::{Outcome, answer, ask};
use millpond_protocol::{Code, Principal, Refusal, Role, Timestamp, limits};
use millpond_storage::{MultipartId, Part, PresignedPut};
use serde_json::Value;

use super::rounds::bounded;
use super::{Asks, room};
use crate::grants::{Look, is_wanted, part_len, runs, unavailable};
use crate::ledger::grants::{Grant, NewGrant, Target, grant};
use crate::ledger::now;
use crate::ledger::transfer::Granted;

/// Bytes of an answer that are kept free for what stands around the URLs.
const AROUND: usize = 1_024;
/// Runs of parts that an answer lists at most; a file whose parts came in a wilder order lists the first ones.
const RUNS: usize = 100;

pub(super) async fn put(
    asks: &Asks,
    who: &Principal,
    ask: ask::Put,
    head: &ask::Head,
) -> Result<answer::Put, Refusal> {
    let target = target(who, ask.upload.clone(), ask.round, ask.attempt)?;
    let new = new_grant(target.clone(), &ask)?;
    let (writer, valid) = (who.clone(), asks.grants.valid);
    let granted = asks.ledger.write(move |tx| tx.grant(&writer, new, valid)).await?;
    let mut answer = empty(&target);
    let (grant, new) = match granted {
        Granted::Upload(receipt) => {
            answer.outcome = receipt.outcome;
            answer.receipt = Some(receipt);
            return Ok(answer);
        }
        Granted::Result(committed) => {
            answer.outcome = Outcome::Stored;
            answer.version = Some(committed.version);
            return Ok(answer);
        }
        Granted::Open { grant, new } => (*grant, new),
    };
    answer.expires = Some(grant.expires);
    if grant.verifying.is_some() {
        answer.outcome = Outcome::Pending;
        return Ok(answer);
    }
    let name = ask.curl.then(|| grant.name.as_ref().map_or(grant.target.to_string(), ToString::to_string));
    reach(Point::GrantCommitted);
    // Storage has all of it: what was to count with it kept it from counting, or its commit is to come. No URL can write it
    // any more, for nothing would read it again.
    let whole =
        grant.verified && asks.grants.look(&grant).await.map_err(|error| unavailable(&error))? == Look::Good;
    let Some(part_size) = grant.part_size else {
        if whole {
            return Ok(answer);
        }
        let until = note_urls(asks, &grant).await?;
        let object = &grant.object;
        let to = asks.storage.presign_put(&object.key, object.size, object.sha256, until.since(now()), now());
        answer.to = Some(put_to(to, name.as_deref().map(|name| Slice { name, part: None })));
        return Ok(answer);
    };
    answer.part_size = Some(part_size);
    answer.part_count = grant.part_count().and_then(|count| u32::try_from(count).ok());
    // Parts of another length are other slices of the file: no URL fits them.
    let fits = ask.part_size.is_none_or(|named| named == part_size);
    let wanted = if fits { &ask.parts[..ask.parts.len().min(limits::PART_URLS_MAX)] } else { &[] };
    if whole {
        answer.there = answer.part_count.map(|count| (1, count)).into_iter().collect();
        let there = |wanted: &ask::WantedPart| answer::PutPart { n: wanted.n, to: None };
        answer.parts = wanted.iter().map(there).collect();
        return Ok(answer);
    }
    let until = note_urls(asks, &grant).await?;
    let (id, there) = multipart(asks, &grant, new).await?;
    let numbers = there.iter().map(|part| u32::from(part.n));
    answer.there = runs(numbers).into_iter().take(RUNS).map(|run| (*run.start(), *run.end())).collect();
    let mut left = room(head).saturating_sub(AROUND + answer.there.len() * 16);
    for wanted in wanted {
        let part = part(asks, &grant, &id, &there, *wanted, until, name.as_deref())?;
        let size = serde_json::to_vec(&part).map_or(usize::MAX, |json| json.len() + 1);
        if size > left {
            break;
        }
        left -= size;
        answer.parts.push(part);
    }
    Ok(answer)
}

/// What a file is to become; a publisher's is an upload, a processor's a result.
pub(super) fn target(
    who: &Principal,
    upload: Option<millpond_protocol::UploadId>,
    round: Option<u64>,
    attempt: Option<u32>,
) -> Result<Target, Refusal> {
    match (who.role, upload, round, attempt) {
        (Role::Publisher, Some(upload), None, None) => Ok(Target::Upload(upload)),
        (Role::Processor, None, Some(round), Some(attempt)) => Ok(Target::Result { round, attempt }),
        (Role::Publisher, ..) => Err(Refusal::new(Code::Malformed, "a publisher names an `upload`")),
        (Role::Processor, ..) => {
            Err(Refusal::new(Code::Malformed, "a processor names `round` and `attempt` of its lease"))
        }
        (role, ..) => Err(Refusal::new(Code::Unauthorized, format!("a {role} has no files to send"))),
    }
}

fn new_grant(target: Target, ask: &ask::Put) -> Result<NewGrant, Refusal> {
    bounded("meta", ask.meta.as_ref(), limits::META_MAX)?;
    if ask.content_type.as_ref().is_some_and(|text| text.len() > limits::CONTENT_TYPE_MAX) {
        let refusal = Refusal::new(Code::TooLarge, "the content type is too long");
        return Err(refusal.limit(limits::CONTENT_TYPE_MAX as u64));
    }
    if ask.size > limits::UPLOAD_MAX {
        let refusal = Refusal::new(Code::TooLarge, format!("the file has {} bytes", ask.size));
        return Err(refusal.limit(limits::UPLOAD_MAX));
    }
    if ask.size == 0 && matches!(target, Target::Result { .. }) {
        return Err(Refusal::new(Code::Malformed, "a result has at least one byte")
            .hint("ask `fail` to give the round back without a result"));
    }
    let part_size = part_size(ask.size, ask.part_size)?;
    Ok(NewGrant {
        target,
        name: ask.name.clone(),
        content_type: ask.content_type.clone(),
        meta: ask.meta.as_ref().map(Value::to_string),
        label: ask.label.clone(),
        event_time: ask.event_time,
        size: ask.size,
        sha256: ask.sha256,
        part_size,
    })
}

/// Bytes of a part; none for a file that goes by one PUT.
fn part_size(size: u64, wanted: Option<u64>) -> Result<Option<u64>, Refusal> {
    let Some(part) = wanted else {
        if size <= limits::SINGLE_PUT_MAX {
            return Ok(None);
        }
        // Whole MiB, and few enough parts.
        let least = size.div_ceil(limits::PARTS_MAX).next_multiple_of(1 << 20);
        return Ok(Some(limits::PART_DEFAULT.max(least)));
    };
    if !(limits::PART_MIN..=limits::PART_MAX).contains(&part) {
        let (least, most) = (limits::PART_MIN, limits::PART_MAX);
        let message = format!("part_size = {part} is not from {least} to {most}");
        return Err(Refusal::new(Code::Malformed, message));
    }
    if size.div_ceil(part) > limits::PARTS_MAX {
        let message = format!("{} parts of {part} bytes", size.div_ceil(part));
        return Err(Refusal::new(Code::TooLarge, message)
            .limit(limits::PARTS_MAX)
            .hint("choose larger parts, or leave part_size out"));
    }
    Ok((size > part || size > limits::SINGLE_PUT_MAX).then_some(part))
}

fn empty(target: &Target) -> answer::Put {
    let (upload, round, attempt) = match target {
        Target::Upload(upload) => (Some(upload.clone()), None, None),
        Target::Result { round, attempt } => (None, Some(*round), Some(*attempt)),
    };
    answer::Put {
        upload,
        round,
        attempt,
        outcome: Outcome::Granted,
        receipt: None,
        version: None,
        expires: None,
        to: None,
        part_size: None,
        part_count: None,
        there: Vec::new(),
        parts: Vec::new(),
    }
}

/// Writes down until when URLs of this answer hold, before one is made: never longer than the grant.
async fn note_urls(asks: &Asks, grant: &Grant) -> Result<Timestamp, Refusal> {
    let until = now().after(limits::URL_VALIDITY).min(grant.expires);
    let object = grant.object.id;
    asks.ledger.write(move |tx| tx.note_url(object, until)).await?;
    Ok(until)
}

/// Storage's name of the upload in parts, begun if there is none, and the parts that it has whole.
async fn multipart(asks: &Asks, known: &Grant, new: bool) -> Result<(MultipartId, Vec<Part>), Refusal> {
    if let (Some(id), false) = (&known.multipart, new)
        && let Some(parts) = asks.grants.parts(known).await.map_err(|error| unavailable(&error))?
    {
        return Ok((id.clone(), parts.into_iter().filter(|part| is_wanted(known, part)).collect()));
    }
    // None was begun, or storage has given it up.
    let key = &known.object.key;
    let begun = asks.storage.create_multipart(key).await.map_err(|error| unavailable(&error))?;
    reach(Point::MultipartBegun);
    let (id, gone, named) = (known.id, known.multipart.clone(), begun.clone());
    let named = asks.ledger.write(move |tx| match grant(tx.sql(), id)? {
        Some(grant) => tx.name_multipart(grant.object.id, gone.as_ref(), &named).map(Some),
        None => Ok(None),
    });
    match named.await? {
        Some(standing) if standing == begun => Ok((standing, Vec::new())),
        other => {
            // Somebody else was faster, or the grant has ended: this one is of no use.
            asks.storage.abort_multipart(key, &begun).await.map_err(|error| unavailable(&error))?;
            let standing = other.ok_or_else(|| {
                Refusal::new(Code::NotFound, format!("the grant of {} has ended", known.target))
            })?;
            Ok((standing, Vec::new()))
        }
    }
}

fn part(
    asks: &Asks,
    grant: &Grant,
    id: &MultipartId,
    there: &[Part],
    wanted: ask::WantedPart,
    until: Timestamp,
    name: Option<&str>,
) -> Result<answer::PutPart, Refusal> {
    let ask::WantedPart { n, sha256 } = wanted;
    let (Some(size), Ok(number)) = (part_len(grant, n.into()), u16::try_from(n)) else {
        let count = grant.part_count().unwrap_or_default();
        return Err(Refusal::new(Code::Malformed, format!("there is no part {n}")).limit(count));
    };
    // Where storage lists no hashes of parts, its number and length tell: the URL that brought it was for one hash alone. Should it be
    // another slice all the same, the commit reads that and ends the grant, and the next one begins without parts.
    let is_there = |part: &Part| part.n == number && part.sha256.is_none_or(|has| has == sha256);
    if there.iter().any(is_there) {
        return Ok(answer::PutPart { n, to: None });
    }
    let offset = u64::from(n - 1) * grant.part_size.unwrap_or_default();
    let (key, valid) = (&grant.object.key, until.since(now()));
    let to = asks.storage.presign_part(key, id, number, size, sha256, valid, now());
    let slice = name.map(|name| Slice { name, part: Some((offset, size)) });
    Ok(answer::PutPart { n, to: Some(put_to(to, slice)) })
}

/// The bytes that a command line sends: a file, or some of it.
struct Slice<'a> {
    name: &'a str,
    /// Offset and length.
    part: Option<(u64, u64)>,
}

fn put_to(to: PresignedPut, slice: Option<Slice<'_>>) -> answer::PutTo {
    let headers: BTreeMap<String, String> =
        to.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let curl = slice.map(|slice| curl(&slice, &to.url, &headers));
    answer::PutTo { url: to.url, headers, url_expires: to.expires_at, curl }
}

/// A command line for a POSIX shell. curl counts the bytes itself, so the length is not repeated.
fn curl(slice: &Slice<'_>, url: &str, headers: &BTreeMap<String, String>) -> String {
    // A name with a dash or an @ in front would be an option or a list.
    let file = quoted(&format!("./{}", slice.name));
    let headers: String = headers
        .iter()
        .filter(|(name, _)| name.as_str() != "content-length")
        .map(|(name, value)| format!(" -H {}", quoted(&format!("{name}: {value}"))))
        .collect();
    let url = quoted(url);
    match slice.part {
        None => format!("curl -fsSg -T {file}{headers} {url}"),
        Some((offset, len)) => {
            let from = offset + 1;
            format!(
                "tail -c +{from} {file} | head -c {len} | curl -fsSg -X PUT --data-binary @-{headers} {url}"
            )
        }
    }
}

/// One word of a POSIX shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_chooses_parts_that_are_few_enough_and_large_enough() {
        for size in [0, 1, limits::SINGLE_PUT_MAX] {
            assert_eq!(part_size(size, None), Ok(None));
        }
        for size in [limits::SINGLE_PUT_MAX + 1, 1 << 30, 200 << 30, limits::UPLOAD_MAX] {
            let part = part_size(size, None).unwrap().unwrap();
            assert!((limits::PART_MIN..=limits::PART_MAX).contains(&part), "{part} of {size}");
            assert!(size.div_ceil(part) <= limits::PARTS_MAX, "{part} of {size}");
        }
    }

    #[test]
    fn a_part_size_of_the_client_keeps_its_limits() {
        assert_eq!(part_size(20 << 20, Some(5 << 20)), Ok(Some(5 << 20)));
        assert_eq!(part_size(5 << 20, Some(5 << 20)), Ok(None));
        assert_eq!(part_size(1, Some((5 << 20) - 1)).unwrap_err().code, Code::Malformed);
        assert_eq!(part_size(1, Some((5 << 30) + 1)).unwrap_err().code, Code::Malformed);
        assert_eq!(part_size(1 << 40, Some(5 << 20)).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn a_name_is_one_word_of_the_command_line_whatever_is_in_it() {
        let line = curl(&Slice { name: "-o it's $(x)", part: None }, "http://h/k?a=1&b=2", &BTreeMap::new());
        assert_eq!(line, r"curl -fsSg -T './-o it'\''s $(x)' 'http://h/k?a=1&b=2'");
    }
}
