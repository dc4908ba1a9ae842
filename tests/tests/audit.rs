//! The audit trail, entry by entry: every way in which a sign-in is refused, and every deed that changes who may do what or
//! what becomes of a round. Who, from where, when, about what; nothing twice, nothing else, and no secret.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{SystemTime, UNIX_EPOCH};

use millpond_protocol::{Role, Sha256, Timestamp};
use millpond_tests::overload::from;
use millpond_tests::wire::{connect_as, connect_of};
use millpond_tests::{Credentials, Mill, Plain, Server, until};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A token that nobody was given.
const WRONG: &str = "mpd_wrong-wrong-wrong-wrong-wrong-wrong-wrong-w";
/// Where those who manage come from.
const OFFICE: &str = "127.0.2.1";
const BAD: &str = "unknown user name or wrong token";
const WRONG_USER: &str = "the user name is {pool}/{member}, and the password is the member's token";

/// Whoever calls the API from an address, with a token.
struct Caller {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Caller {
    fn new(server: &Server, address: &str, token: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().local_address(Some(address.parse().unwrap()));
        let base = format!("http://{}", server.ports().http);
        Self { http: http.build().unwrap(), base, token: token.to_owned() }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn good(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::clamped(i64::try_from(since.as_millis()).unwrap())
}

/// The trail, oldest first, whole.
async fn trail(server: &Server) -> Vec<Value> {
    let found = server.api().get("/v1/audit?limit=1000").await;
    assert!(found.get("cursor").is_none_or(Value::is_null), "the trail has more pages than one");
    found["entries"].as_array().unwrap().iter().rev().cloned().collect()
}

/// Sends a CONNECT from an address, and waits until the server has ended the connection.
async fn refused_connect(server: &Server, address: &str, connect: &[u8]) {
    let mut io = from(address, server.mqtt()).await.unwrap();
    io.write_all(connect).await.unwrap();
    let mut said = Vec::new();
    let _ = io.read_to_end(&mut said).await;
    assert!(said.len() > 3 && said[0] == 0x20 && said[3] != 0, "{address} is let in: {said:?}");
}

#[tokio::test]
async fn every_refused_sign_in_is_an_entry_with_who_where_when_and_why() {
    let limits = [
        ("MILLPOND__LIMITS__SIGN_IN_FAILURES_PER_NAME", "3"),
        ("MILLPOND__LIMITS__CONNECTIONS_PER_MEMBER", "1"),
        ("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#),
    ];
    let mut server = Server::prepare(&limits);
    let scraper = server.directory().join("scraper");
    std::fs::write(&scraper, "a-token-for-the-scraper-of-metrics").unwrap();
    std::fs::set_permissions(&scraper, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    server.set_environment([("MILLPOND__HTTP__METRICS_TOKEN_FILE", scraper.display().to_string())]);
    server.launch().await;
    for pool in ["p", "q"] {
        server.pool(pool, json!({})).await;
    }
    let dev = server.member("p", "dev", Role::Publisher).await;
    let other = server.member("p", "other", Role::Publisher).await;
    let foreign = server.member("q", "dev", Role::Publisher).await;
    let gone = server.member("p", "gone", Role::Publisher).await;
    server.api().delete("/v1/pools/p/members/gone").await;
    let ended = server.member("p", "ended", Role::Publisher).await;
    let ledger = rusqlite::Connection::open(server.data().join("ledger.db")).unwrap();
    let hash = Sha256::of(ended.token.as_bytes());
    let aged = ledger.execute("UPDATE tokens SET expires = 1 WHERE hash = ?1", [hash.0.as_slice()]);
    assert_eq!(aged.unwrap(), 1);
    let begun = now();

    // Address by address: the CONNECT, and who it is in which pool and why it is refused.
    let as_user = |user: &str, token: &str| connect_as("x", [user, token]);
    // The fields of a will stand before the user name.
    let will = connect_of(4, 0xC6, &[], &["x", "elsewhere/x", "gone", "p/dev", &dev.token]);
    let tried: [(Vec<u8>, &str, Option<&str>, &str); 11] = [
        (as_user("p/dev", WRONG), "p/dev", Some("p"), BAD),
        (as_user("p/nobody", &dev.token), "p/nobody", Some("p"), BAD),
        (as_user("none/dev", &dev.token), "none/dev", None, BAD),
        (as_user("p/dev", &other.token), "p/dev", Some("p"), BAD),
        (as_user("p/dev", &foreign.token), "p/dev", Some("p"), BAD),
        (as_user("p/gone", &gone.token), "p/gone", Some("p"), BAD),
        (as_user("p/ended", &ended.token), "p/ended", Some("p"), BAD),
        // A token where the name should be is not written down, nor is what is no name.
        (as_user(&format!("p/{}", dev.token), "x"), "unknown", None, BAD),
        (as_user("no name", &dev.token), "unknown", None, WRONG_USER),
        (connect_of(4, 2, &[], &["x"]), "unknown", None, WRONG_USER),
        (
            will,
            "p/dev",
            Some("p"),
            "a will is for an app topic that is open to you, within the limits on those",
        ),
    ];
    let mut expected = Vec::new();
    for (n, (connect, who, pool, why)) in tried.into_iter().enumerate() {
        let address = format!("127.0.1.{n}");
        refused_connect(&server, &address, &connect).await;
        expected.push((address, who.to_owned(), pool.map(str::to_owned), why));
    }
    let mut more = |address: &str, who: &str, pool: Option<&str>, why| {
        expected.push((address.to_owned(), who.to_owned(), pool.map(str::to_owned), why));
    };
    // Enhanced authentication, an id that cannot be, a second connection, and one time too often.
    let method = connect_of(5, 0xC2, &[0x15, 0, 1, b'x'], &["x", "p/dev", &dev.token]);
    refused_connect(&server, "127.0.1.20", &method).await;
    more("127.0.1.20", "p/dev", Some("p"), "use a user name and a token");
    refused_connect(&server, "127.0.1.21", &connect_of(4, 0xC0, &[], &["", "p/dev", &dev.token])).await;
    more("127.0.1.21", "p/dev", Some("p"), "use a client id of 1–1024 bytes, or a clean session");
    let held = Plain::connect(other.clone()).await.unwrap();
    refused_connect(&server, "127.0.1.22", &as_user("p/other", &other.token)).await;
    more("127.0.1.22", "p/other", Some("p"), "the member has too many connections or sessions");
    held.close().await;
    for _ in 0..3 {
        refused_connect(&server, "127.0.1.23", &as_user("p/dev", WRONG)).await;
    }
    refused_connect(&server, "127.0.1.23", &as_user("p/dev", &dev.token)).await;
    more("127.0.1.23", "p/dev", Some("p"), BAD);
    more("127.0.1.23", "p/dev", Some("p"), "too many failed attempts: wait");

    // Over HTTP: a token that is nobody's, again and again; a join token; the scraper's.
    let stranger = Caller::new(&server, "127.0.1.30", WRONG);
    for n in 0..4 {
        let (status, _) = stranger.call(Method::GET, "/v1/status", Value::Null).await;
        assert_eq!(status, if n < 3 { 403 } else { 429 });
    }
    more("127.0.1.30", "unknown", None, "a bearer token that is not valid");
    more("127.0.1.30", "unknown", None, "too many failed attempts");
    let device = Caller::new(&server, "127.0.1.31", "mpj_a-join-token-that-nobody-has-made-so-far-xx");
    let enrol = json!({"member": "new", "token_sha256": Sha256::of(b"new")});
    assert_eq!(device.call(Method::POST, "/v1/pools/p/enrol", enrol).await.0, 403);
    more("127.0.1.31", "p/new", Some("p"), "a join token that is not valid");
    let scrape = Caller::new(&server, "127.0.1.32", WRONG);
    assert_eq!(scrape.call(Method::GET, "/metrics", Value::Null).await.0, 403);
    more("127.0.1.32", "unknown", None, "a bearer token that is not valid");

    // What came after the first of a kind is written at the end.
    assert!(server.terminate().await.success());
    server.launch().await;
    let (found, until) = (trail(&server).await, now());
    let mut found: Vec<&Value> = found.iter().filter(|entry| entry["action"] == "sign-in-refused").collect();
    for (address, who, pool, why) in expected {
        let is_it = |entry: &&Value| entry["from"] == address && entry["detail"]["reason"] == why;
        let (its, others): (Vec<&Value>, Vec<&Value>) = found.into_iter().partition(is_it);
        found = others;
        assert!(!its.is_empty(), "{address}, {why} is not in the trail: {found:?}");
        for entry in its {
            assert_eq!((&entry["who"], &entry["pool"]), (&json!(who), &json!(pool)), "{entry}");
            let at = |time: &Value| time.as_str().unwrap().parse::<Timestamp>().unwrap();
            let (first, last) = (at(&entry["detail"]["first"]), at(&entry["detail"]["last"]));
            assert!(begun <= first && first <= last && last <= at(&entry["at"]) && last <= until, "{entry}");
        }
    }
    assert_eq!(found, Vec::<&Value>::new(), "what nobody did");
    let text = format!("{:?}", trail(&server).await);
    for secret in [WRONG, &dev.token, &other.token, &foreign.token, &gone.token, &ended.token, &device.token]
    {
        assert!(!text.contains(secret));
    }
}

/// A round of pool `p` with one upload of `edge` under that label, leased to `mill`.
async fn round(edge: &Credentials, mill: &Mill, label: &str) -> u64 {
    let mut publisher = Plain::connect(edge.clone()).await.unwrap();
    publisher.publish(&format!("mp/p/c/edge/up/{label}/{label}"), "bytes").await.unwrap();
    publisher.close().await;
    mill.trigger(&json!({ "label": label })).await.unwrap().round
}

#[tokio::test]
async fn every_deed_is_one_entry_with_who_where_when_and_what_in_the_order_in_which_they_were_done() {
    let server = Server::start().await;
    let begun = now();
    let admin_token = std::fs::read_to_string(server.data().join("admin.token")).unwrap();
    let admin = Caller::new(&server, OFFICE, admin_token.trim());
    let (post, put, patch, delete) = (Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let mut expected: Vec<(&str, &str, Option<&str>, Value)> = Vec::new();
    let mut secrets = vec![admin_token.trim().to_owned()];
    let mut token_of = |answer: &Value| {
        let token = answer["token"].as_str().unwrap().to_owned();
        secrets.push(token.clone());
        token
    };

    // Pools and policies; what changes nothing is no deed.
    for _ in 0..2 {
        admin.good(put.clone(), "/v1/pools/p", json!({"grouping": "label"})).await;
    }
    expected.push(("pool-apply", "admin", Some("p"), json!([{"key": "grouping", "to": "label"}])));
    admin.good(patch.clone(), "/v1/pools/p", json!({"max_size": 9_999})).await;
    expected.push(("pool-apply", "admin", Some("p"), json!([{"key": "max_size", "to": 9_999}])));
    admin.good(put, "/v1/pools/q", json!({})).await;
    expected.push(("pool-apply", "admin", Some("q"), json!([])));
    admin.good(delete.clone(), "/v1/pools/q", Value::Null).await;
    expected.push(("pool-remove", "admin", Some("q"), json!({"force": false})));

    // Members, by the admin and by an operator.
    let new = json!({"member": "op", "role": "operator"});
    let token = token_of(&admin.good(post.clone(), "/v1/pools/p/members", new).await);
    expected.push(("member-add", "admin", Some("p"), json!({"member": "op", "role": "operator"})));
    let operator = Caller::new(&server, OFFICE, &token);
    for (name, role) in [("edge", "publisher"), ("mill", "processor"), ("short", "listener")] {
        let new = json!({"member": name, "role": role});
        token_of(&operator.good(post.clone(), "/v1/pools/p/members", new).await);
        expected.push(("member-add", "p/op", Some("p"), json!({"member": name, "role": role})));
    }
    for _ in 0..2 {
        let role = json!({"role": "trigger"});
        operator.good(patch.clone(), "/v1/pools/p/members/short", role).await;
    }
    let detail = json!({"member": "short", "role": "trigger", "was": "listener"});
    expected.push(("member-role", "p/op", Some("p"), detail));

    // Tokens: one more, in place of all others, and by the device itself.
    let tokens = |member: &str| format!("/v1/pools/p/members/{member}/tokens");
    token_of(&operator.good(post.clone(), &tokens("short"), json!({})).await);
    expected.push(("token-new", "p/op", Some("p"), json!({"member": "short", "replace": false})));
    let edge = token_of(&operator.good(post.clone(), &tokens("edge"), json!({"replace": true})).await);
    expected.push(("token-new", "p/op", Some("p"), json!({"member": "edge", "replace": true})));
    let own = "mpd_made-by-the-device-itself-made-by-the-dev";
    let device = Caller::new(&server, OFFICE, &edge);
    for _ in 0..2 {
        let rotate = json!({"token_sha256": Sha256::of(own.as_bytes()), "replace": true, "overlap_s": 600});
        device.good(post.clone(), &tokens("edge"), rotate).await;
    }
    let detail = json!({"member": "edge", "replace": true, "overlap_s": 600});
    expected.push(("token-new", "p/edge", Some("p"), detail));
    operator.good(delete.clone(), "/v1/pools/p/members/short", Value::Null).await;
    expected.push(("member-revoke", "p/op", Some("p"), json!({"member": "short"})));

    // Join tokens: made, used, taken back.
    let new = json!({"name": "line", "role": "publisher", "uses": 2, "expires_s": 600});
    let join = token_of(&operator.good(post.clone(), "/v1/pools/p/joins", new).await);
    let detail = json!({"join": "line", "role": "publisher", "uses": 2});
    expected.push(("join-add", "p/op", Some("p"), detail));
    let joining = Caller::new(&server, OFFICE, &join);
    for _ in 0..2 {
        let enrol = json!({"member": "joined", "token_sha256": Sha256::of(b"joined")});
        joining.good(post.clone(), "/v1/pools/p/enrol", enrol).await;
    }
    let detail = json!({"member": "joined", "role": "publisher"});
    expected.push(("member-add", "join token line", Some("p"), detail));
    operator.good(delete, "/v1/pools/p/joins/line", Value::Null).await;
    expected.push(("join-remove", "p/op", Some("p"), json!({"join": "line"})));

    // Rounds: triggered over MQTT and over HTTP, retried, rolled back.
    let who = |member: &str, token: &str| Credentials {
        mqtt: server.mqtt(),
        pool: "p".parse().unwrap(),
        member: member.parse().unwrap(),
        client_id: member.to_owned(),
        token: token.to_owned(),
    };
    let token = token_of(&operator.good(post.clone(), &tokens("mill"), json!({})).await);
    expected.push(("token-new", "p/op", Some("p"), json!({"member": "mill", "replace": false})));
    let edge = who("edge", own);
    let mill = Mill::join(who("mill", &token), server.api()).await;
    let first = round(&edge, &mill, "first").await;
    expected.push(("trigger", "p/mill", Some("p"), json!({"round": first, "batch": 1})));
    let processor = Caller::new(&server, OFFICE, &token);
    let fail =
        json!({"id": "f", "round": first, "attempt": 1, "error": "it does not work", "retryable": false});
    processor.good(post.clone(), "/v1/pools/p/ask/fail", fail).await;
    for _ in 0..2 {
        operator.good(post.clone(), &format!("/v1/pools/p/rounds/{first}/retry"), Value::Null).await;
    }
    expected.push(("round-retry", "p/op", Some("p"), json!({"round": first})));
    let lease = loop {
        if let Some(lease) = mill.claim().await.unwrap() {
            break lease;
        }
    };
    mill.answer(&lease, "result").await.unwrap();
    until("the result is the current one", async || {
        server.api().get("/v1/pools/p").await["status"]["current"] == 1
    })
    .await;
    for _ in 0..2 {
        operator.good(post.clone(), "/v1/pools/p/results/1/rollback", Value::Null).await;
    }
    expected.push(("result-rollback", "p/op", Some("p"), json!({"version": 2, "of": 1})));
    let mut publisher = Plain::connect(edge).await.unwrap();
    publisher.publish("mp/p/c/edge/up/second/second", "bytes").await.unwrap();
    for _ in 0..2 {
        let trigger = json!({"id": "t", "label": "second"});
        processor.good(post.clone(), "/v1/pools/p/ask/trigger", trigger).await;
    }
    expected.push(("trigger", "p/mill", Some("p"), json!({"round": 2, "batch": 2})));

    // The server as a whole.
    admin.call(Method::GET, "/v1/backup?objects=false", Value::Null).await;
    expected.push(("backup", "admin", None, json!({"objects": false})));
    admin.good(post, "/v1/gc", Value::Null).await;
    expected.push(("gc", "admin", None, json!({})));
    expected.push(("gc-done", "admin", None, json!({})));

    let (found, end) = (trail(&server).await, now());
    let mut last = begun;
    for (entry, (action, who, pool, detail)) in found.iter().zip(&expected) {
        assert_eq!(entry["action"], *action, "{entry}");
        assert_eq!((&entry["who"], &entry["pool"]), (&json!(who), &json!(pool)), "{entry}");
        // Over MQTT the processor comes from elsewhere.
        let over_mqtt = *action == "trigger" && entry["detail"]["round"] == 1;
        let address = if over_mqtt { "127.0.0.1:" } else { "127.0.2.1:" };
        assert!(entry["from"].as_str().unwrap().starts_with(address), "{entry}");
        let at = entry["at"].as_str().unwrap().parse::<Timestamp>().unwrap();
        assert!(last <= at && at <= end, "{entry}");
        last = at;
        assert!(has(&entry["detail"], detail), "{entry} has not {detail}");
    }
    let actions = |entries: &[Value]| entries.iter().map(|entry| entry["action"].clone()).collect::<Vec<_>>();
    assert_eq!(found.len(), expected.len(), "{:?}", actions(&found));
    let text = format!("{found:?}");
    secrets.push(own.to_owned());
    for secret in secrets {
        assert!(!text.contains(&secret) && !text.contains(&Sha256::of(secret.as_bytes()).to_string()));
    }
}

/// Whether a value has all that is expected of it, and perhaps more.
fn has(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| found.get(key).is_some_and(|found| has(found, value)))
        }
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(found, value)| has(found, value))
        }
        _ => found == expected,
    }
}
