//! What a program asked of the system, and in which order, as strace saw it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tools::{skip, tool};

const CALLS: &str =
    "fsync,fdatasync,mkdir,mkdirat,rename,renameat,renameat2,write,pwrite64,symlink,symlinkat";

/// Each sync takes 10 ms longer: an answer that does not wait for one is out before it, not by chance only.
const SLOW_SYNCS: &str = "inject=fsync,fdatasync:delay_enter=10000";

/// What a server does beside that: its connections.
const NETWORK: &str = "read,readv,recvfrom,recvmsg,sendto,sendmsg,writev";

/// Whether this test may look at system calls, under the same rule as [`tool`].
pub fn may_trace() -> bool {
    let works = || {
        let tried = Command::new("strace").args(["-f", "true"]).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    tool("strace") && (works() || skip("strace may not trace here"))
}

/// What a program does on disk and network, by the name of its system calls: to die before each of them in turn is to die in
/// every state that it leaves behind.
pub const STEPS: &[&str] = &[
    "mkdir",
    "write",
    "writev",
    "pwrite64",
    "ftruncate",
    "fsync",
    "rename",
    "unlink",
    "symlink",
    "connect",
    "sendto",
    "recvfrom",
];

/// The same command under strace, which kills it by SIGKILL when it comes to that call for the `nth` time, counted from 1 and for
/// each thread by itself. What it starts is left alone.
pub fn killed_at(command: &Command, call: &str, nth: u32) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-e", &format!("inject={call}:signal=KILL:when={nth}"), "-e", &format!("trace={call}")]);
    strace.args(["-o", "/dev/null"]);
    same(&mut strace, command);
    strace
}

fn same(strace: &mut Command, command: &Command) {
    strace.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        strace.current_dir(directory);
    }
    for (key, value) in command.get_envs() {
        strace.env(key, value.unwrap());
    }
}

/// The system calls of one run that succeeded, in order of their end.
pub struct Trace(Vec<Call>);

/// `name(arguments`, and the lines of strace's output at which it began and ended.
struct Call {
    text: String,
    begun: usize,
    ended: usize,
}

impl Trace {
    /// Where a run under [`Trace::command`] is written to.
    fn log(directory: &Path) -> PathBuf {
        directory.join("strace.log")
    }

    /// The same command under strace.
    pub fn command(command: &Command, directory: &Path) -> Command {
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-y", "-e", &format!("trace={CALLS}"), "-e", SLOW_SYNCS, "-o"])
            .arg(Self::log(directory));
        same(&mut strace, command);
        strace
    }

    /// The same for a server: what comes and goes on its connections is seen too, the first bytes of each call.
    pub fn server(command: &Command, directory: &Path) -> Command {
        let mut strace = Command::new("strace");
        let calls = format!("trace={CALLS},{NETWORK}");
        strace
            .args(["-f", "-yy", "-s", "400", "-e", &calls, "-e", SLOW_SYNCS, "-o"])
            .arg(Self::log(directory));
        same(&mut strace, command);
        strace
    }

    /// Reads what that command left.
    pub fn read(directory: &Path) -> Self {
        let log = std::fs::read_to_string(Self::log(directory)).unwrap();
        let (mut calls, mut open) = (Vec::new(), HashMap::new());
        for (line, text) in log.lines().enumerate() {
            let (process, text) = text.split_once(' ').unwrap();
            let text = text.trim_start();
            if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
                open.insert(process, (begun.to_owned(), line));
                continue;
            }
            let Some((head, result)) = text.rsplit_once(" = ") else { continue };
            let (text, begun) = match head.starts_with("<... ") {
                true => {
                    let (begun, at) = open.remove(process).unwrap();
                    (begun + head.split_once("resumed>").unwrap().1, at)
                }
                false => (head.to_owned(), line),
            };
            if !result.starts_with('-') {
                calls.push(Call { text, begun, ended: line });
            }
        }
        Self(calls)
    }

    /// Those calls whose text holds all of these.
    fn all(&self, parts: &[&str]) -> impl Iterator<Item = &Call> {
        self.0.iter().filter(move |call| parts.iter().all(|part| call.text.contains(part)))
    }

    /// When the first of them began.
    pub fn first(&self, parts: &[&str]) -> usize {
        let first = self.all(parts).map(|call| call.begun).min();
        first.unwrap_or_else(|| {
            panic!("no call {parts:?} in {:?}", self.0.iter().map(|c| &c.text).collect::<Vec<_>>())
        })
    }

    /// When the last of them had ended.
    pub fn last(&self, parts: &[&str]) -> usize {
        self.first(parts);
        self.all(parts).map(|call| call.ended).max().unwrap_or_default()
    }

    /// Whether that file or directory was synced as a whole between these two moments.
    pub fn synced(&self, path: &Path, from: usize, until: usize) -> bool {
        self.synced_at(path, from, until).is_some()
    }

    /// When it had been synced for the first time.
    pub fn synced_at(&self, path: &Path, from: usize, until: usize) -> Option<usize> {
        let parts = ["sync(", &format!("<{}>", path.display())];
        let syncs = self.all(&parts).filter(|call| call.begun >= from && call.ended <= until);
        syncs.map(|call| call.ended).min()
    }

    /// Every rename, as (from, to, begin).
    pub fn renames(&self) -> Vec<(PathBuf, PathBuf, usize)> {
        let renames = self.all(&["rename"]).map(|call| {
            let paths: Vec<&str> = call.text.split('"').collect();
            (paths[1].into(), paths[3].into(), call.begun)
        });
        renames.collect()
    }

    /// Every directory that was made, and when.
    pub fn made(&self) -> Vec<(PathBuf, usize)> {
        let made = self.all(&["mkdir"]);
        made.map(|call| (call.text.split('"').nth(1).unwrap().into(), call.ended)).collect()
    }

    /// Those calls of these names on connections whose text holds all of these.
    fn on_network(&self, names: &[&str], parts: [&str; 2]) -> impl Iterator<Item = &Call> {
        let named = |call: &&Call| names.iter().any(|name| call.text.starts_with(name));
        let meant =
            |call: &&Call| call.text.contains("<TCP:[") && parts.iter().all(|part| call.text.contains(part));
        self.0.iter().filter(named).filter(meant).collect::<Vec<_>>().into_iter()
    }

    /// The connection on which this text came for the first time, and when it was there.
    pub fn received(&self, text: &str) -> (&str, usize) {
        let calls = self.on_network(&["read(", "readv(", "recvfrom(", "recvmsg("], [text, ""]);
        let call = calls.min_by_key(|call| call.ended).unwrap_or_else(|| panic!("{text} never came"));
        let from = call.text.find("<TCP:[").unwrap();
        let length = call.text[from..].find("]>").unwrap();
        (&call.text[from..from + length], call.ended)
    }

    /// When this text was sent for the first time after that moment, on this connection.
    pub fn sent(&self, connection: &str, text: &str, after: usize) -> usize {
        let calls = self.on_network(&["write(", "writev(", "sendto(", "sendmsg("], [connection, text]);
        let begun = calls.map(|call| call.begun).filter(|begun| *begun >= after).min();
        begun.unwrap_or_else(|| panic!("{text} was never sent on {connection}"))
    }

    /// Each time that something was written to this file and then synced, between these two moments: when the first write
    /// began, and when the sync had ended.
    pub fn commits(&self, file: &Path, from: usize, until: usize) -> Vec<(usize, usize)> {
        let tag = format!("<{}>", file.display());
        let mut calls: Vec<_> =
            self.all(&[&tag]).filter(|call| call.begun >= from && call.ended <= until).collect();
        calls.sort_by_key(|call| call.begun);
        let (mut commits, mut written) = (Vec::new(), None);
        for call in calls {
            if call.text.contains("sync(") {
                commits.extend(written.take().map(|begun| (begun, call.ended)));
            } else if call.text.contains("write") {
                written.get_or_insert(call.begun);
            }
        }
        commits
    }
}
