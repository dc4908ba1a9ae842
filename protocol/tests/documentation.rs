//! docs/protocol.md and its examples are held to the types, so that neither can rot.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::message::{Card, Delivery, Lease, Offer, Pointer, Receipt, answer, ask};
use millpond_protocol::{Code, limits};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn protocol_md() -> String {
    std::fs::read_to_string(docs().join("protocol.md")).unwrap()
}

/// Name and text of every example, in order of name.
fn examples() -> Vec<(String, String)> {
    let mut examples: Vec<_> = std::fs::read_dir(docs().join("golden/message"))
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    examples.sort();
    examples
}

fn object(value: impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value).unwrap() {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

/// Reads the example as `T` and writes it again; what is not `T`'s own must be the head that every ask and answer has.
fn rewritten<T: Serialize + DeserializeOwned>(text: &str) -> Map<String, Value> {
    let mut map = object(serde_json::from_str::<T>(text).unwrap());
    map.extend(object(serde_json::from_str::<ask::Head>(text).unwrap()));
    map
}

#[derive(serde::Serialize, serde::Deserialize)]
struct HeadOnly {}

#[derive(serde::Serialize, serde::Deserialize)]
struct Done {
    round: u64,
    attempt: u32,
    version: u64,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Fail {
    round: u64,
    attempt: u32,
    state: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Latest {
    result: Option<Pointer>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Uploads {
    uploads: Vec<answer::UploadInfo>,
    cursor: Option<String>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Results {
    results: Vec<answer::ResultInfo>,
    cursor: Option<String>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct NoLease {
    round: Option<u64>,
}

/// An example of what has no type in this crate: it has exactly these keys.
fn with_keys(text: &str, keys: &[&str]) -> Map<String, Value> {
    let map: Map<String, Value> = serde_json::from_str(text).unwrap();
    let mut keys = keys.to_vec();
    keys.sort_unstable();
    assert_eq!(map.keys().map(String::as_str).collect::<Vec<_>>(), keys);
    map
}

#[test]
fn every_example_is_what_the_types_read_and_write() {
    let examples = examples();
    assert!(examples.len() >= 56, "examples are gone");
    for (name, text) in examples {
        let written = match name.as_str() {
            "ask-time" | "ask-latest" => rewritten::<HeadOnly>(&text),
            put if put.starts_with("ask-put") => rewritten::<ask::Put>(&text),
            put if put.starts_with("answer-put") => rewritten::<answer::Put>(&text),
            "ask-commit" | "ask-commit-one" => rewritten::<ask::Commit>(&text),
            "answer-commit" | "answer-commit-pending" => rewritten::<answer::Commit>(&text),
            "ask-abort" => rewritten::<ask::Abort>(&text),
            "answer-status-pending" | "answer-status-expired" | "answer-status-rejected" => {
                rewritten::<answer::UploadInfo>(&text)
            }
            "answer-done-pending" => {
                with_keys(&text, &["id", "round", "attempt", "outcome", "verified", "size"])
            }
            "ask-status" => rewritten::<ask::Status>(&text),
            "ask-history" => rewritten::<ask::History>(&text),
            "ask-get" => rewritten::<ask::Get>(&text),
            "ask-complete" => rewritten::<ask::Complete>(&text),
            "ask-trigger" => rewritten::<ask::Trigger>(&text),
            "ask-claim" => rewritten::<ask::Claim>(&text),
            "ask-beat" => rewritten::<ask::Beat>(&text),
            "ask-files" => rewritten::<ask::Files>(&text),
            "ask-done" => rewritten::<ask::Done>(&text),
            "ask-fail" => rewritten::<ask::Fail>(&text),
            "answer-time" => rewritten::<answer::Time>(&text),
            "answer-lease" => rewritten::<Lease>(&text),
            "answer-trigger" => rewritten::<answer::Triggered>(&text),
            "answer-files" => rewritten::<answer::FilesPage>(&text),
            "answer-status" => rewritten::<answer::UploadInfo>(&text),
            "answer-done" => rewritten::<Done>(&text),
            "answer-fail" => rewritten::<Fail>(&text),
            "answer-complete" | "answer-abort" => rewritten::<HeadOnly>(&text),
            "answer-latest" => rewritten::<Latest>(&text),
            "answer-history" => rewritten::<Uploads>(&text),
            "answer-history-results" => rewritten::<Results>(&text),
            "answer-get" | "answer-get-url" => rewritten::<answer::Bytes>(&text),
            "answer-claim-nothing" => rewritten::<NoLease>(&text),
            "enrol" => with_keys(&text, &["member", "token_sha256"]),
            "answer-enrol" => with_keys(
                &text,
                &[
                    "pool",
                    "member",
                    "role",
                    "mqtt_host",
                    "mqtt_port",
                    "mqtt_url",
                    "ca_file",
                    "ca",
                    "storage_url",
                    "user",
                    "example",
                ],
            ),
            "event-uploads" => {
                with_keys(&text, &["seq", "type", "at", "first_seq", "stored", "rejected", "bytes"])
            }
            "event-round" => with_keys(
                &text,
                &["seq", "type", "at", "round", "batch", "attempt", "spent", "ready", "state", "ref"],
            ),
            "round" => with_keys(
                &text,
                &[
                    "pool",
                    "round",
                    "batch",
                    "cause",
                    "sealed",
                    "count",
                    "bytes",
                    "manifest_sha256",
                    "params",
                    "ref",
                    "outcome",
                    "attempts",
                    "log",
                    "log_bytes_dropped",
                    "result",
                ],
            ),
            "answer-error" | "answer-get-expired" => rewritten::<ErrorBody>(&text),
            "card" => rewritten::<Card>(&text),
            "pointer" => rewritten::<Pointer>(&text),
            "offer" => rewritten::<Offer>(&text),
            "delivery" => rewritten::<Delivery>(&text),
            receipt if receipt.starts_with("receipt-") => rewritten::<Receipt>(&text),
            unknown => panic!("{unknown}.json is no message of the protocol"),
        };
        let example: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(written, example, "{name}.json");
    }
}

#[test]
fn every_example_stands_in_the_document_word_for_word() {
    let document = protocol_md();
    for (name, text) in examples() {
        assert!(document.contains(&format!("```json\n{text}```\n")), "{name}.json is not quoted");
    }
    let manifest = std::fs::read_to_string(docs().join("golden/manifest.jsonl")).unwrap();
    assert!(document.contains(&format!("```json\n{manifest}```\n")), "manifest.jsonl is not quoted");
    let blocks = document.matches("```json\n").count();
    assert_eq!(blocks, examples().len() + 1, "the document has an example that no file holds");
}

#[test]
fn examples_of_receipts_fit_their_limit() {
    for (name, text) in examples().iter().filter(|(name, _)| name.starts_with("receipt-")) {
        let receipt: Receipt = serde_json::from_str(text).unwrap();
        assert!(serde_json::to_vec(&receipt).unwrap().len() <= limits::RECEIPT_MAX, "{name}");
    }
}

/// The rows of the table that begins with this header: their cells.
fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let start = document.find(header).unwrap_or_else(|| panic!("no table {header}"));
    document[start..].lines().skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

#[test]
fn the_table_of_errors_is_the_one_of_the_code() {
    let documented: Vec<_> = table(&protocol_md(), "| code | meaning | MQTT 5 | HTTP |")
        .into_iter()
        .map(|row| (row[0].clone(), row[2].clone(), row[3].clone()))
        .collect();
    let real: Vec<_> = Code::ALL
        .into_iter()
        .map(|code| (format!("`{code}`"), format!("{:#04x}", code.mqtt5()), code.http().to_string()))
        .collect();
    assert_eq!(documented, real);
}

#[test]
fn the_table_of_ops_is_the_one_of_the_code() {
    let documented: Vec<_> = table(&protocol_md(), "| op | who | changes state | does |")
        .into_iter()
        .map(|row| (row[0].clone(), row[2].clone()))
        .collect();
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let real: Vec<_> =
        Op::ALL.into_iter().map(|op| (format!("`{op}`"), yes_no(op.changes_state()))).collect();
    assert_eq!(documented, real);
}

#[test]
fn what_the_document_links_to_exists() {
    let document = protocol_md();
    for link in ["golden/message", "golden/bundle", "examples/bundle.py"] {
        assert!(document.contains(&format!("({link})")) && docs().join(link).exists(), "{link}");
    }
}
