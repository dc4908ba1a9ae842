//! One who goes over a limit is told so by its code, and counted; those beside it do not notice.
//!
//! In one file although it is a long one: a row of the table and what brings it about are read together.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::overload::{from, others};
use millpond_tests::wire::{Who, connect_of, packet, text};
use millpond_tests::{Api, Server};
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{SMALL, Stage};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
const PUBACK: u8 = 0x40;
const SUBACK: u8 = 0x90;
const CONNACK: u8 = 0x20;
const DISCONNECT: u8 = 0xE0;
const REFUSED: &str = "millpond_gate_refusals_total";
const FILTERS: &str = "millpond_gate_subscriptions_refused_total";
const CONNECTS: &str = "millpond_gate_connections_refused_total";
const ENDED: &str = "millpond_gate_ended_total";
const HTTP: &str = "millpond_http_refusals_total";
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
    Grants,
    GrantedBytes,
    PoolBytes,
    PoolBytesByUrl,
}

/// Each limit, what whoever is over it is told, and what counts it.
const LIMITS: [(Limit, &str, &str, &str); 22] = [
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
    (Limit::Grants, "quota", QUOTAS, r#"limit="member_grants""#),
    (Limit::GrantedBytes, "quota", QUOTAS, r#"limit="pool_grants""#),
    (Limit::PoolBytes, "0x97", QUOTAS, r#"limit="pool_bytes""#),
    (Limit::PoolBytesByUrl, "quota", QUOTAS, r#"limit="pool_bytes""#),
];

#[tokio::test]
async fn who_goes_over_a_limit_is_told_by_its_code_and_counted_and_others_go_on() {
    let timeout = ("MILLPOND__LIMITS__CONNECT_TIMEOUT_S", "3");
    // More than those have that go on beside.
    let of_address = ("MILLPOND__LIMITS__CONNECTIONS_PER_ADDRESS", "40");
    let stage = Stage::set(&[SMALL[0], timeout, of_address]).await;
    stage.server.pool("full", json!({"quota_bytes": 100_000})).await;
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
        }
    }
}

#[tokio::test]
async fn connections_beyond_those_of_one_address_are_told_so_and_counted_and_others_go_on() {
    let settings = [SMALL[0], ("MILLPOND__LIMITS__CONNECTIONS_PER_ADDRESS", "12")];
    let stage = Stage::set(&settings).await;
    let mut held = Vec::new();
    for n in 0..12 {
        let who = &stage.field.bad[n % stage.field.bad.len()];
        held.push(Client::sign_in(&stage.server, who, &format!("c{n}")).await);
    }
    let mut over = Client::open(&stage.server, &stage.field.bad[7], "more", 0).await;
    assert_eq!(over.answer(CONNACK).await, "0x97");
    assert!(stage.metric(CONNECTS, r#"limit="address""#).await >= 1.0);
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

async fn member(server: &Server, pool: &str, name: &str) -> Who {
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

/// A client of MQTT 5 that comes from where attackers come from.
struct Client(TcpStream);

impl Client {
    /// Sends CONNECT, with a session that is kept for so many seconds.
    async fn open(server: &Server, who: &Who, client_id: &str, expiry_s: u32) -> Self {
        let io = from("127.0.0.2", server.mqtt()).await.unwrap();
        let expiry = [&[17][..], &expiry_s.to_be_bytes()].concat();
        let user = format!("{}/{}", who.pool, who.member);
        let mut client = Self(io);
        client.send(&connect_of(5, 0xC2, &expiry, &[client_id, &user, &who.token])).await;
        client
    }

    async fn sign_in(server: &Server, who: &Who, client_id: &str) -> Self {
        let mut client = Self::open(server, who, client_id, 0).await;
        assert_eq!(client.answer(CONNACK).await, "0x00");
        client
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The code in the next packet of that kind.
    async fn answer(&mut self, kind: u8) -> String {
        let next = async {
            loop {
                let (first, body) = self.packet().await;
                let code = match first {
                    PUBACK => body.get(2).copied().unwrap_or(0),
                    SUBACK => body[body.len() - 1],
                    CONNACK => body[1],
                    DISCONNECT => body[0],
                    0 => return "closed".to_owned(),
                    _ => continue,
                };
                return if first == kind {
                    format!("{code:#04x}")
                } else {
                    format!("packet {first:#x} {body:?}")
                };
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| "nothing".to_owned())
    }

    async fn packet(&mut self) -> (u8, Vec<u8>) {
        // At the end of the connection one that there is not.
        let Ok(first) = self.0.read_u8().await else { return (0, Vec::new()) };
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.unwrap();
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (first, body)
    }

    async fn subscribe(&mut self, filter: &str) -> String {
        let mut body = vec![0, 1, 0];
        text(&mut body, filter);
        body.push(1);
        self.send(&packet(0x82, &body)).await;
        self.answer(SUBACK).await
    }

    async fn publish(&mut self, topic: &str, properties: &[u8], payload: &[u8]) -> String {
        self.send(&publish(topic, 0, properties, payload)).await;
        self.answer(PUBACK).await
    }

    async fn retain(&mut self, topic: &str) -> String {
        let mut bytes = publish(topic, 0, &[], b"x");
        bytes[0] |= 1;
        self.send(&bytes).await;
        self.answer(PUBACK).await
    }

    /// Says goodbye, and waits until the server has taken note.
    async fn end(mut self) {
        self.send(&[DISCONNECT, 0]).await;
        assert_eq!(timeout(PATIENCE, self.0.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }
}

/// A QoS 1 PUBLISH of MQTT 5.
fn publish(topic: &str, id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend((id + 1).to_be_bytes());
    // A length is coded as in a packet's head.
    body.extend(&packet(0, properties)[1..]);
    body.extend(payload);
    packet(0x32, &body)
}
