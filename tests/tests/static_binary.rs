//! The static binary needs nothing of the system: it plays the demo in a root that holds nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Write as _;
use std::process::Command;

use millpond_tests::{skip, tool};

/// `MILLPOND_STATIC_BIN` names the binary (`.ci/run` builds it); without it there is nothing to test.
#[test]
fn the_static_binary_plays_the_demo_in_an_empty_root() {
    let Some(binary) = std::env::var_os("MILLPOND_STATIC_BIN") else {
        let _ = writeln!(std::io::stderr(), "skipped: MILLPOND_STATIC_BIN names no binary");
        return;
    };
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
