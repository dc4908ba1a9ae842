//! A server process that is killed again and again in the middle of uploads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::{BUCKET, bytes, embedded_config, files, object, secret, settles};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Storage, StorageConfig, embedded};
use url::Url;

const DIR: &str = "MILLPOND_TEST_KILL_DIR";

/// Not a test: the server that the test below kills, as a process of its own.
#[tokio::test]
#[ignore = "the server of another test"]
async fn server_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let embedded = embedded::open(&dir.join("s3"), embedded_config()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    std::fs::write(dir.join("address.new"), listener.local_addr().unwrap().to_string()).unwrap();
    std::fs::rename(dir.join("address.new"), dir.join("address")).unwrap();
    embedded.serve(listener, Default::default()).await.unwrap();
}

struct Server {
    process: Child,
    storage: Storage,
}

impl Server {
    async fn start(dir: &Path) -> Self {
        let _ = std::fs::remove_file(dir.join("address"));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "server_process"])
            .env(DIR, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        settles(|| dir.join("address").exists(), || "the server does not start".into()).await;
        let address = std::fs::read_to_string(dir.join("address")).unwrap();
        let endpoint = Url::parse(&format!("http://{address}")).unwrap();
        let mut config = StorageConfig::new(endpoint, BUCKET, "access", secret());
        config.attempts = 1;
        Self { process, storage: Storage::new(&config).unwrap() }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What one writer knows of its keys: what was acknowledged last, and what may or may not have been stored since.
#[derive(Default)]
struct Known {
    acknowledged: HashMap<String, Sha256>,
    tried: HashMap<String, Sha256>,
}

impl Known {
    /// Stores one object after another until the server is gone.
    async fn write(mut self, storage: Storage, writer: usize, round: usize) -> Self {
        for n in 0.. {
            let key = format!("k/{writer}/{}", n % 5);
            let body = Bytes::from(bytes((writer * 7919 + round * 104_729 + n * 31_337) % 600_000));
            let sha256 = Sha256::of(&body);
            self.tried.insert(key.clone(), sha256);
            if storage.put(&object(&key), body, sha256).await.is_err() {
                break;
            }
            self.acknowledged.insert(key, sha256);
        }
        self
    }

    /// Every object is the one that was acknowledged last, or the one that was on its way; it is never torn or lost.
    async fn check(&mut self, storage: &Storage) -> usize {
        let mut objects = 0;
        for (key, tried) in &self.tried {
            let found = match storage.get(&object(key), 600_000).await {
                Ok(found) => Some(Sha256::of(&found)),
                Err(Error::NotFound) => None,
                Err(error) => panic!("{key}: {error}"),
            };
            let acknowledged = self.acknowledged.get(key).copied();
            assert!(
                found == acknowledged || found == Some(*tried),
                "{key} is neither the old nor the new object"
            );
            objects += usize::from(found.is_some());
            if let Some(found) = found {
                self.acknowledged.insert(key.clone(), found);
            }
        }
        objects
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_keeps_what_it_acknowledged_and_no_strays() {
    let dir = tempfile::tempdir().unwrap();
    let mut writers: Vec<Known> = std::iter::repeat_with(Known::default).take(8).collect();
    for round in 0..6 {
        let mut server = Server::start(dir.path()).await;
        let mut objects = 0;
        for known in &mut writers {
            objects += known.check(&server.storage).await;
        }
        assert_eq!(files(&dir.path().join("s3")).len(), objects, "a start leaves one file for each object");

        let running: Vec<_> = writers
            .drain(..)
            .enumerate()
            .map(|(writer, known)| tokio::spawn(known.write(server.storage.clone(), writer, round)))
            .collect();
        // When the blow falls must not depend on what the server is doing.
        tokio::time::sleep(Duration::from_millis(60 + 45 * round as u64)).await;
        server.kill();
        for writer in running {
            writers.push(writer.await.unwrap());
        }
    }
    assert!(writers.iter().all(|known| !known.acknowledged.is_empty()), "the test got nothing stored");
}
