//! The bundle format is a contract: the golden vectors, bincode itself and the Python encoder under docs/ all have to
//! agree with [`millpond_protocol::bundle`].

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use data_encoding::{BASE64, HEXLOWER};
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::{Code, Sha256, limits};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The same fields as [`Bundle`], for bincode to write: the oracle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Oracle {
    clock_offset_ms: Option<i64>,
    complete_through_ms: Option<i64>,
    entries: Vec<OracleEntry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OracleEntry {
    upload: String,
    event_time_ms: i64,
    name: String,
    content_type: Option<String>,
    label: Option<String>,
    sha256: Option<[u8; 32]>,
    meta: Option<String>,
    data: Vec<u8>,
}

impl Oracle {
    fn borrowed(&self) -> Bundle<'_> {
        Bundle {
            clock_offset_ms: self.clock_offset_ms,
            complete_through_ms: self.complete_through_ms,
            entries: self
                .entries
                .iter()
                .map(|e| Entry {
                    upload: &e.upload,
                    event_time_ms: e.event_time_ms,
                    name: &e.name,
                    content_type: e.content_type.as_deref(),
                    label: e.label.as_deref(),
                    sha256: e.sha256,
                    meta: e.meta.as_deref(),
                    data: &e.data,
                })
                .collect(),
        }
    }

    fn message(&self) -> Vec<u8> {
        let body = bincode::serde::encode_to_vec(self, bincode::config::standard()).unwrap();
        [bundle::MAGIC.as_slice(), &body].concat()
    }

    fn from_golden(description: &Value) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let entry = |e: &Value| OracleEntry {
            upload: text(&e["upload"]).unwrap(),
            event_time_ms: e["event_time_ms"].as_i64().unwrap(),
            name: text(&e["name"]).unwrap(),
            content_type: text(&e["content_type"]),
            label: text(&e["label"]),
            sha256: e["sha256"].as_str().map(|hex| hex.parse::<Sha256>().unwrap().0),
            meta: text(&e["meta"]),
            data: BASE64.decode(e["data"].as_str().unwrap().as_bytes()).unwrap(),
        };
        Self {
            clock_offset_ms: description["clock_offset_ms"].as_i64(),
            complete_through_ms: description["complete_through_ms"].as_i64(),
            entries: description["entries"].as_array().unwrap().iter().map(entry).collect(),
        }
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file under docs/golden/bundle: its name, the description, and the message.
fn golden() -> Vec<(String, Value, Vec<u8>)> {
    let mut vectors: Vec<_> = std::fs::read_dir(repository().join("docs/golden/bundle"))
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            let vector: Value = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
            let message = HEXLOWER.decode(vector["hex"].as_str().unwrap().as_bytes()).unwrap();
            (file.file_name().into_string().unwrap(), vector["bundle"].clone(), message)
        })
        .collect();
    vectors.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(vectors.len() >= 4, "the golden vectors are gone");
    vectors
}

#[test]
fn the_golden_vectors_are_what_is_written_and_read() {
    for (name, description, message) in golden() {
        let expected = Oracle::from_golden(&description);
        assert_eq!(bundle::decode(&message).unwrap(), expected.borrowed(), "{name}");
        assert_eq!(bundle::encode(&expected.borrowed()).unwrap(), message, "{name}");
        assert_eq!(expected.message(), message, "bincode writes {name} otherwise");
    }
}

#[test]
fn the_python_encoder_writes_the_golden_vectors_and_reads_them_back() {
    let script = repository().join("docs/examples/bundle.py");
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "python3 is missing");
        let _ = writeln!(std::io::stderr(), "skipped: python3 is not installed");
        return;
    }
    for (name, description, message) in golden() {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bundle-{name}"));
        std::fs::write(&file, description.to_string()).unwrap();
        let encoded = Command::new("python3").arg(&script).arg("encode").arg(&file).output().unwrap();
        assert!(encoded.status.success(), "{name}: {}", String::from_utf8_lossy(&encoded.stderr));
        assert_eq!(HEXLOWER.encode(&encoded.stdout), HEXLOWER.encode(&message), "{name}");

        let mut decoder = Command::new("python3")
            .arg(&script)
            .arg("decode")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut decoder.stdin.take().unwrap(), &message).unwrap();
        let decoded = decoder.wait_with_output().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&decoded.stdout).unwrap(), description, "{name}");
    }
}

/// An unsigned integer in the form of nine bytes, however small it is.
fn nine_bytes(n: u64) -> Vec<u8> {
    [&[253], n.to_le_bytes().as_slice()].concat()
}

#[test]
fn integers_may_be_written_longer_than_needed() {
    let entry = [&nine_bytes(2)[..], b"u1", &nine_bytes(10), &[251, 0, 0], &[0; 4], &[252, 1, 0, 0, 0], b"x"]
        .concat();
    let message = [b"MPB1\0\0".as_slice(), &nine_bytes(1), &entry].concat();
    let decoded = bundle::decode(&message).unwrap();
    assert_eq!((decoded.entries[0].upload, decoded.entries[0].event_time_ms), ("u1", 5));
    assert_eq!((decoded.entries[0].name, decoded.entries[0].data), ("", b"x".as_slice()));
}

/// 2^40 entries would be 160 TiB: a decoder that believed such a length would end the process here.
#[test]
fn hostile_lengths_are_refused_and_not_believed() {
    for length in [4_097, 1 << 20, 1 << 31, 1 << 40, 1 << 62, u64::MAX] {
        let entries = [b"MPB1\0\0".as_slice(), &nine_bytes(length)].concat();
        assert!(bundle::decode(&entries).is_err(), "{length} entries");

        let upload = [b"MPB1\0\0\x01".as_slice(), &nine_bytes(length), b"u1"].concat();
        assert_eq!(bundle::decode(&upload).unwrap_err().code, Code::Malformed, "an id of {length} bytes");

        let data = [b"MPB1\0\0\x01\x02u1\x00\x00\0\0\0\0".as_slice(), &nine_bytes(length), b"x"].concat();
        assert_eq!(bundle::decode(&data).unwrap_err().code, Code::Malformed, "a file of {length} bytes");
    }
}

#[test]
fn more_entries_than_allowed_are_too_large_however_many() {
    let entry = |i: usize| OracleEntry {
        upload: format!("u{i}"),
        event_time_ms: 0,
        name: String::new(),
        content_type: None,
        label: None,
        sha256: None,
        meta: None,
        data: Vec::new(),
    };
    let bundle_of = |count: usize| Oracle {
        clock_offset_ms: None,
        complete_through_ms: None,
        entries: (0..count).map(entry).collect(),
    };
    let allowed = bundle_of(limits::BUNDLE_ENTRIES_MAX);
    assert_eq!(bundle::decode(&allowed.message()).unwrap().entries.len(), limits::BUNDLE_ENTRIES_MAX);
    for count in [limits::BUNDLE_ENTRIES_MAX + 1, 100_000] {
        let refusal = bundle::decode(&bundle_of(count).message()).unwrap_err();
        assert_eq!((refusal.code, refusal.limit), (Code::TooLarge, Some(4_096)), "{count} entries");
        assert_eq!(bundle::encode(&bundle_of(count).borrowed()).unwrap_err().code, Code::TooLarge);
    }
}

#[test]
fn what_is_cut_short_or_too_long_is_malformed() {
    for (name, _, message) in golden() {
        for end in 0..message.len() {
            assert!(bundle::decode(&message[..end]).is_err(), "{name} cut to {end} bytes");
        }
        let longer = [message, vec![0]].concat();
        assert_eq!(bundle::decode(&longer).unwrap_err().code, Code::Malformed, "{name} and a byte more");
    }
}

prop_compose! {
    fn any_entry()(
        upload in ".{0,8}",
        event_time_ms in any::<i64>(),
        name in ".{0,8}",
        content_type in proptest::option::of(".{0,8}"),
        label in proptest::option::of(".{0,8}"),
        sha256 in proptest::option::of(any::<[u8; 32]>()),
        meta in proptest::option::of(".{0,8}"),
        data in proptest::collection::vec(any::<u8>(), 0..300),
    ) -> OracleEntry {
        OracleEntry { upload, event_time_ms, name, content_type, label, sha256, meta, data }
    }
}

prop_compose! {
    fn any_bundle()(
        clock_offset_ms in any::<Option<i64>>(),
        complete_through_ms in any::<Option<i64>>(),
        entries in proptest::collection::vec(any_entry(), 0..6),
    ) -> Oracle {
        Oracle { clock_offset_ms, complete_through_ms, entries }
    }
}

proptest! {
    #[test]
    fn every_bundle_has_the_bytes_that_bincode_gives_it(oracle in any_bundle()) {
        let message = oracle.message();
        prop_assert_eq!(bundle::encode(&oracle.borrowed()).unwrap(), message.clone());
        prop_assert_eq!(bundle::decode(&message).unwrap(), oracle.borrowed());
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused_as_bincode_does(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let message = [bundle::MAGIC.as_slice(), &body].concat();
        let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
        let theirs = bincode::serde::decode_from_slice::<Oracle, _>(&body, config);
        match (bundle::decode(&message), theirs) {
            (Ok(ours), Ok((theirs, read))) => {
                prop_assert_eq!(read, body.len());
                prop_assert_eq!(ours, theirs.borrowed());
            }
            (Err(_), Err(_)) => {}
            // bincode stops where the value ends; a bundle must end there too.
            (Err(_), Ok((_, read))) => prop_assert!(read < body.len()),
            (Ok(ours), Err(error)) => prop_assert!(false, "{:?} but bincode: {}", ours, error),
        }
    }
}

#[test]
fn fuzz_bundle() {
    const WORDS: &[&[u8]] =
        &[b"MPB1", b"\xfb", b"\xfc", b"\xfd", b"\x01\x02u1", b"\x00\x00\x00\x00", b"\xfb\x01\x10"];
    let target = millpond_fuzz::Target { name: "bundle", words: WORDS, max: 4_096 };
    millpond_fuzz::run(&target, |message, seen| {
        let body = message.strip_prefix(bundle::MAGIC);
        let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
        let theirs =
            body.map(|body| (bincode::serde::decode_from_slice::<Oracle, _>(body, config), body.len()));
        let bundle = match bundle::decode(message) {
            Ok(bundle) => bundle,
            Err(refusal) => {
                assert!(matches!(refusal.code, Code::Malformed | Code::TooLarge), "{refusal:?}");
                assert_eq!(refusal.code == Code::TooLarge, refusal.limit.is_some(), "{refusal:?}");
                if let Some((Ok((_, read)), length)) = theirs {
                    assert!(read < length || refusal.code == Code::TooLarge, "bincode reads it: {refusal:?}");
                }
                return seen.note(refusal.message.replace(|c: char| c.is_ascii_digit(), ""));
            }
        };
        let Some((Ok((theirs, read)), length)) = theirs else { panic!("bincode does not read it") };
        assert_eq!((read, &theirs.borrowed()), (length, &bundle));
        assert!(bundle.entries.len() <= limits::BUNDLE_ENTRIES_MAX);
        let data: usize = bundle.entries.iter().map(|entry| entry.data.len() + entry.name.len()).sum();
        assert!(data <= message.len(), "more than was sent");
        let written = bundle::encode(&bundle).unwrap();
        assert!(written.len() <= message.len(), "what is written is the shortest form");
        assert_eq!(bundle::decode(&written).unwrap(), bundle);
        assert!(bundle::decode(&[message, &[0]].concat()).is_err(), "a byte more");
        assert!(bundle::decode(&message[..message.len() - 1]).is_err(), "a byte less");
        let optional = bundle
            .entries
            .iter()
            .map(|entry| (entry.label.is_some(), entry.sha256.is_some(), entry.meta.is_some()));
        seen.note((
            bundle.entries.len(),
            bundle.complete_through_ms.is_some(),
            written.len() == message.len(),
        ));
        optional.for_each(|optional| seen.note(optional));
    });
}
