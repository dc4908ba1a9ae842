//! What goes before any harm. Otherwise harm would end most schedules before they come to what is late in a round's life.

use super::oracle;
use super::world::World;

/// Steps without harm in which a result comes, where one does.
const QUIET: usize = 400;

impl World<'_> {
    /// What goes before any harm: for some steps, or until the n-th result is on its way, everything happens as it should.
    pub(super) fn begin(&mut self) -> Result<(), String> {
        let (far, manner) = (self.stage.byte(), self.stage.byte());
        let (steps, results) = match far {
            0..=63 => return Ok(()),
            64..=127 => (usize::from(far - 63) * 4, usize::MAX),
            128..=255 => (QUIET, 1 + usize::from(far) % 3),
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
