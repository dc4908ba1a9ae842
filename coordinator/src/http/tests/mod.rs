//! The API over real connections, a real ledger and the embedded storage.

use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use millpond_protocol::Principal;
use millpond_protocol::message::answer::UploadInfo;
use millpond_storage::{Secret, Storage, StorageConfig, embedded};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

mod hold;
mod inspect;
mod manage;

use super::api::*;
use super::*;
use crate::dispatch::Troubles;
use crate::fanout::state::{Shown, States};
use crate::grants::Grants;
use crate::ledger::results::NewResult;
use crate::ledger::uploads::NewUpload;
use crate::rounds::{Event, Target};

const ADMIN: &str = "mpa_a-token-that-nobody-guesses-in-a-test";

/// A running API; everything ends with it.
pub(super) struct Server {
    url: String,
    http: reqwest::Client,
    /// What handlers work with, for a look at one of them alone.
    pub(super) api: Api,
    pub(super) ledger: Ledger,
    troubles: watch::Sender<Troubles>,
    shutdown: CancellationToken,
    storage: CancellationToken,
    done: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::start_with(Duration::from_secs(20)).await
    }

    async fn start_with(request_timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let secret = "sixteen-and-more-letters";
        let config = embedded::EmbeddedConfig::new("millpond", "key", Secret::new(secret));
        let embedded = embedded::open(&dir.path().join("objects"), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let stop = CancellationToken::new();
        let (serving, stopped) = (embedded.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener, stopped).await });
        let storage =
            Storage::new(&StorageConfig::new(endpoint, "millpond", "key", Secret::new(secret))).unwrap();
        let shown =
            Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: "files.example".to_owned() };
        let states = States::new(ledger.clone(), storage.clone(), shown);
        let shutdown = CancellationToken::new();
        let (tell, troubles) = watch::channel(Troubles::new());
        let collector = Collector::new(ledger.clone(), storage.clone());
        let parts = || Parts {
            collector: collector.clone(),
            asks: Asks {
                ledger: ledger.clone(),
                storage: storage.clone(),
                states: states.clone(),
                grants: Grants::new(ledger.clone(), storage.clone(), Duration::from_secs(60)),
            },
            identity: Identity::new(ledger.clone(), 10, 10),
            troubles: troubles.clone(),
            admin: Sha256::of(ADMIN.as_bytes()),
            mqtt: Reached { host: "broker.example".to_owned(), port: 1883, tls: false, authority: None },
            storage_url: "http://files.example".to_owned(),
            metrics: Some(Sha256::of(b"scraper")),
            request_timeout,
            event_streams_max: 1,
            room: super::Room { max: 64, per_address: 64 },
            grace: Duration::from_secs(5),
            gate: Listener::handed(1).0,
            shutdown: shutdown.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let done = tokio::spawn(run(listener.into(), parts()));
        let api = Api::new(parts());
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, http, api, ledger, troubles: tell, shutdown, storage: stop, done, _dir: dir }
    }

    async fn send(&self, token: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
    }

    /// A request of the admin that must succeed.
    pub(super) async fn admin<T: DeserializeOwned>(&self, method: Method, path: &str, body: Value) -> T {
        let (status, answer) = self.send(ADMIN, method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        serde_json::from_value(answer).unwrap()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.admin(Method::GET, path, Value::Null).await
    }

    /// The code and status of a request that must be refused.
    async fn refused(&self, token: &str, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.send(token, method, path, body).await;
        assert!(!status.is_success(), "{path}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
        (status.as_u16(), answer["error"]["code"].as_str().unwrap().to_owned())
    }

    /// Begins a request, sends its body only after `meanwhile`, when the server waits for it already; the status.
    async fn held(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
        meanwhile: impl Future<Output = ()>,
    ) -> u16 {
        let address = self.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nExpect: 100-continue\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut go_on).await.unwrap();
        assert!(go_on.starts_with(b"HTTP/1.1 100 "));
        meanwhile.await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// A pool with minute windows, and a member of each role that is named; their tokens in that order.
    pub(super) async fn pool(&self, pool: &str, members: &[(&str, &str)]) -> Vec<String> {
        let _: Applied = self.admin(Method::PUT, &format!("/v1/pools/{pool}"), json!({"window_s": 60})).await;
        let mut tokens = Vec::new();
        for (member, role) in members {
            let path = format!("/v1/pools/{pool}/members");
            let hand_out: HandOut =
                self.admin(Method::POST, &path, json!({"member": member, "role": role})).await;
            tokens.push(hand_out.token.unwrap());
        }
        tokens
    }

    async fn principal(&self, token: &str) -> Principal {
        let hash = Sha256::of(token.as_bytes());
        let find = move |sql: &rusqlite::Connection| {
            crate::ledger::tokens::find_token(sql, &hash, crate::ledger::now())
        };
        self.ledger.read(find).await.unwrap().unwrap()
    }

    /// Stores an upload as if it had come over MQTT.
    async fn upload(&self, token: &str, upload: &str, data: &'static [u8]) {
        let who = self.principal(token).await;
        // Pools that group otherwise ignore the label.
        let label = Some("a-label".parse().unwrap());
        let small = NewUpload::inline(upload.parse().unwrap(), data.into());
        let new = NewUpload { label, sha256_declared: true, ..small };
        let store = move |tx: &mut crate::ledger::Tx<'_>| {
            let pool = tx.pool_of(&who)?;
            tx.store_upload(pool, &who, new)
        };
        self.ledger.write(store).await.unwrap();
    }

    /// Seals the oldest batch.
    async fn trigger(&self, pool: &str) {
        let pool: millpond_protocol::PoolName = pool.parse().unwrap();
        let trigger = move |tx: &mut crate::ledger::Tx<'_>| {
            let pool = tx.pool(&pool)?;
            tx.apply(pool, Event::Trigger { target: Target::Oldest, take: None })
        };
        self.ledger.write(trigger).await.unwrap();
    }

    /// Seals the oldest batch and commits a result of its round.
    async fn commit(&self, processor: &str, round: u64) {
        let who = self.principal(processor).await;
        let commit = move |tx: &mut crate::ledger::Tx<'_>| {
            let pool = tx.pool_of(&who)?;
            tx.apply(pool, Event::Trigger { target: Target::Oldest, take: Some(who.id) })?;
            let (size, sha256) = (6, Sha256::of(b"result"));
            let object = tx.grant_object(pool, "result", size, sha256)?.id;
            let new = NewResult {
                round,
                attempt: 1,
                name: None,
                content_type: None,
                size,
                sha256,
                object,
                data: None,
            };
            tx.commit_result(pool, &who, new)
        };
        self.ledger.write(commit).await.unwrap();
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap();
        self.storage.cancel();
    }
}
