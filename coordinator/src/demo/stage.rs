//! The stage: the real server on ephemeral ports, a pool, and its members.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use millpond_protocol::{PoolName, Role, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::link::Credentials;
use crate::config::Config;
use crate::server;

/// How long storage may be silent.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running server on loopback with the pool `demo`, in a directory that is gone with it; for the demo, and for examples.
pub struct Stage {
    pub(super) http: reqwest::Client,
    pool: PoolName,
    api: String,
    mqtt: std::net::SocketAddr,
    admin: String,
    shutdown: CancellationToken,
    server: Mutex<JoinHandle<anyhow::Result<()>>>,
    /// Removed when the stage is.
    directory: TempDir,
}

impl Stage {
    /// Starts the server and makes the pool.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut config = Config::default();
        config.server.data_dir = directory.path().join("data");
        for listener in [&mut config.mqtt.listen, &mut config.http.listen, &mut config.storage.listen] {
            listener.set_port(0);
        }
        let token = config.server.data_dir.join("admin.token");
        let shutdown = CancellationToken::new();
        let (ready, addresses) = oneshot::channel();
        let server = tokio::spawn(server::run(config, shutdown.clone(), ready));
        let Ok(addresses) = addresses.await else {
            return Err(match server.await? {
                Ok(()) => anyhow!("the server ended before it was ready"),
                Err(error) => error.context("the server did not start"),
            });
        };
        let stage = Self {
            http: reqwest::Client::builder().no_proxy().read_timeout(PATIENCE).build()?,
            pool: "demo".parse()?,
            api: format!("http://{}", addresses.http),
            mqtt: addresses.mqtt,
            admin: std::fs::read_to_string(token)?.trim().to_owned(),
            shutdown,
            server: Mutex::new(server),
            directory,
        };
        stage.make_pool().await?;
        Ok(stage)
    }

    /// A directory for whoever goes by that name.
    pub(super) fn directory(&self, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory)?;
        Ok(directory)
    }

    /// Resolves if the server ends by itself.
    pub(super) async fn ended(&self) -> anyhow::Error {
        match (&mut *self.server.lock().await).await {
            Ok(Ok(())) => anyhow!("the server ended"),
            Ok(Err(error)) => error.context("the server ended"),
            Err(error) => anyhow!("the server ended: {error}"),
        }
    }

    /// Stops the server as SIGTERM would.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        let server = self.server.into_inner();
        if server.is_finished() { Ok(()) } else { server.await? }
    }

    /// Makes the pool: a window is a day, and a lease ends soon after its processor.
    async fn make_pool(&self) -> anyhow::Result<()> {
        let policy = json!({ "grouping": "window", "window_s": super::WINDOW.as_secs(), "lease_term_s": 5 });
        let path = format!("pools/{}", self.pool);
        let _: Value = self.api(reqwest::Method::PUT, &path, &policy).await?;
        Ok(())
    }

    /// Adds a member, and answers what it connects with.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn member(&self, name: &str, role: Role) -> anyhow::Result<Credentials> {
        let path = format!("pools/{}/members", self.pool);
        let new = json!({ "member": name, "role": role });
        let hand_out: Value = self.api(reqwest::Method::POST, &path, &new).await?;
        Ok(Credentials {
            mqtt: self.mqtt,
            pool: self.pool.clone(),
            member: name.parse()?,
            client_id: name.to_owned(),
            token: hand_out["token"].as_str().context("a hand-out without a token")?.to_owned(),
        })
    }

    /// Where the server's HTTP is.
    pub fn server_url(&self) -> &str {
        &self.api
    }

    /// POSTs to a path below `/v1`, as the admin.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.api(reqwest::Method::POST, path, body).await
    }

    async fn api<T: DeserializeOwned>(
        &self,
        method: reqwest::Method,
        path: &str,
        body: &Value,
    ) -> anyhow::Result<T> {
        let url = format!("{}/v1/{path}", self.api);
        let request = self.http.request(method, &url).bearer_auth(&self.admin).json(body);
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        anyhow::ensure!(status.is_success(), "{url} answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }
}

/// The clock that server and demo share.
pub(super) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::EPOCH.after(since)
}
