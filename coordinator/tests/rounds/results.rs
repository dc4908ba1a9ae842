//! Versions, the pointer, and rollback.

use millpond::rounds::{Event, Version};

use crate::shell::{Shell, pool};

/// A pool with three rounds leased to p.
fn three_leases() -> Shell {
    let mut p = pool("parallel_rounds = 3");
    p.at("10:00").offered_round().offered_round().offered_round();
    p.claim("p").claim("p").claim("p").says("round 3, attempt 1");
    p
}

fn roll_back(p: &mut Shell, of: Version) -> &mut Shell {
    p.event(Event::Rollback { of })
}

#[test]
fn versions_are_numbered_in_order_of_commit() {
    let mut p = three_leases();
    p.result("p", 2, 1)
        .says("version 1")
        .result("p", 3, 1)
        .says("version 2")
        .result("p", 1, 1)
        .says("version 3");
}

#[test]
fn the_pointer_names_the_result_of_the_newest_batch() {
    let mut p = three_leases();
    p.result("p", 2, 1).does(&["round 2 committed as 1", "pointer 1"]);
    p.result("p", 1, 1).does(&["round 1 committed as 2"]);
    p.result("p", 3, 1).does(&["round 3 committed as 3", "pointer 3"]);
}

#[test]
fn a_rollback_is_a_new_version_and_moves_the_pointer() {
    let mut p = three_leases();
    p.result("p", 1, 1).result("p", 2, 1);
    roll_back(&mut p, 1).says("version 3").does(&["pointer 3"]);
    roll_back(&mut p, 9).says("not_found");
    roll_back(&mut p, 0).says("not_found");
}

#[test]
fn a_rollback_stands_until_a_batch_newer_than_all_committed_commits() {
    let mut p = three_leases();
    p.result("p", 2, 1);
    roll_back(&mut p, 1).says("version 2");
    p.result("p", 1, 1).says("version 3").does(&["round 1 committed as 3"]);
    p.result("p", 3, 1).does(&["round 3 committed as 4", "pointer 4"]);
}

#[test]
fn without_a_result_there_is_nothing_to_roll_back_to() {
    let mut p = pool("");
    assert_eq!(p.pool.pointer(), None);
    roll_back(&mut p, 1).says("not_found");
}
