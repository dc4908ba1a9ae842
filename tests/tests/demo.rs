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
    // Three files of five publishers in two windows, a larger one, a late one; guests: five large ones, and three devices
    // with three files of both windows in their spools.
    assert_eq!((&report["uploads"], &report["late"]), (&json!(32 + 5 + 18), &json!(1)));
    assert!(report["repeats"].as_u64().unwrap() > 0);
    assert_eq!(report["large"], json!({ "files": 5, "bytes": 3 * 10_000_000 + 100_000_000 + 80_000_000 }));
    let cut_off = &report["interrupted"];
    assert_eq!((&cut_off["bytes"], &cut_off["parts"]), (&json!(100_000_000), &json!(12)));
    assert_eq!((&cut_off["kept"], &cut_off["sent"]), (&json!(6), &json!(6)));
    // Half of the part that was on its way.
    assert_eq!(cut_off["bytes_twice"], json!(4 << 20));
    let killed = &report["killed"];
    assert_eq!((&killed["bytes"], &killed["parts"]), (&json!(80_000_000), &json!(10)));
    let kept = killed["kept"].as_u64().unwrap();
    assert!((1..10).contains(&kept) && killed["sent"] == json!(10 - kept), "{killed}");
    assert_eq!(report["offline"]["publishers"], json!(3));
    assert_eq!(report["offline"]["uploads"], json!(18));
    assert_eq!(report["offline"]["bundles"], json!(3), "each device sent one");
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 2);
    // Publishers, guests, listeners.
    assert_eq!(rounds[0]["verified"], json!(5 + 8 + 4));
    assert_eq!(rounds[0]["cause"], json!("complete"));
    assert!(rounds[0]["attempts"].as_u64().unwrap() >= 2, "the first processor died");
    assert!(rounds[0]["result_bytes"].as_u64().unwrap() > 128 << 10);
    assert!(rounds[0]["bytes"].as_u64().unwrap() > 210_000_000, "the large files are in its batch");
    assert_eq!(rounds[1]["cause"], json!("trigger"));
    assert_eq!(rounds[1]["result_bytes"], json!(30_000_000));
    let last = rounds.last().unwrap();
    // With the one who came when all was over.
    assert_eq!(report["members"], json!(5 + 8 + 5));
    assert_eq!(last["verified"], report["members"], "everybody has the last result");
}
