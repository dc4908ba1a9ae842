//! What the figures are held to. All that were measured stand in a table at the end, and the command fails if one was missed.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use comfy_table::Table;

struct Aim {
    what: String,
    measured: f64,
    /// With its unit, or `×` of the reference.
    unit: &'static str,
    at: Bound,
}

enum Bound {
    Most(f64),
    Least(f64),
}

impl Aim {
    fn is_met(&self) -> bool {
        match self.at {
            Bound::Most(most) => self.measured <= most,
            Bound::Least(least) => self.measured >= least,
        }
    }
}

static AIMS: Mutex<Vec<Aim>> = Mutex::new(Vec::new());

/// It is to be at most that.
pub fn at_most(what: impl Into<String>, measured: f64, most: f64, unit: &'static str) {
    note(Aim { what: what.into(), measured, unit, at: Bound::Most(most) });
}

/// It is to be at least that.
pub fn at_least(what: impl Into<String>, measured: f64, least: f64, unit: &'static str) {
    note(Aim { what: what.into(), measured, unit, at: Bound::Least(least) });
}

fn note(aim: Aim) {
    AIMS.lock().unwrap_or_else(PoisonError::into_inner).push(aim);
}

/// Prints the table, if there is anything in it.
///
/// # Errors
/// An aim was missed.
pub fn close() -> Result<()> {
    let aims = std::mem::take(&mut *AIMS.lock().unwrap_or_else(PoisonError::into_inner));
    if aims.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["aim", "measured", "at", "limit", ""]);
    for aim in &aims {
        let (side, limit) = match aim.at {
            Bound::Most(limit) => ("most", limit),
            Bound::Least(limit) => ("least", limit),
        };
        let (measured, limit) =
            (format!("{:.2} {}", aim.measured, aim.unit), format!("{limit} {}", aim.unit));
        table.add_row([aim.what.as_str(), &measured, side, &limit, if aim.is_met() { "" } else { "MISSED" }]);
    }
    println!("{table}");
    let missed = aims.iter().filter(|aim| !aim.is_met()).count();
    ensure!(missed == 0, "{missed} of {} aims were missed", aims.len());
    Ok(())
}
