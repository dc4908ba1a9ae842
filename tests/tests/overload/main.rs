//! Broken and hostile clients reach their own limits, and those beside them go on. `bench -- overload` measures how well.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod client;
mod full;
mod held;
mod told;

use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::{Role, limits};
use millpond_tests::overload::{Attack, Field, from, others};
use millpond_tests::wire::{Connection, Who, publish};
use millpond_tests::{Server, until};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinSet;

/// Small limits, so that every one is reached soon.
const SMALL: [(&str, &str); 7] = [
    ("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#),
    ("MILLPOND__LIMITS__MESSAGES_PER_MEMBER_S", "150"),
    ("MILLPOND__LIMITS__UNCOMMITTED_BYTES_MAX", "16777216"),
    ("MILLPOND__LIMITS__STRANGERS_MAX", "20"),
    ("MILLPOND__LIMITS__STRANGERS_PER_ADDRESS", "5"),
    ("MILLPOND__HTTP__CONNECTIONS_MAX", "32"),
    ("MILLPOND__HTTP__CONNECTIONS_PER_ADDRESS", "16"),
];

struct Stage {
    server: Server,
    field: Arc<Field>,
}

impl Stage {
    async fn set(settings: &[(&str, &str)]) -> Self {
        let server = Server::with(settings).await;
        let (mut members, mut apart) = (Vec::new(), Vec::new());
        for (name, members, count) in [("demo", &mut members, 12), ("apart", &mut apart, 9)] {
            server.pool(name, json!({})).await;
            for n in 0..count {
                let who = server.member(name, &format!("m{n}"), Role::Publisher).await;
                let (pool, member) = (who.pool.to_string(), who.member.to_string());
                members.push(Who { pool, member, token: who.token });
            }
        }
        let good = members.split_off(8);
        let (mqtt, http, storage) = (server.mqtt(), server.ports().http, server.ports().storage.unwrap());
        Self { server, field: Arc::new(Field { mqtt, http, storage, bad: members, good, apart }) }
    }

    /// The sum of a metric over the labels that are not named.
    async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.server.api().get("/metrics").await;
        let lines =
            text.as_str().unwrap().lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// While the attack goes on the metric reaches `least`, and everybody else does everything in time.
    async fn stands(self, attack: Attack, limits: &[(&str, &str, f64)]) {
        let _attackers = attack.begin(&self.field);
        for (name, label, least) in limits {
            let what = format!("{name} {label} reaches {least} by {}", attack.name());
            until(&what, async || self.metric(name, label).await >= *least).await;
        }
        others(&self.field, "beside", Duration::ZERO, 20).await.unwrap();
    }
}

#[tokio::test]
async fn subscribers_that_read_nothing_are_ended_and_others_go_on() {
    let dropped = ("millpond_gate_copies_dropped_total", r#"limit="session""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::SlowReaders, &[dropped]).await;
}

#[tokio::test]
async fn bundles_that_trickle_in_hold_what_there_is_for_long_packets_and_others_go_on() {
    let held = ("millpond_gate_uncommitted_bytes", "", 8_388_608.0);
    Stage::set(&SMALL).await.stands(Attack::SlowWriters, &[held]).await;
}

#[tokio::test]
async fn half_open_connections_take_the_share_of_their_address_and_others_go_on() {
    let mqtt = ("millpond_turned_away_total", r#"listener="mqtt",limit="address""#, 1.0);
    let http = ("millpond_turned_away_total", r#"listener="http",limit="address""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::HalfOpen(180), &[mqtt, http]).await;
}

#[tokio::test]
async fn a_member_that_floods_is_held_back_to_its_rate_and_others_go_on() {
    let throttled = ("millpond_gate_throttled_total", r#"limit="member""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::Flood, &[throttled]).await;
}

#[tokio::test]
async fn every_rate_of_a_member_and_of_a_pool_holds_a_flood_back_and_others_go_on() {
    for (setting, rate, label) in [
        ("MILLPOND__LIMITS__BYTES_PER_MEMBER_S", "200000", r#"limit="member""#),
        ("MILLPOND__LIMITS__MESSAGES_PER_POOL_S", "500", r#"limit="pool""#),
        ("MILLPOND__LIMITS__BYTES_PER_POOL_S", "1000000", r#"limit="pool""#),
    ] {
        let throttled = ("millpond_gate_throttled_total", label, 1.0);
        Stage::set(&[SMALL[0], (setting, rate)]).await.stands(Attack::Flood, &[throttled]).await;
    }
}

#[tokio::test]
async fn members_that_acknowledge_nothing_are_ended_and_others_go_on() {
    let dropped = ("millpond_gate_copies_dropped_total", r#"limit="session""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::NeverAcknowledge, &[dropped]).await;
}

#[tokio::test]
async fn members_that_ask_and_read_no_answer_are_held_back_and_others_go_on() {
    let throttled = ("millpond_gate_throttled_total", r#"limit="member""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::UnreadAnswers(16), &[throttled]).await;
}

#[tokio::test]
async fn a_flood_of_subscriptions_in_one_pool_leaves_those_of_another_their_turn() {
    let read = ("millpond_gate_bytes_in_total", "", 200_000.0);
    Stage::set(&SMALL).await.stands(Attack::Subscribe, &[read]).await;
}

#[tokio::test]
async fn a_flood_of_messages_to_many_in_one_pool_leaves_those_of_another_their_turn() {
    let published = ("millpond_gate_publishes_total", "", 1_000.0);
    // More than one connection may have undecided.
    let waiting = ("millpond_gate_router_queue_peak", "", 65.0);
    Stage::set(&SMALL[..1]).await.stands(Attack::FanOut(60), &[published, waiting]).await;
}

#[tokio::test]
async fn storage_refuses_who_may_not_and_lets_bodies_wait_that_trickle_in_and_others_go_on() {
    let refused = ("millpond_s3_requests_total", r#"status="403""#, 1_000.0);
    // More bodies than one pool may have on their way: those over it waited for their turn, and were told to come again.
    let busy = ("millpond_s3_requests_total", r#"status="503""#, 1.0);
    Stage::set(&SMALL).await.stands(Attack::Storage(220), &[refused, busy]).await;
}

#[tokio::test]
async fn a_fleet_behind_one_address_that_comes_back_at_once_is_let_in_little_by_little() {
    let stage = Stage::set(&[SMALL[3], SMALL[4], ("MILLPOND__LIMITS__CONNECTIONS_PER_MEMBER", "32")]).await;
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let field = stage.field.clone();
        tasks.spawn(async move {
            let who = field.bad[n % field.bad.len()].clone();
            loop {
                let attempt = async {
                    let stream = from("127.0.0.2", field.mqtt).await?;
                    Connection::open_as(stream, &who, &format!("c{n}")).await
                };
                match attempt.await {
                    Ok(connection) => return connection,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
    }
    let all =
        tokio::time::timeout(Duration::from_secs(120), tasks.join_all()).await.expect("not all come in");
    assert_eq!(stage.metric("millpond_gate_connections ", "").await, all.len() as f64);
    let turned_away = stage.metric("millpond_turned_away_total", r#"listener="mqtt",limit="address""#).await;
    assert!(turned_away >= 1.0, "all were let in at once");
}

/// Bytes of the server's memory at its peak.
fn peak(server: &mut Server) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process().id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn what_slow_subscribers_make_the_server_hold_stays_below_what_security_md_adds_up() {
    const MESSAGE: usize = 200 << 10;
    const READERS: usize = 50;
    // What the router keeps of its log, and what is on its way there.
    const BUS: usize = 24 << 20;
    // What waits to be written to one connection, beside one message more, and its buffers.
    const OUT: usize = 256 << 10;
    const EACH: usize = 64 << 10;
    let mut stage = Stage::set(&SMALL[..1]).await;
    let before = peak(&mut stage.server);
    let attackers = Attack::SlowReaders.begin(&stage.field);
    // Several times of what may be held.
    let published = || stage.metric("millpond_gate_publishes_total", "");
    until("a thousand messages are published", async || published().await >= 1_000.0).await;
    drop(attackers);
    // All wait for the same messages, which are in memory once.
    let shared = limits::SESSION_QUEUE_BYTES + limits::IN_FLIGHT_BYTES;
    let bound = BUS + shared + READERS * (OUT + 2 * MESSAGE + EACH);
    let grown = peak(&mut stage.server).saturating_sub(before);
    assert!(grown < bound, "{} MiB, where {} MiB are accounted for", grown >> 20, bound >> 20);
    println!("{} MiB, where {} MiB are accounted for", grown >> 20, bound >> 20);
}

/// Uploads of one member, so that its history is a long answer.
async fn past(field: &Field, n: usize) {
    let who = &field.bad[n];
    let stream = from("127.0.0.2", field.mqtt).await.unwrap();
    let mut connection = Connection::open_as(stream, who, "past").await.unwrap();
    for id in 1..=400_u16 {
        let topic = format!("mp/{}/c/{}/up/{id:a>60}", who.pool, who.member);
        connection.write.write_all(&publish(id, &topic, b"x")).await.unwrap();
        if id % 50 == 0 {
            for _ in 0..50 {
                assert_eq!(connection.receive().await.unwrap().0, 0x40);
            }
        }
    }
}

#[tokio::test]
async fn what_unread_answers_make_the_server_hold_stays_below_what_security_md_adds_up() {
    // Eight of each member.
    const CONNECTIONS: usize = 64;
    // What members may have under way at once, and what one ask is while it is: an answer, as values and as text.
    const ASKS: usize = 8 * 16 * 2 * limits::ANSWER_MAX;
    // Of each connection: answers whatever the others have, what is on its way out with one answer more, and its buffers.
    const EACH: usize = (256 << 10) + (256 << 10) + limits::ANSWER_MAX + (64 << 10);
    let mut stage = Stage::set(&[SMALL[0], SMALL[2]]).await;
    for n in 0..8 {
        past(&stage.field, n).await;
    }
    let before = peak(&mut stage.server);
    let attackers = Attack::UnreadAnswers(CONNECTIONS).begin(&stage.field);
    let refused = || stage.metric("millpond_ask_errors_total", r#"code="quota""#);
    until("asks are refused again and again", async || refused().await >= 1_000.0).await;
    let fared = others(&stage.field, "beside", Duration::ZERO, 5).await;
    drop(attackers);
    let bound = (16 << 20) + ASKS + limits::ANSWERS_WAITING_MAX + CONNECTIONS * EACH;
    let grown = peak(&mut stage.server).saturating_sub(before);
    assert!(grown < bound, "{} MiB, where {} MiB are accounted for", grown >> 20, bound >> 20);
    println!("{} MiB, where {} MiB are accounted for", grown >> 20, bound >> 20);
    fared.unwrap();
}
