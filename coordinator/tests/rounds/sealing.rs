//! When a batch seals, why, and what becomes of one below its minimum.

use millpond::rounds::{Event, Policy, Target, Upload};

use crate::shell::{member, pool, time};

#[test]
fn a_trigger_seals_before_or_after_the_end_of_the_window() {
    let mut p = pool("window_s = 3600");
    p.at("10:30").upload("a", "10:10").trigger(Target::Window(time("10:00"))).says("round 1 of batch 1");
    p.does(&["batch 1 of 1 sealed by trigger", "round 1 sealed"]);
    p.upload("a", "11:30").at("13:00").trigger(Target::Open).says("not_found");
    p.trigger(Target::Oldest).says("round 2 of batch 2");
}

#[test]
fn a_trigger_ignores_the_minimum() {
    let mut p = pool("min_uploads = 5, below_minimum = 'skip'");
    p.at("10:30")
        .upload_now("a")
        .trigger(Target::Open)
        .does(&["batch 1 of 1 sealed by trigger", "round 1 sealed"]);
}

#[test]
fn a_trigger_for_an_empty_or_a_sealed_batch_finds_nothing() {
    let mut p = pool("window_s = 3600");
    p.at("10:30").trigger(Target::Window(time("10:00"))).says("not_found");
    p.trigger(Target::Open).says("not_found").trigger(Target::Oldest).says("not_found");
    p.upload_now("a").trigger(Target::Window(time("10:00"))).says("round 1 of batch 1");
    p.trigger(Target::Window(time("10:00"))).says("not_found");
    p.trigger(Target::Label("x".parse().unwrap())).says("not_found");
}

#[test]
fn a_trigger_means_the_batch_that_uploads_of_now_join_or_the_one_that_ends_first() {
    let mut p = pool("window_s = 3600");
    p.at("10:30").upload("a", "09:30").upload("a", "10:10").upload("a", "08:00");
    p.trigger(Target::Open).says("round 1 of batch 2").trigger(Target::Oldest).says("round 2 of batch 3");
    p.trigger(Target::Open).says("not_found");
    p.upload_now("b").says("in 4, late").trigger(Target::Open).says("round 3 of batch 4");
}

#[test]
fn uploads_ahead_of_a_trigger_are_in_and_those_behind_it_are_not() {
    let mut p = pool("grouping = 'label'");
    p.at("10:00").label("a", "x").label("b", "x").trigger(Target::Label("x".parse().unwrap()));
    p.does(&["batch 1 of 2 sealed by trigger", "round 1 sealed"]).label("c", "x").says("in 2, late");
}

#[test]
fn the_upload_that_fills_a_counted_batch_seals_it() {
    let mut p = pool("grouping = 'count', count = 3");
    p.at("10:00").upload_now("a").upload_now("a").does(&[]);
    p.upload_now("a").says("in 1").does(&["batch 1 of 3 sealed by full", "round 1 sealed"]);
}

#[test]
fn a_quorum_by_count_seals_at_the_end_and_grace() {
    let mut p = pool("window_s = 3600, quorum = 2, grace_s = 60");
    p.at("10:30").upload_now("a").upload_now("a").upload_now("b").does(&[]);
    p.tick("11:00:59").does(&[]).tick("11:01").does(&["batch 1 of 3 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn a_quorum_met_after_the_grace_seals_at_once() {
    let mut p = pool("window_s = 3600, quorum = 2, grace_s = 60");
    p.at("10:30").upload_now("a").tick("11:30").does(&[]);
    p.upload("b", "10:59").says("in 1").does(&["batch 1 of 2 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn for_labels_and_counts_the_grace_of_a_quorum_begins_with_the_first_receipt() {
    for policy in
        ["grouping = 'label', quorum = 2, grace_s = 60", "grouping = 'count', quorum = 2, grace_s = 60"]
    {
        let mut p = pool(policy);
        p.at("10:00").label("a", "x").at("10:00:30").label("b", "x").does(&[]);
        p.tick("10:01").does(&["batch 1 of 2 sealed by quorum", "round 1 sealed"]);
    }
}

#[test]
fn a_quorum_by_share_counts_the_publishers_of_now() {
    let mut p = pool("grouping = 'label', quorum_share = 0.6").publishers("abcde");
    p.at("10:00").label("a", "x").label("b", "x").does(&[]);
    p.event(Event::PublisherAdded { member: member("f") }).does(&[]);
    p.label("c", "x").does(&[]).label("d", "x").does(&["batch 1 of 4 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn a_share_is_met_to_the_publisher() {
    // None of these products is exact.
    for (share, of, enough) in [(0.55, 100, 55), (0.07, 100, 7), (0.28, 25, 7), (0.1, 30, 3)] {
        let mut p = pool(&format!("window_s = 3600, quorum_share = {share}")).publishers("");
        for member in 0..of {
            p.event(Event::PublisherAdded { member });
        }
        p.at("11:30");
        let mut sealed_by = None;
        for member in 0..of {
            let file = p.file("a", Some(time("10:10")), None);
            p.store(&format!("u{member}"), Upload { member, ..file });
            if p.rows.manifests.len() == 1 {
                sealed_by = Some(member + 1);
                break;
            }
        }
        assert_eq!(sealed_by, Some(enough), "{share} of {of}");
    }
}

#[test]
fn of_quorum_by_count_and_by_share_either_is_enough() {
    let mut p = pool("grouping = 'label', quorum = 3, quorum_share = 0.5").publishers("ab");
    p.at("10:00").label("a", "x").does(&[
        "batch 1 opens for x part 1",
        "batch 1 of 1 sealed by quorum",
        "round 1 sealed",
    ]);
    let mut p = pool("grouping = 'label', quorum = 1, quorum_share = 1.0");
    p.at("10:00").label("a", "x").does(&[
        "batch 1 opens for x part 1",
        "batch 1 of 1 sealed by quorum",
        "round 1 sealed",
    ]);
}

#[test]
fn the_revocation_of_a_member_can_meet_a_quorum_by_share() {
    let mut p = pool("grouping = 'label', quorum_share = 0.5").publishers("abcd");
    p.at("10:00").label("a", "x").remove("d").does(&[]);
    p.remove("c").does(&["batch 1 of 1 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn a_revoked_member_counts_for_no_quorum() {
    let mut p = pool("grouping = 'label', quorum = 2, quorum_share = 0.9");
    p.at("10:00").label("a", "x").remove("a").label("b", "x").does(&[]);
    p.label("c", "x").does(&["batch 1 of 3 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn without_publishers_there_is_no_quorum() {
    let mut p = pool("grouping = 'label', quorum_share = 0.5").publishers("");
    p.at("10:00").label("z", "x").says("in 1").does(&["batch 1 opens for x part 1"]);
}

#[test]
fn a_window_is_complete_when_every_publisher_has_said_so_past_its_end() {
    let mut p = pool("window_s = 3600");
    p.at("10:30")
        .upload_now("a")
        .complete("a", "11:00")
        .complete("b", "12:00")
        .complete("c", "10:59:59")
        .does(&[]);
    p.complete("c", "11:00").does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn complete_is_monotone() {
    let mut p = pool("window_s = 3600").publishers("a");
    p.at("10:30").complete("a", "10:45").complete("a", "10:15").says("done");
    p.upload_now("a").complete("a", "11:00").does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn several_windows_complete_in_order_of_time_when_the_last_publisher_says_so() {
    let mut p = pool("window_s = 3600").publishers("ab");
    p.at("12:30").upload("a", "11:30").upload("a", "10:30").complete("a", "12:00");
    p.complete("b", "12:00");
    p.does(&[
        "batch 2 of 1 sealed by complete",
        "round 1 sealed",
        "batch 1 of 1 sealed by complete",
        "round 2 sealed",
    ]);
}

#[test]
fn the_revocation_of_the_last_silent_publisher_completes() {
    let mut p = pool("window_s = 3600").publishers("ab");
    p.at("10:30").upload_now("a").complete("a", "11:00").does(&[]);
    p.remove("b").does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn a_new_publisher_holds_completion_up() {
    let mut p = pool("window_s = 3600").publishers("a");
    p.at("10:30").upload_now("a").event(Event::PublisherAdded { member: member("b") });
    p.complete("a", "11:00")
        .does(&[])
        .complete("b", "11:00")
        .does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn without_publishers_nothing_is_ever_complete() {
    let mut p = pool("window_s = 3600").publishers("a");
    p.at("10:30").upload_now("a").remove("a").does(&[]);
    let mut p = pool("grouping = 'label'").publishers("a");
    p.at("10:30").label("a", "x").remove("a").does(&[]);
}

#[test]
fn only_publishers_can_say_that_they_have_nothing_more() {
    let mut p = pool("window_s = 3600").publishers("a");
    p.at("10:30").upload_now("a").complete("z", "11:00").says("unauthorized");
}

#[test]
fn a_part_of_a_label_is_complete_when_every_publisher_has_said_so_of_it() {
    let mut p = pool("grouping = 'label'").publishers("ab");
    p.at("10:00").label("a", "x").label("a", "y").complete_label("a", "x").complete_label("a", "x").does(&[]);
    p.complete_label("b", "y").does(&[]);
    p.complete_label("b", "x").does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
    p.complete_label("b", "x").says("not_found");
    p.label("a", "x").says("in 3, late").complete_label("b", "x").does(&[]);
}

#[test]
fn what_a_revoked_member_said_of_a_label_counts_no_more() {
    let mut p = pool("grouping = 'label'");
    p.at("10:00").label("a", "x").complete_label("a", "x").remove("a").complete_label("b", "x").does(&[]);
    p.complete_label("c", "x").does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn completion_does_not_wait_for_the_grace_of_a_quorum() {
    let mut p = pool("window_s = 3600, quorum = 1, grace_s = 600").publishers("a");
    p.at("10:30").upload_now("a").complete("a", "11:00");
    p.does(&["batch 1 of 1 sealed by complete", "round 1 sealed"]);
}

#[test]
fn the_deadline_seals_whatever_is_there() {
    let mut p = pool("window_s = 3600, deadline_s = 600");
    p.at("10:30").upload_now("a").tick("11:09:59").does(&[]);
    p.tick("11:10").does(&["batch 1 of 1 sealed by deadline", "round 1 sealed"]);
}

#[test]
fn the_deadline_of_labels_and_counts_runs_from_the_first_receipt_and_is_the_maximum_age_by_default() {
    for policy in ["grouping = 'label', max_age_s = 600", "grouping = 'count', max_age_s = 600"] {
        let mut p = pool(policy);
        p.at("10:00").label("a", "x").at("10:09:59").label("b", "x").does(&[]);
        p.tick("10:10").does(&["batch 1 of 2 sealed by deadline", "round 1 sealed"]);
    }
}

#[test]
fn an_upload_at_the_instant_of_the_deadline_is_late() {
    let mut p = pool("window_s = 3600, deadline_s = 600");
    p.at("10:30").upload_now("a").at("11:10").upload("b", "10:30").says("in 2, late");
    p.does(&["batch 1 of 1 sealed by deadline", "round 1 sealed", "batch 2 opens for 11:00–12:00"]);
}

#[test]
fn the_condition_that_was_met_first_is_the_cause_though_nobody_looked() {
    let mut p = pool("window_s = 3600, quorum = 1, grace_s = 60, deadline_s = 600");
    p.at("10:30").upload_now("a").tick("15:00").does(&["batch 1 of 1 sealed by quorum", "round 1 sealed"]);
}

#[test]
fn what_came_due_meanwhile_is_sealed_in_order_of_time() {
    let mut p = pool("window_s = 3600, deadline_s = 600");
    p.at("11:05").upload("a", "11:01").upload("a", "10:30").tick("15:00");
    p.does(&[
        "batch 2 of 1 sealed by deadline",
        "round 1 sealed",
        "batch 1 of 1 sealed by deadline",
        "round 2 sealed",
    ]);
}

#[test]
fn below_the_minimum_a_batch_may_run_all_the_same() {
    let mut p = pool("grouping = 'label', deadline_s = 60, min_uploads = 2, below_minimum = 'run'");
    p.at("10:00").label("a", "x").tick("10:01").does(&["batch 1 of 1 sealed by deadline", "round 1 sealed"]);
}

#[test]
fn a_skipped_batch_has_a_manifest_and_a_number_but_no_round() {
    let mut p = pool("grouping = 'label', deadline_s = 60, min_members = 2, below_minimum = 'skip'");
    p.at("10:00")
        .label("a", "x")
        .label("a", "x")
        .tick("10:01")
        .does(&["batch 1 of 2 sealed by deadline, skipped"]);
    p.claim_round("p", 1).says("stale").label("a", "y").trigger(Target::Oldest).says("round 2 of batch 2");
}

#[test]
fn a_window_below_its_minimum_is_carried_into_the_next_and_is_not_late_there() {
    let mut p = pool("window_s = 3600, deadline_s = 60, min_uploads = 2, below_minimum = 'carry'");
    p.at("10:30").upload_now("a").tick("11:01");
    p.does(&["batch 2 opens for 11:00–12:00", "batch 1 carried into 2"]);
    assert!(!p.rows.uploads.values().any(|row| row.late));
    p.upload_now("b").says("in 2").tick("12:01").does(&["batch 2 of 2 sealed by deadline", "round 1 sealed"]);
}

#[test]
fn a_window_is_carried_past_closed_windows() {
    let mut p = pool("window_s = 3600, deadline_s = 3600, min_uploads = 2, below_minimum = 'carry'");
    p.at("11:30").upload("a", "10:30").upload("a", "11:30").trigger(Target::Window(time("11:00")));
    p.ready(1).tick("12:00").does(&["batch 3 opens for 12:00–13:00", "batch 1 carried into 3"]);
}

#[test]
fn after_three_carries_a_batch_runs() {
    let mut p = pool("window_s = 3600, deadline_s = 60, min_uploads = 2, below_minimum = 'carry'");
    p.at("10:30").upload_now("a").tick("11:01").tick("12:01").tick("13:01");
    p.does(&["batch 4 opens for 13:00–14:00", "batch 3 carried into 4"]);
    p.tick("14:01").does(&["batch 4 of 1 sealed by deadline", "round 1 sealed"]);
}

#[test]
fn carries_do_not_depend_on_when_the_clock_is_read() {
    let mut p = pool("window_s = 3600, deadline_s = 60, min_uploads = 2, below_minimum = 'carry'");
    p.at("10:30").upload_now("a").tick("20:00").does(&[
        "batch 2 opens for 11:00–12:00",
        "batch 1 carried into 2",
        "batch 3 opens for 12:00–13:00",
        "batch 2 carried into 3",
        "batch 4 opens for 13:00–14:00",
        "batch 3 carried into 4",
        "batch 4 of 1 sealed by deadline",
        "round 1 sealed",
    ]);
}

#[test]
fn a_label_below_its_minimum_stays_open_and_its_deadline_starts_again_three_times() {
    for grouping in ["label", "count"] {
        let mut p = pool(&format!(
            "grouping = '{grouping}', deadline_s = 60, min_uploads = 2, below_minimum = 'carry'"
        ));
        p.at("10:00").label("a", "x").tick("10:01").does(&["batch 1 carried into 1"]);
        p.tick("10:02").does(&["batch 1 carried into 1"]).tick("10:03").does(&["batch 1 carried into 1"]);
        p.tick("10:04").does(&["batch 1 of 1 sealed by deadline", "round 1 sealed"]);
    }
}

#[test]
fn in_a_batch_that_would_stay_open_all_but_the_deadline_wait_for_the_minimum() {
    let mut p =
        pool("grouping = 'label', quorum = 1, min_members = 2, below_minimum = 'carry'").publishers("ab");
    p.at("10:00").label("a", "x").complete_label("a", "x").complete_label("b", "x").does(&[]);
    p.label("b", "x").does(&["batch 1 of 2 sealed by quorum", "round 1 sealed"]);
    let mut p = pool("grouping = 'count', count = 1, min_members = 2, below_minimum = 'carry'");
    p.at("10:00").upload_now("a").upload_now("a").does(&[]);
    p.upload_now("b").does(&["batch 1 of 3 sealed by full", "round 1 sealed"]);
}

#[test]
fn a_window_cannot_be_carried_into_a_pool_that_groups_otherwise_by_now() {
    let mut p = pool("window_s = 3600, deadline_s = 60, min_uploads = 2, below_minimum = 'carry'");
    p.at("10:30").upload_now("a");
    let policy = Policy { grouping: millpond::rounds::policy::Grouping::Label, ..p.pool.policy().clone() };
    p.event(Event::Policy(Box::new(policy)));
    p.tick("11:01").does(&["batch 1 of 1 sealed by deadline", "round 1 sealed"]);
}

#[test]
fn a_policy_that_makes_an_open_batch_full_seals_it() {
    let mut p = pool("grouping = 'count', count = 10");
    p.at("10:00").upload_now("a").upload_now("a");
    let policy = Policy { count: 2, ..p.pool.policy().clone() };
    p.event(Event::Policy(Box::new(policy))).does(&["batch 1 of 2 sealed by full", "round 1 sealed"]);
}

#[test]
fn a_restart_changes_no_deadline_and_no_cause() {
    let mut p = pool("window_s = 3600, quorum = 1, grace_s = 60, deadline_s = 600");
    p.at("10:30").upload_now("a").at("15:00").restart().does(&[]);
    p.tick("15:00").does(&["batch 1 of 1 sealed by quorum", "round 1 sealed"]);
    assert_eq!(p.rows.rounds[&1].sealed, time("11:01"));
}
