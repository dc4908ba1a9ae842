//! Programs that tests start.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program under test: what `MILLPOND_BIN` names, else the one that cargo built beside the tests.
pub fn binary() -> PathBuf {
    built("MILLPOND_BIN", "millpond-under-test")
}

/// The client under test: what `MILLPOND_EDGE_BIN` names, else the one that cargo built beside the tests.
pub fn edge_binary() -> PathBuf {
    built("MILLPOND_EDGE_BIN", "millpond-edge-under-test")
}

fn built(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(built.exists(), "{} is missing: cargo builds it with the tests", built.display());
    built
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Whether a tool that a test needs is there. Without it the test says so and ends; with `CI=true` it fails.
pub fn tool(name: &str) -> bool {
    is_there(name) || missing(name)
}

/// Whether there is a browser, Debian's chromium. Under the rule of [`tool`] only with `MILLPOND_SLOW`, for it is large; else
/// the test is skipped without it, also with `CI=true`.
pub fn browser() -> bool {
    const BROWSER: &str = "chromium";
    if std::env::var_os("MILLPOND_SLOW").is_some() {
        return tool(BROWSER);
    }
    if !is_there(BROWSER) {
        say("skipped: chromium is not installed");
    }
    is_there(BROWSER)
}

fn is_there(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|directory| directory.join(tool).is_file())
}

/// Whether there is a Python with paho-mqtt, under the same rule as [`tool`].
pub fn python() -> bool {
    let found = Command::new("python3")
        .args(["-c", "import paho.mqtt.client"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    found || missing("python3 with paho-mqtt")
}

/// Where node finds the module mqtt (MQTT.js): what `MILLPOND_NODE_MODULES` names, else where Debian's node-mqtt puts it.
/// None under the same rule as [`tool`].
pub fn mqtt_js() -> Option<PathBuf> {
    let named = std::env::var_os("MILLPOND_NODE_MODULES");
    let modules = PathBuf::from(named.unwrap_or_else(|| "/usr/share/nodejs".into()));
    let found = tool("node") && (modules.join("mqtt").is_dir() || missing("MQTT.js (Debian: node-mqtt)"));
    found.then_some(modules)
}

/// Whom modes mean something to, where this process is root.
pub const NOBODY: u32 = 65_534;

/// Whether modes mean nothing to this process.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0\t"))
}

fn missing(what: &str) -> bool {
    skip(&format!("{what} is not installed"))
}

/// Says on the terminal why a test is skipped. With `CI=true` it fails instead. Never true.
pub fn skip(why: &str) -> bool {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    say(&format!("skipped: {why}"));
    false
}

/// Past the test harness, which shows nothing of a test that passes.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// The start of an hour that has passed, in milliseconds: a window that is still open, and stays so during the test.
pub fn recent_hour() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let hours = i64::try_from(now.as_secs() / 3_600).unwrap();
    (hours - 5) * 3_600_000
}

/// Waits until `holds` says so, and fails after a minute.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < patience, "it does not happen that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
