//! What becomes of calls when storage is away or refuses. What it does when all is well is in `contract`.
//!
//! Embedded only: a server in this process can be stopped and started at one address. What SeaweedFS says is in `seaweedfs.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "../../tests/src/tools.rs"]
#[allow(dead_code, reason = "only one of them is for here")]
mod tools;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::{Server, object};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Fault, Secret, Storage, StorageConfig};

#[tokio::test]
async fn the_probe_says_what_is_wrong() {
    let server = Server::start().await;
    assert_eq!(server.storage.probe().await, Ok(()));
    server.settles_at(0).await;

    let refused = |storage: Storage| async move {
        match storage.probe().await {
            Err(Error::Refused { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    let mut config = server.config.clone();
    config.secret_key = Secret::new("another-secret-of-the-tests");
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.access_key = "nobody".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.region = "elsewhere".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.bucket = "another-bucket".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Bucket);
}

/// Two servers of Python's: one of files, which says 404 of a bucket as of whatever it has not, and one that knows no method.
#[tokio::test]
async fn what_is_no_s3_server_is_not_taken_for_one_without_the_bucket() {
    if !tools::tool("python3") {
        return;
    }
    for (handler, said) in [
        ("SimpleHTTPRequestHandler", "what answers there is no S3 server"),
        ("BaseHTTPRequestHandler", "HTTP 501"),
    ] {
        let program = format!(
            "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.{handler}); print(s.server_port); s.serve_forever()"
        );
        let mut server = Command::new("python3")
            .args(["-u", "-c", &program])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let endpoint = format!("http://127.0.0.1:{}", port.trim()).parse().unwrap();
        let config = StorageConfig::new(endpoint, common::BUCKET, "access", common::secret());
        let probed = Storage::new(&config).unwrap().probe().await;
        server.kill().unwrap();
        server.wait().unwrap();
        match probed {
            Err(Error::Refused { fault: Fault::Endpoint, detail }) => {
                assert!(detail.contains(said), "{detail}")
            }
            other => panic!("{handler}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn storage_that_is_away_is_unavailable_within_the_time_of_a_call() {
    // A port that listens and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = url::Url::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let mut config = StorageConfig::new(endpoint, common::BUCKET, "access", common::secret());
    config.call_timeout = Duration::from_millis(300);
    let storage = Storage::new(&config).unwrap();
    let started = std::time::Instant::now();
    assert!(storage.stat(&object("k")).await.unwrap_err().is_temporary());
    assert!(started.elapsed() < Duration::from_secs(5));

    // A port that refuses.
    drop(silent);
    assert!(storage.probe().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn a_call_outlives_a_restart_of_storage() {
    let server = Server::start().await;
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let mut config = server.config.clone();
    config.attempts = 5;
    let storage = Storage::new(&config).unwrap();
    let body = Bytes::from_static(b"abc");
    let dir = server.stop().await;

    let call = tokio::spawn(async move { storage.put(&object("k"), body.clone(), Sha256::of(&body)).await });
    // The first attempt has been refused, or is about to be; a later one finds the server.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let embedded = common::reopen(dir.path()).await;
    let serve = tokio::spawn(async move { embedded.serve(listener, Default::default()).await });
    assert_eq!(call.await.unwrap(), Ok(()));
    serve.abort();
}
