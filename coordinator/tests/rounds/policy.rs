//! What a policy may say, and what a pool takes.

use millpond::rounds::policy::Grouping;
use millpond::rounds::{Candidate, Policy, accept};

/// The rule that such an upload breaks.
fn broken(policy: &Policy, candidate: Candidate) -> Option<&'static str> {
    accept(policy, &candidate).err().map(|rejection| rejection.rule.as_str())
}

const FILE: Candidate = Candidate { size: 10, declares_sha256: false, has_label: false };

#[test]
fn a_pool_takes_files_up_to_its_maximum_size() {
    let policy = Policy { max_size: 10, ..Policy::default() };
    assert_eq!(broken(&policy, FILE), None);
    assert_eq!(broken(&policy, Candidate { size: 11, ..FILE }), Some("max_size"));
    assert_eq!(broken(&Policy::default(), Candidate { size: u64::MAX, ..FILE }), None);
}

#[test]
fn a_pool_takes_empty_files_only_if_it_says_so() {
    let empty = Candidate { size: 0, ..FILE };
    assert_eq!(broken(&Policy::default(), empty), Some("empty_file"));
    assert_eq!(broken(&Policy { allow_empty: true, ..Policy::default() }, empty), None);
}

#[test]
fn a_pool_may_require_the_sha256() {
    let policy = Policy { require_sha256: true, ..Policy::default() };
    assert_eq!(broken(&policy, FILE), Some("sha256_required"));
    assert_eq!(broken(&policy, Candidate { declares_sha256: true, ..FILE }), None);
}

#[test]
fn a_pool_that_groups_by_label_requires_one() {
    let policy = Policy { grouping: Grouping::Label, ..Policy::default() };
    assert_eq!(broken(&policy, FILE), Some("label_required"));
    assert_eq!(broken(&policy, Candidate { has_label: true, ..FILE }), None);
}

#[test]
fn a_rejection_tells_the_client_the_rule_and_the_limit() {
    let policy = Policy { max_size: 9, ..Policy::default() };
    let refusal = millpond_protocol::Refusal::from(accept(&policy, &FILE).unwrap_err());
    assert_eq!(refusal.to_string(), "rejected: max_size: the file has 10 bytes and the pool takes up to 9");
}

#[test]
fn an_empty_policy_is_the_default_and_has_no_problems() {
    let policy: Policy = toml::from_str("").unwrap();
    assert_eq!(policy, Policy::default());
    assert_eq!(policy.problems(), Vec::<String>::new());
}

#[test]
fn an_unknown_key_is_an_error() {
    assert!(toml::from_str::<Policy>("windows_s = 60").is_err());
}

#[test]
fn every_problem_is_told_at_once_and_begins_with_its_key() {
    let policy = Policy {
        window_s: 59,
        count: 0,
        quorum_share: f64::NAN,
        max_age_s: 0,
        lease_term_s: 600,
        round_max_s: 60,
        parallel_rounds: 0,
        ..Policy::default()
    };
    let keys: Vec<String> =
        policy.problems().iter().map(|it| it.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(keys, ["window_s", "count", "max_age_s", "parallel_rounds", "quorum_share", "round_max_s"]);
}

#[test]
fn keys_that_contradict_each_other_are_problems() {
    for policy in [
        "quorum = 1\ngrace_s = 60\ndeadline_s = 60",
        "grouping = 'count'\ncount = 5\nmin_uploads = 6",
        "quorum_share = 1.5",
        "quorum_share = -0.1",
        "quorum_share = inf",
        "window_s = 2592001",
        "deadline_s = 18446744073709551",
        "keep_results = 0",
        "keep_results_s = 86399",
        "keep_uploads_s = 18446744073709551",
    ] {
        assert_eq!(toml::from_str::<Policy>(policy).unwrap().problems().len(), 1, "{policy}");
    }
}
