//! Entries of bundles.

use std::collections::BTreeMap;

use millpond_protocol::Code;
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::message::{Outcome, Receipt};
use millpond_tests::{Beside, Link};

use super::{GOOD_TIME, Stage, reason};

/// An entry of a bundle for the good time.
fn entry<'a>(upload: &'a str, data: &'a [u8]) -> Entry<'a> {
    let event_time_ms = GOOD_TIME.parse().unwrap();
    Entry { upload, event_time_ms, name: "", content_type: None, label: None, sha256: None, meta: None, data }
}

fn bundle_of(entries: Vec<Entry<'_>>) -> Vec<u8> {
    bundle::encode(&Bundle { entries, ..Bundle::default() }).unwrap()
}

#[tokio::test]
async fn a_bundle_with_a_bad_entry_is_refused_whole_and_says_which_one() {
    let mut stage = Stage::set().await;
    let mut edge = Link::open(stage.edge.clone()).await.unwrap();
    for (about, bad, code) in [
        ("an id", Entry { upload: "-u", ..entry("u", b"x") }, Code::Malformed),
        ("a name", Entry { name: "a/b", ..entry("u", b"x") }, Code::Malformed),
        ("a label", Entry { label: Some("a b"), ..entry("u", b"x") }, Code::Malformed),
        ("a time", Entry { event_time_ms: -1, ..entry("u", b"x") }, Code::Malformed),
        ("a hash", Entry { sha256: Some([7; 32]), ..entry("u", b"x") }, Code::Mismatch),
        ("meta", Entry { meta: Some("{"), ..entry("u", b"x") }, Code::Malformed),
    ] {
        let payload = bundle_of(vec![entry("good", b"x"), bad]);
        let got = edge.offer("mp/demo/c/edge/bundle/b1", payload, Beside::default()).await.unwrap();
        assert_eq!(got, reason(code), "{about}");
        let receipt: Receipt = serde_json::from_slice(&edge.next().await.unwrap().payload).unwrap();
        let error = receipt.error.unwrap();
        assert_eq!((receipt.outcome, error.code), (Outcome::Refused, code), "{about}");
        assert!(error.message.starts_with("entry 1: "), "{about}: {}", error.message);
        stage.unharmed(about).await;
    }
    assert_eq!(stage.server.uploads("demo").await.len() as u32, stage.good);
}

#[tokio::test]
async fn uploads_of_a_bundle_have_their_own_outcomes() {
    let stage = Stage::set().await;
    let mut edge = Link::open(stage.edge.clone()).await.unwrap();
    for (upload, bytes) in [("taken", "bytes"), ("same", "same")] {
        let topic = format!("mp/demo/c/edge/up/{upload}/{GOOD_TIME}");
        edge.publish(&topic, bytes, Beside::default()).await.unwrap();
        edge.next().await.unwrap();
    }
    let entries = [("taken", "other"), ("same", "same"), ("empty", ""), ("good", "good")];
    let entries: Vec<_> = entries.iter().map(|(upload, data)| entry(upload, data.as_bytes())).collect();
    edge.publish("mp/demo/c/edge/bundle/b1", bundle_of(entries), Beside::default()).await.unwrap();
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < 4 {
        let receipt: Receipt = serde_json::from_slice(&edge.next().await.unwrap().payload).unwrap();
        outcomes.insert(receipt.upload, (receipt.outcome, receipt.error.map(|error| error.code)));
    }
    let expected = [
        ("empty", (Outcome::Rejected, Some(Code::Rejected))),
        ("good", (Outcome::Stored, None)),
        ("same", (Outcome::Stored, None)),
        ("taken", (Outcome::Refused, Some(Code::Conflict))),
    ];
    assert_eq!(outcomes, expected.map(|(upload, outcome)| (upload.to_owned(), outcome)).into());
}
