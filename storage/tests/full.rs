//! A disk that becomes full in the middle of a body: a coded answer, no trace of the new object, the old one as it was.
//!
//! The server is a process of its own whose directory lies on a small file system that only it sees.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use common::parts::Upload;
use common::{MINUTE, Signer, bytes, child, embedded_config, files, http, now, object, refusal, settles};
use millpond_protocol::Sha256;
use millpond_storage::Storage;
use tokio::sync::mpsc;

const DIR: &str = "MILLPOND_TEST_FULL_DIR";
/// Bytes of the file system.
const DISK: usize = 24 << 20;

/// Not a test: the server that the tests below start, as a process of its own.
#[tokio::test]
#[ignore = "the server of another test"]
async fn server_process() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let mut config = embedded_config();
    // Nothing is held back: what is full is found out by writing.
    (config.min_free, config.min_part) = (0, 1);
    child::serve(dir, config).await;
}

struct Server {
    process: Child,
    /// Its directory, as seen from here.
    inside: PathBuf,
    storage: Storage,
    signer: Signer,
}

impl Server {
    /// None where nobody may mount.
    async fn start(dir: &Path) -> Option<Self> {
        let allowed = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|o| o.status.success());
        if !allowed {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "unshare -m needs root");
            // Past the test harness, which shows nothing of a test that passes.
            let _ = writeln!(std::io::stderr(), "skipped: unshare -m needs root");
            return None;
        }
        std::fs::create_dir(dir.join("s3")).unwrap();
        let script = r#"mount -t tmpfs -o size="$1",mode=0700 none "$2" && shift 2 && exec "$@""#;
        let process = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh", &DISK.to_string()])
            .arg(dir.join("s3"))
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "server_process"])
            .env(DIR, dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (storage, signer) = child::reach(dir).await;
        let root = PathBuf::from(format!("/proc/{}/root", process.id()));
        let inside = root.join(dir.join("s3").strip_prefix("/").unwrap());
        Some(Self { process, inside, storage, signer })
    }

    /// Takes all of the room that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.inside.join("ballast")).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            while ballast.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.inside.join("ballast")).unwrap();
    }

    /// Waits until there are so many bodies, whole ones or not.
    async fn settles_at(&self, count: usize) {
        let there = || files(&self.inside);
        settles(|| there().len() == count, || format!("{count} files, not {:?}", there())).await;
    }

    /// Sends `body` with the presigned `url`, and lets `midway` happen once the server has written some of it.
    async fn send(
        &self,
        url: (String, Vec<(&'static str, String)>),
        body: &[u8],
        midway: impl FnOnce(),
    ) -> reqwest::Response {
        let (sender, receiver) = mpsc::channel(1);
        let stream = futures_util::stream::unfold(receiver, |mut from: mpsc::Receiver<_>| async {
            Some((Ok::<Bytes, std::io::Error>(from.recv().await?), from))
        });
        let request =
            url.1.iter().fold(http().put(url.0), |request, (name, value)| request.header(*name, value));
        let put = tokio::spawn(request.body(reqwest::Body::wrap_stream(stream)).send());
        let (first, rest) = body.split_at(body.len() / 4);
        sender.send(Bytes::copy_from_slice(first)).await.unwrap();
        let incoming = self.inside.join("incoming");
        let written = || {
            let mut files = std::fs::read_dir(&incoming).unwrap();
            files.any(|file| file.unwrap().metadata().is_ok_and(|file| file.len() > 0))
        };
        settles(written, || "nothing is written".into()).await;
        midway();
        sender.send(Bytes::copy_from_slice(rest)).await.unwrap();
        drop(sender);
        put.await.unwrap().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_put_costs_nothing_but_the_put() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(dir.path()).await else { return };
    let (old, new) = (Bytes::from(bytes(10_000)), bytes(8 << 20));
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let url = || {
        let put = server.storage.presign_put(&object("k"), new.len() as u64, Sha256::of(&new), MINUTE, now());
        (put.url, put.headers.into_iter().collect())
    };
    let answer = server.send(url(), &new, || server.fill()).await;
    assert_eq!(refusal(answer).await, (507, "InsufficientStorage".into()));
    server.settles_at(1).await;
    assert_eq!(server.storage.get(&object("k"), 10_000).await.unwrap(), old);

    server.make_room();
    let answer = server.send(url(), &new, || ()).await;
    assert_eq!(answer.status(), 200);
    assert!(server.storage.get(&object("k"), new.len()).await.unwrap() == new);
    server.settles_at(1).await;
}

#[tokio::test]
async fn a_disk_that_fills_in_the_middle_of_a_part_costs_nothing_but_the_part() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(dir.path()).await else { return };
    let (old, first, second) = (Bytes::from(bytes(10_000)), bytes(100_000), bytes(8 << 20));
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let upload = Upload::begin(&server.signer, "k").await.unwrap();
    let one = upload.put(1, &first).await.unwrap();
    let id = upload.id.parse().unwrap();
    let url = || {
        let (key, size, sha256) = (object("k"), second.len() as u64, Sha256::of(&second));
        let put = server.storage.presign_part(&key, &id, 2, size, sha256, MINUTE, now());
        (put.url, put.headers.into_iter().collect())
    };
    let answer = server.send(url(), &second, || server.fill()).await;
    assert_eq!(refusal(answer).await, (507, "InsufficientStorage".into()));
    server.settles_at(2).await;
    assert_eq!(server.storage.get(&object("k"), 10_000).await.unwrap(), old);

    server.make_room();
    let two = server.send(url(), &second, || ()).await;
    assert_eq!(two.status(), 200);
    let two = two.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(upload.complete(&[(1, &one), (2, &two)]).await.unwrap().status(), 200);
    let whole = server.storage.get(&object("k"), first.len() + second.len()).await.unwrap();
    assert!(whole == [first, second].concat());
}

#[tokio::test]
async fn a_disk_that_is_full_when_an_upload_is_completed_costs_nothing_but_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(dir.path()).await else { return };
    let (old, first, second) = (Bytes::from(bytes(10_000)), bytes(100_000), bytes(50_000));
    server.storage.put(&object("k"), old.clone(), Sha256::of(&old)).await.unwrap();
    let upload = Upload::begin(&server.signer, "k").await.unwrap();
    let (one, two) = (upload.put(1, &first).await.unwrap(), upload.put(2, &second).await.unwrap());
    server.fill();
    let refused = upload.complete(&[(1, &one), (2, &two)]).await.unwrap();
    assert_eq!(refusal(refused).await, (507, "InsufficientStorage".into()));
    assert_eq!(server.storage.get(&object("k"), 10_000).await.unwrap(), old);
    server.settles_at(3).await;

    server.make_room();
    assert_eq!(upload.complete(&[(1, &one), (2, &two)]).await.unwrap().status(), 200);
    let whole = server.storage.get(&object("k"), first.len() + second.len()).await.unwrap();
    assert!(whole == [first, second].concat());
    server.settles_at(2).await;
}
