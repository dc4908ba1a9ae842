//! `millpond check`

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use super::client::Client;
use super::failure::{FAILED, Failure, RETRY};
use super::output::{Out, bytes, printable};
use crate::http::api::{End, Line, Progress};

/// Between two lines of progress where standard error is no terminal.
const WORD: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read every file and object whole and compare its SHA-256.
    #[arg(long)]
    deep: bool,
}

/// Tells every difference, and exits with 1 if there is one.
pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let mut answer = client.stream("check", &[("deep", args.deep.to_string())]).await?;
    let mut shown = Shown::new();
    let mut buffer = Vec::new();
    let broken = |what: &str| Failure::new(RETRY, format!("the check broke off: {what}"));
    loop {
        let chunk = answer.chunk().await.map_err(|error| broken(&error.to_string()))?;
        let Some(chunk) = chunk else { return Err(broken("the server ended the answer")) };
        buffer.extend_from_slice(&chunk);
        while let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=at).collect();
            let line: Line = serde_json::from_slice(&line).map_err(|error| {
                Failure::new(FAILED, format!("the server's answer does not read: {error}"))
            })?;
            if out.is_json() && !matches!(line, Line::Progress(_)) {
                out.line(serde_json::to_string(&line).unwrap_or_default());
            }
            match line {
                Line::Progress(progress) => shown.progress(&progress),
                Line::Difference(difference) => {
                    shown.clear();
                    if !out.is_json() {
                        let (about, what) = (printable(&difference.about), printable(&difference.what));
                        out.line(format!("{}: {about}: {what}", difference.kind));
                    }
                }
                Line::End(end) => {
                    shown.clear();
                    return ended(&end, out);
                }
                Line::Error(refusal) => {
                    shown.clear();
                    return Err(refusal.into());
                }
            }
        }
    }
}

fn ended(end: &End, out: &Out) -> Result<(), Failure> {
    if !out.is_json() {
        out.line(format!(
            "{} rules, {} manifests ({} made again from their rows), {} objects; {} files read whole, {}",
            end.rules,
            end.manifests,
            end.rebuilt,
            end.objects,
            end.read,
            bytes(end.bytes)
        ));
    }
    if end.differences > 0 {
        return Err(Failure::new(FAILED, format!("{} differences", end.differences)));
    }
    if !out.is_json() {
        out.line("no difference");
    }
    Ok(())
}

/// Progress on standard error: one line that changes on a terminal, now and then a line elsewhere.
struct Shown {
    terminal: bool,
    step: String,
    at: Instant,
}

impl Shown {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), step: String::new(), at: Instant::now() }
    }

    fn progress(&mut self, progress: &Progress) {
        let of = progress.of.map(|of| format!(" of {of}")).unwrap_or_default();
        let line = format!("{} {}{of}", progress.step, progress.done);
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell if it is closed.
        if self.terminal {
            let _ = write!(stderr, "\r\u{1b}[2K{line}");
            let _ = stderr.flush();
        } else if self.step != progress.step || self.at.elapsed() >= WORD {
            let _ = writeln!(stderr, "{line}");
            self.at = Instant::now();
        }
        self.step.clone_from(&progress.step);
    }

    fn clear(&self) {
        if self.terminal {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\u{1b}[2K");
            let _ = stderr.flush();
        }
    }
}
