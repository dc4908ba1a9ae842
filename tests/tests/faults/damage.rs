//! Files that are not what the server wrote: it says so, and overwrites nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_protocol::{Role, limits};
use millpond_tests::{Edge, Link, Mill, Server};
use serde_json::json;

use super::publish;

/// Until something is said, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const LARGE: usize = limits::SMALL_MAX + 1;

const DATABASES: [&str; 2] = ["ledger.db", "objects/catalog.sqlite"];

/// A server that has a result, an open batch, and has ended.
async fn lived() -> Server {
    let mut server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600, "spread_s": 0 })).await;
    let link = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    for n in 0..200 {
        publish(&link, &format!("u{n}"), vec![b'u'; 500]).await.unwrap();
    }
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, vec![b'r'; LARGE]).await.unwrap();
    publish(&link, "open", vec![b'o'; 500]).await.unwrap();
    assert!(server.terminate().await.success());
    // What was written lately is in the logs: here the files are to hold all of it.
    for name in DATABASES {
        let sql = rusqlite::Connection::open(server.data().join(name)).unwrap();
        sql.pragma_update(None, "wal_checkpoint", "truncate").unwrap();
    }
    server
}

/// Every file below the directory but those that a start makes anew, with its bytes.
fn files(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if !(name == "ports.json" || name.ends_with("-shm") || name.ends_with("-wal")) {
            files.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn a_server_whose_ledger_or_catalogue_is_damaged_says_so_and_overwrites_nothing() {
    let mut server = lived().await;
    for name in DATABASES {
        let file = server.data().join(name);
        let good = std::fs::read(&file).unwrap();
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            bytes
        };
        let damages = [
            (
                "something else",
                b"something else, and long enough to be read as a header of a hundred bytes".repeat(4),
            ),
            ("a header of zeros", changed(&|bytes| bytes[..100].fill(0))),
            ("a flipped bit of the header", changed(&|bytes| bytes[17] ^= 1)),
            ("its first page alone", changed(&|bytes| bytes.truncate(4_096))),
            ("half of it", changed(&|bytes| bytes.truncate(bytes.len() / 2 / 4_096 * 4_096))),
            ("a first page of zeros after its header", changed(&|bytes| bytes[100..4_096].fill(0))),
            ("pages of zeros", changed(&|bytes| bytes[4_096..].fill(0))),
            ("empty", Vec::new()),
        ];
        for (what, bytes) in damages {
            std::fs::write(&file, &bytes).unwrap();
            let before = files(&server.data());
            let ended = server.try_launch().await.expect_err(what);
            assert_eq!(ended.code(), Some(1), "{name} is {what}");
            let output = server.directory().join("server.err");
            let said = std::fs::read_to_string(&output).unwrap();
            std::fs::remove_file(output).unwrap();
            assert!(said.contains("ledger") || said.contains("catalog"), "{name} is {what}: {said}");
            let after = files(&server.data());
            assert!(before == after, "{name} is {what}: a start that failed has changed files");
        }
        std::fs::write(&file, &good).unwrap();
    }
    server.launch().await;
    assert_eq!(server.uploads("demo").await.len(), 201);
    super::check(&server).await;
}

#[tokio::test]
async fn a_result_that_is_damaged_in_storage_is_never_shown_and_check_names_it() {
    let mut server = lived().await;
    let shards = std::fs::read_dir(server.data().join("objects/blobs")).unwrap();
    let mut blobs =
        shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap()).map(Result::unwrap);
    let blob = blobs.find(|blob| blob.metadata().unwrap().len() == LARGE as u64).unwrap().path();
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[LARGE / 2] ^= 1;
    for (n, damaged) in [bad, good[..LARGE / 2].to_vec(), vec![0; LARGE]].into_iter().enumerate() {
        std::fs::write(&blob, &damaged).unwrap();
        server.launch().await;
        // A file that is too short looks like a network that is cut: a listener goes on trying.
        if damaged.len() == LARGE {
            never_shown(&server, &format!("listener-{n}")).await;
        }
        let check = server.cli().args(["check", "--deep"]).output().unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.code() == Some(1) && said.contains("/result/"), "{said}");
        assert!(std::fs::read(&blob).unwrap() == damaged, "what is damaged is left alone");
        server.kill();
    }
}

async fn never_shown(server: &Server, listener: &str) {
    let edge = Edge::new(server, server.member("demo", listener, Role::Listener).await).await;
    let mut listen = edge.start("listen", &["listen"]);
    let begin = Instant::now();
    while !listen.stdout().contains("version 1 not fetched") {
        assert!(begin.elapsed() < PATIENCE && listen.status().is_none(), "{}", listen.stderr());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    listen.kill();
    assert!(!edge.directory().join("results/current").exists(), "it was shown");
}
