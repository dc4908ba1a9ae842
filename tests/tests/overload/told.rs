//! One who goes over a limit is told so by its code, and counted; those beside it do not notice.
//!
//! In one file although it is a long one: a row of the table and what brings it about are read together.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::overload::{from, others};
use millpond_tests::wire::{Who, connect_of, packet};
use millpond_tests::{Api, Server};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::client::{CONNACK, Client, DISCONNECT, PATIENCE, PUBACK, publish};
use super::{SMALL, Stage};

const REFUSED: &str = "millpond_gate_refusals_total";
const FILTERS: &str = "millpond_gate_subscriptions_refused_total";
const CONNECTS: &str = "millpond_gate_connections_refused_total";
const ENDED: &str = "millpond_gate_ended_total";
const HTTP: &str = "millpond_http_refusals_total";
const COPIES: &str = "millpond_gate_copies_dropped_total";
const GRANTED: &str = "granted";
const QUOTAS: &str = "millpond_quota_refusals_total";

#[derive(Debug, Clone, Copy)]
enum Limit {
    ConnectBytes,
    ConnectTime,
    Connections,
    ConnectionsOfAddress,
    Sessions,
    Subscriptions,
    FilterLevels,
    FilterBytes,
    TopicLevels,
    TopicBytes,
    UserProperties,
    MessageBytes,
    BundleBytes,
    AskBytes,
    PacketBytes,
    Unreleased,
    HttpBody,
    Retained,
    RetainedOfPool,
    RetainedBytes,
    SessionMessages,
    AwayOfMember,
    EventStreams,
    Grants,
    GrantedBytes,
    PoolBytes,
    PoolBytesByUrl,
    Answers,
}

/// Each limit, what whoever is over it is told, and what counts it.
const LIMITS: [(Limit, &str, &str, &str); 28] = [
    (Limit::ConnectBytes, "0x95", CONNECTS, r#"limit="connect_bytes""#),
    (Limit::ConnectTime, "closed", CONNECTS, r#"limit="connect_time""#),
    (Limit::Connections, "0x97", CONNECTS, r#"limit="member""#),
    (Limit::ConnectionsOfAddress, "0x97", CONNECTS, r#"limit="address""#),
    (Limit::Sessions, "0x97", CONNECTS, r#"limit="member""#),
    (Limit::Subscriptions, "0x97", FILTERS, r#"limit="number""#),
    (Limit::FilterLevels, "0x8f", FILTERS, r#"limit="length""#),
    (Limit::FilterBytes, "0x8f", FILTERS, r#"limit="length""#),
    (Limit::TopicLevels, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::TopicBytes, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::UserProperties, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::MessageBytes, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::BundleBytes, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::AskBytes, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::PacketBytes, "0x95", ENDED, r#"code="0x95""#),
    (Limit::Unreleased, "0x93", ENDED, r#"code="0x93""#),
    (Limit::HttpBody, "too_large", HTTP, r#"code="too_large""#),
    (Limit::Retained, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::RetainedOfPool, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::RetainedBytes, "0x97", REFUSED, r#"code="too_large""#),
    (Limit::SessionMessages, "0x97", COPIES, r#"limit="session""#),
    (Limit::AwayOfMember, "nothing", COPIES, r#"limit="member""#),
    (Limit::EventStreams, "quota", HTTP, r#"code="quota""#),
    (Limit::Grants, "quota", QUOTAS, r#"limit="member_grants""#),
    (Limit::GrantedBytes, "quota", QUOTAS, r#"limit="pool_grants""#),
    (Limit::PoolBytes, "0x97", QUOTAS, r#"limit="pool_bytes""#),
    (Limit::PoolBytesByUrl, "quota", QUOTAS, r#"limit="pool_bytes""#),
    (Limit::Answers, "0x97", REFUSED, r#"code="quota""#),
];

#[tokio::test]
async fn who_goes_over_a_limit_is_told_by_its_code_and_counted_and_others_go_on() {
    let timeout = ("MILLPOND__LIMITS__CONNECT_TIMEOUT_S", "3");
    // More than those have that go on beside.
    let of_address = ("MILLPOND__LIMITS__CONNECTIONS_PER_ADDRESS", "40");
    let streams = ("MILLPOND__HTTP__EVENT_STREAMS_MAX", "2");
    let stage = Stage::set(&[SMALL[0], timeout, of_address, streams]).await;
    for (pool, policy) in
        [("full", json!({"quota_bytes": 100_000})), ("many", json!({})), ("large", json!({}))]
    {
        stage.server.pool(pool, policy).await;
    }
    let mut wrong = Vec::new();
    for (limit, code, metric, label) in LIMITS {
        let before = stage.metric(metric, label).await;
        let beside = format!("{limit:?}");
        let (told, fared) =
            tokio::join!(limit.reach(&stage), others(&stage.field, &beside, Duration::ZERO, 5));
        if told != code {
            wrong.push(format!("{limit:?}: {told}, not {code}"));
        }
        if let Err(error) = fared {
            wrong.push(format!("beside {limit:?}: {error:#}"));
        }
        if stage.metric(metric, label).await <= before {
            wrong.push(format!("{limit:?} is not counted in {metric}{{{label}}}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

impl Limit {
    /// Goes over it, as a member of its own, and answers what that one was told.
    async fn reach(self, stage: &Stage) -> String {
        let server = &stage.server;
        let who = member(server, "demo", &format!("{self:?}")).await;
        let one_too_many = |max: usize| vec!["x"; max + 1].join("/");
        let long = "x".repeat(limits::APP_TOPIC_BYTES);
        match self {
            Self::ConnectBytes => {
                let mut io = from("127.0.0.2", server.mqtt()).await.unwrap();
                let id = "x".repeat(limits::CONNECT_MAX);
                let connect = connect_of(5, 0xC2, &[], &[&id, "demo/x", &who.token]);
                io.write_all(&connect).await.unwrap();
                Client(io).answer(CONNACK).await
            }
            Self::ConnectTime => {
                let mut io = from("127.0.0.2", server.mqtt()).await.unwrap();
                let read = timeout(PATIENCE, io.read(&mut [0; 1])).await;
                if matches!(read, Ok(Ok(0))) { "closed".to_owned() } else { format!("{read:?}") }
            }
            Self::Connections => {
                let mut held = Vec::new();
                for n in 0..limits::CONNECTIONS_PER_MEMBER {
                    held.push(Client::sign_in(server, &who, &format!("c{n}")).await);
                }
                Client::open(server, &who, "more", 0).await.answer(CONNACK).await
            }
            Self::ConnectionsOfAddress => {
                let mut held = Vec::new();
                // More than the address may have, of eight members.
                for n in 0..64 {
                    let mut client = Client::open(server, &stage.field.bad[n / 8], &format!("a{n}"), 0).await;
                    let told = client.answer(CONNACK).await;
                    if told != "0x00" {
                        return told;
                    }
                    held.push(client);
                }
                "nothing".to_owned()
            }
            Self::Sessions => {
                for n in 0..limits::SESSIONS_PER_MEMBER {
                    let mut kept = Client::open(server, &who, &format!("s{n}"), 3_600).await;
                    assert_eq!(kept.answer(CONNACK).await, "0x00");
                    kept.end().await;
                }
                Client::open(server, &who, "more", 0).await.answer(CONNACK).await
            }
            Self::Subscriptions => {
                let mut client = Client::sign_in(server, &who, "x").await;
                for n in 0..limits::SUBSCRIPTIONS_MAX {
                    assert_eq!(client.subscribe(&format!("app/demo/s{n}")).await, "0x01");
                }
                client.subscribe("app/demo/more").await
            }
            Self::FilterLevels => {
                let mut client = Client::sign_in(server, &who, "x").await;
                let levels = limits::APP_TOPIC_LEVELS - 2;
                assert_eq!(client.subscribe(&format!("app/demo/{}", one_too_many(levels - 1))).await, "0x01");
                client.subscribe(&format!("app/demo/{}", one_too_many(levels))).await
            }
            Self::FilterBytes => {
                Client::sign_in(server, &who, "x").await.subscribe(&format!("app/demo/{long}")).await
            }
            Self::TopicLevels => {
                let mut client = Client::sign_in(server, &who, "x").await;
                let levels = limits::APP_TOPIC_LEVELS - 2;
                let topic = |levels| format!("app/demo/{}", one_too_many(levels));
                assert_eq!(client.publish(&topic(levels - 1), &[], b"x").await, "0x00");
                client.publish(&topic(levels), &[], b"x").await
            }
            Self::TopicBytes => {
                let mut client = Client::sign_in(server, &who, "x").await;
                client.publish(&format!("app/demo/{long}"), &[], b"x").await
            }
            Self::UserProperties => {
                let mut client = Client::sign_in(server, &who, "x").await;
                let topic = format!("mp/demo/c/{}/up/u", who.member);
                let many = |count: usize| [38, 0, 1, b'k', 0, 1, b'v'].repeat(count);
                let most = limits::USER_PROPERTIES_MAX;
                assert_eq!(client.publish(&topic, &many(most), b"x").await, "0x00");
                client.publish(&topic, &many(most + 1), b"x").await
            }
            Self::MessageBytes => {
                let mut client = Client::sign_in(server, &who, "x").await;
                client.publish("app/demo/long", &[], &vec![0; limits::PUBLISH_MAX + 1]).await
            }
            Self::BundleBytes => {
                let mut client = Client::sign_in(server, &who, "x").await;
                let topic = format!("mp/demo/c/{}/bundle/b", who.member);
                client.publish(&topic, &[], &vec![0; limits::BUNDLE_MAX + 1]).await
            }
            Self::AskBytes => {
                let mut client = Client::sign_in(server, &who, "x").await;
                let topic = format!("mp/demo/c/{}/ask/time", who.member);
                client.publish(&topic, &[], &vec![b' '; limits::ASK_MAX + 1]).await
            }
            Self::PacketBytes => {
                let mut client = Client::sign_in(server, &who, "x").await;
                client.send(&packet(0x82, &vec![0; limits::PACKET_OVERHEAD + 1])[..16]).await;
                client.answer(DISCONNECT).await
            }
            Self::Unreleased => {
                let mut client = Client::sign_in(server, &who, "x").await;
                for id in 0..=limits::UNCOMMITTED_PER_CONNECTION as u16 {
                    let mut bytes = publish("app/demo/x", id, &[], b"x");
                    // At QoS 2; the PUBREC is never answered.
                    bytes[0] = 0x34;
                    client.send(&bytes).await;
                }
                client.answer(DISCONNECT).await
            }
            Self::HttpBody => {
                let api = Api::new(format!("http://{}", server.ports().http), who.token);
                put(&api, "demo", "x".repeat(limits::ASK_MAX), 1).await
            }
            Self::Retained => {
                let mut client = Client::sign_in(server, &who, "x").await;
                for n in 0..limits::RETAINED_PER_MEMBER {
                    assert_eq!(client.retain(&format!("app/demo/r{n}")).await, "0x00");
                }
                client.retain("app/demo/more").await
            }
            Self::RetainedOfPool => {
                for n in 0..limits::RETAINED_PER_POOL / limits::RETAINED_PER_MEMBER {
                    let who = member(server, "many", &format!("m{n}")).await;
                    let mut client = Client::sign_in(server, &who, "x").await;
                    for first in (0..limits::RETAINED_PER_MEMBER).step_by(50) {
                        let topic = |at| format!("app/many/{n}/{at}");
                        client.retain_all(&(first..first + 50).map(topic).collect::<Vec<_>>()).await;
                    }
                }
                let who = member(server, "many", "more").await;
                Client::sign_in(server, &who, "x").await.retain("app/many/more").await
            }
            Self::RetainedBytes => {
                let who = member(server, "large", "m").await;
                let mut client = Client::sign_in(server, &who, "x").await;
                let (payload, mut told) = (vec![0; limits::PUBLISH_MAX - 1_000], "0x00".to_owned());
                let most = limits::RETAINED_BYTES_PER_POOL / payload.len();
                for n in 0..=most {
                    assert_eq!(told, "0x00", "message {n}");
                    let mut bytes = publish(&format!("app/large/{n}"), 0, &[], &payload);
                    bytes[0] |= 1;
                    client.send(&bytes).await;
                    told = client.answer(PUBACK).await;
                }
                told
            }
            Self::SessionMessages => {
                let mut slow = Client::sign_in(server, &who, "slow").await;
                assert_eq!(slow.subscribe("app/demo/slow").await, "0x01");
                let mut client = Client::sign_in(server, &who, "x").await;
                // More than it may have on its way and waiting, and than sockets buffer.
                let before = stage.metric(COPIES, r#"limit="session""#).await;
                while stage.metric(COPIES, r#"limit="session""#).await <= before {
                    let told = client.publish("app/demo/slow", &[], &vec![0; limits::PUBLISH_MAX]).await;
                    assert_eq!(told, "0x00");
                }
                slow.answer(DISCONNECT).await
            }
            Self::AwayOfMember => {
                for n in 0..3 {
                    let mut kept = Client::open(server, &who, &format!("away{n}"), 3_600).await;
                    assert_eq!(kept.answer(CONNACK).await, "0x00");
                    assert_eq!(kept.subscribe("app/demo/away").await, "0x01");
                    kept.end().await;
                }
                let mut client = Client::sign_in(server, &who, "x").await;
                for _ in 0..limits::AWAY_BYTES_PER_MEMBER / 3 / limits::PUBLISH_MAX + 1 {
                    let told = client.publish("app/demo/away", &[], &vec![0; limits::PUBLISH_MAX]).await;
                    assert_eq!(told, "0x00");
                }
                // Who is away cannot be told.
                "nothing".to_owned()
            }
            Self::EventStreams => {
                let operator = server.member("demo", "operator", Role::Operator).await;
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                let url = format!("http://{}/v1/pools/demo/events", server.ports().http);
                let open = async || {
                    let request = http.get(&url).bearer_auth(&operator.token);
                    request.header("accept", "text/event-stream").send().await.unwrap()
                };
                let held = open().await;
                assert_eq!(held.status(), 200);
                let over: serde_json::Value = open().await.json().await.unwrap();
                over["error"]["code"].as_str().unwrap().to_owned()
            }
            Self::Grants => {
                let api = Api::new(format!("http://{}", server.ports().http), who.token);
                let puts = stream::iter(0..limits::GRANTS_PER_MEMBER)
                    .map(|n| put(&api, "demo", format!("g{n}"), 200_000))
                    .buffer_unordered(8);
                assert!(puts.all(async |told| told == GRANTED).await);
                let told = put(&api, "demo", "more".to_owned(), 200_000).await;
                neighbour_is_granted(server, "demo").await;
                told
            }
            Self::GrantedBytes => {
                let api = Api::new(format!("http://{}", server.ports().http), who.token);
                // Of what there is, one may have half.
                let mut told = GRANTED.to_owned();
                for n in 0..64 {
                    if told == GRANTED {
                        told =
                            put(&api, "demo", format!("huge{n}"), limits::GRANTED_BYTES_PER_POOL / 32).await;
                    }
                }
                neighbour_is_granted(server, "demo").await;
                told
            }
            Self::PoolBytes => {
                let who = member(server, "full", "publisher").await;
                let mut client = Client::sign_in(server, &who, "x").await;
                let topic = |n: u32| format!("mp/full/c/publisher/up/u{n}");
                // With its row.
                assert_eq!(client.publish(&topic(1), &[], &[0; 60_000 - 512]).await, "0x00");
                client.send(&publish(&topic(2), 1, &[], &[0; 60_000])).await;
                client.answer(DISCONNECT).await
            }
            Self::PoolBytesByUrl => {
                let who = member(server, "full", "by-url").await;
                let api = Api::new(format!("http://{}", server.ports().http), who.token);
                let told = put(&api, "full", "half".to_owned(), 20_001).await;
                assert_eq!(put(&api, "full", "less".to_owned(), 19_999).await, GRANTED);
                told
            }
            Self::Answers => {
                // It reads all that comes, and acknowledges nothing: behind the first answer the others wait.
                let receive_maximum = [33, 0, 1];
                let mut client = Client::open_with("127.0.0.2", server, &who, "x", &receive_maximum).await;
                assert_eq!(client.answer(CONNACK).await, "0x00");
                assert_eq!(client.subscribe(&format!("mp/demo/d/{}/#", who.member)).await, "0x01");
                let topic = |what: &str| format!("mp/demo/c/{}/{what}", who.member);
                let file = vec![0; limits::SMALL_MAX];
                assert_eq!(client.publish(&topic("up/long"), &[], &file).await, "0x00");
                loop {
                    let ask = br#"{"upload": "long", "max_answer": 262144}"#;
                    let told = client.publish(&topic("ask/get"), &[], ask).await;
                    if told != "0x00" {
                        return told;
                    }
                }
            }
        }
    }
}

pub(super) async fn member(server: &Server, pool: &str, name: &str) -> Who {
    let who = server.member(pool, name, Role::Publisher).await;
    Who { pool: pool.to_owned(), member: name.to_owned(), token: who.token }
}

/// Asks for a grant; the code of the refusal, if it is one.
async fn put(api: &Api, pool: &str, upload: String, size: u64) -> String {
    let ask = json!({"id": upload, "upload": upload, "size": size, "sha256": Sha256::of(upload.as_bytes())});
    let (status, answer) = api.call(Method::POST, &format!("/v1/pools/{pool}/ask/put"), Some(&ask)).await;
    if status == 200 { GRANTED.to_owned() } else { answer["error"]["code"].to_string().replace('"', "") }
}

/// Somebody else of the pool still gets what it asks for.
async fn neighbour_is_granted(server: &Server, pool: &str) {
    let name = format!(
        "neighbour-{}",
        server.api().get("/v1/audit?limit=1000").await["entries"].as_array().unwrap().len()
    );
    let who = member(server, pool, &name).await;
    let api = Api::new(format!("http://{}", server.ports().http), who.token);
    assert_eq!(put(&api, pool, "mine".to_owned(), 1 << 20).await, GRANTED);
}
