//! `millpond-edge enrol`: a device becomes a member by itself, whatever happens to the answer, and needs no more settings then.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millpond_protocol::Role;
use millpond_tests::{Server, edge_binary};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// A device that knows a join token and nothing else.
struct Device {
    directory: TempDir,
    join: String,
}

impl Device {
    /// With a join token of pool `p` for so many devices.
    async fn new(server: &Server, uses: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        server.pool("p", json!({})).await;
        let new = json!({ "name": "line-3", "role": Role::Publisher, "uses": uses, "expires_s": 600 });
        let join = server.api().post("/v1/pools/p/joins", &new).await["token"].as_str().unwrap().to_owned();
        Self { directory, join }
    }

    /// Another device of the same owner.
    fn sibling(&self) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), join: self.join.clone() }
    }

    fn identity(&self) -> PathBuf {
        self.directory.path().join("config/millpond-edge")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(edge_binary());
        command.args(arguments).current_dir(self.directory.path());
        command.env("XDG_CONFIG_HOME", self.directory.path().join("config"));
        command.env("XDG_STATE_HOME", self.directory.path().join("state"));
        command
    }

    async fn run(&self, mut command: Command) -> Output {
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn enrol(&self, server: &str, name: &str, ca: Option<&Path>) -> Output {
        let join = self.directory.path().join("join.token");
        std::fs::write(&join, &self.join).unwrap();
        let arguments =
            ["--patience", "2", "enrol", name, "--server", server, "--join-token-file", "join.token"];
        let mut command = self.command(&arguments);
        if let Some(ca) = ca {
            command.env("MILLPOND_CA_FILE", ca);
        }
        self.run(command).await
    }

    async fn push(&self, name: &str) -> Output {
        std::fs::write(self.directory.path().join(name), name).unwrap();
        self.run(self.command(&["push", name])).await
    }

    /// What it keeps, as JSON; null: nothing.
    fn kept(&self) -> serde_json::Value {
        let text = std::fs::read(self.identity().join("identity.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }
}

#[track_caller]
fn ended(output: &Output, code: i32, says: &str) {
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(says), "{}: {said}", output.status);
}

fn http(server: &Server) -> String {
    format!("http://{}", server.ports().http)
}

async fn uses_left(server: &Server) -> u64 {
    server.api().get("/v1/pools/p/joins").await["joins"][0]["uses"].as_u64().unwrap()
}

#[tokio::test]
async fn a_device_that_knows_a_join_token_enrols_over_tls_and_pushes_with_nothing_else_set() {
    let server = Server::secure(&[]).await;
    let device = Device::new(&server, 2).await;
    let url = format!("https://{}", server.ports().http);
    ended(&device.push("early").await, 2, "millpond-edge enrol");
    // Who does not trust the server gives it no join token.
    ended(&device.enrol(&url, "p/dev-1", None).await, 75, "UnknownIssuer");
    assert_eq!(uses_left(&server).await, 2);

    let done = device.enrol(&url, "p/dev-1", Some(&server.ca())).await;
    ended(&done, 0, "enrolled  p/dev-1  at mqtts://");
    ended(&device.push("small").await, 0, "stored  small-");
    assert_eq!(server.uploads("p").await[0]["member"], "dev-1");
    // Again is no other member, and no other use.
    ended(&device.enrol(&url, "p/dev-1", Some(&server.ca())).await, 0, "enrolled");
    ended(&device.push("second").await, 0, "stored  second-");
    assert_eq!(uses_left(&server).await, 1);

    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&device.identity()), 0o700);
    assert_eq!(mode(&device.identity().join("identity.json")), 0o600);
    let kept = device.kept();
    let (token, said) = (kept["token"].as_str().unwrap(), format!("{done:?}"));
    assert!(token.starts_with("mpd_") && token.len() == 68, "32 bytes of the system's random numbers");
    assert!(!said.contains(token) && !said.contains(&device.join), "{said}");
}

/// A way to the server on which every request arrives and no answer comes back.
async fn deaf_way(to: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            let (mut from_client, _) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let mut first = [0];
            tokio::select! {
                answer = from_server.read(&mut first) => assert_eq!(answer.unwrap(), 1),
                _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
            }
        }
    });
    url
}

#[tokio::test]
async fn an_answer_that_is_lost_is_asked_for_again_with_the_same_token_and_costs_one_use() {
    let server = Server::start().await;
    let device = Device::new(&server, 1).await;
    let deaf = deaf_way(server.ports().http).await;
    ended(&device.enrol(&deaf, "p/dev-1", None).await, 75, "not known whether it worked");
    assert_eq!(uses_left(&server).await, 0);
    let before = device.kept();
    assert!(before["url"].is_null(), "{before}");
    ended(&device.push("early").await, 2, "repeat");
    ended(&device.enrol(&http(&server), "p/dev-2", None).await, 2, "p/dev-1 already");
    // Another process, another day; and the join token is used up.
    ended(&device.enrol(&http(&server), "p/dev-1", None).await, 0, "enrolled");
    assert_eq!(device.kept()["token"], before["token"]);
    ended(&device.push("late").await, 0, "stored  late-");
    let members = server.api().get("/v1/pools/p/members").await;
    assert_eq!(members["members"].as_array().unwrap().len(), 1, "{members}");
}

#[tokio::test]
async fn what_the_server_refuses_leaves_nothing_behind_and_says_why() {
    let server = Server::start().await;
    let device = Device::new(&server, 2).await;
    ended(&device.enrol(&http(&server), "p/dev-1", None).await, 0, "at mqtt://");
    let second = device.sibling();
    ended(&second.enrol(&http(&server), "p/dev-1", None).await, 1, "conflict");
    assert!(second.kept().is_null());
    ended(&second.enrol(&http(&server), "p/dev-2", None).await, 0, "enrolled");
    let third = device.sibling();
    ended(&third.enrol(&http(&server), "p/dev-3", None).await, 1, "used up");
    ended(&third.enrol(&http(&server), "q/dev-3", None).await, 1, "not valid");
    assert!(third.kept().is_null());
    ended(&third.enrol("mqtt://127.0.0.1", "p/dev-3", None).await, 2, "https://");
    ended(&third.enrol(&http(&server), "dev-3", None).await, 2, "POOL/MEMBER");
    // The MQTT port is no HTTP listener: it does not answer.
    let mqtt = format!("http://{}", server.mqtt());
    ended(&third.enrol(&mqtt, "p/dev-3", None).await, 75, "not known whether it worked");
}
