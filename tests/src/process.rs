//! A child process whose output is kept, and shown if the test fails.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use millpond_failpoint::Point;

/// A running program. Dropped, it is killed.
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts the command; standard output and error go to `NAME.out` and `NAME.err` in the directory.
    pub fn start(mut command: Command, directory: &Path, name: &str) -> Self {
        let (stdout, stderr) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.err")));
        let append = |path: &PathBuf| File::options().create(true).append(true).open(path).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(append(&stdout))
            .stderr(append(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, stdout, stderr }
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Its exit status, once it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// SIGKILL: nothing is flushed, nothing is said.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Sends a signal by name, such as TERM.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// Waits for its end.
    pub async fn wait(&mut self, patience: Duration) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.status() {
                return status;
            }
            assert!(begin.elapsed() < patience, "still running after {patience:?}\n{}", self.stderr());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether it ended by SIGKILL, as a fail-point has it.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// Has whoever reads a fail-point from that file die at this one.
pub(crate) fn arm(file: &Path, point: Point, nth: u32) {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{}:{nth}", point.name())).unwrap();
    std::fs::rename(&new, file).unwrap();
}

/// Has it live on.
pub(crate) fn disarm(file: &Path) {
    // There may be none.
    let _ = std::fs::remove_file(file);
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status().is_none() {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- standard output\n{}--- standard error\n{}---", self.stdout(), self.stderr());
        }
    }
}
