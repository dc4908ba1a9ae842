//! A clock that a test moves under a running program, syncs that take as long as on a disk, and a mirror of what was synced: a
//! small library in C that is preloaded into the program under test. Nothing of it is in what users run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::tools::{skip, tool};

const SOURCES: [(&str, &str); 2] = [("shim.c", include_str!("shim.c")), ("power.c", include_str!("power.c"))];

/// The library, and the clock of who has it preloaded.
pub struct Shim {
    directory: TempDir,
}

impl Shim {
    /// Compiles it; none without a C compiler, under the rule of [`tool`], or where the program under test is another one than
    /// cargo built, which may be static.
    pub fn new() -> Option<Self> {
        let other = ["MILLPOND_BIN", "MILLPOND_EDGE_BIN"].iter().any(|name| std::env::var_os(name).is_some());
        if (other && !skip("a static binary has no library preloaded")) || !tool("cc") {
            return None;
        }
        let shim = Self { directory: tempfile::tempdir().unwrap() };
        compile(shim.directory.path());
        shim.set_clock(0);
        Some(shim)
    }

    fn clock(&self) -> PathBuf {
        self.directory.path().join("clock")
    }

    /// The clock is so many milliseconds ahead of the right time, or behind it, from now on.
    pub fn set_clock(&self, ahead_ms: i64) {
        // Those who read it have it mapped: it stays the same file.
        let file =
            std::fs::File::options().create(true).truncate(false).write(true).open(self.clock()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &ahead_ms.to_ne_bytes(), 0).unwrap();
    }

    /// What the environment of the program needs for the clock.
    pub fn clocked(&self) -> [(&'static str, String); 2] {
        [self.preload(), ("MILLPOND_TEST_CLOCK", self.clock().display().to_string())]
    }

    /// What it needs for syncs that take so much longer.
    pub fn slow(&self, by: Duration) -> [(&'static str, String); 2] {
        [self.preload(), ("MILLPOND_TEST_SYNC_US", by.as_micros().to_string())]
    }

    /// What it needs so that this directory mirrors what is synced.
    pub(crate) fn mirrored(&self, mirror: &Path) -> [(&'static str, String); 2] {
        [self.preload(), ("MILLPOND_TEST_POWER", mirror.display().to_string())]
    }

    fn preload(&self) -> (&'static str, String) {
        ("LD_PRELOAD", library(self.directory.path()).display().to_string())
    }
}

fn library(directory: &Path) -> PathBuf {
    directory.join("shim.so")
}

fn compile(directory: &Path) {
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(library(directory));
    for (name, source) in SOURCES {
        let path = directory.join(name);
        std::fs::write(&path, source).unwrap();
        cc.arg(path);
    }
    let done = cc.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
