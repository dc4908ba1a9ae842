//! Policies of pools that schedules are played with.

use super::choices::Choices;
use crate::rounds::Policy;
use crate::rounds::policy::{BelowMinimum, Grouping, Late, Select};

/// One of many; the first one is the simplest.
pub(super) fn choose(choices: &mut Choices) -> Policy {
    let grouping = [Grouping::Count, Grouping::Window, Grouping::Label][choices.below(3)];
    let deadline_s = [0, 900, 7_200][choices.below(3)];
    Policy {
        grouping,
        count: [3, 2, 4][choices.below(3)],
        deadline_s,
        late: [Late::Next, Late::Reject][choices.below(2)],
        select: [Select::All, Select::Latest, Select::First][choices.below(3)],
        quorum: [0, 1, 2][choices.below(3)],
        grace_s: [0, 30][choices.below(2)],
        min_uploads: [0, 2][choices.below(2)],
        below_minimum: [BelowMinimum::Run, BelowMinimum::Carry, BelowMinimum::Skip][choices.below(3)],
        parallel_rounds: [1, 2][choices.below(2)],
        lease_term_s: [600, 60][choices.below(2)],
        round_max_s: 1_200,
        ..Policy::default()
    }
}
