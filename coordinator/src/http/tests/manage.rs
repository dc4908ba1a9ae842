//! Pools, members and tokens; who may do what; bad requests.

use millpond_protocol::limits;

use super::*;
use crate::config::PoolFile;
use crate::rounds::Cause;

#[tokio::test]
async fn applying_a_pool_twice_changes_it_once_and_says_what() {
    let server = Server::start().await;
    let applied: Applied = server.admin(Method::PUT, "/v1/pools/p", json!({"window_s": 60})).await;
    assert!(applied.created && applied.policy_version == 1);
    assert_eq!(applied.changed.len(), 1);
    assert_eq!((applied.changed[0].key.as_str(), &applied.changed[0].to), ("window_s", &json!(60)));

    let again: Applied = server.admin(Method::PUT, "/v1/pools/p", json!({"window_s": 60})).await;
    assert!(!again.created && again.changed.is_empty() && again.policy_version == 1);

    let set: Applied = server.admin(Method::PATCH, "/v1/pools/p", json!({"late": "reject"})).await;
    assert_eq!(set.policy_version, 2);
    assert_eq!((&set.changed[0].from, &set.changed[0].to), (&Some(json!("next")), &json!("reject")));
    let info: PoolInfo = server.get("/v1/pools/p").await;
    assert_eq!((info.policy.window_s, info.policy_version), (60, 2));

    let new = server.refused(ADMIN, Method::PUT, "/v1/pools/p?new=true", json!({})).await;
    assert_eq!(new, (409, "conflict".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn bad_requests_get_their_code_and_change_nothing() {
    let server = Server::start().await;
    server.pool("p", &[]).await;
    let long = "x".repeat(BODY_MAX + 1);
    for (method, path, body, expected) in [
        (Method::PUT, "/v1/pools/Bad_Name", json!({}), (400, "malformed")),
        (Method::PUT, "/v1/pools/q", json!({"window": 60}), (400, "malformed")),
        (Method::PUT, "/v1/pools/q", json!({"window_s": 1}), (400, "malformed")),
        (Method::PUT, "/v1/pools/q", json!([]), (400, "malformed")),
        (Method::PUT, "/v1/pools/q", json!({ "late": long }), (413, "too_large")),
        (Method::PATCH, "/v1/pools/p", json!({"window_s": "long"}), (400, "malformed")),
        (Method::PATCH, "/v1/pools/nobody", json!({}), (404, "not_found")),
        (
            Method::POST,
            "/v1/pools/p/members",
            json!({"member": "a/b", "role": "publisher"}),
            (400, "malformed"),
        ),
        (Method::POST, "/v1/pools/p/members", json!({"member": "a", "role": "king"}), (400, "malformed")),
        (Method::POST, "/v1/pools/p/members", json!({"member": "a"}), (400, "malformed")),
        (Method::DELETE, "/v1/pools/p/members/nobody", Value::Null, (404, "not_found")),
        (Method::POST, "/v1/pools/p/members/nobody/tokens", Value::Null, (404, "not_found")),
        (Method::GET, "/v1/pools/p/uploads?limit=0", Value::Null, (400, "malformed")),
        (Method::GET, "/v1/pools/p/uploads?cursor=x", Value::Null, (400, "malformed")),
        (Method::GET, "/v1/pools/p/uploads?batch=x", Value::Null, (400, "malformed")),
        (Method::GET, "/v1/pools/p/uploads/m/u", Value::Null, (404, "not_found")),
        (Method::GET, "/v1/pools/p/batches/7", Value::Null, (404, "not_found")),
        (Method::GET, "/v1/pools/p/batches/-1", Value::Null, (400, "malformed")),
        (Method::GET, "/v1/pools/p/rounds/7", Value::Null, (404, "not_found")),
        (Method::POST, "/v1/pools/p/rounds/7/retry", Value::Null, (404, "not_found")),
        (Method::POST, "/v1/pools/p/results/7/rollback", Value::Null, (404, "not_found")),
        (Method::GET, "/v1/pools/p/nothing", Value::Null, (404, "not_found")),
        (Method::POST, "/v1/status", Value::Null, (404, "not_found")),
    ] {
        let found = server.refused(ADMIN, method.clone(), path, body).await;
        assert_eq!(found, (expected.0, expected.1.to_owned()), "{method} {path}");
    }
    let pools: Pools = server.get("/v1/pools").await;
    assert_eq!(pools.pools.len(), 1);
    let members: Members = server.get("/v1/pools/p/members?all=true").await;
    assert_eq!(members.members, []);
    server.stop().await;
}

#[tokio::test]
async fn only_admins_and_operators_of_the_pool_may_look_and_manage() {
    let server = Server::start().await;
    let own = [("op", "operator"), ("pub", "publisher"), ("proc", "processor")];
    let tokens = server.pool("p", &own).await;
    server.pool("q", &[]).await;
    let (operator, publisher, processor) = (&tokens[0], &tokens[1], &tokens[2]);
    let denied = (403, "unauthorized".to_owned());

    for token in ["", "nonsense", publisher, processor] {
        for path in ["/v1/pools", "/v1/pools/p", "/v1/status", "/v1/pools/p/uploads", "/v1/pools/p/events"] {
            assert_eq!(server.refused(token, Method::GET, path, Value::Null).await, denied, "{path}");
        }
    }
    // A pool that is not theirs and one that does not exist look the same.
    for pool in ["q", "nothing"] {
        let path = format!("/v1/pools/{pool}");
        assert_eq!(server.refused(operator, Method::GET, &path, Value::Null).await, denied);
        assert_eq!(server.refused(operator, Method::PUT, &path, json!({})).await, denied);
    }
    let (status, pools) = server.send(operator, Method::GET, "/v1/pools", Value::Null).await;
    assert_eq!((status, pools["pools"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let (status, _) = server.send(operator, Method::PATCH, "/v1/pools/p", json!({"late": "reject"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(server.refused(operator, Method::DELETE, "/v1/pools/p", Value::Null).await, denied);
    server.stop().await;
}

#[tokio::test]
async fn a_member_is_handed_all_it_needs_once_and_revoking_ends_its_tokens() {
    let server = Server::start().await;
    server.pool("p", &[]).await;
    let new = json!({"member": "dev-1", "role": "operator"});
    let hand_out: HandOut = server.admin(Method::POST, "/v1/pools/p/members", new.clone()).await;
    let token = hand_out.token.unwrap();
    assert_eq!((hand_out.user.as_str(), hand_out.mqtt_port), ("p/dev-1", 1883));
    assert_eq!(hand_out.storage_url, "http://files.example");
    assert!(
        hand_out.example.contains("mosquitto_sub -h broker.example") && hand_out.example.contains(&token)
    );
    let taken = server.refused(ADMIN, Method::POST, "/v1/pools/p/members", new).await;
    assert_eq!(taken, (409, "conflict".to_owned()));
    let members: Members = server.get("/v1/pools/p/members").await;
    assert!(!serde_json::to_string(&members).unwrap().contains(&token));

    let path = "/v1/pools/p/members/dev-1/tokens";
    let second: HandOut = server.admin(Method::POST, path, json!({})).await;
    let mut commits = server.ledger.commits();
    let third: HandOut = server.admin(Method::POST, path, json!({"replace": true})).await;
    // The notice of the request before may still be on its way.
    let ended = loop {
        let ended = commits.recv().await.unwrap().ended.clone();
        if !ended.is_empty() {
            break ended;
        }
    };
    assert!(matches!(&ended[..], [(_, member, _)] if member.as_str() == "dev-1"), "its sessions end");
    for (token, valid) in
        [(&token, false), (&second.token.unwrap(), false), (third.token.as_ref().unwrap(), true)]
    {
        let (status, _) = server.send(token, Method::GET, "/v1/pools/p", Value::Null).await;
        assert_eq!(status.is_success(), valid);
    }
    let _: Value = server.admin(Method::DELETE, "/v1/pools/p/members/dev-1", Value::Null).await;
    let denied = server.refused(third.token.as_ref().unwrap(), Method::GET, "/v1/pools/p", Value::Null).await;
    assert_eq!(denied.0, 403);
    let members: Members = server.get("/v1/pools/p/members?all=true").await;
    assert!(members.members[0].revoked.is_some() && members.members[0].tokens == 0);
    server.stop().await;
}

#[tokio::test]
async fn a_device_that_brings_its_own_hash_may_repeat_the_request() {
    let server = Server::start().await;
    server.pool("p", &[]).await;
    let new = json!({"member": "m", "role": "operator", "token_sha256": Sha256::of(b"made by the device")});
    for _ in 0..2 {
        let hand_out: HandOut = server.admin(Method::POST, "/v1/pools/p/members", new.clone()).await;
        assert_eq!(hand_out.token, None);
    }
    let (status, _) = server.send("made by the device", Method::GET, "/v1/pools/p", Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    server.stop().await;
}

#[tokio::test]
async fn an_operator_who_is_revoked_does_not_finish_a_request_that_it_had_begun() {
    let server = Server::start().await;
    let new = json!({"member": "mole", "role": "operator"});
    for (n, (method, path, body)) in [
        ("POST", "/v1/pools/p/members", new.clone()),
        ("PATCH", "/v1/pools/p/members/dev", json!({"role": "operator"})),
        ("POST", "/v1/pools/p/members/dev/tokens", json!({"replace": true})),
        ("POST", "/v1/pools/p/joins", json!({"name": "j", "role": "publisher", "uses": 1, "expires_s": 60})),
        ("PUT", "/v1/pools/p", json!({"window_s": 120})),
        ("PATCH", "/v1/pools/p", json!({"window_s": 120})),
    ]
    .into_iter()
    .enumerate()
    {
        let operator = format!("op-{n}");
        let token =
            &server.pool("p", &[(&operator, "operator"), (&format!("dev-{n}"), "publisher")]).await[0];
        let path = path.replace("dev", &format!("dev-{n}"));
        let revoked = async {
            let path = format!("/v1/pools/p/members/{operator}");
            let _: Value = server.admin(Method::DELETE, &path, Value::Null).await;
        };
        assert_eq!(server.held(token, method, &path, body, revoked).await, 403, "{method} {path}");
    }
    // Who was not revoked may take its time.
    let token = &server.pool("p", &[("op", "operator")]).await[0];
    assert_eq!(server.held(token, "POST", "/v1/pools/p/members", new, async {}).await, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_device_has_few_tokens_at_once_and_a_request_that_changes_nothing_is_not_in_the_audit_trail() {
    let server = Server::start().await;
    let token = &server.pool("p", &[("m", "publisher")]).await[0];
    let path = "/v1/pools/p/members/m/tokens";
    for n in 1..limits::TOKENS_MAX {
        let new = json!({"token_sha256": Sha256::of(&n.to_be_bytes())});
        for _ in 0..2 {
            assert_eq!(server.send(token, Method::POST, path, new.clone()).await.0, StatusCode::OK);
        }
    }
    let another = Sha256::of(b"another");
    for more in [json!({}), json!({"replace": true, "overlap_s": 60})] {
        let mut new = json!({"token_sha256": another});
        new.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let refused = server.refused(token, Method::POST, path, new).await;
        assert_eq!(refused, (429, "quota".to_owned()));
    }
    let trail: Audit = server.get("/v1/audit?pool=p&limit=1000").await;
    let given = trail.entries.iter().filter(|entry| entry.action == "token-new").count();
    assert_eq!(given, limits::TOKENS_MAX as usize - 1);
    let new = json!({"token_sha256": another, "replace": true});
    assert_eq!(server.send(token, Method::POST, path, new).await.0, StatusCode::OK);
    let members: Members = server.get("/v1/pools/p/members").await;
    assert_eq!(members.members[0].tokens, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_join_token_that_is_asked_for_again_is_answered_as_it_stands_and_another_is_a_conflict() {
    let server = Server::start().await;
    server.pool("p", &[("m", "listener")]).await;
    let hash = Sha256::of(b"join");
    let new = |role: &str, uses: u32, expires: u32| json!({"name": "j", "role": role, "uses": uses, "expires_s": expires, "token_sha256": hash});
    let path = "/v1/pools/p/joins";
    let first: JoinInfo = server.admin(Method::POST, path, new("publisher", 5, 600)).await;
    let device = json!({"member": "d", "token_sha256": Sha256::of(b"device")});
    for _ in 0..2 {
        let (status, _) = server.send("join", Method::POST, "/v1/pools/p/enrol", device.clone()).await;
        assert_eq!(status, StatusCode::OK);
    }
    let again: JoinInfo = server.admin(Method::POST, path, new("publisher", 5, 60)).await;
    assert_eq!((again.uses, again.expires), (4, first.expires));
    for other in [new("processor", 5, 600), new("publisher", 3, 600)] {
        assert_eq!(server.refused(ADMIN, Method::POST, path, other).await, (409, "conflict".to_owned()));
    }
    for _ in 0..2 {
        let member = "/v1/pools/p/members/m";
        let _: Value = server.admin(Method::PATCH, member, json!({"role": "publisher"})).await;
    }
    let trail: Audit = server.get("/v1/audit?pool=p&limit=1000").await;
    for action in ["join-add", "member-role"] {
        assert_eq!(trail.entries.iter().filter(|entry| entry.action == action).count(), 1, "{action}");
    }
    server.stop().await;
}

#[tokio::test]
async fn whoever_repeats_a_name_that_is_taken_is_sent_away_and_others_with_the_same_join_token_are_not() {
    let server = Server::start().await;
    server.pool("p", &[("m", "listener")]).await;
    let join = json!({"name": "j", "role": "publisher", "uses": 1_000, "expires_s": 600, "token_sha256": Sha256::of(b"join")});
    let _: JoinInfo = server.admin(Method::POST, "/v1/pools/p/joins", join).await;
    let enrol = async |member: &str| {
        let device = json!({"member": member, "token_sha256": Sha256::of(b"device")});
        server.refused("join", Method::POST, "/v1/pools/p/enrol", device).await
    };
    for _ in 0..10 {
        assert_eq!(enrol("m").await, (409, "conflict".to_owned()));
    }
    assert_eq!(enrol("m").await, (429, "quota".to_owned()));
    let beside = json!({"member": "beside", "token_sha256": Sha256::of(b"beside")});
    let (status, _) = server.send("join", Method::POST, "/v1/pools/p/enrol", beside).await;
    assert_eq!(status, 200, "a device with the same token behind the same address");
    // A token that is none pays for itself.
    let stale = async || {
        let device = json!({"member": "d", "token_sha256": Sha256::of(b"device")});
        server.refused("stale", Method::POST, "/v1/pools/p/enrol", device).await.0
    };
    for _ in 0..10 {
        assert_eq!(stale().await, 403);
    }
    assert_eq!(stale().await, 429);
    let long = json!({"member": "d", "token_sha256": "x".repeat(5_000)});
    let refused = server.refused("other", Method::POST, "/v1/pools/p/enrol", long).await;
    assert_eq!(refused, (413, "too_large".to_owned()));
    server.stop().await;
}

#[test]
fn the_examples_of_enrolling_are_what_the_server_reads_and_writes() {
    let asked = include_str!("../../../../docs/golden/message/enrol.json");
    let answered = include_str!("../../../../docs/golden/message/answer-enrol.json");
    let (enrol, hand_out): (Enrol, HandOut) =
        (serde_json::from_str(asked).unwrap(), serde_json::from_str(answered).unwrap());
    assert_eq!(json!(enrol), serde_json::from_str::<Value>(asked).unwrap());
    assert_eq!(json!(hand_out), serde_json::from_str::<Value>(answered).unwrap());
}

#[tokio::test]
async fn an_operator_does_not_see_what_was_done_in_an_earlier_pool_of_the_same_name() {
    let server = Server::start().await;
    server.pool("p", &[("former", "operator")]).await;
    let _: Value = server.admin(Method::DELETE, "/v1/pools/p", Value::Null).await;
    let token = &server.pool("p", &[("op", "operator")]).await[0];
    for path in ["/v1/audit", "/v1/audit?pool=p"] {
        let (_, trail) = server.send(token, Method::GET, path, Value::Null).await;
        let actions: Vec<_> =
            trail["entries"].as_array().unwrap().iter().map(|entry| entry["action"].as_str()).collect();
        assert_eq!(actions, [Some("member-add"), Some("pool-apply")], "{path}: {trail}");
    }
    let all: Audit = server.get("/v1/audit?pool=p").await;
    assert_eq!(all.entries.len(), 5);
    server.stop().await;
}

#[tokio::test]
async fn a_run_of_retention_is_in_the_audit_trail_before_it_begins_and_two_do_not_wait_for_each_other() {
    let server = Server::start().await;
    let turn = server.api.0.collector.try_turn().unwrap();
    let refused = server.refused(ADMIN, Method::POST, "/v1/gc", Value::Null).await;
    assert_eq!(refused, (503, "unavailable".to_owned()));
    drop(turn);
    let _: Collected = server.admin(Method::POST, "/v1/gc?trust_clock=true", Value::Null).await;
    let trail: Audit = server.get("/v1/audit").await;
    let actions: Vec<_> = trail.entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["gc-done", "gc"]);
    assert!(trail.entries[1].detail["trusted_clock"].is_string());
    server.stop().await;
}

#[tokio::test]
async fn a_token_that_is_in_use_is_a_conflict_and_stays_its_holders() {
    let server = Server::start().await;
    server.pool("p", &[]).await;
    server.pool("q", &[]).await;
    let hash = Sha256::of(b"of the first");
    let new = |member: &str, role: &str| json!({"member": member, "role": role, "token_sha256": hash});
    let _: HandOut = server.admin(Method::POST, "/v1/pools/p/members", new("first", "operator")).await;
    let _: HandOut =
        server.admin(Method::POST, "/v1/pools/p/members", json!({"member": "n", "role": "listener"})).await;
    for (path, body) in [
        ("/v1/pools/p/members", new("second", "operator")),
        ("/v1/pools/q/members", new("first", "operator")),
        ("/v1/pools/p/members/n/tokens", json!({"token_sha256": hash, "replace": true})),
    ] {
        let refused = server.refused(ADMIN, Method::POST, path, body).await;
        assert_eq!(refused, (409, "conflict".to_owned()), "{path}");
    }
    let holder = server.principal("of the first").await;
    assert_eq!((holder.pool.as_str(), holder.name.as_str()), ("p", "first"));
    let members: Members = server.get("/v1/pools/p/members").await;
    let names: Vec<_> =
        members.members.iter().map(|member| (member.member.as_str(), member.tokens)).collect();
    assert_eq!(names, [("first", 1), ("n", 1)]);
    server.stop().await;
}

#[tokio::test]
async fn every_shipped_pool_can_be_applied_takes_uploads_and_is_sealed_by_a_trigger() {
    let server = Server::start().await;
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/pools");
    for file in std::fs::read_dir(shipped).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let PoolFile { name, policy } = PoolFile::parse(&text, "").unwrap();
        let path = format!("/v1/pools/{name}");
        let applied: Applied = server.admin(Method::PUT, &path, json!(policy)).await;
        assert!(applied.created, "{name}");
        let new = json!({"member": "m", "role": "publisher"});
        let hand_out: HandOut = server.admin(Method::POST, &format!("{path}/members"), new).await;
        server.upload(&hand_out.token.unwrap(), "u", b"bytes").await;
        let upload: UploadStory = server.get(&format!("{path}/uploads/m/u")).await;
        assert_eq!(upload.info.batch_state.as_deref(), Some("open"), "{name}: {:?}", upload.story);
        server.trigger(name.as_str()).await;
        let batch: BatchInfo = server.get(&format!("{path}/batches/1")).await;
        assert_eq!((batch.state.as_str(), batch.cause), ("sealed", Some(Cause::Trigger)), "{name}");
    }
    server.stop().await;
}
