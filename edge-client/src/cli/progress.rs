//! Progress on standard error: bars on a terminal, elsewhere a line every now and then, and nothing beside `--json`.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Cli;
use crate::transfer::{Meter, Meters};

/// How often work that takes long says a line.
const LINE: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    Bars(MultiProgress),
    Lines,
    Silent,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Files,
    Bytes,
}

/// Work with a known number of parts. Dropped, it is over.
#[derive(Debug)]
pub(super) struct Step {
    what: String,
    unit: Unit,
    total: u64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    /// When a line was said last.
    said: Option<Mutex<Instant>>,
}

impl Progress {
    pub(super) fn of(cli: &Cli) -> Self {
        match (cli.json, std::io::stderr().is_terminal()) {
            (true, _) => Self::Silent,
            (false, true) => Self::Bars(MultiProgress::new()),
            (false, false) => Self::Lines,
        }
    }

    /// Says something beside the bars.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Bars(bars) => bars.suspend(|| eprintln!("{text}")),
            Self::Lines | Self::Silent => eprintln!("{text}"),
        }
    }

    /// Begins a step of `total` parts.
    pub(super) fn step(&self, what: impl Into<String>, unit: Unit, total: u64) -> Step {
        let (what, mut step_bar, mut said) = (what.into(), None, None);
        match self {
            Self::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(total).with_message(what.clone()));
                let template = match unit {
                    Unit::Files => "{msg:<32} {bar:24} {pos}/{len}",
                    Unit::Bytes => "{msg:<32} {bar:24} {bytes}/{total_bytes}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                step_bar = Some(bar);
            }
            Self::Lines => said = Some(Mutex::new(Instant::now())),
            Self::Silent => {}
        }
        Step { what, unit, total, done: AtomicU64::new(0), bar: step_bar, said }
    }

    /// Shows every file that is sent or fetched by URL as a step of its own.
    pub(super) fn meters(&self) -> Meters {
        let progress = self.clone();
        Meters::new(move |name, size| {
            let step = progress.step(name, Unit::Bytes, size);
            Meter::new(size, move |done, _| step.set(done))
        })
    }
}

impl Step {
    /// One part more is done.
    pub(super) fn advance(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.show(done);
    }

    fn set(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.show(done);
    }

    fn show(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        if let Some(said) = &self.said {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            if said.elapsed() >= LINE {
                *said = Instant::now();
                let unit = match self.unit {
                    Unit::Files => "files",
                    Unit::Bytes => "bytes",
                };
                eprintln!("{}: {done} of {} {unit}", self.what, self.total);
            }
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
