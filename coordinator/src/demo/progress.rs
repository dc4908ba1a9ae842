//! Progress on standard error: bars on a terminal, a line a step elsewhere.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress goes.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    bars: bool,
}

/// One step with a known number of parts, which may be done beside each other.
pub(super) struct Step {
    text: String,
    bar: Option<ProgressBar>,
    done: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal() }
    }

    /// Something happened that has no parts.
    pub(super) fn say(self, text: &str) {
        eprintln!("{text}");
    }

    /// Begins a step of `total` parts.
    pub(super) fn step(self, text: impl Into<String>, total: u64) -> Step {
        let text = text.into();
        let bar = self.bars.then(|| {
            let bar = ProgressBar::new(total).with_message(text.clone());
            if let Ok(style) = ProgressStyle::with_template("{msg:<48} {bar:24} {pos}/{len}") {
                bar.set_style(style);
            }
            bar
        });
        Step { text, bar, done: AtomicU64::new(0) }
    }
}

impl Step {
    /// The number of parts is known now.
    pub(super) fn expect(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// One part is done.
    pub(super) fn advance(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// The step is over.
    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{} ({})", self.text, self.done.into_inner());
    }
}
