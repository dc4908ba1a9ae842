//! A ledger and an embedded storage server in temporary directories, with one pool `p`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use millpond::asks::Asks;
use millpond::dispatch::{Dispatch, Troubles};
use millpond::fanout::state::{Shown, States};
use millpond::grants::Grants;
use millpond::ledger::results::NewResult;
use millpond::ledger::uploads::{Body, NewUpload};
use millpond::ledger::{Ledger, PoolId};
use millpond::rounds::Policy;
use millpond_protocol::access::Op;
use millpond_protocol::{Code, Principal, Role, Sha256, Timestamp};
use millpond_storage::{ObjectKey, Secret, Storage, StorageConfig, embedded};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at while nothing is told.
const LOOK: Duration = Duration::from_millis(20);

pub struct World {
    data: TempDir,
    objects: TempDir,
    pub address: SocketAddr,
    serving: Option<Running>,
    dispatching: Option<Running>,
    pub ledger: Ledger,
    pub storage: Storage,
    pub asks: Asks,
    pub pool: PoolId,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl World {
    /// A pool `p` with this policy, given as JSON; nothing is dispatched yet.
    pub async fn new(policy: Value) -> Self {
        let (data, objects) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (serving, address) = serve(objects.path(), "127.0.0.1:0".parse().unwrap()).await;
        let endpoint = format!("http://{address}").parse().unwrap();
        let mut config = StorageConfig::new(endpoint, "millpond", "access", secret());
        config.attempts = 1;
        config.call_timeout = Duration::from_secs(20);
        let storage = Storage::new(&config).unwrap();
        let (ledger, _) = Ledger::open(data.path()).unwrap();
        let policy: Policy = serde_json::from_value(policy).unwrap();
        let (pool, _) = ledger.write(move |tx| tx.apply_pool(&"p".parse().unwrap(), &policy)).await.unwrap();
        let asks = asks(&ledger, &storage);
        Self {
            data,
            objects,
            address,
            serving: Some(serving),
            dispatching: None,
            ledger,
            storage,
            asks,
            pool,
        }
    }

    /// The ledger's file, for what the ledger itself does not do.
    pub fn ledger_file(&self) -> std::path::PathBuf {
        self.data.path().join("ledger.db")
    }

    /// Starts dispatching.
    pub fn dispatch(&mut self) -> watch::Receiver<Troubles> {
        let dispatch = Dispatch::new(self.ledger.clone(), self.storage.clone());
        let troubles = dispatch.troubles();
        let stop = CancellationToken::new();
        let task = tokio::spawn(dispatch.run(stop.clone()));
        self.dispatching = Some(Running { stop, task });
        troubles
    }

    /// Stops dispatching wherever it is, and opens the ledger anew, as after a restart.
    pub async fn restart(self) -> Self {
        let Self { data, objects, address, serving, dispatching, ledger, storage, asks: old, pool } = self;
        if let Some(dispatching) = dispatching {
            dispatching.stop().await;
        }
        drop((ledger, old));
        let until = std::time::Instant::now() + PATIENCE;
        // A job that was cut off may hold the ledger for a moment.
        let ledger = loop {
            match Ledger::open(data.path()) {
                Ok((ledger, _)) => break ledger,
                Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        let asks = asks(&ledger, &storage);
        Self { data, objects, address, serving, dispatching: None, ledger, storage, asks, pool }
    }

    pub async fn stop_storage(&mut self) {
        self.serving.take().unwrap().stop().await;
    }

    pub async fn start_storage(&mut self) {
        self.serving = Some(serve(self.objects.path(), self.address).await.0);
    }

    pub async fn member(&self, name: &str, role: Role) -> Principal {
        let (pool, name) = (self.pool, name.parse::<millpond_protocol::MemberName>().unwrap());
        let added = name.clone();
        let token = Sha256::of(name.as_str().as_bytes());
        let id = self.ledger.write(move |tx| tx.add_member(pool, &added, role, &token)).await.unwrap();
        Principal { pool: "p".parse().unwrap(), name, role, id }
    }

    /// Gives the pool another policy, given as JSON.
    pub async fn policy(&self, policy: Value) {
        let policy: Policy = serde_json::from_value(policy).unwrap();
        self.ledger.write(move |tx| tx.apply_pool(&"p".parse().unwrap(), &policy)).await.unwrap();
    }

    /// Uploads in one transaction.
    pub async fn upload(&self, who: &Principal, files: Vec<NewUpload>) {
        let (pool, who) = (self.pool, who.clone());
        let job = self.ledger.write(move |tx| {
            for file in files {
                let stored = tx.store_upload(pool, &who, file)?;
                assert!(stored.receipt.batch.is_some(), "{:?}", stored.receipt);
            }
            Ok(())
        });
        job.await.unwrap();
    }

    /// Uploads a file that is not kept in the ledger.
    pub async fn upload_large(&self, who: &Principal, upload: &str, bytes: Vec<u8>) {
        let object = self.object("upload", &bytes).await;
        let file = NewUpload { body: Body::Object(object), ..file(upload, bytes) };
        self.upload(who, vec![file]).await;
    }

    async fn object(&self, kind: &'static str, bytes: &[u8]) -> i64 {
        let (pool, sha256, size) = (self.pool, Sha256::of(bytes), bytes.len() as u64);
        let object = self.ledger.write(move |tx| tx.grant_object(pool, kind, size, sha256)).await.unwrap();
        self.storage.put(&object.key, Bytes::copy_from_slice(bytes), sha256).await.unwrap();
        object.id
    }

    /// Commits a result as a PUBLISH to `result/{round}/{attempt}` does.
    pub async fn commit(&self, who: &Principal, round: u64, attempt: u32, bytes: &[u8]) {
        let new = NewResult {
            round,
            attempt,
            name: None,
            content_type: None,
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
            object: self.object("result", bytes).await,
            data: None,
        };
        let (pool, who) = (self.pool, who.clone());
        self.ledger.write(move |tx| tx.commit_result(pool, &who, new)).await.unwrap();
    }

    pub async fn ask(&self, who: &Principal, op: Op, ask: Value) -> Result<Value, Code> {
        let answer = self.asks.answer(who, "test", op, ask.to_string().as_bytes()).await;
        answer.map_err(|refused| refused.error.code)
    }

    pub async fn sql<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> T {
        self.ledger.read(move |sql| Ok(read(sql)?)).await.unwrap()
    }

    pub async fn number(&self, query: &str) -> u64 {
        let query = query.to_owned();
        self.sql(move |sql| sql.query_row(&query, [], |row| row.get(0))).await
    }

    /// Waits until the query says so.
    pub async fn until(&self, query: &str, number: u64) {
        let mut commits = self.ledger.commits();
        let wait = async {
            while self.number(query).await != number {
                // Not every job has something to tell: look now and then in any case.
                let _ = tokio::time::timeout(LOOK, commits.recv()).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        if waited.is_err() {
            panic!("{query}: {} instead of {number}", self.number(query).await);
        }
    }

    /// Waits for a manifest.
    pub async fn manifest(&self, seq: u64) -> Vec<u8> {
        self.until(&format!("SELECT count(*) FROM manifests WHERE seq = {seq}"), 1).await;
        let key = self
            .sql(move |sql| {
                sql.query_row(
                    "SELECT o.key FROM manifests m JOIN objects o ON o.id = m.object_id WHERE m.seq = ?1",
                    [seq],
                    |row| row.get::<_, String>(0),
                )
            })
            .await;
        self.object_bytes(&key).await
    }

    pub async fn object_bytes(&self, key: &str) -> Vec<u8> {
        let key: ObjectKey = key.parse().unwrap();
        self.storage.get(&key, 64 << 20).await.unwrap().to_vec()
    }

    /// Keys of the packs in order.
    pub async fn packs(&self) -> Vec<String> {
        self.sql(|sql| {
            sql.prepare(
                "SELECT o.key FROM packs p JOIN objects o ON o.id = p.object_id ORDER BY p.batch_id, p.n",
            )?
            .query_map([], |row| row.get(0))?
            .collect()
        })
        .await
    }
}

async fn serve(dir: &Path, address: SocketAddr) -> (Running, SocketAddr) {
    let until = std::time::Instant::now() + PATIENCE;
    let open = || embedded::open(dir, embedded::EmbeddedConfig::new("millpond", "access", secret()));
    let server = loop {
        match open() {
            Ok(server) => break server,
            Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
        }
        tokio::task::yield_now().await;
    };
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let task = tokio::spawn(async move { server.serve(listener, stopped).await.unwrap() });
    (Running { stop, task }, address)
}

fn asks(ledger: &Ledger, storage: &Storage) -> Asks {
    let shown = Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: String::new() };
    let states = States::new(ledger.clone(), storage.clone(), shown);
    let grants = Grants::new(ledger.clone(), storage.clone(), Duration::from_secs(3_600));
    Asks { ledger: ledger.clone(), storage: storage.clone(), states, grants }
}

fn secret() -> Secret {
    Secret::new("a-secret-of-the-tests")
}

/// The start of the window that the tests upload into: a full hour, an hour ago.
pub fn window() -> Timestamp {
    let hour = 3_600_000;
    Timestamp::from_millis((millpond::ledger::now().as_millis() / hour - 1) * hour).unwrap()
}

/// A file with an event time in [`window`].
pub fn file(upload: &str, bytes: impl Into<Bytes>) -> NewUpload {
    let new = NewUpload::inline(upload.parse().unwrap(), bytes.into());
    NewUpload { event_time: Some(window()), sha256_declared: true, ..new }
}

/// Files of `size` bytes that differ from each other.
pub fn files(range: std::ops::Range<usize>, size: usize) -> Vec<NewUpload> {
    let bytes = |i: usize| {
        let mut bytes = vec![b'x'; size];
        bytes[..8].copy_from_slice(&i.to_le_bytes());
        bytes
    };
    range.map(|i| file(&format!("u{i:06}"), bytes(i))).collect()
}

pub fn get(object: &str) -> impl Future<Output = Vec<u8>> + use<> {
    let request = reqwest::Client::builder().no_proxy().build().unwrap().get(object);
    async move { request.send().await.unwrap().error_for_status().unwrap().bytes().await.unwrap().to_vec() }
}
