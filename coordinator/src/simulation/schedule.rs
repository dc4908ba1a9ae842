//! Schedules of a world, one after the other: from rest, through a time in which harm is done, to rest.
//!
//! Three in four begin with a time without harm. Otherwise harm would end most before they come to what is late in a round's life.

use std::time::Duration;

use millpond_protocol::Timestamp;

use super::stage::Stage;
use super::tasks::Owner;
use super::world::World;
use super::{oracle, policies, publisher};

/// Steps without harm in which a result comes, where one does.
const QUIET: usize = 400;
/// Rows that contradict each other mostly go on doing so: the rules of `check` are asked after so many schedules, and at the end.
const RULES_EVERY: usize = 4;
/// Steps after which a schedule should have come to its end, and time that may go by until then.
const STEPS: usize = 60_000;
const LONGEST: Duration = Duration::from_secs(60 * 86_400);

impl World<'_> {
    /// All schedules, and the end of the world.
    pub(super) fn live(&mut self, strings: &[Vec<u8>]) -> Result<(), String> {
        for (n, string) in strings.iter().enumerate() {
            if n > 0 {
                self.stage.take_up(string);
                self.stage.note(|| format!("schedule {} begins", n + 1));
                if self.stage.chance(128) {
                    let policy = policies::choose(&mut self.stage.choices());
                    self.adopt(policy)?;
                }
            }
            self.schedule(n == 0, n % RULES_EVERY == RULES_EVERY - 1 || n + 1 == strings.len())
                .map_err(|failure| format!("{failure}, in schedule {}", n + 1))?;
        }
        self.end().map_err(|failure| format!("{failure}, at the end"))
    }

    /// From rest to rest: some publishers have new files, harm is done, and then no more until everything has come to its end.
    fn schedule(&mut self, is_first: bool, with_rules: bool) -> Result<(), String> {
        let all = self.publishers.len();
        // The later ones are short: what they begin with is there, and most of what happens is to be in the time of harm.
        let some = |stage: &Stage| if stage.chance(64) { all } else { 1 };
        let (publishers, files) = if is_first { (all, 4) } else { (some(&self.stage), 2) };
        for who in &self.publishers[..publishers] {
            self.stage.book().publishing += 1;
            let live = publisher::live(self.stage.clone(), who.clone(), files);
            self.tasks.spawn(Owner::Client, who.name.to_string(), live);
        }
        self.calm_since = Timestamp::MAX;
        self.begin(if is_first { 3 } else { 1 })?;
        while !self.stage.choices().is_over() {
            self.step()?;
        }
        self.stage.note(|| "no more harm".into());
        self.stage.calm_down();
        self.calm_since = self.bench.ledger.now();
        self.failed_before = oracle::failed(self);
        let begun = self.stage.running();
        for _ in 0..STEPS {
            if !self.progress() {
                if oracle::unfinished(self).is_empty() {
                    oracle::nothing_is_lost(self)?;
                    return oracle::everything_counts_once(self, with_rules);
                }
                self.wait()?;
            }
            self.look()?;
            if self.stage.running() - begun > LONGEST {
                break;
            }
        }
        Err(format!("it does not come to its end: {}", oracle::unfinished(self)))
    }

    /// What goes before any harm: for some steps, or until one of the next `rounds` results is on its way, everything happens as
    /// it should.
    fn begin(&mut self, rounds: usize) -> Result<(), String> {
        let (far, manner) = (self.stage.byte(), self.stage.byte());
        let before = self.stage.read_book().results.len();
        let (steps, results) = match far {
            0..=63 => return Ok(()),
            64..=127 => (usize::from(far - 63) * (1 + rounds), usize::MAX),
            128..=255 => (QUIET, before + 1 + usize::from(far) % rounds),
        };
        self.stage.choices().set_aside(Some(manner));
        for _ in 0..steps {
            let returned = self.stage.read_book().results.len();
            if returned + self.stage.net().results() >= results {
                break;
            }
            if !self.progress() {
                if oracle::unfinished(self).is_empty() {
                    break;
                }
                self.wait()?;
            }
            self.look()?;
        }
        self.stage.choices().set_aside(None);
        self.stage.note(|| "harm may be done from now on".into());
        Ok(())
    }
}
