//! `millpond serve` as a child process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use millpond_failpoint::{Point, VARIABLE};
use millpond_protocol::Role;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{arm, disarm};
use crate::{Api, Credentials, Process, Trace, binary, until};

/// Longest time until the server is ready or gone, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a server listens: what it writes to `DATA/ports.json` once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Ports {
    pub mqtt: SocketAddr,
    pub mqtts: Option<SocketAddr>,
    pub http: SocketAddr,
    pub storage: Option<SocketAddr>,
}

/// A server, its data directory, and the admin's access to it.
pub struct Server {
    // Before the directory: the process ends before its files go.
    process: Option<Process>,
    directory: TempDir,
    settings: Vec<(String, String)>,
    ports: Option<Ports>,
    admin: String,
    /// Where certificate and key are.
    tls: Option<PathBuf>,
}

impl Server {
    /// A server with the defaults.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with settings of the environment, such as `MILLPOND__MQTT__PUBLISH_MAX`.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(settings);
        server.launch().await;
        server
    }

    /// A server whose listeners speak TLS, with files of `millpond tls init`.
    pub async fn secure(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(settings);
        server.certify("tls");
        server.launch().await;
        server
    }

    /// Makes an authority and a certificate, and has the server use them.
    pub fn certify(&mut self, name: &str) {
        let dir = self.directory().join(name);
        let made = Command::new(binary()).args(["tls", "init", "--dir"]).arg(&dir).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        for (key, file) in [("CERT", "server.crt"), ("KEY", "server.key"), ("CA", "ca.crt")] {
            let path = dir.join(file).display().to_string();
            self.settings.push((format!("MILLPOND__TLS__{key}_FILE"), path));
        }
        self.settings.push(("MILLPOND__MQTT__TLS_LISTEN".to_owned(), "127.0.0.1:0".to_owned()));
        self.tls = Some(dir);
    }

    /// The directory with `ca.crt`, `server.crt` and `server.key`.
    pub fn tls(&self) -> &Path {
        self.tls.as_deref().unwrap()
    }

    /// The authority that clients trust.
    pub fn ca(&self) -> PathBuf {
        self.tls().join("ca.crt")
    }

    /// The MQTT listener with TLS.
    pub fn mqtts(&self) -> SocketAddr {
        self.ports().mqtts.unwrap()
    }

    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.ports().http)
    }

    /// A server with settings, before its first start.
    pub fn prepare(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let directory = tempfile::tempdir().unwrap();
        Self { process: None, directory, settings, ports: None, admin: String::new(), tls: None }
    }

    /// Puts more into the environment of its processes from now on.
    pub fn set_environment(&mut self, more: impl IntoIterator<Item = (&'static str, String)>) {
        self.settings.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A directory for the test's own files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The command that starts this server; tests may change it before it runs.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("serve").arg("--data").arg(self.data());
        self.set(&mut command);
        command
    }

    fn set(&self, command: &mut Command) {
        for listener in ["MQTT", "HTTP", "STORAGE"] {
            command.env(format!("MILLPOND__{listener}__LISTEN"), "127.0.0.1:0");
        }
        command.env(VARIABLE, self.armed());
        command.envs(self.settings.iter().cloned());
    }

    /// Starts the process and waits until it is ready.
    pub async fn launch(&mut self) {
        if let Err(status) = self.try_launch().await {
            panic!("the server ended with {status} before it was ready");
        }
    }

    /// Starts the process and waits until it is ready, or has ended.
    ///
    /// # Errors
    /// How it ended.
    pub async fn try_launch(&mut self) -> Result<(), ExitStatus> {
        self.launch_as(self.command(), |_| PathBuf::new()).await
    }

    /// What the process reads a fail-point from.
    fn armed(&self) -> PathBuf {
        self.directory.path().join("failpoint")
    }

    /// The process kills itself when it comes to that point for the `nth` time from now on.
    pub fn arm(&self, point: Point, nth: u32) {
        arm(&self.armed(), point, nth);
    }

    /// It does not any more.
    pub fn disarm(&self) {
        disarm(&self.armed());
    }

    /// Waits for the end of the process; none if it lives on.
    pub async fn died(&mut self, within: Duration) -> Option<ExitStatus> {
        let begin = Instant::now();
        while begin.elapsed() < within {
            if let Some(status) = self.process().status() {
                self.process = None;
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Starts the process with its data on a file system of this many MiB that only the process sees, and answers the
    /// directory through which the test sees it. Needs the right to mount.
    pub async fn launch_on_small_disk(&mut self, mib: u32) -> PathBuf {
        std::fs::create_dir(self.data()).unwrap();
        let script = r#"mount -t tmpfs -o size="$3"m,mode=0700 none "$1" && exec "$2" serve --data "$1""#;
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script, "sh"]).arg(self.data()).arg(binary()).arg(mib.to_string());
        self.set(&mut command);
        let inside = |id: u32| PathBuf::from(format!("/proc/{id}/root"));
        assert!(self.launch_as(command, inside).await.is_ok(), "the server ended before it was ready");
        seen(&inside(self.process().id()), &self.data())
    }

    /// Starts the process under strace, and waits until it is ready; [`Server::terminate_traced`] ends both.
    pub async fn launch_traced(&mut self) {
        let command = Trace::server(&self.command(), self.directory.path());
        let launched = self.launch_as(command, |_| PathBuf::new()).await;
        assert!(launched.is_ok(), "the server ended before it was ready");
    }

    /// SIGTERM to a server under strace, and what strace saw.
    pub async fn terminate_traced(&mut self) -> Trace {
        let mut strace = self.process.take().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", strace.id());
        let children = std::fs::read_to_string(children).unwrap();
        assert!(Command::new("kill").arg(children.trim()).status().unwrap().success());
        strace.wait(PATIENCE).await;
        Trace::read(self.directory.path())
    }

    /// `root` answers where the root of the process with that id is seen; empty: here.
    async fn launch_as(&mut self, command: Command, root: impl Fn(u32) -> PathBuf) -> Result<(), ExitStatus> {
        assert!(self.process.is_none(), "the server is running");
        // That of an earlier run says nothing; there may be none.
        let _ = std::fs::remove_file(self.data().join("ports.json"));
        let mut process = Process::start(command, self.directory.path(), "server");
        let data = seen(&root(process.id()), &self.data());
        let read = |name: &str| std::fs::read_to_string(data.join(name)).ok();
        let begin = Instant::now();
        loop {
            if let Some(ports) = read("ports.json").and_then(|text| serde_json::from_str(&text).ok()) {
                self.ports = Some(ports);
                self.admin = read("admin.token").unwrap().trim().to_owned();
                if self.is_ready().await {
                    break;
                }
            }
            if let Some(status) = process.status() {
                return Err(status);
            }
            assert!(begin.elapsed() < PATIENCE, "the server is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Whether `/readyz` says so.
    pub async fn is_ready(&self) -> bool {
        self.api().try_call("/readyz").await == Some(200)
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// SIGKILL, without warning.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill();
    }

    /// SIGTERM, and the exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        process.signal("TERM");
        process.wait(PATIENCE).await
    }

    /// Where it listens now; other ports after a restart.
    pub fn ports(&self) -> Ports {
        self.ports.expect("the server was ready once")
    }

    /// The MQTT listener.
    pub fn mqtt(&self) -> SocketAddr {
        self.ports().mqtt
    }

    /// The API, as the admin.
    pub fn api(&self) -> Api {
        let authority = self.tls.as_ref().map(|_| std::fs::read(self.ca()).unwrap());
        Api::trusting(authority.as_deref(), self.url(), &self.admin)
    }

    /// The command line against this server, as the admin.
    pub fn cli(&self) -> Command {
        let mut command = Command::new(binary());
        command.env("MILLPOND_SERVER", self.url()).env("MILLPOND_TOKEN", &self.admin);
        if self.tls.is_some() {
            command.env("MILLPOND_CA_FILE", self.ca());
        }
        command
    }

    /// Makes a pool, or changes its policy; keys that are left out have their defaults.
    pub async fn pool(&self, pool: &str, policy: Value) {
        self.api().put(&format!("/v1/pools/{pool}"), &policy).await;
    }

    /// Adds a member and answers what it connects with.
    pub async fn member(&self, pool: &str, name: &str, role: Role) -> Credentials {
        let new = json!({ "member": name, "role": role });
        let hand_out = self.api().post(&format!("/v1/pools/{pool}/members"), &new).await;
        Credentials {
            mqtt: self.mqtt(),
            pool: pool.parse().unwrap(),
            member: name.parse().unwrap(),
            client_id: name.to_owned(),
            token: hand_out["token"].as_str().unwrap().to_owned(),
        }
    }

    /// The same credentials at the address where the server listens now.
    pub fn here(&self, who: &Credentials) -> Credentials {
        Credentials { mqtt: self.mqtt(), ..who.clone() }
    }

    /// Every upload of a pool as the API lists it, oldest first.
    pub async fn uploads(&self, pool: &str) -> Vec<Value> {
        let api = self.api();
        let mut path = format!("/v1/pools/{pool}/uploads?limit=1000");
        let mut uploads = Vec::new();
        loop {
            let page = api.get(&path).await;
            uploads.extend(page["uploads"].as_array().unwrap().iter().cloned());
            let Some(cursor) = page["cursor"].as_str() else { break };
            path = format!("/v1/pools/{pool}/uploads?limit=1000&cursor={cursor}");
        }
        uploads.reverse();
        uploads
    }

    /// Waits until nobody is connected, and it has done with whatever they had sent.
    pub async fn at_rest(&self, pool: &str) {
        let nobody = async || {
            let text = self.api().get("/metrics").await;
            text.as_str().unwrap().lines().any(|line| line == "millpond_gate_connections 0")
        };
        until("the server sees that they are gone", nobody).await;
        // Everything is written in one line, and this is the last in it.
        self.api().patch(&format!("/v1/pools/{pool}"), &json!({})).await;
    }

    /// How often a file came to the pool that was stored already.
    pub async fn repeats(&self, pool: &str) -> usize {
        let (mut repeats, mut since) = (0, 0);
        loop {
            let page = self.api().get(&format!("/v1/pools/{pool}/events?since={since}")).await;
            let events = page["events"].as_array().unwrap();
            if events.is_empty() {
                return repeats;
            }
            repeats += events.iter().filter(|event| event["type"] == "repeated").count();
            since = page["next"].as_u64().unwrap();
        }
    }
}

/// The path as it is seen through another root.
fn seen(root: &Path, path: &Path) -> PathBuf {
    if root.as_os_str().is_empty() { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap()) }
}
