//! A server process that is killed again and again in the middle of uploads. Embedded only.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::parts::Upload;
use common::{Signer, bytes, child, embedded_config, files, object, settles, tags};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Storage};

const DIR: &str = "MILLPOND_TEST_KILL_DIR";

/// Not a test: the server that the test below kills, as a process of its own.
#[tokio::test]
#[ignore = "the server of another test"]
async fn server_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let mut config = embedded_config();
    config.min_part = 1;
    child::serve(dir, config).await;
}

struct Server {
    process: Child,
    storage: Storage,
    signer: Signer,
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
        let (storage, signer) = child::reach(dir).await;
        Self { process, storage, signer }
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

/// Number, tag and bytes of a part that was taken.
type SentPart = (u32, String, Vec<u8>);

/// What a client that uploads in parts, over and over to one key, knows when the server dies.
#[derive(Default)]
struct InParts {
    acknowledged: Option<Vec<u8>>,
    /// What may have become the object although nobody said so.
    maybe: Option<Vec<u8>>,
    /// The upload that was under way, its parts, and whether it was being completed.
    open: Option<(Upload, Vec<SentPart>, bool)>,
}

impl InParts {
    async fn write(mut self, signer: Signer, writer: usize, round: usize) -> Self {
        for turn in 0.. {
            let Ok(upload) = Upload::begin(&signer, &format!("p/{writer}")).await else { break };
            self.open = Some((upload.clone(), Vec::new(), false));
            for n in 1..=3 {
                let size = (writer * 7919 + round * 104_729 + turn * 31_337 + n * 7) % 200_000;
                let body = bytes(size);
                let Ok(tag) = upload.put(n as u32, &body).await else { return self };
                self.open.as_mut().unwrap().1.push((n as u32, tag, body));
            }
            let (_, parts, completing) = self.open.as_mut().unwrap();
            *completing = true;
            let whole: Vec<u8> = parts.iter().flat_map(|(_, _, body)| body.clone()).collect();
            let listed: Vec<_> = parts.iter().map(|(n, tag, _)| (*n, tag.as_str())).collect();
            self.maybe = Some(whole.clone());
            let Ok(answer) = upload.complete(&listed).await else { return self };
            assert_eq!(answer.status(), 200);
            // The answer's head may be all that came.
            if answer.bytes().await.is_err() {
                return self;
            }
            self.acknowledged = Some(whole);
            (self.maybe, self.open) = (None, None);
        }
        self
    }

    /// The object is the old or the new one and whole; parts that were acknowledged are there; completing goes on.
    async fn check(&mut self, server: &Server, writer: usize) -> usize {
        let key = object(&format!("p/{writer}"));
        let read = async || match server.storage.get(&key, 600_000).await {
            Ok(found) => Some(found.to_vec()),
            Err(Error::NotFound) => None,
            Err(error) => panic!("{key}: {error}"),
        };
        let found = read().await;
        assert!(
            found == self.acknowledged || (found.is_some() && found == self.maybe),
            "{key} is neither the old nor the new object"
        );
        let mut checked = 0;
        if let Some((upload, parts, completing)) = self.open.take() {
            let upload = Upload { signer: server.signer.clone(), ..upload };
            let listed: Vec<_> = parts.iter().map(|(n, tag, _)| (*n, tag.as_str())).collect();
            if completing {
                // Whether it happened or not: the repeat succeeds.
                assert_eq!(upload.complete(&listed).await.unwrap().status(), 200);
                assert_eq!(read().await, self.maybe);
                self.acknowledged = self.maybe.take();
                checked = 1;
            } else {
                let there = upload.list(&[]).await.unwrap();
                assert_eq!(there.status(), 200, "an upload whose beginning was acknowledged is there");
                let there = tags(&there.text().await.unwrap(), "ETag");
                for (n, tag, _) in &parts {
                    let escaped = tag.replace('"', "&quot;");
                    assert!(there.contains(tag) || there.contains(&escaped), "part {n} of {key} is lost");
                }
                assert_eq!(upload.abort().await.unwrap().status(), 204);
                checked = 1;
            }
        }
        checked
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_among_parts_keeps_them_and_the_old_object() {
    let dir = tempfile::tempdir().unwrap();
    let mut writers: Vec<InParts> = std::iter::repeat_with(InParts::default).take(6).collect();
    let mut checked = 0;
    for round in 0..6 {
        let mut server = Server::start(dir.path()).await;
        for (writer, known) in writers.iter_mut().enumerate() {
            checked += known.check(&server, writer).await;
        }
        // Every upload has been completed or aborted, but for those whose beginning was not acknowledged: they are empty.
        let objects = writers.iter().filter(|known| known.acknowledged.is_some()).count();
        settles(
            || files(&dir.path().join("s3")).len() == 3 * objects,
            || format!("{} files of {objects} objects", files(&dir.path().join("s3")).len()),
        )
        .await;

        let running: Vec<_> = writers
            .drain(..)
            .enumerate()
            .map(|(writer, known)| tokio::spawn(known.write(server.signer.clone(), writer, round)))
            .collect();
        // When the blow falls must not depend on what the server is doing.
        tokio::time::sleep(Duration::from_millis(150 + 57 * round as u64)).await;
        server.kill();
        for writer in running {
            writers.push(writer.await.unwrap());
        }
    }
    assert!(checked > 0 && writers.iter().any(|known| known.acknowledged.is_some()), "the test met nothing");
}
