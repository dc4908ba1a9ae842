//! The API over real connections, a real ledger and the embedded storage.

use std::time::Duration;

use millpond_protocol::Principal;
use millpond_protocol::message::answer::UploadInfo;
use millpond_storage::{Secret, Storage, StorageConfig, embedded};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::api::*;
use super::*;
use crate::fanout::state::{Shown, States};
use crate::ledger::uploads::{Body, NewUpload};
use crate::rounds::{Event, Target};

const ADMIN: &str = "mpa_a-token-that-nobody-guesses-in-a-test";

/// A running API; everything ends with it.
struct Server {
    url: String,
    http: reqwest::Client,
    ledger: Ledger,
    shutdown: CancellationToken,
    storage: CancellationToken,
    done: tokio::task::JoinHandle<()>,
    _dir: TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let secret = "sixteen-and-more-letters";
        let config = embedded::EmbeddedConfig::new("millpond", "key", Secret::new(secret));
        let embedded = embedded::open(&dir.path().join("objects"), config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let stop = CancellationToken::new();
        let (serving, stopped) = (embedded.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener, stopped).await });
        let storage =
            Storage::new(&StorageConfig::new(endpoint, "millpond", "key", Secret::new(secret))).unwrap();
        let shown =
            Shown { publish_max: 1, bundle_max: 1, upload_max: 1, storage_host: "files.example".to_owned() };
        let states = States::new(ledger.clone(), storage.clone(), shown);
        let shutdown = CancellationToken::new();
        let parts = Parts {
            asks: Asks { ledger: ledger.clone(), storage, states },
            admin: Sha256::of(ADMIN.as_bytes()),
            mqtt: ("broker.example".to_owned(), 1883),
            storage_url: "http://files.example".to_owned(),
            request_timeout: Duration::from_secs(20),
            event_streams_max: 1,
            grace: Duration::from_secs(5),
            shutdown: shutdown.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let done = tokio::spawn(run(listener, parts));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { url, http, ledger, shutdown, storage: stop, done, _dir: dir }
    }

    async fn send(&self, token: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(token);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
    }

    /// A request of the admin that must succeed.
    async fn admin<T: DeserializeOwned>(&self, method: Method, path: &str, body: Value) -> T {
        let (status, answer) = self.send(ADMIN, method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {answer}");
        serde_json::from_value(answer).unwrap()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.admin(Method::GET, path, Value::Null).await
    }

    /// The code and status of a request that must be refused.
    async fn refused(&self, token: &str, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.send(token, method, path, body).await;
        assert!(!status.is_success(), "{path}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
        (status.as_u16(), answer["error"]["code"].as_str().unwrap().to_owned())
    }

    /// A pool with minute windows, and a member of each role that is named; their tokens in that order.
    async fn pool(&self, pool: &str, members: &[(&str, &str)]) -> Vec<String> {
        let _: Applied = self.admin(Method::PUT, &format!("/v1/pools/{pool}"), json!({"window_s": 60})).await;
        let mut tokens = Vec::new();
        for (member, role) in members {
            let path = format!("/v1/pools/{pool}/members");
            let hand_out: HandOut =
                self.admin(Method::POST, &path, json!({"member": member, "role": role})).await;
            tokens.push(hand_out.token.unwrap());
        }
        tokens
    }

    async fn principal(&self, token: &str) -> Principal {
        let hash = Sha256::of(token.as_bytes());
        let find = move |sql: &rusqlite::Connection| {
            crate::ledger::manage::find_token(sql, &hash, crate::ledger::now())
        };
        self.ledger.read(find).await.unwrap().unwrap()
    }

    /// Stores an upload as if it had come over MQTT.
    async fn upload(&self, token: &str, upload: &str, data: &'static [u8]) {
        let who = self.principal(token).await;
        let new = NewUpload {
            upload: upload.parse().unwrap(),
            name: None,
            content_type: None,
            meta: None,
            label: None,
            event_time: Some(crate::ledger::now().before(Duration::from_secs(600))),
            sha256: Sha256::of(data),
            sha256_declared: false,
            size: data.len() as u64,
            bundle: None,
            body: Body::Inline(data.into()),
        };
        let store = move |tx: &mut crate::ledger::Tx<'_>| {
            let pool = tx.pool_of(&who)?;
            tx.store_upload(pool, &who, new)
        };
        self.ledger.write(store).await.unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.done.await.unwrap();
        self.storage.cancel();
    }
}

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
    assert!(
        hand_out.example.contains("mosquitto_sub -h broker.example") && hand_out.example.contains(&token)
    );
    let taken = server.refused(ADMIN, Method::POST, "/v1/pools/p/members", new).await;
    assert_eq!(taken, (409, "conflict".to_owned()));
    let members: Members = server.get("/v1/pools/p/members").await;
    assert!(!serde_json::to_string(&members).unwrap().contains(&token));

    let path = "/v1/pools/p/members/dev-1/tokens";
    let second: HandOut = server.admin(Method::POST, path, json!({})).await;
    let third: HandOut = server.admin(Method::POST, path, json!({"replace": true})).await;
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
async fn an_upload_says_where_it_is_and_why_and_lists_come_in_pages() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher"), ("n", "publisher")]).await;
    for upload in ["u1", "u2", "u3"] {
        server.upload(&tokens[0], upload, b"some bytes").await;
    }
    server.upload(&tokens[1], "u1", b"").await;

    let story: UploadStory = server.get("/v1/pools/p/uploads/m/u1").await;
    assert_eq!(story.info.batch_state.as_deref(), Some("open"));
    let words = story.story.join("\n");
    for part in ["received", "joined batch 1 (window 20", "is open", "in the ledger"] {
        assert!(words.contains(part), "{part} in {words}");
    }
    let rejected: UploadStory = server.get("/v1/pools/p/uploads/n/u1").await;
    assert!(rejected.story.iter().any(|step| step.contains("rule empty_file")), "{:?}", rejected.story);

    let mut seen: Vec<UploadInfo> = Vec::new();
    let mut path = "/v1/pools/p/uploads?limit=3".to_owned();
    loop {
        let page: Uploads = server.get(&path).await;
        assert!(page.uploads.len() <= 3);
        seen.extend(page.uploads);
        let Some(cursor) = page.cursor else { break };
        path = format!("/v1/pools/p/uploads?limit=3&cursor={cursor}");
    }
    let names: Vec<String> =
        seen.iter().map(|upload| format!("{}/{}", upload.member, upload.upload)).collect();
    assert_eq!(names, ["n/u1", "m/u3", "m/u2", "m/u1"]);
    let of_m: Uploads = server.get("/v1/pools/p/uploads?member=m&batch=1").await;
    assert_eq!(of_m.uploads.len(), 3);
    let of_n: Uploads = server.get("/v1/pools/p/uploads?member=n&batch=1").await;
    assert_eq!(of_n.uploads, []);

    let batches: Batches = server.get("/v1/pools/p/batches").await;
    assert_eq!((batches.batches[0].count, batches.batches[0].bytes), (3, 30));
    let batch: BatchInfo = server.get("/v1/pools/p/batches/1").await;
    assert_eq!((batch.state.as_str(), batch.round), ("open", None));
    server.stop().await;
}

#[tokio::test]
async fn asks_have_twins_over_http_for_members_and_not_for_the_admin() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher"), ("proc", "processor")]).await;
    server.upload(&tokens[0], "u1", b"some bytes").await;
    let (status, answer) = server
        .send(&tokens[0], Method::POST, "/v1/pools/p/ask/status", json!({"id": "a1", "upload": "u1"}))
        .await;
    assert_eq!((status, &answer["id"], &answer["outcome"]), (StatusCode::OK, &json!("a1"), &json!("stored")));
    let trigger = |tx: &mut crate::ledger::Tx<'_>| {
        let pool = tx.pool(&"p".parse().map_err(Refusal::from)?)?;
        tx.apply(pool, Event::Trigger { target: Target::Oldest, take: None })
    };
    server.ledger.write(trigger).await.unwrap();
    let rounds: Rounds = server.get("/v1/pools/p/rounds").await;
    assert_eq!((rounds.rounds[0].state.as_str(), rounds.rounds[0].attempt), ("sealed", 0));
    let story: RoundStory = server.get("/v1/pools/p/rounds/1").await;
    assert_eq!((story.info.batch, story.attempts), (1, vec![]));
    let upload: UploadStory = server.get("/v1/pools/p/uploads/m/u1").await;
    let words = upload.story.join("\n");
    assert!(
        words.contains("was sealed") && words.contains("by trigger") && words.contains("being packed"),
        "{words}"
    );
    let retry = server.refused(ADMIN, Method::POST, "/v1/pools/p/rounds/1/retry", Value::Null).await;
    assert_eq!(retry, (409, "stale".to_owned()));

    for (token, path, expected) in [
        (ADMIN, "/v1/pools/p/ask/latest", "unauthorized"),
        (&tokens[0], "/v1/pools/p/ask/claim", "unauthorized"),
        (&tokens[0], "/v1/pools/q/ask/latest", "unauthorized"),
        (&tokens[0], "/v1/pools/p/ask/nothing", "malformed"),
    ] {
        let found = server.refused(token, Method::POST, path, json!({"id": "x"})).await;
        assert_eq!(found.1, expected, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_event_stream_goes_on_from_where_a_client_was() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher")]).await;
    server.upload(&tokens[0], "u1", b"one").await;
    let page: Events = server.get("/v1/pools/p/events?since=0").await;
    let kinds: Vec<&str> = page.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds[..2], ["policy", "member-added"]);
    assert!(kinds.contains(&"uploads") && kinds.contains(&"batch-opened"), "{kinds:?}");
    assert!(page.events.windows(2).all(|pair| pair[0].seq < pair[1].seq));

    let stream = server.http.get(format!("{}/v1/pools/p/events", server.url)).bearer_auth(ADMIN);
    let stream =
        stream.header("accept", "text/event-stream").header("last-event-id", page.events[0].seq.to_string());
    let mut stream = stream.send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let again = server.http.get(format!("{}/v1/pools/p/events", server.url)).bearer_auth(ADMIN);
    let again = again.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(again.status(), StatusCode::TOO_MANY_REQUESTS);

    server.upload(&tokens[0], "u2", b"two").await;
    let mut text = String::new();
    // Ends when the second upload was told; a stream that stays silent fails by the runner's time-out.
    while !text.contains(&format!("\"first_seq\":{}", page.next + 1)) {
        let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let ids: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("id:")?.trim().parse().ok()).collect();
    assert_eq!(ids.first(), Some(&page.events[1].seq));
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");

    server.shutdown.cancel();
    while stream.chunk().await.unwrap().is_some() {}
    server.stop().await;
}

#[tokio::test]
async fn readiness_tells_that_storage_is_away_and_liveness_does_not() {
    let server = Server::start().await;
    let get = async |path: &str| server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(get("/readyz").await.status(), StatusCode::OK);
    let status: Status = server.get("/v1/status").await;
    assert!(status.ready && status.problems.is_empty());

    // What was found holds for some seconds, so another server is asked.
    let other = Server::start().await;
    other.storage.cancel();
    let get = async |path: &str| other.http.get(format!("{}{path}", other.url)).send().await.unwrap();
    let away = get("/readyz").await;
    assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(away.text().await.unwrap().contains("storage"));
    assert_eq!(get("/healthz").await.status(), StatusCode::OK);
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_requests_and_show_what_the_ledger_holds() {
    let server = Server::start().await;
    server.pool("p", &[("m", "publisher")]).await;
    let text = server.http.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("millpond_members{state=\"publisher\"}"), "{text}");
    assert!(text.contains("path=\"/v1/pools/{pool}/members\""), "{text}");
    assert!(text.contains("# TYPE millpond_http_request_seconds histogram"), "{text}");
    server.stop().await;
}
