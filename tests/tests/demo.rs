//! `millpond demo` is the first thing that anybody runs.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use millpond_tests::binary;
use serde_json::{Value, json};

#[test]
fn the_demo_plays_the_main_job_and_reports_it_as_json() {
    let output =
        Command::new(binary()).args(["demo", "--clients", "5", "--rounds", "2", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], json!(true));
    // Three files of five publishers in two windows, a large one, a late one.
    assert_eq!((&report["uploads"], &report["late"]), (&json!(32), &json!(1)));
    assert!(report["repeats"].as_u64().unwrap() > 0);
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2);
    assert_eq!(rounds[0]["cause"], json!("complete"));
    assert!(rounds[0]["attempts"].as_u64().unwrap() >= 2, "the first processor died");
    assert!(rounds[0]["result_bytes"].as_u64().unwrap() > 128 << 10);
    assert_eq!(rounds[1]["cause"], json!("trigger"));
    let last = rounds.last().unwrap();
    assert_eq!(last["verified"], report["members"], "everybody has the last result");
}
