//! What the tests of losses are worth: one sync is left out, and they have to notice.
//!
//! The library that these tests preload answers the sync of each file and directory whose path matches a pattern as if it had
//! been carried out (shim.c). Then the test that is to find it runs in a process of its own, over ever more losses, and has to fail.
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
    ("a file in the spool", "*/spool/staging/????????????????", DEVICE),
    ("the spool's directory, after the rename", "*/spool/ready", DEVICE),
    ("the spool's version", "*/spool/version.new", DEVICE),
    ("the spool itself: its version, its directories, statements", "*/spool", DEVICE),
    ("a statement", "*/spool/staging/scratch", DEVICE),
    ("a result", "*/results/.millpond/partial-*", DEVICE),
    ("the result's directory, after the rename", "*/results/[0-9]*", DEVICE),
    ("a listener's state", "*/results/.millpond/*.new", DEVICE),
    ("a listener's directory: `current`, versions", "*/results", DEVICE),
];

/// How the run of a test ended in which those syncs are left out: none if nothing was noticed, else after how many losses, and what.
fn noticed(pattern: &str, test: &str) -> Option<(usize, String)> {
    let (pattern, from) = pattern.split_once(" from ").unwrap_or((pattern, "0"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .envs([("MILLPOND_TEST_UNSYNCED", pattern), ("MILLPOND_TEST_UNSYNCED_FROM", from)])
        .env("MILLPOND_LOSSES", LOSSES)
        .output()
        .unwrap();
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (before, after) = said.split_once("panicked at").unwrap_or((&said, ""));
    let losses = before.lines().filter(|line| line.contains(": Taken {")).count();
    let why: Vec<_> = after.lines().skip(1).take(2).map(str::trim).collect();
    Some((losses, why.join(" ")))
}

#[test]
#[ignore = "takes a quarter of an hour, and tests the tests"]
fn each_sync_that_is_left_out_is_noticed_by_a_test_of_losses() {
    let only = std::env::var("MILLPOND_ONLY").unwrap_or_default();
    let mut missed = Vec::new();
    for (what, pattern, test) in SYNCS.into_iter().filter(|(what, ..)| what.contains(&only)) {
        match noticed(pattern, test) {
            Some((losses, why)) => say(&format!("{what}: after {losses} losses: {why}")),
            None => missed.push(what),
        }
    }
    assert!(missed.is_empty(), "nobody misses {missed:#?}");
}
