//! Flower (PyPI's flwr), as far as it is installed: `tests/interop/flower_round.py` plays its rounds.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::{Result, ensure};
use millpond_tests::repository;

/// A Python that has it.
pub fn python() -> Option<OsString> {
    let python = std::env::var_os("MILLPOND_FLOWER_PYTHON").unwrap_or_else(|| "python3".into());
    version(&python).is_ok().then_some(python)
}

pub fn version(python: &OsStr) -> Result<String> {
    let program = "import importlib.metadata; print(importlib.metadata.version('flwr'))";
    said(Command::new(python).args(["-c", program]))
}

/// Seconds of a round of its own.
pub fn round(python: &OsStr, impatient: bool) -> Result<f64> {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/interop/flower_round.py")).args(["--rounds", "1"]);
    if impatient {
        command.arg("--impatient");
    }
    let seconds: [f64; 1] = serde_json::from_str(&said(&mut command)?)?;
    Ok(seconds[0])
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
