//! The static binary needs nothing of the system, it plays the demo in a root that holds nothing else; and nothing of the
//! fail-points is in it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::OsString;
use std::io::Write as _;
use std::process::Command;

use millpond_failpoint::{Point, VARIABLE};
use millpond_tests::{skip, tool};

/// What `MILLPOND_STATIC_BIN` names (`.ci/run` builds it); without it there is nothing to test.
fn binary() -> Option<OsString> {
    let binary = std::env::var_os("MILLPOND_STATIC_BIN");
    if binary.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: MILLPOND_STATIC_BIN names no binary");
    }
    binary
}

/// Built as users build it, the binary has none of the places where programs under test kill themselves.
#[test]
fn the_static_binary_has_no_fail_points() {
    let Some(binary) = binary() else { return };
    let read = |path: &std::path::Path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let names = || Point::ALL.iter().map(|point| point.name()).chain([VARIABLE]);
    let users = read(binary.as_ref());
    let found: Vec<_> = names().filter(|name| users.contains(name)).collect();
    assert_eq!(found, [""; 0]);
    // The one that tests kill has them, so looking for them means something.
    let tested = read(&millpond_tests::binary());
    let missing: Vec<_> = names().filter(|name| !tested.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn the_static_binary_plays_the_demo_in_an_empty_root() {
    let Some(binary) = binary() else { return };
    if !tool("chroot") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(&binary, root.path().join("millpond")).unwrap();
    std::fs::create_dir(root.path().join("tmp")).unwrap();
    let output = Command::new("chroot")
        .arg(root.path())
        .args(["/millpond", "demo", "--clients", "4", "--json"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") && !skip("chroot needs root") {
        return;
    }
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"ok\": true"), "{said}");
}
