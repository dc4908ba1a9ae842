//! The command line as a process: a server of `millpond dev`, and commands against it.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

const MILLPOND: &str = env!("CARGO_BIN_EXE_millpond");

/// A server that is killed with the test.
struct Dev {
    child: Child,
    variables: Vec<(String, String)>,
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Dev {
    fn start(data: &Path) -> Self {
        let mut child = Command::new(MILLPOND)
            .args(["dev", "--ports", "auto", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut variables = Vec::new();
        for line in lines {
            let line = line.unwrap();
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            variables.push((name.to_owned(), value.to_owned()));
            if name == "MILLPOND_LISTENER_TOKEN" {
                break;
            }
        }
        assert!(!variables.is_empty(), "the server did not start");
        Self { child, variables }
    }

    fn variable(&self, name: &str) -> &str {
        &self.variables.iter().find(|(key, _)| key == name).unwrap().1
    }

    /// Runs a command against it.
    fn run(&self, line: &str) -> Output {
        command(line).envs(self.variables.iter().cloned()).output().unwrap()
    }

    /// The JSON of a command that must succeed.
    fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn command(line: &str) -> Command {
    let mut command = Command::new(MILLPOND);
    command.args(line.split(' ')).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn commands_do_what_they_say_and_exit_with_the_code_that_the_manual_names() {
    let dir = tempfile::tempdir().unwrap();
    let server = Dev::start(&dir.path().join("data"));

    let created = server.run("pool apply config/pools/map-tiles.toml");
    assert!(created.status.success() && text(&created.stdout).contains("pool map-tiles is created"));
    let again = server.run("pool apply config/pools/map-tiles.toml");
    assert!(text(&again.stdout).contains("nothing changed"));
    let changed = server.json("pool set map-tiles lease_term_s=60");
    assert_eq!((&changed["policy_version"], &changed["changed"][0]["to"]), (&2.into(), &60.into()));

    let hand_out = text(&server.run("member add map-tiles van-1 --role publisher --format env").stdout);
    assert!(
        hand_out.contains("MILLPOND_MQTT_USER=map-tiles/van-1\n")
            && hand_out.contains("MILLPOND_MQTT_TOKEN=mpd_")
    );
    assert_eq!(server.json("member list map-tiles")["members"][0]["member"], "van-1");
    assert!(server.json("token rotate map-tiles van-1")["token"].as_str().unwrap().starts_with("mpd_"));
    assert_eq!(server.json("status")["ready"], true);
    assert_eq!(server.json("pool list")["pools"].as_array().unwrap().len(), 2);
    for list in ["upload", "batch", "round", "result"] {
        let empty = server.run(&format!("{list} list map-tiles"));
        assert!(empty.status.success() && text(&empty.stdout).starts_with("no "), "{list}");
    }
    assert_eq!(server.json("pool remove map-tiles"), serde_json::json!({}));

    for (line, code, said) in [
        ("pool show map-tiles", 1, "there is no pool map-tiles"),
        ("pool apply config/millpond.toml", 2, "name: is missing"),
        ("pool apply no-such-file.toml", 2, "no-such-file.toml"),
        ("upload list demo --limit 5000", 2, "1..=1000"),
        ("pool show Bad", 2, "a pool name"),
        ("member add demo m --role king", 2, "is no role"),
        ("member add demo publisher --role publisher", 1, "already"),
        ("status --token-file /no/such/file", 2, "/no/such/file"),
        ("status --server http://127.0.0.1:1", 75, "cannot be reached"),
        ("status --server ftp://127.0.0.1", 2, "http://"),
    ] {
        let output = server.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{line}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{line}");
    }
    let as_json = server.run("pool show map-tiles --json");
    let error: Value = serde_json::from_slice(&as_json.stderr).unwrap();
    assert_eq!(error["error"]["code"], "not_found");
}

#[test]
fn a_dev_server_with_a_directory_of_its_own_comes_back_with_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let first = Dev::start(&data);
    assert!(first.run("pool add kept").status.success());
    let (admin, publisher) =
        (first.variable("MILLPOND_TOKEN").to_owned(), first.variable("MILLPOND_PUBLISHER_TOKEN").to_owned());
    drop(first);
    let second = Dev::start(&data);
    assert_eq!(second.variable("MILLPOND_TOKEN"), admin);
    assert_ne!(second.variable("MILLPOND_PUBLISHER_TOKEN"), publisher, "only hashes are kept");
    let pools = second.json("pool list");
    assert_eq!((&pools["pools"][0]["pool"], &pools["pools"][1]["pool"]), (&"demo".into(), &"kept".into()));
    assert_eq!(pools["pools"][0]["members"], 3);
}

#[test]
fn check_config_names_everything_that_is_wrong_and_exits_with_2() {
    let good = command("serve --check-config --config config/millpond.toml").output().unwrap();
    assert!(good.status.success());
    let bad = command("serve --check-config")
        .env("MILLPOND__MQTT__LISTEN", "0.0.0.0:1883")
        .env("MILLPOND__LOG__FORMAT", "xml")
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    let said = text(&bad.stderr);
    for part in ["3 places", "MILLPOND__LOG__FORMAT", "mqtt.listen", "storage.public_url"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn the_shipped_configuration_starts_a_server_and_sigterm_ends_it_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut serve = command("serve --config config/millpond.toml --data");
    serve.arg(&data).stderr(Stdio::null());
    for listener in ["MQTT", "HTTP", "STORAGE"] {
        serve.env(format!("MILLPOND__{listener}__LISTEN"), "127.0.0.1:0");
    }
    let mut server = serve.spawn().unwrap();
    let ports = loop {
        // It is renamed into place when the server is ready.
        if let Ok(text) = std::fs::read_to_string(data.join("ports.json")) {
            break serde_json::from_str::<Value>(&text).unwrap();
        }
        assert!(server.try_wait().unwrap().is_none(), "the server ended");
        std::thread::yield_now();
    };
    let url = format!("http://{}", ports["http"].as_str().unwrap());
    let status = command("status --json --server")
        .args([&url, "--token-file"])
        .arg(data.join("admin.token"))
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", text(&status.stderr));
    let id = server.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert_eq!(server.wait().unwrap().code(), Some(0));
    assert!(!data.join("ports.json").exists());
}
