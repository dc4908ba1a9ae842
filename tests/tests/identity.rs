//! Who may sign in and for how long, and that everything of it can be read afterwards, but no secret.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Api, Credentials, Link, Mill, Plain, Server, recent_hour, until};
use reqwest::Method;
use serde_json::{Value, json};

/// The audit trail, newest first.
async fn audit(server: &Server, query: &str) -> Vec<Value> {
    let trail = server.api().get(&format!("/v1/audit?limit=1000{query}")).await;
    trail["entries"].as_array().unwrap().clone()
}

/// How many refused sign-ins the trail counts for a user and a reason.
async fn refused(server: &Server, who: &str, reason: &str) -> u64 {
    let entries = audit(server, "").await;
    let mine = entries.iter().filter(|entry| {
        entry["action"] == "sign-in-refused" && entry["who"] == who && entry["detail"]["reason"] == reason
    });
    mine.map(|entry| entry["detail"]["count"].as_u64().unwrap()).sum()
}

fn with_token(who: &Credentials, token: &str) -> Credentials {
    Credentials { token: token.to_owned(), ..who.clone() }
}

/// Calls with ever other tokens that nobody was given until the address has failed too often; that answer.
async fn fail_until_told_to_wait(server: &Server) -> Value {
    for n in 0..1_000 {
        let stranger = Api::new(format!("http://{}", server.ports().http), format!("{WRONG}{n}"));
        let (status, answer) = stranger.call(Method::GET, "/v1/status", None).await;
        if status == 429 {
            return answer;
        }
        assert_eq!(status, 403, "{answer}");
    }
    panic!("nobody is told to wait");
}

/// The ten minutes of an overlap are over.
fn end_overlap(server: &Server) {
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    let ended = ledger.execute("UPDATE tokens SET expires = expires - 600000 WHERE expires IS NOT NULL", []);
    assert_eq!(ended.unwrap(), 1);
}

/// A token that nobody was given.
const WRONG: &str = "mpd_wrong-wrong-wrong-wrong-wrong-wrong-wrong-w";

#[tokio::test]
async fn whoever_fails_too_often_waits_and_the_neighbour_does_not() {
    let mut server = Server::with(&[("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_NAME", "3")]).await;
    server.pool("p", json!({})).await;
    let careless = server.member("p", "careless", Role::Publisher).await;
    let neighbour = server.member("p", "neighbour", Role::Publisher).await;
    for _ in 0..5 {
        assert!(Plain::connect(with_token(&careless, WRONG)).await.is_err());
    }
    // Also the right token now: it is not looked at.
    assert!(Plain::connect(careless).await.is_err());
    Plain::connect(neighbour).await.unwrap().close().await;
    let (wrong, too_many) = ("unknown user name or wrong token", "too many failed attempts: wait");
    until("both kinds are in the audit trail", async || {
        refused(&server, "p/careless", wrong).await > 0 && refused(&server, "p/careless", too_many).await > 0
    })
    .await;
    // What came after the first would be written in an hour; or now.
    assert!(server.terminate().await.success());
    server.launch().await;
    assert_eq!(refused(&server, "p/careless", wrong).await, 3);
    assert_eq!(refused(&server, "p/careless", too_many).await, 3);
    let of_the_pool = audit(&server, "&pool=p").await;
    let entry = of_the_pool.iter().find(|entry| entry["action"] == "sign-in-refused").unwrap();
    assert_eq!((&entry["from"], &entry["pool"]), (&json!("127.0.0.1"), &json!("p")));
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_told_how_long_to_wait() {
    let server = Server::with(&[("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_ADDRESS", "2")]).await;
    let answer = fail_until_told_to_wait(&server).await;
    let wait = answer["error"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_000).contains(&wait), "{answer}");
    tokio::time::sleep(Duration::from_millis(wait + 1)).await;
    // The admin comes from the same address.
    until("the refusals are in the audit trail", async || {
        refused(&server, "unknown", "a bearer token that is not valid").await >= 1
            && refused(&server, "unknown", "too many failed attempts").await >= 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_repeats_a_stale_token_keeps_neither_admin_nor_device_out_beside_it() {
    let limits = [
        ("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_NAME", "5"),
        ("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_ADDRESS", "3"),
    ];
    let server = Server::with(&limits).await;
    server.pool("p", json!({})).await;
    let device = server.member("p", "edge", Role::Publisher).await;
    let stale = Api::new(format!("http://{}", server.ports().http), WRONG);
    let mut answers = Vec::new();
    for (method, path) in [(Method::GET, "/v1/status"), (Method::POST, "/v1/pools/p/enrol")] {
        let enrol = json!({"member": "x", "token_sha256": Sha256::of(b"x")});
        for _ in 0..20 {
            let body = (method == Method::POST).then_some(&enrol);
            answers.push(stale.call(method.clone(), path, body).await.0);
        }
    }
    assert_eq!(answers[..5], [403; 5]);
    assert_eq!(answers.last(), Some(&429));
    server.api().get("/v1/status").await;
    Plain::connect(device).await.unwrap().close().await;
}

#[tokio::test]
async fn another_role_ends_what_was_held_by_the_old_one() {
    let server = Server::start().await;
    server.pool("p", json!({"grouping": "label"})).await;
    let publisher = server.member("p", "edge", Role::Publisher).await;
    let who = server.member("p", "mill", Role::Processor).await;
    let mut edge = Plain::connect(publisher).await.unwrap();
    edge.publish("mp/p/c/edge/up/one/l", "bytes").await.unwrap();
    let mill = Mill::join(who.clone(), server.api()).await;
    mill.trigger(&json!({"label": "l"})).await.unwrap();
    let mut session =
        Plain::connect(Credentials { client_id: "other".to_owned(), ..who.clone() }).await.unwrap();
    server.api().patch("/v1/pools/p/members/mill", &json!({"role": "listener"})).await;
    session.ended().await;
    until("the round waits for another processor", async || {
        let round = server.api().get("/v1/pools/p/rounds/1").await;
        round["state"] == "pausing" || round["state"] == "offered"
    })
    .await;
    let mut listener = Plain::connect(who).await.unwrap();
    assert!(!listener.subscribe("mp/p/offer").await.unwrap());
    assert!(listener.subscribe("mp/p/result").await.unwrap());
    let trail = audit(&server, "&pool=p").await;
    let entry = trail.iter().find(|entry| entry["action"] == "member-role").unwrap();
    assert_eq!(entry["detail"], json!({"member": "mill", "role": "listener", "was": "processor"}));
    assert_eq!(entry["who"], "admin");
    let entry = trail.iter().find(|entry| entry["action"] == "trigger").unwrap();
    assert_eq!(entry["who"], "p/mill");
    assert!(entry["from"].as_str().unwrap().starts_with("127.0.0.1:"), "{entry}");
}

#[tokio::test]
async fn a_replaced_token_holds_for_its_overlap_and_its_sessions_end_with_it() {
    let server = Server::start().await;
    server.pool("p", json!({})).await;
    let old = server.member("p", "edge", Role::Publisher).await;
    let mut session = Plain::connect(old.clone()).await.unwrap();
    // The device rotates by itself: with its own token, and the hash of the new one.
    let own = Api::new(format!("http://{}", server.ports().http), &old.token);
    let new = with_token(&old, "mpd_made-by-the-device-itself-made-by-the-dev");
    let hash = Sha256::of(new.token.as_bytes());
    let path = "/v1/pools/p/members/edge/tokens";
    own.post(path, &json!({"token_sha256": hash, "replace": true, "overlap_s": 600})).await;
    // The answer was lost, perhaps. But a thief of the old token does not outlive it.
    own.post(path, &json!({"token_sha256": hash, "replace": true, "overlap_s": 600})).await;
    let another = json!({"token_sha256": Sha256::of(b"of a thief")});
    let (status, answer) = own.call(Method::POST, path, Some(&another)).await;
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("unauthorized")));
    session.publish(&format!("mp/p/c/edge/up/held/{}", recent_hour()), "bytes").await.unwrap();
    let other = Credentials { client_id: "second".to_owned(), ..old.clone() };
    Plain::connect(other.clone()).await.unwrap().close().await;
    end_overlap(&server);
    session.ended().await;
    assert!(Plain::connect(other).await.is_err());
    Plain::connect(new).await.unwrap().close().await;
    // A member may not do the same to another, nor to itself without a hash.
    let (status, _) = own.call(Method::POST, path, Some(&json!({"replace": true}))).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn devices_join_by_themselves_as_often_as_the_join_token_says() {
    let server = Server::start().await;
    server.pool("p", json!({})).await;
    server.pool("q", json!({})).await;
    let (status, _) = server
        .api()
        .call(
            Method::POST,
            "/v1/pools/p/joins",
            Some(&json!({"name": "j", "role": "operator", "uses": 1, "expires_s": 60})),
        )
        .await;
    assert_eq!(status, 400);
    let new = json!({"name": "line-3", "role": "publisher", "uses": 1, "expires_s": 600});
    let join = server.api().post("/v1/pools/p/joins", &new).await;
    let device = Api::new(format!("http://{}", server.ports().http), join["token"].as_str().unwrap());
    let token = "mpd_made-by-the-device-itself-made-by-the-dev";
    let enrol = json!({"member": "dev-1", "token_sha256": Sha256::of(token.as_bytes())});
    let first = device.post("/v1/pools/p/enrol", &enrol).await;
    assert_eq!((&first["user"], &first["role"]), (&json!("p/dev-1"), &json!("publisher")));
    // The answer was lost, perhaps.
    assert_eq!(device.post("/v1/pools/p/enrol", &enrol).await, first);
    for (path, body) in [
        ("/v1/pools/p/enrol", json!({"member": "dev-2", "token_sha256": Sha256::of(b"another")})),
        ("/v1/pools/q/enrol", enrol.clone()),
        ("/v1/pools/none/enrol", enrol.clone()),
        ("/v1/pools/p/members", json!({"member": "x", "role": "operator"})),
    ] {
        let (status, answer) = device.call(Method::POST, path, Some(&body)).await;
        assert_eq!((status, &answer["error"]["code"]), (403, &json!("unauthorized")), "{path}: {answer}");
    }
    let who = Credentials {
        mqtt: server.mqtt(),
        pool: "p".parse().unwrap(),
        member: "dev-1".parse().unwrap(),
        client_id: "dev-1".to_owned(),
        token: token.to_owned(),
    };
    Plain::connect(who).await.unwrap().close().await;
    let joins = server.api().get("/v1/pools/p/joins").await;
    assert_eq!(joins["joins"][0]["uses"], 0);
    let trail = audit(&server, "&pool=p").await;
    let entry = trail.iter().find(|entry| entry["action"] == "member-add").unwrap();
    assert_eq!(entry["who"], "join token line-3");
    server.api().delete("/v1/pools/p/joins/line-3").await;
    // Whoever is in has its answer still; nobody else gets in.
    assert_eq!(device.post("/v1/pools/p/enrol", &enrol).await, first);
    let other = json!({"member": "dev-3", "token_sha256": Sha256::of(b"another")});
    let (status, _) = device.call(Method::POST, "/v1/pools/p/enrol", Some(&other)).await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_the_audit_trail_an_event_or_a_command_line() {
    let storage = "a-storage-secret-that-was-planted-by-the-test";
    let mut server = Server::with(&[
        ("MILLPOND__LOG__FILTER", "debug"),
        ("MILLPOND__STORAGE__ACCESS_KEY", "the-key"),
        ("MILLPOND__STORAGE__SECRET_KEY", storage),
    ])
    .await;
    server.pool("p", json!({"grouping": "label"})).await;
    let edge = server.member("p", "edge", Role::Publisher).await;
    let mill = server.member("p", "mill", Role::Processor).await;
    let api = server.api();
    let join = json!({"name": "j", "role": "publisher", "uses": 1, "expires_s": 600});
    let join = api.post("/v1/pools/p/joins", &join).await["token"].as_str().unwrap().to_owned();
    let brought = "mpd_brought-by-the-device-brought-by-the-devi";
    let device = Api::new(format!("http://{}", server.ports().http), &join);
    let enrol = json!({"member": "dev", "token_sha256": Sha256::of(brought.as_bytes())});
    device.post("/v1/pools/p/enrol", &enrol).await;

    // Secrets in the wrong place: as a wrong password, as a user name, as a bearer that is none.
    assert!(Plain::connect(with_token(&edge, WRONG)).await.is_err());
    let misplaced = Credentials { member: edge.token.parse().unwrap(), ..edge.clone() };
    assert!(Plain::connect(misplaced).await.is_err());
    Api::new(format!("http://{}", server.ports().http), WRONG).call(Method::GET, "/v1/pools", None).await;

    // A whole round, with a large upload by URL.
    let link = Link::open(edge.clone()).await.unwrap();
    let large = vec![7; 200_000];
    let ask = json!({"id": "a", "upload": "large", "size": large.len(), "sha256": Sha256::of(&large), "label": "l"});
    let put: Value = link.ask(Op::Put, &ask).await.unwrap();
    let to = serde_json::from_value(put["to"].clone()).unwrap();
    assert_eq!(api.send(&to, large).await, 200);
    let _: Value = link.ask(Op::Commit, &json!({"id": "b", "uploads": ["large"]})).await.unwrap();
    let at_work = Mill::join(mill.clone(), api.clone()).await;
    let lease = at_work.trigger(&json!({"label": "l"})).await.unwrap();
    at_work.answer(&lease, vec![1; 300_000]).await.unwrap();
    let pointer = pointer_of(&edge).await;
    until("the refusals are in the audit trail", async || {
        refused(&server, "unknown", "a bearer token that is not valid").await == 1
    })
    .await;

    let metrics = api.get("/metrics").await.to_string();
    let seen = [
        ("the log", server.process().stderr()),
        ("standard output", server.process().stdout()),
        ("the metrics", metrics),
        ("the audit trail", format!("{:?}", audit(&server, "").await)),
        ("the events", api.get("/v1/pools/p/events?since=0").await.to_string()),
        ("the members", api.get("/v1/pools/p/members?all=true").await.to_string()),
        (
            "the command line",
            std::fs::read_to_string(format!("/proc/{}/cmdline", server.process().id())).unwrap(),
        ),
    ];
    let admin = std::fs::read_to_string(server.data().join("admin.token")).unwrap();
    let signature = |url: &str| url.split("X-Amz-Signature=").nth(1).unwrap().to_owned();
    let secrets = [
        admin.trim().to_owned(),
        storage.to_owned(),
        edge.token.clone(),
        mill.token.clone(),
        join,
        brought.to_owned(),
        WRONG.to_owned(),
        signature(put["to"]["url"].as_str().unwrap()),
        signature(&pointer),
    ];
    for (place, text) in &seen {
        assert!(!text.is_empty() || *place == "standard output", "{place} is empty");
        for secret in &secrets {
            assert!(!text.contains(secret), "{place} shows {secret}");
        }
    }
}

/// The URL in the pool's pointer, as a member gets it.
async fn pointer_of(who: &Credentials) -> String {
    let mut listener =
        Plain::connect(Credentials { client_id: "listener".to_owned(), ..who.clone() }).await.unwrap();
    assert!(listener.subscribe("mp/p/result").await.unwrap());
    let pointer: Value = serde_json::from_slice(&listener.next_on("mp/p/result").await.unwrap()).unwrap();
    pointer["url"].as_str().unwrap().to_owned()
}
