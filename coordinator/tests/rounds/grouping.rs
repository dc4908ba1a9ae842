//! Which batch an upload belongs to.

use std::time::Duration;

use millpond::rounds::policy::Grouping;
use millpond::rounds::{Event, Policy, Reply, Target, Upload};

use crate::shell::{pool, time};

#[test]
fn an_upload_joins_the_window_of_its_event_time() {
    let mut p = pool("window_s = 3600");
    p.at("11:30").upload("a", "10:59").says("in 1").does(&["batch 1 opens for 10:00–11:00"]);
    p.upload("b", "11:00").says("in 2").does(&["batch 2 opens for 11:00–12:00"]);
    p.upload("c", "10:00").says("in 1").does(&[]);
}

#[test]
fn the_first_upload_of_a_member_in_a_batch_is_told_apart() {
    let mut p = pool("window_s = 3600");
    let mut firsts = Vec::new();
    for (who, event_time) in [("a", "10:10"), ("a", "10:20"), ("b", "10:10"), ("a", "11:00")] {
        p.at("11:30").upload(who, event_time);
        firsts.push(matches!(p.reply, Ok(Reply::Placed { first_of_member: true, .. })));
    }
    assert_eq!(firsts, [true, false, true, true]);
}

#[test]
fn windows_are_anchored_at_the_epoch_and_not_at_the_first_upload() {
    let mut p = pool("window_s = 604800");
    p.at("+2d 10:00").upload("a", "+2d 10:00").does(&["batch 1 opens for 00:00–00:00"]);
    // The epoch was a Thursday, and so is the fourth of June 2026.
    p.at("+3d 10:00").upload("a", "+2d 23:59").says("in 1").upload("a", "+3d 00:00").says("in 2");
}

#[test]
fn an_upload_without_event_time_has_the_time_of_receipt() {
    let mut p = pool("window_s = 3600");
    p.at("10:30").upload_now("a").says("in 1").does(&["batch 1 opens for 10:00–11:00"]);
}

#[test]
fn an_event_time_over_two_seconds_ahead_of_receipt_becomes_the_time_of_receipt() {
    let mut p = pool("window_s = 3600");
    p.at("10:59:58").upload("a", "11:00:00").says("in 1").does(&["batch 1 opens for 11:00–12:00"]);
    p.upload("a", "11:00:01").says("in 2, clamped").does(&["batch 2 opens for 10:00–11:00"]);
    p.upload("a", "+5d 00:00").says("in 2, clamped");
}

#[test]
fn a_sealed_window_is_closed_and_the_next_window_takes_what_is_late() {
    let mut p = pool("window_s = 3600");
    p.at("10:30").upload("a", "10:10").trigger(Target::Window(time("10:00"))).says("round 1 of batch 1");
    p.upload("a", "10:20").says("in 2, late").does(&["batch 2 opens for 11:00–12:00"]);
    p.at("11:30").upload("b", "11:20").says("in 2");
}

#[test]
fn a_window_closes_at_its_deadline_whether_or_not_it_ever_had_an_upload() {
    let mut p = pool("window_s = 3600, deadline_s = 1800");
    p.at("11:29:59").upload("a", "10:30").says("in 1");
    let mut p = pool("window_s = 3600, deadline_s = 1800");
    p.at("11:30").upload("a", "10:30").says("in 1, late").does(&["batch 1 opens for 11:00–12:00"]);
}

#[test]
fn without_a_deadline_a_window_closes_at_its_maximum_age() {
    let mut p = pool("window_s = 3600, max_age_s = 86400");
    p.at("+1d 10:59:59").upload("a", "10:30").says("in 1");
    p.at("+1d 11:00").upload("a", "10:30").says("in 2, late");
}

#[test]
fn what_is_late_skips_every_closed_window_from_that_of_its_receipt_on() {
    let mut p = pool("window_s = 3600");
    p.at("10:59:59").upload("a", "10:30").upload("a", "11:00:01");
    p.trigger(Target::Window(time("10:00")))
        .trigger(Target::Window(time("11:00")))
        .says("round 2 of batch 2");
    p.upload("b", "10:30").says("in 3, late").does(&["batch 3 opens for 12:00–13:00"]);
}

#[test]
fn a_pool_that_is_triggered_for_a_month_finds_its_next_window_at_once() {
    let mut p = pool("window_s = 3600");
    let (mut facts, start) = (Vec::new(), time("00:00"));
    // Each step by step past those before it would be two hundred million.
    for n in 0..20_000_u32 {
        let now = start.after(Duration::from_secs(120) * n);
        let upload = p.file("a", Some(now), None);
        let placed = p.pool.apply(now, Event::Upload(upload), &mut facts).unwrap();
        assert!(matches!(placed, Reply::Placed { batch, .. } if batch == u64::from(n) + 1), "{placed:?}");
        let target = Target::Open;
        p.pool.apply(now, Event::Trigger { target, take: None }, &mut facts).unwrap();
        facts.clear();
    }
}

#[test]
fn what_is_late_joins_an_open_batch_whose_window_is_old_by_the_policy_of_now() {
    let mut p = pool("window_s = 3600, deadline_s = 86400");
    p.at("10:30").upload("a", "09:30").upload("a", "10:30");
    let policy = Policy { deadline_s: 60, ..p.pool.policy().clone() };
    p.event(Event::Policy(Box::new(policy))).at("15:30");
    let upload = p.file("b", Some(time("08:30")), None);
    // Granted when the window was open, and counted now.
    let upload = Upload { received: Some(time("10:10")), ..upload };
    p.store("granted", upload.clone()).says("in 2, late");
    p.trigger(Target::Window(time("10:00"))).says("round 1 of batch 2");
    p.store("another", upload).says("in 3, late").does(&["batch 3 opens for 15:00–16:00"]);
}

#[test]
fn a_pool_may_reject_what_is_late() {
    let mut p = pool("window_s = 3600, deadline_s = 60, late = 'reject'");
    p.at("11:01").upload("a", "10:59").says("rejected: late").does(&[]);
    p.upload("a", "11:00").says("in 1");
}

#[test]
fn a_window_that_was_carried_away_is_closed() {
    let mut p = pool("window_s = 3600, deadline_s = 3600, min_uploads = 2, below_minimum = 'carry'");
    p.at("10:30").upload("a", "10:30").complete("a", "11:00").complete("b", "11:00");
    p.complete("c", "11:00").does(&["batch 2 opens for 11:00–12:00", "batch 1 carried into 2"]);
    p.upload("b", "10:29").says("in 2, late");
}

#[test]
fn an_upload_joins_the_open_part_of_its_label() {
    let mut p = pool("grouping = 'label'");
    p.at("10:00").label("a", "x").says("in 1").does(&["batch 1 opens for x part 1"]);
    p.label("a", "y").says("in 2").label("b", "x").says("in 1");
}

#[test]
fn what_is_late_for_a_label_opens_a_further_part_of_it() {
    let mut p = pool("grouping = 'label'");
    p.at("10:00").label("a", "x").trigger(Target::Label("x".parse().unwrap())).says("round 1 of batch 1");
    p.label("b", "x").says("in 2, late").does(&["batch 2 opens for x part 2"]);
    p.label("c", "x").says("in 2, late").trigger(Target::Oldest);
    p.label("c", "x").says("in 3, late").does(&["batch 3 opens for x part 3"]);
}

#[test]
fn a_part_whose_deadline_is_over_when_an_upload_comes_is_followed_by_the_next() {
    let mut p = pool("grouping = 'label', deadline_s = 60");
    p.at("10:00").label("a", "x").at("10:01").label("b", "x").says("in 2, late");
    p.does(&["batch 1 of 1 sealed by deadline", "round 1 sealed", "batch 2 opens for x part 2"]);
}

#[test]
fn a_sealed_label_rejects_what_is_late_if_the_pool_wants_it_so() {
    let mut p = pool("grouping = 'label', late = 'reject'");
    p.at("10:00").label("a", "x").trigger(Target::Oldest).label("b", "x").says("rejected: late");
    p.label("b", "y").says("in 2");
}

#[test]
fn an_upload_without_label_is_rejected_where_labels_group() {
    pool("grouping = 'label'").at("10:00").upload_now("a").says("rejected: label_required").does(&[]);
}

#[test]
fn a_counted_batch_takes_the_next_uploads_in_ledger_order_whatever_their_time() {
    let mut p = pool("grouping = 'count', count = 2");
    p.at("10:00").upload("a", "09:00").says("in 1").upload("a", "00:01").says("in 1");
    p.upload("b", "09:30").says("in 2").does(&["batch 2 opens"]);
}

/// A pool with as many open batches as those of an earlier time may be, each of a minute of the second of June.
fn crowded_pool(policy: &str) -> crate::shell::Shell {
    let mut p = pool(policy);
    p.at("+20d 00:00").unchecked = true;
    let start = time("+1d 00:00");
    for minute in 0..900 {
        let upload = p.file("a", Some(start.after(Duration::from_secs(60 * minute))), None);
        p.store(&format!("minute-{minute}"), upload).says(&format!("in {}", minute + 1));
    }
    p
}

/// A pool with as many open batches as it may have: those, and of a hundred minutes one after the other.
fn full_pool(policy: &str) -> crate::shell::Shell {
    let mut p = crowded_pool(policy);
    for minute in 900..1_000 {
        p.upload_now("a").says(&format!("in {}", minute + 1));
        p.now = p.now.after(Duration::from_secs(60));
    }
    p
}

#[test]
fn what_would_open_more_than_a_thousand_batches_is_late() {
    let mut p = full_pool("window_s = 60");
    p.upload("b", "+1d 00:00").says("in 1");
    p.upload("b", "+3d 00:00").says("rejected: open_batches").upload_now("b").says("rejected: open_batches");
    p.trigger(Target::Oldest).upload_now("c").says("in 1001");
    p.upload("b", "+3d 00:00").says("in 1001, late");
}

#[test]
fn files_of_another_time_leave_a_tenth_of_the_open_batches_to_the_present() {
    let mut p = crowded_pool("window_s = 60");
    p.upload("b", "+3d 00:00").says("in 901, late").does(&["batch 901 opens for 00:00–00:01"]);
    p.upload_now("c").says("in 901").at("+20d 00:01").upload_now("c").says("in 902");
    // The minute before is the past by now.
    p.trigger(Target::Window(time("+20d 00:00")))
        .at("+20d 00:03")
        .upload("c", "+20d 00:02")
        .says("in 903, late");
}

#[test]
fn labels_that_one_member_invents_leave_a_tenth_of_the_open_batches_to_those_of_others() {
    let mut p = pool("grouping = 'label'");
    p.unchecked = true;
    for n in 0..900 {
        p.label("a", &format!("l{n}")).says(&format!("in {}", n + 1));
    }
    p.label("a", "more").says("rejected: open_batches").label("a", "l7").says("in 8");
    for n in 901..911 {
        p.label("b", &format!("l{n}")).says(&format!("in {n}"));
    }
    p.label("b", "more").says("rejected: open_batches").label("c", "more").says("in 911");
    p.label("a", "more").says("in 911");
}

#[test]
fn a_file_that_was_granted_in_another_minute_finds_room_in_the_present_too() {
    let mut p = crowded_pool("window_s = 60");
    p.at("+20d 00:09");
    let upload = p.file("b", Some(time("+20d 00:01")), None);
    let upload = Upload { received: Some(time("+20d 00:02")), ..upload };
    p.store("granted", upload).says("in 901, late").does(&["batch 901 opens for 00:09–00:10"]);
}

#[test]
fn a_pool_that_rejects_what_is_late_rejects_what_would_open_more_than_a_thousand_batches() {
    full_pool("window_s = 60, late = 'reject'").upload_now("b").says("rejected: late");
    let mut p = crowded_pool("window_s = 60, late = 'reject'");
    p.upload("b", "+3d 00:00").says("rejected: late").upload_now("b").says("in 901");
}

#[test]
fn open_batches_keep_their_bounds_when_the_policy_changes() {
    let mut p = pool("window_s = 3600, deadline_s = 600");
    p.at("10:30").upload("a", "10:20");
    let policy = Policy { window_s: 1_800, deadline_s: 60, ..p.pool.policy().clone() };
    p.event(Event::Policy(Box::new(policy))).does(&[]);
    p.upload("a", "10:20").says("in 2").does(&["batch 2 opens for 10:00–10:30"]);
    p.tick("10:31").does(&["batch 2 of 1 sealed by deadline", "round 1 sealed"]);
    p.ready(1).tick("11:10").does(&["batch 1 of 1 sealed by deadline", "round 2 sealed"]);
}

#[test]
fn an_open_window_takes_uploads_until_its_own_deadline_though_the_policy_has_a_shorter_one_by_now() {
    let mut p = pool("window_s = 3600, deadline_s = 600");
    p.at("10:30").upload("a", "10:20");
    let policy = Policy { deadline_s: 60, ..p.pool.policy().clone() };
    p.event(Event::Policy(Box::new(policy))).at("11:05").upload("a", "10:59").says("in 1");
}

#[test]
fn a_policy_with_problems_is_refused() {
    let mut p = pool("");
    let policy = Policy { window_s: 1, ..Policy::default() };
    p.at("10:00").event(Event::Policy(Box::new(policy))).says("malformed").does(&[]);
}

#[test]
fn a_window_that_was_sealed_never_opens_again_however_long_the_deadline_becomes() {
    let mut p = pool("window_s = 3600, deadline_s = 3600");
    let longer = Policy { deadline_s: 86_400, ..p.pool.policy().clone() };
    // Longer before the seal, and after it.
    p.at("10:30").upload("a", "10:10").event(Event::Policy(Box::new(longer)));
    p.trigger(Target::Window(time("10:00"))).says("round 1 of batch 1").ready(1);
    // The batch's own deadline is over, the window's age is not.
    p.at("12:10").upload("b", "10:20").says("in 2, late").does(&["batch 2 opens for 12:00–13:00"]);
    p.restart().upload("c", "10:20").says("in 2, late");
}

#[test]
fn what_age_has_closed_stays_closed_under_a_longer_deadline() {
    let mut p = pool("window_s = 3600, deadline_s = 3600");
    let longer = Policy { deadline_s: 86_400, ..p.pool.policy().clone() };
    let by_count = Policy { grouping: Grouping::Count, ..p.pool.policy().clone() };
    p.at("12:10").event(Event::Policy(Box::new(by_count))).does(&["windows to 11:10 stay closed"]);
    p.event(Event::Policy(Box::new(longer))).does(&[]);
    p.upload("a", "10:30").says("in 1, late").upload("a", "11:30").says("in 2");
    p.restart().at("+1d 11:00").upload("a", "11:40").says("in 2").upload("b", "10:40").says("in 3, late");
}

#[test]
fn who_is_turned_away_because_the_pool_is_full_is_told_so() {
    let mut p = full_pool("window_s = 60, late = 'reject'");
    for (event_time, most) in [("+3d 00:00", "900 open batches"), ("+20d 01:40", "1000 open batches")] {
        p.upload("b", event_time);
        let Ok(Reply::Rejected { rejection, .. }) = &p.reply else { panic!("{:?}", p.reply) };
        assert!(rejection.why.contains(most), "{}", rejection.why);
    }
}
