//! Who may sign in and for how long, and that everything of it can be read afterwards.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Role, Sha256};
use millpond_tests::wire::connect_of;
use millpond_tests::{Api, Credentials, Mill, Plain, Server, recent_hour, until};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
async fn a_join_token_that_has_ended_or_is_used_up_lets_nobody_in_and_the_trail_says_who_tried() {
    let server = Server::start().await;
    server.pool("p", json!({})).await;
    let join = async |name: &str, uses: u32| {
        let new = json!({"name": name, "role": "publisher", "uses": uses, "expires_s": 600});
        let join = server.api().post("/v1/pools/p/joins", &new).await;
        Api::new(format!("http://{}", server.ports().http), join["token"].as_str().unwrap())
    };
    let enrol = |member: &str| json!({"member": member, "token_sha256": Sha256::of(member.as_bytes())});
    let path = "/v1/pools/p/enrol";

    // Eight at once with a token for two.
    let shared = join("shared", 2).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (shared, body) = (shared.clone(), enrol(&format!("dev-{n}")));
        tasks.spawn(async move { shared.call(Method::POST, path, Some(&body)).await });
    }
    let answers = tasks.join_all().await;
    let (let_in, refused_ones): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(status, _)| *status == 200);
    assert_eq!(let_in.len(), 2, "{let_in:?}");

    // One that ended: who was in by it has its answer still.
    let ended = join("ended", 10).await;
    let first = ended.post(path, &enrol("early")).await;
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    let aged = ledger.execute("UPDATE joins SET expires = expires - 600000 WHERE name = 'ended'", []);
    assert_eq!(aged.unwrap(), 1);
    let late = ended.call(Method::POST, path, Some(&enrol("late"))).await;
    assert_eq!(ended.post(path, &enrol("early")).await, first);

    for (status, answer) in refused_ones.into_iter().chain([late]) {
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (403, &json!("unauthorized")), "{answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("used up or has expired") && error["hint"].is_string(), "{answer}");
    }
    let members = server.api().get("/v1/pools/p/members").await;
    assert_eq!(members["members"].as_array().unwrap().len(), 3, "{members}");
    until("each that was refused is in the trail", async || {
        let entries = audit(&server, "&pool=p").await;
        let refused = entries.iter().filter(|entry| entry["action"] == "sign-in-refused");
        let who: Vec<_> = refused
            .filter(|entry| entry["detail"]["reason"] == "a join token that is not valid")
            .map(|entry| entry["who"].as_str().unwrap())
            .collect();
        who.len() == 7 && who.contains(&"p/late") && !who.contains(&"p/early")
    })
    .await;
    let metrics = server.api().get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("millpond_http_sign_in_failures_total 7"), "{metrics}");
    // The name is free for another, and the old token is not the new one's.
    let again = join("ended", 1).await;
    assert_eq!(ended.call(Method::POST, path, Some(&enrol("late"))).await.0, 403);
    again.post(path, &enrol("late")).await;
}

#[tokio::test]
async fn while_the_ledger_cannot_be_asked_nobody_is_taken_for_a_stranger_and_everybody_is_told_to_come_again()
{
    let server = Server::with(&[("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_NAME", "1")]).await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let api = Api::new(format!("http://{}", server.ports().http), who.token.clone());
    let bytes = vec![7; 200_000];
    let put = json!({"id": "x", "upload": "x", "size": bytes.len(), "sha256": Sha256::of(&bytes)});
    let granted = api.post("/v1/pools/p/ask/put", &put).await;
    let to: PutTo = serde_json::from_value(granted["to"].clone()).unwrap();
    let user = format!("{}/{}", who.pool, who.member);
    let sign_in = async || {
        let mut io = tokio::net::TcpStream::connect(server.mqtt()).await.unwrap();
        io.write_all(&connect_of(5, 0xC2, &[], &["x", &user, &who.token])).await.unwrap();
        let mut connack = [0; 4];
        io.read_exact(&mut connack).await.unwrap();
        connack[3]
    };
    // To a token over HTTP, to a URL that somebody was given, to whoever signs in over MQTT.
    let answers = async || {
        let (asked, answer) = api.call(Method::POST, "/v1/pools/p/ask/time", Some(&json!({"id": "t"}))).await;
        let code = answer["error"]["code"].as_str().unwrap_or_default().to_owned();
        (asked, code, api.send(&to, bytes.clone()).await, sign_in().await)
    };
    assert_eq!(answers().await, (200, String::new(), 200, 0));
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    ledger.busy_timeout(Duration::from_secs(60)).unwrap();
    // Who is a member of what does not read.
    ledger.execute_batch("ALTER TABLE members RENAME TO members_gone").unwrap();
    for _ in 0..3 {
        assert_eq!(answers().await, (503, "unavailable".to_owned(), 503, 0x88));
    }
    ledger.execute_batch("ALTER TABLE members_gone RENAME TO members").unwrap();
    // Nothing of it counts as a failure: one is enough to have to wait.
    assert_eq!(answers().await, (200, String::new(), 200, 0));
    let trail = audit(&server, "").await;
    assert!(trail.iter().all(|entry| entry["action"] != "sign-in-refused"), "{trail:?}");
}
