//! `millpond check`

use super::client::Client;
use super::failure::{FAILED, Failure, RETRY};
use super::output::{Out, bytes, printable};
use super::shown::Shown;
use crate::http::api::{End, Line};

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
                Line::Progress(progress) => {
                    let of = progress.of.map(|of| format!(" of {of}")).unwrap_or_default();
                    shown.progress(&progress.step, format!("{}{of}", progress.done));
                }
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
