//! Secrets that were planted, and are nowhere but where they belong: no log, metric, event or command line, no message on a
//! topic, and no error has one, whoever it is for.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Output};
use std::time::Duration;

use millpond::http::api::{HandOut, JoinInfo};
use millpond_broker::{Credential, SignIn};
use millpond_protocol::access::Op;
use millpond_protocol::message::Pointer;
use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Role, Sha256};
use millpond_storage::{Secret, StorageConfig};
use millpond_tests::wire::{connect_of, packet, text};
use millpond_tests::{Api, Credentials, Link, Mill, Plain, Server, binary, edge_binary, until};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A token that nobody was given.
const WRONG: &str = "mpd_wrong-wrong-wrong-wrong-wrong-wrong-wrong-w";
const STORAGE: &str = "a-storage-secret-that-was-planted-by-the-test";

/// What there is to be found, and where it was looked for.
#[derive(Default)]
struct Search {
    secrets: Vec<String>,
    seen: Vec<(&'static str, String)>,
}

impl Search {
    fn saw(&mut self, place: &'static str, text: impl Into<String>) {
        self.seen.push((place, text.into()));
    }

    fn saw_output(&mut self, place: &'static str, output: &Output) {
        assert!(!output.status.success() && !output.stderr.is_empty(), "{place}: {output:?}");
        self.saw(place, String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()));
    }

    fn finds_nothing(&self) {
        for (place, text) in &self.seen {
            assert!(!text.is_empty() || *place == "standard output", "{place} is empty");
            for secret in &self.secrets {
                assert!(!text.contains(secret), "{place} shows {secret}: {text}");
                let hash = Sha256::of(secret.as_bytes()).to_string();
                assert!(!text.contains(&hash), "{place} shows the hash of {secret}");
            }
        }
    }
}

/// A server that says all it can, with a pool `p` and a secret of storage.
async fn stage() -> (Server, Search) {
    let server = Server::with(&[
        ("MILLPOND__LOG__FILTER", "debug"),
        ("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#),
        ("MILLPOND__STORAGE__ACCESS_KEY", "the-key"),
        ("MILLPOND__STORAGE__SECRET_KEY", STORAGE),
    ])
    .await;
    server.pool("p", json!({"grouping": "label"})).await;
    let admin = std::fs::read_to_string(server.data().join("admin.token")).unwrap();
    let mut search = Search::default();
    search.secrets.extend([admin.trim().to_owned(), STORAGE.to_owned(), WRONG.to_owned()]);
    (server, search)
}

fn api(server: &Server, token: &str) -> Api {
    Api::new(format!("http://{}", server.ports().http), token)
}

fn signature(url: &str) -> String {
    url.split("X-Amz-Signature=").nth(1).unwrap().to_owned()
}

/// Everything that somebody is sent who subscribes to all that it may, until the connection is dropped.
async fn overhear(who: &Credentials, filters: &[String]) -> tokio::task::JoinHandle<String> {
    let mut connection =
        Plain::connect(Credentials { client_id: "overhears".to_owned(), ..who.clone() }).await.unwrap();
    for filter in filters {
        assert!(connection.subscribe(filter).await.unwrap(), "{filter}");
    }
    for filter in ["#", "$SYS/#", "mp/p/c/#", "mp/p/#"] {
        assert!(!connection.subscribe(filter).await.unwrap(), "{filter}");
    }
    tokio::spawn(async move {
        let mut heard = String::new();
        // What comes last says that it does.
        while let Ok(message) = connection.next().await {
            heard += &format!("{} {}\n", message.topic, String::from_utf8_lossy(&message.payload));
            if message.topic == "app/p/last" {
                break;
            }
        }
        heard
    })
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_the_audit_trail_an_event_a_topic_or_a_command_line() {
    let (mut server, mut search) = stage().await;
    let edge = server.member("p", "edge", Role::Publisher).await;
    let mill = server.member("p", "mill", Role::Processor).await;
    let ops = server.member("p", "ops", Role::Operator).await;
    let api_of = |token: &str| api(&server, token);
    let admin = server.api();
    let of_all = ["mp/p/pool", "mp/p/result", "mp/p/result/data", "app/p/#"].map(str::to_owned);
    let own = |who: &Credentials, more: &[&str]| {
        let more = more.iter().map(|filter| (*filter).to_owned());
        of_all.iter().cloned().chain([format!("mp/p/d/{}/#", who.member)]).chain(more).collect::<Vec<_>>()
    };
    let heard = [
        ("what an operator hears", overhear(&ops, &own(&ops, &["mp/p/event/#", "mp/p/offer"])).await),
        ("what a publisher hears", overhear(&edge, &own(&edge, &[])).await),
        ("what a processor hears", overhear(&mill, &own(&mill, &["mp/p/offer"])).await),
    ];

    let join = json!({"name": "j", "role": "publisher", "uses": 1, "expires_s": 600});
    let join = admin.post("/v1/pools/p/joins", &join).await["token"].as_str().unwrap().to_owned();
    let brought = "mpd_brought-by-the-device-brought-by-the-devi";
    let enrol = json!({"member": "dev", "token_sha256": Sha256::of(brought.as_bytes())});
    api_of(&join).post("/v1/pools/p/enrol", &enrol).await;
    let rotated = admin.post("/v1/pools/p/members/dev/tokens", &json!({})).await;

    // Secrets in the wrong place: as a wrong password, as a user name, as a bearer that is none.
    assert!(Plain::connect(Credentials { token: WRONG.to_owned(), ..edge.clone() }).await.is_err());
    let misplaced = Credentials { member: edge.token.parse().unwrap(), ..edge.clone() };
    assert!(Plain::connect(misplaced).await.is_err());
    api_of(WRONG).call(Method::GET, "/v1/pools", None).await;

    // A whole round, with a large upload by URL.
    let link = Link::open(edge.clone()).await.unwrap();
    let large = vec![7; 200_000];
    let ask = json!({"id": "a", "upload": "large", "size": large.len(), "sha256": Sha256::of(&large), "label": "l"});
    let put: Value = link.ask(Op::Put, &ask).await.unwrap();
    let to: PutTo = serde_json::from_value(put["to"].clone()).unwrap();
    assert_eq!(admin.send(&to, large).await, 200);
    let _: Value = link.ask(Op::Commit, &json!({"id": "b", "uploads": ["large"]})).await.unwrap();
    let at_work = Mill::join(mill.clone(), admin.clone()).await;
    let lease = at_work.trigger(&json!({"label": "l"})).await.unwrap();
    at_work.answer(&lease, vec![1; 300_000]).await.unwrap();
    let mut listener =
        Plain::connect(Credentials { client_id: "listener".to_owned(), ..edge.clone() }).await.unwrap();
    assert!(listener.subscribe("mp/p/result").await.unwrap());
    let pointer: Value = serde_json::from_slice(&listener.next_on("mp/p/result").await.unwrap()).unwrap();
    let trail = async || format!("{:?}", admin.get("/v1/audit?limit=1000").await);
    until("the refusals are in the audit trail", async || {
        trail().await.contains("a bearer token that is not valid")
    })
    .await;
    admin.delete("/v1/pools/p/members/dev").await;
    until("the events of all of it have been sent", async || {
        admin.get("/v1/pools/p/events?since=0").await.to_string().contains("member-revoked")
    })
    .await;
    listener.publish("app/p/last", "").await.unwrap();

    search.secrets.extend([&edge.token, &mill.token, &ops.token, &join, brought].map(ToString::to_string));
    search.secrets.push(rotated["token"].as_str().unwrap().to_owned());
    search.secrets.push(signature(&to.url));
    for (place, heard) in heard {
        let heard = timeout(Duration::from_secs(60), heard).await.expect("the end is not heard").unwrap();
        assert!(heard.contains("mp/p/result ") && heard.contains("app/p/last"), "{place}: {heard}");
        search.saw(place, heard);
    }
    // In a pointer and in the answer to a put they belong; not elsewhere.
    search.secrets.push(signature(pointer["url"].as_str().unwrap()));
    for (place, text) in &mut search.seen {
        let url = pointer["url"].as_str().unwrap();
        assert!(text.contains(url), "{place} has no pointer");
        *text = text.replace(url, "");
        if *place == "what a publisher hears" {
            *text = text.replace(&to.url, "");
        }
    }
    search.saw("the log", server.process().stderr());
    search.saw("standard output", server.process().stdout());
    search.saw("the metrics", admin.get("/metrics").await.to_string());
    search.saw("the audit trail", trail().await);
    search.saw("the events", admin.get("/v1/pools/p/events?since=0").await.to_string());
    search.saw("the members", admin.get("/v1/pools/p/members?all=true").await.to_string());
    search.saw("the joins", admin.get("/v1/pools/p/joins").await.to_string());
    let command_line = std::fs::read_to_string(format!("/proc/{}/cmdline", server.process().id())).unwrap();
    search.saw("the command line", command_line);
    search.finds_nothing();
}

/// All that the gate says to a member that sends these PUBLISH packets, until they are acknowledged and messages on these
/// topics have come, or the connection has ended.
async fn said(server: &Server, who: &Credentials, packets: &[Vec<u8>], topics: &[&str]) -> String {
    let mut io = TcpStream::connect(server.mqtt()).await.unwrap();
    let user = format!("{}/{}", who.pool, who.member);
    io.write_all(&connect_of(5, 0xC2, &[], &["x", &user, &who.token])).await.unwrap();
    let answers =
        packet(0x82, &[&[0, 1, 0][..], &text_of(&format!("mp/p/d/{}/#", who.member)), &[1]].concat());
    io.write_all(&[&answers[..], &packets.concat()].concat()).await.unwrap();
    let (mut said, mut acks) = (String::new(), packets.len());
    let all = async {
        while acks > 0 || topics.iter().any(|topic| !said.contains(topic)) {
            let Ok(first) = io.read_u8().await else { return };
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = io.read_u8().await.unwrap();
                length |= usize::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            io.read_exact(&mut body).await.unwrap();
            said += &String::from_utf8_lossy(&body);
            said.push('\n');
            acks = acks.saturating_sub(usize::from(first == 0x40));
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("nothing comes");
    said
}

/// A QoS 1 PUBLISH of MQTT 5 with these properties.
fn publish(topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend([0, 1]);
    body.extend(&packet(0, properties)[1..]);
    body.extend(payload);
    packet(0x32, &body)
}

#[tokio::test]
async fn no_error_has_a_secret_whoever_it_is_for() {
    let (mut server, mut search) = stage().await;
    let edge = server.member("p", "edge", Role::Publisher).await;
    let other = server.member("p", "other", Role::Publisher).await;
    let join = json!({"name": "j", "role": "publisher", "uses": 1, "expires_s": 600});
    let join = server.api().post("/v1/pools/p/joins", &join).await["token"].as_str().unwrap().to_owned();
    search.secrets.extend([&edge.token, &other.token, &join].map(ToString::to_string));

    // Over HTTP: each kind of token, where it opens nothing.
    let (right, wrong) = (api(&server, &edge.token), api(&server, WRONG));
    let with_hash = json!({"member": "new", "token_sha256": Sha256::of(edge.token.as_bytes())});
    let in_the_wrong_field = json!({"member": "new", "token_sha256": edge.token, "role": join});
    for (place, caller, method, path, body) in [
        ("a wrong bearer", &wrong, Method::GET, "/v1/status", None),
        ("a bearer without the right", &right, Method::GET, "/v1/pools", None),
        ("a token that joins nothing", &wrong, Method::POST, "/v1/pools/p/enrol", Some(&with_hash)),
        ("a token that is in use", &api(&server, &join), Method::POST, "/v1/pools/p/enrol", Some(&with_hash)),
        ("a token for a hash", &server.api(), Method::POST, "/v1/pools/p/members", Some(&in_the_wrong_field)),
        (
            "a token for a hash to rotate",
            &right,
            Method::POST,
            "/v1/pools/p/members/edge/tokens",
            Some(&in_the_wrong_field),
        ),
        (
            "a token for a hash to join",
            &api(&server, &join),
            Method::POST,
            "/v1/pools/p/enrol",
            Some(&in_the_wrong_field),
        ),
        (
            "a token for a number",
            &server.api(),
            Method::PUT,
            "/v1/pools/p",
            Some(&json!({"max_size": edge.token})),
        ),
        (
            "a token for a hash to put",
            &right,
            Method::POST,
            "/v1/pools/p/ask/put",
            Some(&json!({"id": "1", "upload": "u", "size": 1, "sha256": edge.token})),
        ),
    ] {
        let (status, answer) = caller.call(method, path, body).await;
        assert!((400..500).contains(&status) && answer["error"]["code"].is_string(), "{place}: {answer}");
        search.saw(place, answer.to_string());
    }

    // By storage: other bytes, a changed URL, another key.
    let put =
        json!({"id": "p", "upload": "large", "size": 200_000, "sha256": Sha256::of(b"x"), "label": "l"});
    let put = right.post("/v1/pools/p/ask/put", &put).await;
    let to: PutTo = serde_json::from_value(put["to"].clone()).unwrap();
    search.secrets.push(signature(&to.url));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let key = to.url.split("?").next().unwrap().to_owned();
    for (place, url) in [
        ("what storage says to other bytes", to.url.clone()),
        ("what storage says to another time", to.url.replace("X-Amz-Expires=", "X-Amz-Expires=1")),
        ("what storage says to another signature", to.url.replace(&signature(&to.url), &"0".repeat(64))),
        ("what storage says to another key pair", to.url.replace("the-key", "a-key")),
        ("what storage says to nobody", key),
    ] {
        let request =
            to.headers.iter().fold(http.put(url), |request, (name, value)| request.header(name, value));
        let answer = request.body(vec![0; 200_000]).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{place}: {}", answer.status());
        search.saw(place, answer.text().await.unwrap());
    }

    // Over MQTT: reason strings of CONNACK, PUBACK and DISCONNECT.
    let wrong = Credentials { token: WRONG.to_owned(), ..edge.clone() };
    search.saw("a refused CONNECT", said(&server, &wrong, &[], &["nothing of the kind"]).await);
    let ask = |op: &str| format!("mp/p/c/edge/ask/{op}");
    let hash = [&[38][..], &text_of("sha256"), &text_of(&edge.token)].concat();
    let asked = json!({"id": "q", "upload": "u", "size": 1, "sha256": other.token}).to_string();
    let reasons = said(
        &server,
        &edge,
        &[
            publish("mp/p/c/edge/up/u", &hash, b"x"),
            publish("mp/p/c/other/up/u", &[], edge.token.as_bytes()),
            publish(&ask("put"), &[], asked.as_bytes()),
            publish(&ask("commit"), &[], other.token.as_bytes()),
            publish("mp/p/c/edge/bundle/b", &[], other.token.as_bytes()),
            publish("mp/p/c/edge/delivery/1", &[], edge.token.as_bytes()),
        ],
        &["answer/put", "answer/commit"],
    )
    .await;
    assert!(reasons.contains("not yours to publish to") && reasons.contains("sha256"), "{reasons}");
    search.saw("reasons", reasons);

    // By the programs, whose tokens come by the environment.
    let files = tempfile::tempdir().unwrap();
    let wrong_file = files.path().join("token");
    std::fs::write(&wrong_file, WRONG).unwrap();
    let cli = |args: &[&str]| server.cli().env("MILLPOND_TOKEN", WRONG).args(args).output().unwrap();
    search.saw_output("a wrong token", &cli(&["status"]));
    search.saw_output("a wrong token, with --json", &cli(&["--json", "pool", "list"]));
    let by_file = ["--token-file", wrong_file.to_str().unwrap(), "status"];
    search.saw_output(
        "a wrong token in a file",
        &server.cli().env_remove("MILLPOND_TOKEN").args(by_file).output().unwrap(),
    );
    let mut push = Command::new(edge_binary());
    push.args(["push", "--patience", "1"]).arg(&wrong_file);
    push.env("MILLPOND_MQTT_URL", format!("mqtt://{}", server.mqtt())).env("MILLPOND_MQTT_USER", "p/edge");
    push.env("MILLPOND_MQTT_TOKEN", WRONG).env("MILLPOND_SPOOL", files.path().join("spool"));
    search.saw_output("an edge client with a wrong token", &push.output().unwrap());
    let mut serve = Command::new(binary());
    serve.args(["serve", "--check-config"]).env("MILLPOND__STORAGE__MODE", "external");
    serve.env("MILLPOND__STORAGE__ENDPOINT", format!("http://{}", server.ports().storage.unwrap()));
    serve.env("MILLPOND__STORAGE__ACCESS_KEY", "the-key").env("MILLPOND__STORAGE__SECRET_KEY", WRONG);
    search.saw_output("a wrong secret key", &serve.output().unwrap());
    search.saw("the log", server.process().stderr());
    search.finds_nothing();
}

#[test]
fn whoever_prints_a_value_that_holds_a_secret_does_not_see_it() {
    let url = "http://files.example/b/k?X-Amz-Date=20260601T000000Z&X-Amz-Signature=5ec2e7";
    let (sha256, at) = (Sha256::of(b""), "2026-06-01T00:00:00Z");
    let mut search =
        Search { secrets: [WRONG, STORAGE, "5ec2e7"].map(str::to_owned).to_vec(), seen: Vec::new() };
    let hand_out: HandOut = serde_json::from_value(json!({"pool": "p", "member": "m", "role": "publisher", "mqtt_host": "h",
        "mqtt_port": 1, "mqtt_url": "mqtt://h:1", "storage_url": "http://h", "user": "p/m", "token": WRONG, "example": WRONG})).unwrap();
    let join: JoinInfo = serde_json::from_value(
        json!({"pool": "p", "name": "j", "role": "publisher", "uses": 1, "expires": at, "token": WRONG}),
    )
    .unwrap();
    let put: PutTo =
        serde_json::from_value(json!({"url": url, "headers": {}, "url_expires": at, "curl": url})).unwrap();
    let pointer: Pointer =
        serde_json::from_value(json!({"version": 1, "batch": 1, "round": 1, "name": "n", "size": 0,
        "sha256": sha256, "url": url, "url_expires": at, "spread_s": 0}))
        .unwrap();
    let sign_in = SignIn {
        pool: "p".parse().unwrap(),
        member: "m".parse().unwrap(),
        credential: Credential::Token(WRONG.into()),
        from: "127.0.0.1:1".parse().unwrap(),
    };
    let secret = Secret::new(STORAGE);
    let storage = StorageConfig::new("http://files.example".parse().unwrap(), "b", "k", secret.clone());
    for shown in [
        format!("{hand_out:?} {join:?} {put:?} {pointer:?} {sign_in:?}"),
        format!("{:?} {secret:?} {storage:?}", millpond_edge::session::Token::new(WRONG)),
    ] {
        search.saw("Debug", shown);
    }
    search.finds_nothing();
}

fn text_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    millpond_tests::wire::text(&mut bytes, text);
    bytes
}
