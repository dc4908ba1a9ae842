//! The embedded storage with the tools that people have: a tree goes in, comes out, and is the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use millpond_storage::Secret;
use millpond_storage::embedded::{self, EmbeddedConfig};
use millpond_tests::tool;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};

const SECRET: &str = "a-secret-of-the-tests";

/// Storage on a free port, and room for what the tools write.
struct Place {
    dir: TempDir,
    port: u16,
    _stop: DropGuard,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig::new("millpond", "access", Secret::new(SECRET));
        let embedded = embedded::open(&dir.path().join("objects"), config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, stop) = (listener.local_addr().unwrap().port(), CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move { embedded.serve(listener, stopped).await });
        let this = Self { dir, port, _stop: stop.drop_guard() };
        this.write("in/empty", 0);
        this.write("in/small", 1000);
        this.write("in/with space & sign+%20", 10_000);
        this.write("in/ünïcode/日本.txt", 100_000);
        this.write("in/deep/er/file", 1);
        this.write("in/large", 20 << 20);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of bytes that compress to nothing. It is an hour old: S3 tells times in whole seconds, so awscli takes a file
    /// that was written in the second of its upload for newer than that, and sends it again.
    fn write(&self, name: &str, size: usize) {
        let mut state = size as u64 + 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, std::iter::repeat_with(next).take(size).collect::<Vec<u8>>()).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
    }

    /// Runs a tool to its end and returns what it says.
    async fn run(&self, program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).env_remove("AWS_PROFILE").env_remove("AWS_SESSION_TOKEN");
        command.env_remove("AWS_CA_BUNDLE");
        command.env("HOME", self.dir.path()).env("LC_ALL", "C.UTF-8").env("no_proxy", "127.0.0.1");
        command.envs(variables.iter().copied()).current_dir(self.dir.path());
        let done = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{program} {arguments:?}: {said}");
        said
    }

    /// That two trees have the same files.
    fn same(&self, one: &str, other: &str) {
        let (one, other) = (tree(&self.path(one)), tree(&self.path(other)));
        let names = |tree: &BTreeMap<PathBuf, Vec<u8>>| tree.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&one), names(&other));
        assert!(one == other, "a file has other bytes");
    }
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rclone_copies_a_tree_in_and_out_and_finds_no_difference() {
    if !tool("rclone") {
        return;
    }
    let place = Place::new().await;
    let endpoint = format!("http://127.0.0.1:{}", place.port);
    let variables = [
        ("RCLONE_CONFIG", "/dev/null"),
        ("RCLONE_CONFIG_POND_TYPE", "s3"),
        ("RCLONE_CONFIG_POND_PROVIDER", "Other"),
        ("RCLONE_CONFIG_POND_ENDPOINT", &endpoint),
        ("RCLONE_CONFIG_POND_REGION", "us-east-1"),
        ("RCLONE_CONFIG_POND_ACCESS_KEY_ID", "access"),
        ("RCLONE_CONFIG_POND_SECRET_ACCESS_KEY", SECRET),
        ("RCLONE_S3_UPLOAD_CUTOFF", "8M"),
    ];
    let rclone = async |arguments: &[&str]| place.run("rclone", arguments, &variables).await;
    rclone(&["copy", "in", "pond:millpond/tree"]).await;
    rclone(&["check", "--download", "in", "pond:millpond/tree"]).await;
    // A second time there is nothing to copy: sizes and times are known.
    let again = rclone(&["copy", "-v", "in", "pond:millpond/tree"]).await;
    assert!(again.contains("There was nothing to transfer"), "{again}");
    rclone(&["copy", "pond:millpond/tree", "out"]).await;
    place.same("in", "out");
    rclone(&["purge", "pond:millpond/tree"]).await;
    assert_eq!(rclone(&["lsf", "-R", "pond:millpond"]).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3cmd_syncs_a_tree_in_and_out() {
    if !tool("s3cmd") {
        return;
    }
    let place = Place::new().await;
    let host = format!("127.0.0.1:{}", place.port);
    let options = [
        "--config=/dev/null",
        "--no-ssl",
        "--access_key=access",
        &format!("--secret_key={SECRET}"),
        &format!("--host={host}"),
        &format!("--host-bucket={host}"),
        "--region=us-east-1",
        "--multipart-chunk-size-mb=8",
    ];
    let s3cmd = async |arguments: &[&str]| {
        let arguments: Vec<&str> = options.iter().copied().chain(arguments.iter().copied()).collect();
        place.run("s3cmd", &arguments, &[]).await
    };
    s3cmd(&["sync", "in/", "s3://millpond/tree/"]).await;
    s3cmd(&["sync", "s3://millpond/tree/", "out/"]).await;
    place.same("in", "out");
    assert_eq!(s3cmd(&["ls", "-r", "s3://millpond/tree/"]).await.lines().count(), 6);
    s3cmd(&["del", "-r", "-f", "s3://millpond/tree/"]).await;
    assert_eq!(s3cmd(&["ls", "-r", "s3://millpond/"]).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awscli_copies_a_tree_in_and_out() {
    if !tool("aws") {
        return;
    }
    // The one on the path, and Debian's, which may be another.
    for program in
        ["aws", "/usr/bin/aws"].into_iter().filter(|path| *path == "aws" || Path::new(path).exists())
    {
        let place = Place::new().await;
        let endpoint = format!("--endpoint-url=http://127.0.0.1:{}", place.port);
        let variables = [
            ("AWS_ACCESS_KEY_ID", "access"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
        ];
        let aws = async |arguments: &[&str]| {
            let arguments: Vec<&str> = [endpoint.as_str()].iter().chain(arguments).copied().collect();
            place.run(program, &arguments, &variables).await
        };
        aws(&["s3", "sync", "--only-show-errors", "in", "s3://millpond/tree"]).await;
        assert_eq!(aws(&["s3", "sync", "in", "s3://millpond/tree"]).await, "", "all is there");
        aws(&["s3", "cp", "--recursive", "--only-show-errors", "s3://millpond/tree", "out"]).await;
        place.same("in", "out");
        assert_eq!(aws(&["s3", "ls", "--recursive", "s3://millpond/"]).await.lines().count(), 6);
        aws(&["s3", "rm", "--recursive", "--only-show-errors", "s3://millpond/tree"]).await;
        assert_eq!(
            aws(&["s3api", "list-objects-v2", "--bucket", "millpond", "--query", "Contents"]).await,
            "null\n"
        );
        assert!(aws(&["s3", "ls"]).await.contains("millpond"));
    }
}
