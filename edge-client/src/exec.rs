//! Programs that this one starts: in a process group of their own, so that they end together with their children, and with this
//! process, however that ends.
//!
//! Beside each runs a guard, a shell of the same group that reads a pipe to which only this process holds the other end. If
//! this process dies, even by SIGKILL, the pipe ends, and the guard kills the group. The command begins when its guard is there.
//! Only what leaves its group (`setsid`) is not found.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! use millpond_edge::exec::Running;
//!
//! let mut running = Running::start("sleep 1000 & exit \"$CODE\"", |command| {
//!     command.env("CODE", "3");
//! })?;
//! // What it left behind has ended with it.
//! assert_eq!(running.wait().await?.code(), Some(3));
//! # Ok(()) }
//! ```

use std::io::{self, PipeWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::time::Instant;

/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Begins at a word, and not if nobody is left to say it. The command is this shell's own process.
const COMMAND: &str = r#"read -r millpond_go && exec /bin/sh -c "$1" < /dev/null"#;
/// Nothing is ever said; SIGTERM is for the command.
const GUARD: &str = "trap '' TERM INT HUP; read -r end; kill -KILL 0";

/// A running command. When it ends, what it started ends with it; dropped, it is killed with its children, and so it is when this
/// process dies.
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: Option<ExitStatus>,
    guard: Option<(Child, PipeWriter)>,
    /// Until when it may take to end, once it was asked to.
    grace: Option<Instant>,
}

impl Running {
    /// Starts a line for the system's shell in a group of its own, with an empty standard input and without this program's
    /// tokens in its environment. `with` adds to the command: its environment, its directory, where its output goes.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(line: &str, with: impl FnOnce(&mut Command)) -> io::Result<Self> {
        let (words, mut say) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", COMMAND, "sh", line])
            .env_remove("MILLPOND_MQTT_TOKEN")
            .env_remove("MILLPOND_JOIN_TOKEN");
        with(&mut command);
        let child = command.stdin(words).process_group(0).spawn()?;
        // Its reading end of the pipe is its own from here on.
        drop(command);
        let mut running = Self { child, ended: None, guard: None, grace: None };
        running.guard = Some(guard(&running)?);
        // It may have ended, by a signal; that is for `wait` to tell.
        let _ = say.write_all(b"go\n");
        Ok(running)
    }

    /// Waits for its end. May be dropped and called again.
    ///
    /// # Errors
    /// What the system says.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.look()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it has ended; then what it started and left behind is killed before its id is free again.
    fn look(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(id) = self.id()
            && waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?
                .is_some()
        {
            self.signal(Signal::KILL);
            self.ended = self.child.try_wait()?;
            self.dismiss();
        }
        Ok(self.ended)
    }

    /// Asks it to end, and kills it and its children if it does not. May be dropped and called again: it is asked once, and has
    /// its grace once.
    pub async fn stop(&mut self) {
        if self.grace.is_none() && matches!(self.look(), Ok(None)) {
            self.signal(Signal::TERM);
        }
        let until = *self.grace.get_or_insert_with(|| Instant::now() + GRACE);
        while matches!(self.look(), Ok(None)) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        self.kill();
    }

    fn kill(&mut self) {
        if self.ended.is_none() {
            self.signal(Signal::KILL);
            self.ended = self.child.wait().ok();
            self.dismiss();
        }
    }

    /// The guard was killed with the group.
    fn dismiss(&mut self) {
        if let Some((mut guard, _)) = self.guard.take() {
            let _ = guard.wait();
        }
    }

    fn id(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// To the whole group. The child has not been waited for, so its id is nobody else's.
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.id() {
            // There may be nobody left.
            let _ = kill_process_group(group, signal);
        }
    }
}

/// Starts the guard of a group.
fn guard(of: &Running) -> io::Result<(Child, PipeWriter)> {
    let (ends, held) = io::pipe()?;
    let group = i32::try_from(of.child.id()).map_err(io::Error::other)?;
    let mut guard = Command::new("/bin/sh");
    guard.args(["-c", GUARD]).stdin(ends).stdout(Stdio::null()).stderr(Stdio::null());
    guard.env_clear().current_dir("/").process_group(group);
    Ok((guard.spawn()?, held))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use super::*;

    #[tokio::test]
    async fn a_command_that_does_not_heed_sigterm_is_killed_although_whoever_stops_it_looks_away() {
        let (mut ready, says) = io::pipe().unwrap();
        let mut running = Running::start("trap '' TERM; echo; while :; do sleep 1; done", |command| {
            command.stdout(says);
        })
        .unwrap();
        io::Read::read_exact(&mut ready, &mut [0]).unwrap();
        let asked = Instant::now();
        while tokio::time::timeout(GRACE / 50, running.stop()).await.is_err() {
            assert!(asked.elapsed() < 10 * GRACE, "it runs on");
        }
        assert!(asked.elapsed() >= GRACE, "it had its time");
        assert!(!running.wait().await.unwrap().success());
    }
}
