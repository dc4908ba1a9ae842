//! Programs that this one starts: in a process group of their own, so that they end together with their children.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::time::Instant;

/// How often to look whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// A running program. When it ends, what it started ends with it; dropped, it is killed with its children. (Not if this process is
/// itself killed without warning.)
#[derive(Debug)]
pub struct Running {
    child: Child,
    ended: Option<ExitStatus>,
}

/// A command line for the system's shell, without this program's token in its environment.
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).env_remove("MILLPOND_MQTT_TOKEN");
    command
}

impl Running {
    /// Starts a command in a group of its own.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(mut command: Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        Ok(Self { child, ended: None })
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
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
        }
        Ok(self.ended)
    }

    /// Asks it to end, and kills it and its children if it does not.
    pub async fn stop(&mut self) {
        if matches!(self.look(), Ok(None)) {
            self.signal(Signal::TERM);
        }
        let until = Instant::now() + GRACE;
        while matches!(self.look(), Ok(None)) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        self.kill();
    }

    fn kill(&mut self) {
        if self.ended.is_none() {
            self.signal(Signal::KILL);
            self.ended = self.child.wait().ok();
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

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
