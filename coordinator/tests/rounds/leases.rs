//! Who holds a round, for how long, and what happens when nothing comes back.

use millpond::rounds::{Event, Round, Target};

use crate::shell::{Shell, pool};

/// A pool with one round on offer since 10:00.
fn offered(policy: &str) -> Shell {
    let mut p = pool(policy);
    p.at("10:00").offered_round();
    p
}

#[test]
fn what_nobody_took_is_offered_when_it_is_ready() {
    let mut p = pool("");
    p.at("10:00")
        .upload_now("a")
        .trigger(Target::Oldest)
        .claim("p")
        .says("no lease")
        .claim_round("p", 1)
        .says("no lease");
    p.ready(1).does(&["round 1 ready", "round 1 offered"]).ready(1).says("done").does(&[]);
    p.claim("p").says("round 1, attempt 1").does(&["round 1 leased until 10:10:00"]);
}

#[test]
fn a_lease_granted_before_ready_has_no_term_until_then() {
    let mut p = pool("");
    p.at("10:00").upload_now("a").trigger_and_take("p").says("round 1 of batch 1, attempt 1");
    p.does(&["batch 1 of 1 sealed by trigger", "round 1 sealed", "round 1 leased without term"]);
    p.at("10:20").beat("p", 1, 1).says("done").does(&[]);
    p.at("10:25").ready(1).does(&["round 1 ready until 10:35:00"]);
}

#[test]
fn only_beats_extend_a_lease() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").does(&["round 1 leased until 10:01:00"]);
    p.at("10:00:40").claim_round("p", 1).says("round 1, attempt 1").does(&[]);
    p.beat("p", 1, 1).does(&["round 1 extended until 10:01:40"]).beat("p", 1, 1).does(&[]);
    p.tick("10:01:40").does(&["round 1 expired, pauses until 10:01:45"]);
}

#[test]
fn beats_keep_an_attempt_alive_no_longer_than_its_maximum() {
    let mut p = offered("lease_term_s = 60, round_max_s = 90");
    p.claim("p").at("10:00:50").beat("p", 1, 1).does(&["round 1 extended until 10:01:30"]);
    p.at("10:01:20")
        .beat("p", 1, 1)
        .does(&[])
        .tick("10:01:30")
        .does(&["round 1 expired, pauses until 10:01:35"]);
}

#[test]
fn the_maximum_of_an_attempt_counts_from_ready() {
    let mut p = pool("lease_term_s = 60, round_max_s = 60");
    p.at("10:00")
        .upload_now("a")
        .trigger_and_take("p")
        .at("10:20")
        .ready(1)
        .does(&["round 1 ready until 10:21:00"]);
}

#[test]
fn a_lost_lease_is_offered_after_five_and_thirty_seconds_and_fails_the_third_time() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").does(&["round 1 expired, pauses until 10:01:05"]).claim("q").says("no lease");
    p.tick("10:01:05").does(&["round 1 offered"]).claim("q").says("round 1, attempt 2");
    p.fail("q", 1, 2, true).does(&["round 1 returned, pauses until 10:01:35"]);
    p.tick("10:01:35").does(&["round 1 offered"]).claim("p").says("round 1, attempt 3");
    p.fail("p", 1, 3, true).does(&["round 1 failed: attempts"]).claim("p").says("no lease");
}

#[test]
fn what_cannot_be_retried_fails_at_once() {
    let mut p = offered("");
    p.claim("p").fail("p", 1, 1, false).does(&["round 1 failed: refused"]);
    p.claim_round("p", 1).says("stale").result("p", 1, 1).says("stale");
}

#[test]
fn a_lease_that_has_run_out_is_good_until_the_round_is_leased_again() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").beat("p", 1, 1).says("stale");
    p.tick("10:02").result("p", 1, 1).says("version 1").does(&["round 1 committed as 1", "pointer 1"]);
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").tick("10:02").claim("q").says("round 1, attempt 2");
    p.result("p", 1, 1)
        .says("stale")
        .fail("p", 1, 1, false)
        .says("stale")
        .result("q", 1, 2)
        .says("version 1");
}

#[test]
fn a_lease_that_has_run_out_is_void_once_the_round_has_failed() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").tick("10:02").claim("p").tick("10:03").tick("10:04").claim("p");
    p.tick("10:05").does(&["round 1 failed: attempts"]).result("p", 1, 3).says("stale");
}

#[test]
fn who_gave_a_round_back_cannot_commit_it() {
    let mut p = offered("");
    p.claim("p").fail("p", 1, 1, true).result("p", 1, 1).says("stale");
}

#[test]
fn a_lease_that_has_run_out_can_still_be_given_back() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").fail("p", 1, 1, true).does(&["round 1 returned, pauses until 10:01:05"]);
    p.result("p", 1, 1).says("stale");
}

#[test]
fn member_round_and_attempt_are_the_fence() {
    let mut p = offered("");
    p.claim("p")
        .result("q", 1, 1)
        .says("stale")
        .result("p", 1, 2)
        .says("stale")
        .result("p", 2, 1)
        .says("not_found");
    p.beat("q", 1, 1).says("stale").fail("q", 1, 1, true).says("stale").result("p", 0, 1).says("not_found");
    p.result("p", 1, 1).says("version 1").result("p", 1, 1).says("stale");
}

#[test]
fn one_round_of_a_pool_is_leased_at_a_time() {
    let mut p = offered("");
    p.offered_round()
        .claim("p")
        .says("round 1, attempt 1")
        .claim("q")
        .says("no lease")
        .claim("p")
        .says("no lease");
    p.claim_round("q", 2).says("no lease").result("p", 1, 1).claim("q").says("round 2, attempt 1");
}

#[test]
fn parallel_rounds_raises_the_number_of_leases() {
    let mut p = offered("parallel_rounds = 2");
    p.offered_round().offered_round();
    p.claim("p").says("round 1, attempt 1").claim("p").says("round 2, attempt 1").claim("p").says("no lease");
}

#[test]
fn a_round_on_offer_can_be_claimed_by_its_number() {
    let mut p = offered("");
    p.offered_round().claim_round("p", 2).says("round 2, attempt 1").claim_round("q", 2).says("no lease");
    p.claim_round("p", 9).says("not_found");
}

#[test]
fn a_trigger_that_takes_leases_its_own_round_ahead_of_older_ones() {
    let mut p = offered("");
    p.upload_now("b").trigger_and_take("p").says("round 2 of batch 2, attempt 1");
    p.upload_now("b").trigger_and_take("q").says("round 3 of batch 3");
}

#[test]
fn a_round_that_nobody_claims_in_seven_days_fails() {
    let mut p = offered("");
    p.tick("+7d 09:59:59").does(&[]).tick("+7d 10:00").does(&["round 1 failed: unclaimed"]);
}

#[test]
fn packing_that_takes_over_thirty_minutes_spends_an_attempt() {
    let mut p = pool("");
    p.at("10:00").upload_now("a").trigger(Target::Oldest).tick("10:30").does(&["round 1 unpacked"]);
    p.tick("11:00").does(&["round 1 unpacked"]).tick("11:30").does(&["round 1 failed: attempts"]);
    p.ready(1).says("stale");
}

#[test]
fn a_lease_ends_when_packing_takes_too_long() {
    let mut p = pool("");
    p.at("10:00").upload_now("a").trigger_and_take("p").tick("10:30").does(&["round 1 unpacked"]);
    p.at("10:40").ready(1).does(&["round 1 ready", "round 1 offered"]).claim("q").says("round 1, attempt 2");
}

#[test]
fn a_round_given_back_before_it_is_ready_is_offered_when_it_is() {
    let mut p = pool("");
    p.at("10:00")
        .upload_now("a")
        .trigger_and_take("p")
        .at("10:10")
        .fail("p", 1, 1, true)
        .does(&["round 1 returned"]);
    p.tick("10:20").ready(1).does(&["round 1 ready", "round 1 offered"]);
}

#[test]
fn an_operator_gives_a_failed_round_three_more_attempts() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").fail("p", 1, 1, true).tick("10:00:05").claim("p").fail("p", 1, 2, true).tick("10:00:35");
    p.claim("p").at("10:02").tick("10:02").does(&["round 1 failed: attempts"]);
    p.retry(1).says("done").does(&["round 1 retried"]).result("p", 1, 3).says("stale");
    p.claim("p").says("round 1, attempt 4");
    p.fail("p", 1, 4, true).does(&["round 1 returned, pauses until 10:02:05"]);
    p.tick("10:02:05").claim("p").fail("p", 1, 5, true).tick("10:02:35");
    p.claim("p").says("round 1, attempt 6").fail("p", 1, 6, true).does(&["round 1 failed: attempts"]);
}

#[test]
fn a_failed_round_that_was_never_packed_waits_for_that_when_it_is_retried() {
    let mut p = pool("");
    p.at("10:00").upload_now("a").trigger(Target::Oldest).tick("10:30").tick("11:00").tick("11:30");
    p.retry(1)
        .does(&["round 1 retried"])
        .claim("p")
        .says("no lease")
        .ready(1)
        .claim("p")
        .says("round 1, attempt 1");
}

#[test]
fn only_a_failed_round_can_be_retried() {
    let mut p = offered("");
    p.retry(1).says("not_found").claim("p").fail("p", 1, 1, false);
    let failed = p.rows.rounds[&1].clone();
    p.event(Event::Retry { round: Round { round: 2, ..failed.clone() } }).says("not_found");
    p.retry(1).says("done").event(Event::Retry { round: failed }).says("not_found");
    p.claim("p").result("p", 1, 2).says("version 1").retry(1).says("not_found");
}

#[test]
fn the_revocation_of_a_member_ends_its_leases() {
    let mut p = offered("");
    p.claim("p")
        .remove("p")
        .does(&["round 1 returned, pauses until 10:00:05"])
        .result("p", 1, 1)
        .says("stale");
    let mut p = offered("lease_term_s = 60");
    p.claim("p").tick("10:01").remove("p").does(&["round 1 returned, pauses until 10:01:05"]);
    p.result("p", 1, 1).says("stale");
}

#[test]
fn at_start_every_live_lease_gets_a_full_term() {
    let mut p = offered("lease_term_s = 60, round_max_s = 60");
    p.claim("p").at("14:00").restart().does(&["round 1 extended until 14:01:00"]);
    p.at("14:00:30").beat("p", 1, 1).does(&[]).result("p", 1, 1).says("version 1");
}

#[test]
fn what_a_clock_that_was_ahead_wrote_does_not_outlive_the_start_that_sets_it_right() {
    let mut p = offered("lease_term_s = 60, round_max_s = 300");
    p.at("+6d 10:00").claim("p").at("10:00").restart().does(&["round 1 extended until 10:01:00"]);
    // Nor do beats keep it alive for longer than a round may take.
    p.at("10:00:50").beat("p", 1, 1).does(&["round 1 extended until 10:01:50"]);
    for time in ["10:01:40", "10:02:30", "10:03:20", "10:04:10"] {
        p.at(time).beat("p", 1, 1);
    }
    p.tick("10:05").does(&["round 1 expired, pauses until 10:05:05"]);

    let mut p = offered("");
    p.at("+6d 10:00").claim("p").fail("p", 1, 1, true).does(&["round 1 returned, pauses until 10:00:05"]);
    p.at("10:00").restart().does(&["round 1 extended, pauses until 10:00:30"]);
    p.tick("10:00:30").does(&["round 1 offered"]);

    let mut p = pool("");
    p.at("+9d 10:00").offered_round().at("10:00").restart();
    p.tick("+7d 10:00").does(&["round 1 failed: unclaimed"]);
}

#[test]
fn at_start_packing_gets_all_of_its_time() {
    let mut p = pool("");
    p.at("10:00").upload_now("a").trigger_and_take("p").upload_now("a").trigger(Target::Oldest);
    p.at("14:00").restart().tick("14:29:59").does(&[]);
    p.tick("14:30").does(&["round 1 unpacked", "round 2 unpacked"]);
}

#[test]
fn time_that_passed_before_an_event_counts_before_it() {
    let mut p = offered("lease_term_s = 60");
    p.claim("p").at("10:05").event(Event::Claim { member: 1, round: None }).says("no lease");
    p.does(&["round 1 expired, pauses until 10:05:05"]);
}
