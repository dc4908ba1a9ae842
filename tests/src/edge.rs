//! A device: `millpond-edge` with its credentials, its spool, and a network that can be cut.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millpond_failpoint::{Point, VARIABLE};
use millpond_protocol::Role;
use serde_json::json;
use tempfile::TempDir;

use crate::process::{arm, disarm};
use crate::{Credentials, NOBODY, Process, Relay, Server, edge_binary, is_root, tool};

/// A device with its own directory.
pub struct Edge {
    pub relay: Relay,
    who: Credentials,
    directory: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Edge {
    /// A device of that member, on a network that works.
    pub async fn new(server: &Server, who: Credentials) -> Self {
        Self {
            relay: Relay::to(server.mqtt()).await,
            who,
            directory: tempfile::tempdir().unwrap(),
            environment: Vec::new(),
        }
    }

    /// A server with the pool `demo`, whose windows are days, and its member `edge-1`'s device.
    pub async fn device() -> (Server, Self) {
        let server = Server::start().await;
        server.pool("demo", json!({ "grouping": "window", "window_s": 86_400 })).await;
        let who = server.member("demo", "edge-1", Role::Publisher).await;
        let edge = Self::new(&server, who).await;
        (server, edge)
    }

    /// Puts `count` files of `size` bytes into its spool.
    pub async fn spooled(&self, count: usize, size: usize) {
        let names: Vec<String> = (0..count).map(|n| format!("file-{n}")).collect();
        for name in &names {
            self.file(name, &name.bytes().cycle().take(size).collect::<Vec<_>>());
        }
        let mut push = vec!["push", "--offline"];
        push.extend(names.iter().map(String::as_str));
        self.done(&push).await;
    }

    /// Puts more into the environment of its processes from now on.
    pub fn set_environment(&mut self, more: impl IntoIterator<Item = (&'static str, String)>) {
        self.environment.extend(more);
    }

    /// Who it is.
    pub fn who(&self) -> &Credentials {
        &self.who
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its spool.
    pub fn spool(&self) -> PathBuf {
        self.directory.path().join("spool")
    }

    /// Writes a file, and answers where it is.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The client's command with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_as(&self.who, arguments)
    }

    fn command_as(&self, who: &Credentials, arguments: &[&str]) -> Command {
        let mut command = Command::new(edge_binary());
        let address = self.relay.address();
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env("MILLPOND_MQTT_HOST", address.ip().to_string())
            .env("MILLPOND_MQTT_PORT", address.port().to_string())
            .env("MILLPOND_MQTT_USER", format!("{}/{}", who.pool, who.member))
            .env("MILLPOND_MQTT_TOKEN", &who.token)
            .env("MILLPOND_SPOOL", self.spool())
            .env(VARIABLE, self.armed())
            .envs(self.environment.iter().cloned());
        command
    }

    fn armed(&self) -> PathBuf {
        self.directory.path().join("failpoint")
    }

    /// Its processes kill themselves when they come to that point for the `nth` time.
    pub fn arm(&self, point: Point, nth: u32) {
        arm(&self.armed(), point, nth);
    }

    /// They do not any more.
    pub fn disarm(&self) {
        disarm(&self.armed());
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Runs it to its end, which has to be good, and answers what it wrote.
    pub async fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    /// Starts it.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(self.command(arguments), self.directory.path(), name)
    }

    /// Starts it as somebody to whom modes mean something, if this process is not: the directory is theirs then. None: that
    /// cannot be done here.
    pub fn start_as_nobody(&self, name: &str, arguments: &[&str]) -> Option<Process> {
        if !is_root() {
            return Some(self.start(name, arguments));
        }
        if !tool("setpriv") {
            return None;
        }
        // Where the program was built, nobody else may look.
        let program = self.directory().join("millpond-edge");
        std::fs::copy(edge_binary(), &program).unwrap();
        chown(self.directory(), Some(NOBODY), Some(NOBODY)).unwrap();
        let plain = self.command(arguments);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"]);
        command.arg(program).args(arguments).current_dir(self.directory());
        command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Some(Process::start(command, self.directory(), name))
    }

    /// Starts it as another member.
    pub fn start_as(&self, who: &Credentials, name: &str, arguments: &[&str]) -> Process {
        Process::start(self.command_as(who, arguments), self.directory.path(), name)
    }
}
