//! `millpond-edge` in its three roles, whose processes die as the server does, and while it does.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use millpond_failpoint::{Point, Program};
use millpond_protocol::Sha256;
use millpond_tests::{Credentials, Dice, Edge, Process, was_killed};
use serde_json::Value;

use super::book::Book;
use super::home::{Client, Here, Home, Wrong};
use super::points;
use super::publishers::content;

/// Proves what a listener was given, and says so.
const PROVE: &str = r#"test "$(sha256sum < "$MILLPOND_FILE" | cut -c1-64)" = "$MILLPOND_SHA256""#;
/// Everything of the round in one file.
const GRIND: &str = r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#;
/// Between two runs of a program.
const PAUSE: Duration = Duration::from_millis(150);
/// A program that waits for a server that was gone is begun anew then.
const A_WHILE: Duration = Duration::from_secs(4);
/// Of the times after which a program dies.
const LATEST_MS: u64 = 400;

/// When and where the processes of one role die: one in six at a fail-point that it may come to, one in six at any time.
pub struct Fate {
    program: Program,
    points: Vec<Point>,
    dice: Dice,
    book: Book,
}

impl Fate {
    pub fn new(program: Program, dice: Dice, book: Book) -> Self {
        Self { program, points: points(&[program]), dice, book }
    }

    /// Runs the command until it ends, at most until `enough`: what [`ended`] says; none if it was killed.
    async fn run(
        &mut self,
        edge: &Edge,
        args: &[&str],
        enough: impl Future<Output = ()>,
    ) -> anyhow::Result<Option<(String, bool)>> {
        let name = args[0];
        let death = match self.dice.below(6) {
            0 => Some(Duration::from_millis(self.dice.below(LATEST_MS))),
            1 => {
                edge.arm(self.dice.pick(&self.points), 1 + u32::try_from(self.dice.below(2)).unwrap());
                None
            }
            _ => None,
        };
        for of in ["out", "err"] {
            // What the last one wrote; there may be none.
            let _ = std::fs::remove_file(edge.directory().join(format!("{name}.{of}")));
        }
        let mut process = edge.start(name, args);
        let dies = async {
            match death {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut stopped = false;
        let status = tokio::select! {
            status = process.wait(Duration::from_secs(600)) => Some(status),
            () = dies => None,
            () = enough => {
                stopped = true;
                process.signal("TERM");
                Some(process.wait(Duration::from_secs(60)).await)
            }
        };
        edge.disarm();
        match status {
            // It may not have come so far as to end in order.
            Some(status) if stopped && !was_killed(status) => Ok(Some((process.stdout(), true))),
            Some(status) if !was_killed(status) => ended(name, &process, status).map(Some),
            status => {
                if status.is_none() {
                    process.kill();
                }
                *self.book.facts().killed.entry(role(self.program)).or_default() += 1;
                tokio::time::sleep(PAUSE).await;
                Ok(None)
            }
        }
    }
}

fn role(program: Program) -> &'static str {
    match program {
        Program::Push => "push",
        Program::Listen => "listen",
        _ => "process",
    }
}

/// What a program said that has ended, and whether it has to be begun anew, which a server that is gone explains.
fn ended(name: &str, process: &Process, status: ExitStatus) -> anyhow::Result<(String, bool)> {
    match status.code() {
        Some(0) => Ok((process.stdout(), false)),
        Some(75) => Ok((process.stdout(), true)),
        other => Err(Wrong(format!("{name} ended with {other:?}: {}", process.stderr())).into()),
    }
}

/// `millpond-edge push`, of a few files at a time.
pub struct Pusher {
    pub edge: Arc<Edge>,
    pub who: Credentials,
    pub book: Book,
    pub next: usize,
    pub fate: Fate,
}

impl Client for Pusher {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        loop {
            let n = self.next;
            // Two small ones, and one that goes by URL.
            let mut args = vec!["push", "--json", "--patience", "2"];
            let names: Vec<String> = (0..3).map(|file| format!("p{n}-{file}")).collect();
            for (name, size) in names.iter().zip([150 + n % 300, 400, 1_100_000]) {
                let bytes = content(&format!("{}/{name}", self.who.member), size);
                self.edge.file(name, &bytes);
            }
            args.extend(names.iter().map(String::as_str));
            // What it promised before it was killed nobody has heard: the same command makes it good.
            let ran = self.fate.run(&self.edge, &args, std::future::pending()).await?;
            let Some((output, unfinished)) = ran else { continue };
            names.iter().for_each(|name| std::fs::remove_file(self.edge.directory().join(name)).unwrap());
            for line in output.lines() {
                let line: Value = serde_json::from_str(line)?;
                let (upload, file) = (line["upload"].as_str().unwrap(), line["file"].as_str().unwrap());
                let size = [150 + n % 300, 400, 1_100_000][file[file.len() - 1..].parse::<usize>()?];
                let key = format!("{}/{}/{upload}", self.who.pool, self.who.member);
                self.book.sends(&key, &content(&format!("{}/{file}", self.who.member), size));
                if line["state"] == "stored" {
                    self.book.has(&key);
                } else if line["state"] != "spooled" {
                    return Err(Wrong(line.to_string()).into());
                }
            }
            // What waits in the spool was promised as well, and goes with the next push.
            self.next += 1;
            anyhow::ensure!(!unfinished, "push is to be gone on with");
            if home.is_last() {
                let mut flush = self.edge.start("flush", &["spool", "flush", "--patience", "2"]);
                let status = flush.wait(Duration::from_secs(600)).await;
                let (_, unfinished) = ended("flush", &flush, status)?;
                anyhow::ensure!(!unfinished, "flush is to be gone on with");
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// After some lives of the server a program waits long before it connects again, as it should: it is begun anew then.
async fn a_while(home: &Home) {
    tokio::select! {
        () = tokio::time::sleep(A_WHILE) => {}
        () = home.until_last() => {}
    }
}

/// `millpond-edge listen`, each time until it has the newest.
pub struct Keeper {
    pub edge: Arc<Edge>,
    pub fate: Fate,
}

impl Client for Keeper {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let ran =
                self.fate.run(&self.edge, &["listen", "--once", "--exec", PROVE], a_while(home)).await?;
            if let Some((_, false)) = ran {
                // It ends by itself when the server has heard that the newest is applied.
                let current = std::fs::read(self.edge.directory().join("results/current"))?;
                self.fate.book.delivered("edge", Sha256::of(&current), "applied");
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// `millpond-edge process`, which works on what is offered, a round each time.
pub struct Miller {
    pub edge: Arc<Edge>,
    pub fate: Fate,
}

impl Client for Miller {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let process = ["process", "--once", "--grace", "10s", "--exec", GRIND];
            self.fate.run(&self.edge, &process, a_while(home)).await?;
        }
        Ok(())
    }
}
