//! Progress on standard error: one line that changes on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Between two lines where standard error is no terminal.
const WORD: Duration = Duration::from_secs(10);
/// Between two changes of the line on a terminal.
const BLINK: Duration = Duration::from_millis(100);

pub(super) struct Shown {
    terminal: bool,
    step: String,
    at: Instant,
}

impl Shown {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), step: String::new(), at: Instant::now() }
    }

    /// Says how far a step has come.
    pub(super) fn progress(&mut self, step: &str, far: impl std::fmt::Display) {
        let pause = if self.terminal { BLINK } else { WORD };
        if self.step == step && self.at.elapsed() < pause {
            return;
        }
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell if it is closed.
        if self.terminal {
            let _ = write!(stderr, "\r\u{1b}[2K{step} {far}");
            let _ = stderr.flush();
        } else {
            let _ = writeln!(stderr, "{step} {far}");
        }
        self.at = Instant::now();
        step.clone_into(&mut self.step);
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if self.terminal {
            let mut stderr = std::io::stderr().lock();
            let _ = write!(stderr, "\r\u{1b}[2K");
            let _ = stderr.flush();
        }
    }
}
