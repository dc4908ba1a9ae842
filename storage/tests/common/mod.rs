//! A server on a free port with a directory of its own, and a handle to it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub, reason = "every test file uses another part")]

pub mod child;
pub mod cutter;
pub mod header;
pub mod parts;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use millpond_protocol::{Sha256, Timestamp};
use millpond_storage::embedded::{self, Embedded, EmbeddedConfig};
use millpond_storage::{ObjectKey, Secret, Storage, StorageConfig};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use url::Url;

pub const BUCKET: &str = "millpond";
pub const MINUTE: Duration = Duration::from_secs(60);

pub struct Server {
    pub dir: TempDir,
    pub config: StorageConfig,
    pub storage: Storage,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With other limits.
    pub async fn start_with(change: impl FnOnce(&mut EmbeddedConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = embedded_config();
        change(&mut config);
        let embedded = embedded::open(dir.path(), config).unwrap();
        Self::serve(dir, embedded).await
    }

    pub async fn serve(dir: TempDir, embedded: Embedded) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let mut config = StorageConfig::new(endpoint, BUCKET, "access", secret());
        // Against a server in the same process, whatever fails fails for good.
        config.attempts = 1;
        // As the coordinator has it for the embedded server; and some tests write one key from many places.
        config.confirm = false;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { embedded.serve(listener, stop).await.unwrap() });
        Self { dir, storage: Storage::new(&config).unwrap(), config, shutdown, task }
    }

    /// Stops serving and gives the directory back.
    pub async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.task.await.unwrap();
        self.dir
    }

    /// Stops in the middle of everything, as kill -9 would, as far as one process can.
    pub async fn kill(self) -> TempDir {
        self.task.abort();
        let _ = self.task.await;
        self.dir
    }

    /// Stops, and starts again on the same directory.
    pub async fn restart(self) -> Self {
        let dir = self.stop().await;
        let embedded = reopen(dir.path()).await;
        Self::serve(dir, embedded).await
    }

    pub fn get_url(&self, key: &str) -> String {
        self.storage.presign_get(&object(key), MINUTE, now()).url
    }

    /// A PUT of `body` to a URL that was signed for `declared`.
    pub fn put_request(
        &self,
        key: &str,
        declared: &[u8],
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        let signed = self.storage.presign_put(
            &object(key),
            declared.len() as u64,
            Sha256::of(declared),
            MINUTE,
            now(),
        );
        signed
            .headers
            .iter()
            .fold(http().put(signed.url), |request, (name, value)| request.header(*name, value))
            .body(body)
    }

    /// A request that is signed in its URL, see [`Signer::request`].
    pub fn signed(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, String)],
    ) -> reqwest::RequestBuilder {
        self.signer().request(method, path, query, headers)
    }

    pub fn signer(&self) -> Signer {
        Signer::new(&self.config.endpoint)
    }

    /// Files on disk, in `blobs` and `incoming`.
    pub fn files(&self) -> Vec<PathBuf> {
        files(self.dir.path())
    }

    /// Waits until there are `count` files: removing them may take a moment after the answer.
    pub async fn settles_at(&self, count: usize) {
        settles(|| self.files().len() == count, || format!("{count} files, not {:?}", self.files())).await;
    }
}

/// Signs requests by the rule of AWS, independently of the client and the server.
#[derive(Clone)]
pub struct Signer {
    /// The URL of the bucket, with a slash at its end.
    pub bucket: Url,
    /// Knows the way there.
    pub http: reqwest::Client,
}

impl Signer {
    /// With the bucket in the path.
    pub fn new(endpoint: &Url) -> Self {
        Self { bucket: endpoint.join(&format!("{BUCKET}/")).unwrap(), http: http() }
    }

    /// A request that is signed in its URL, for these headers.
    pub fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, String)],
    ) -> reqwest::RequestBuilder {
        let url = self.url(&method, path, query, headers);
        let request = self.http.request(method, url);
        headers.iter().fold(request, |request, (name, value)| request.header(*name, value))
    }

    pub fn url(
        &self,
        method: &reqwest::Method,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&'static str, String)],
    ) -> Url {
        let mut query = query.to_vec();
        query.sort_unstable();
        let mut headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.sort_unstable();
        let method = match method.as_str() {
            "GET" => rusty_s3::Method::Get,
            "HEAD" => rusty_s3::Method::Head,
            "PUT" => rusty_s3::Method::Put,
            "POST" => rusty_s3::Method::Post,
            "DELETE" => rusty_s3::Method::Delete,
            other => panic!("{other}"),
        };
        rusty_s3::signing::sign(
            &jiff::Timestamp::from_millisecond(now().as_millis()).unwrap(),
            method,
            self.bucket.join(path).unwrap(),
            "access",
            secret().expose(),
            None,
            "us-east-1",
            MINUTE.as_secs(),
            query.into_iter(),
            headers.into_iter(),
        )
    }
}

/// Waits until a directory can be opened: tasks that were cut off may still hold its lock for a moment.
pub async fn reopen(dir: &Path) -> Embedded {
    reopen_with(dir, embedded_config()).await
}

/// With other limits.
pub async fn reopen_with(dir: &Path, config: EmbeddedConfig) -> Embedded {
    let mut opened = None;
    settles(
        || {
            opened = embedded::open(dir, config.clone()).ok();
            opened.is_some()
        },
        || "the directory cannot be opened".into(),
    )
    .await;
    opened.unwrap()
}

/// Waits for something that comes to hold by itself, and fails after 10 s.
pub async fn settles(mut holds: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < until, "{}", what());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn files(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    list(dir.join("blobs")).flat_map(list).chain(list(dir.join("incoming"))).collect()
}

pub fn embedded_config() -> EmbeddedConfig {
    EmbeddedConfig::new(BUCKET, "access", secret())
}

pub fn secret() -> Secret {
    Secret::new("a-secret-of-the-tests")
}

pub fn object(key: &str) -> ObjectKey {
    key.parse().unwrap()
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_millis(since.as_millis().try_into().unwrap()).unwrap()
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// The texts of all elements of a name.
pub fn tags(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    xml.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap().to_owned()).collect()
}

/// Bytes that differ everywhere and compress to nothing.
pub fn bytes(size: usize) -> Vec<u8> {
    let mut state = size as u64 + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(size)
    .collect()
}

/// The status and the S3 error code of an answer.
pub async fn refusal(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let code = text.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next()).unwrap_or_default();
    (status, code.to_owned())
}
