//! What the tests of losses are worth: one sync is left out, and they have to notice.
//!
//! The library that these tests preload answers the sync of each file and directory whose path matches a pattern as if it had
//! been carried out (shim.c). Then the test that is to find it runs in a process of its own, over ever more losses, and has to fail
//! by what it says of what is lost: a time-out, or that something could not be set up, is no finding.
//!
//! ```text
//! cargo test -p millpond-tests --test crash -- --ignored --nocapture left_out
//! ```
//!
//! `MILLPOND_ONLY` names one of the syncs.

use std::process::Command;

use super::say;

/// Losses after which a sync that nobody has missed counts as one that is not needed.
const LOSSES: &str = "200";

const SERVER: &str = "power::a_loss_of_power_takes_nothing_acknowledged_and_nothing_counts_twice";
const FIRST: &str =
    "power::a_first_start_whose_power_fails_is_made_good_by_the_next_one_which_keeps_its_promises";
const MIGRATION: &str =
    "power::a_migration_whose_power_fails_is_made_good_by_the_next_start_and_leaves_a_whole_copy";
const DEVICE: &str = "power_edge::a_loss_of_power_takes_nothing_that_the_edge_client_promised";

/// What is left out, by which paths it is known, if need be of files from so many bytes on, and the test that finds it.
const SYNCS: [(&str, &str, &str); 23] = [
    ("the ledger's log, at a commit", "*/ledger.db-wal", SERVER),
    ("the ledger, when it is made", "*/ledger.db", SERVER),
    ("the ledger, when its log is copied back", "*/ledger.db from 65536", SERVER),
    ("the file of an object", "*/objects/incoming/*", SERVER),
    ("the directory of an object, after the rename", "*/objects/blobs/??", SERVER),
    ("the catalogue's log, at a commit", "*/catalog.sqlite-wal", SERVER),
    ("the catalogue, when it is made", "*/catalog.sqlite", SERVER),
    ("the directory of objects, when it is made", "*/objects", FIRST),
    ("the directories of objects, when they are made", "*/objects/blobs", SERVER),
    ("a secret", "*/admin.new", FIRST),
    ("the data directory: names of ledger and secrets", "*/data", FIRST),
    ("what the data directory lies in", "*/.tmp??????", FIRST),
    ("the copy before a migration", "*/ledger.db.new*", MIGRATION),
    ("the copy's name", "*/data", MIGRATION),
    ("a file in the spool", "*/spool/staging/*.????????????????", DEVICE),
    ("the spool's directory, after the rename", "*/spool/ready", DEVICE),
    ("the spool's version", "*/spool/version.new", DEVICE),
    ("the spool itself: its version, its directories, statements", "*/spool", DEVICE),
    ("a statement", "*/spool/staging/scratch", DEVICE),
    ("a result", "*/results/.millpond/partial-*", DEVICE),
    ("the result's directory, after the rename", "*/results/[0-9]*", DEVICE),
    ("a listener's state", "*/results/.millpond/*.new", DEVICE),
    ("a listener's directory: `current`, versions", "*/results", DEVICE),
];

/// Where a test says what is lost, and in which words if it says more there: what the oracles assert, what the server refuses that
/// it has acknowledged, and a server or a device that does not start with what is left. Whoever waits in vain does so elsewhere.
const VERDICTS: [(&str, &str); 10] = [
    ("crash/oracle.rs", ""),
    ("crash/book.rs", ""),
    ("crash/home.rs", ""),
    ("crash/migration.rs", ""),
    ("crash/power.rs", ""),
    ("crash/power_edge.rs", ""),
    ("crash/edge.rs", ""),
    ("src/edge.rs", ""),
    ("src/api.rs", " answered 4"),
    ("src/server.rs", " before it was ready"),
];

/// What a test that failed said first: after how many losses, and what.
///
/// # Errors
/// It says nothing of what is lost.
fn verdict(said: &str) -> Result<(usize, String), String> {
    let (before, after) = said.split_once("panicked at").unwrap_or((said, ""));
    let mut lines = after.lines().map(str::trim);
    let place = lines.next().unwrap_or_default();
    let why = lines.take(2).collect::<Vec<_>>().join(" ");
    let losses = before.lines().filter(|line| line.contains(": Taken {")).count();
    let is_verdict = VERDICTS.iter().any(|(file, words)| place.contains(file) && why.contains(words));
    // Of a link, wherever it is unwrapped.
    let is_time_out = why.contains("waited in vain") || why.contains("elapsed");
    if losses > 0 && is_verdict && !is_time_out {
        return Ok((losses, why));
    }
    Err(format!("after {losses} losses it says nothing of one, but {place} {why}"))
}

/// The same of the run of a test in which those syncs are left out.
fn noticed(pattern: &str, test: &str) -> Result<(usize, String), String> {
    let (pattern, from) = pattern.split_once(" from ").unwrap_or((pattern, "0"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .envs([("MILLPOND_TEST_UNSYNCED", pattern), ("MILLPOND_TEST_UNSYNCED_FROM", from)])
        .env("MILLPOND_LOSSES", LOSSES)
        .output()
        .unwrap();
    if output.status.success() {
        return Err("nobody misses it".to_owned());
    }
    verdict(&String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "takes a quarter of an hour, and tests the tests"]
fn each_sync_that_is_left_out_is_noticed_by_a_test_of_losses() {
    let only = std::env::var("MILLPOND_ONLY").unwrap_or_default();
    let mut missed = Vec::new();
    for (what, pattern, test) in SYNCS.into_iter().filter(|(what, ..)| what.contains(&only)) {
        match noticed(pattern, test) {
            Ok((losses, why)) => say(&format!("{what}: after {losses} losses: {why}")),
            Err(why) => {
                say(&format!("{what}: {why}"));
                missed.push((what, why));
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

#[test]
fn a_time_out_and_a_server_that_cannot_be_reached_are_no_findings() {
    let said = |place: &str, what: &str| {
        verdict(&format!(
            "Everything: Taken {{ files: 1 }}\nthread 'power' panicked at tests/{place}:9:5:\n{what}\nnote: \u{2026}"
        ))
    };
    let lost = "lost, although acknowledged: [\"mill/five-0/u7\"]";
    assert!(
        said("tests/crash/oracle.rs", lost).is_ok_and(|(losses, why)| losses == 1 && why.starts_with(lost))
    );
    let ended = "the server ended with exit status: 1 before it was ready";
    said("src/server.rs", ended).unwrap();
    said("src/api.rs", "/v1/pools/mill answered 404: no such pool").unwrap();
    verdict(&format!("thread 'power' panicked at tests/src/server.rs:9:5:\n{ended}")).unwrap_err();
    for (place, what) in [
        ("src/server.rs", "the server is not ready after 60s"),
        ("src/api.rs", "/v1/pools/mill answered 503: the ledger could not commit"),
        ("src/process.rs", "still running after 120s"),
        ("src/tools.rs", "it does not happen that everything that does not count is swept"),
        ("src/shim.rs", "cc: not found"),
        ("tests/crash/world.rs", "a client does not end: Elapsed(())"),
        (
            "tests/crash/power.rs",
            "called `Result::unwrap()` on an `Err` value: edge waited in vain for PUBACK",
        ),
    ] {
        said(place, what).unwrap_err();
    }
}
