//! The static binaries need nothing of the system: the server plays the demo, and the edge client sends files, in a root that holds
//! nothing else; and nothing of the fail-points is in them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use millpond_failpoint::{Point, VARIABLE};
use millpond_protocol::Role;
use millpond_tests::{Process, Server, repository, skip, tool};
use serde_json::json;

/// Where `chroot` is.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What `MILLPOND_STATIC_BIN` names (`.ci/run` builds it); without it there is nothing to test.
fn binary() -> Option<OsString> {
    named("MILLPOND_STATIC_BIN")
}

/// The edge client, in the same way.
fn edge_binary() -> Option<OsString> {
    named("MILLPOND_STATIC_EDGE_BIN")
}

fn named(variable: &str) -> Option<OsString> {
    let binary = std::env::var_os(variable);
    if binary.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped: {variable} names no binary");
    }
    binary
}

/// Built as users build them, the binaries have none of the places where programs under test kill themselves.
#[test]
fn the_static_binaries_have_no_fail_points() {
    // Hundreds of megabytes, which a test without optimisation is slow to look through.
    let holds = |path: &Path, name: &str| {
        let grep = Command::new("grep").env("LC_ALL", "C").args(["-qaF", "-e", name]).arg(path).status();
        match grep.unwrap().code() {
            Some(0) => true,
            Some(1) => false,
            other => panic!("grep cannot look through {}: {other:?}", path.display()),
        }
    };
    let names = || Point::ALL.iter().map(|point| point.name()).chain([VARIABLE]);
    let under_test = [millpond_tests::binary(), millpond_tests::edge_binary()];
    for (users, tested) in [binary(), edge_binary()].into_iter().zip(under_test) {
        let Some(users) = users else { continue };
        let found: Vec<_> = names().filter(|name| holds(users.as_ref(), name)).collect();
        assert_eq!(found, [""; 0]);
        // The one that tests kill has them, so looking for them means something.
        let missing: Vec<_> = names().filter(|name| !holds(&tested, name)).collect();
        assert_eq!(missing, [""; 0]);
    }
}

/// The words of an instruction of docker/Dockerfile, its continued lines included.
fn instruction(name: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docker/Dockerfile")).unwrap();
    let lines = text.replace("\\\n", " ");
    lines.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned()
}

#[test]
fn the_image_starts_a_server_that_its_health_check_finds() {
    let Some(binary) = binary() else { return };
    if !tool("chroot") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(&binary, root.path().join("millpond")).unwrap();
    for directory in ["tmp", "data"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    let env = instruction("ENV ");
    // Others may have its ports here.
    let env: Vec<(&str, String)> = env
        .split_whitespace()
        .map(|word| word.split_once('=').unwrap())
        .map(|(key, value)| {
            (key, if key.ends_with("LISTEN") { "127.0.0.1:0".to_owned() } else { value.to_owned() })
        })
        .collect();
    let within = |words: &[&str], env: &[(&str, String)]| {
        let mut command = Command::new("chroot");
        command.arg(root.path()).args(words).env_clear().env("PATH", PATH).envs(env.iter().cloned());
        command
    };
    let mut server = Process::start(within(&["/millpond", "serve"], &env), root.path(), "server");
    let ports = root.path().join("data/ports.json");
    while !ports.exists() {
        if server.status().is_some() {
            let said = server.stderr();
            assert!(said.contains("Operation not permitted") && skip("chroot needs root"), "{said}");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(ports).unwrap()).unwrap();
    let http = format!("http://{}", ports["http"].as_str().unwrap());
    let check = instruction("HEALTHCHECK ");
    let check: Vec<String> = serde_json::from_str(check.split_once(" CMD ").unwrap().1).unwrap();
    let check: Vec<&str> = check.iter().map(String::as_str).collect();
    let healthy = within(&check, &[("MILLPOND_SERVER", http)]).output().unwrap();
    let nowhere = within(&check, &[("MILLPOND_SERVER", "http://127.0.0.1:1".to_owned())]).output().unwrap();
    assert!(healthy.status.success(), "{}{}", String::from_utf8_lossy(&healthy.stderr), server.stderr());
    assert!(!nowhere.status.success());
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
        .env("PATH", PATH)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") && !skip("chroot needs root") {
        return;
    }
    assert!(output.status.success(), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"ok\": true"), "{said}");
}

#[tokio::test]
async fn the_static_edge_client_sends_files_over_tls_from_an_empty_root() {
    let Some(binary) = edge_binary() else { return };
    if !tool("chroot") {
        return;
    }
    let server = Server::secure(&[]).await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(&binary, root.path().join("millpond-edge")).unwrap();
    std::fs::copy(server.ca(), root.path().join("ca.crt")).unwrap();
    // Over MQTT, and by URL.
    for (name, size) in [("small", 10), ("large", 2 << 20)] {
        std::fs::write(root.path().join(name), vec![b'x'; size]).unwrap();
    }
    let mut push = Command::new("chroot");
    push.arg(root.path()).args(["/millpond-edge", "--spool", "/spool", "push", "small", "large"]);
    push.env_clear().env("PATH", PATH).env("MILLPOND_CA_FILE", "/ca.crt");
    push.env("MILLPOND_MQTT_URL", format!("mqtts://{}", server.mqtts()));
    push.env("MILLPOND_MQTT_USER", "p/dev").env("MILLPOND_MQTT_TOKEN", &who.token);
    let output = tokio::task::spawn_blocking(move || push.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") && !skip("chroot needs root") {
        return;
    }
    assert!(output.status.success(), "{said}");
    let sizes: Vec<_> =
        server.uploads("p").await.iter().map(|upload| upload["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [10, 2 << 20]);
}
