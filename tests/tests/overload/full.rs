//! With every place of the server taken newcomers are told so, or wait; those who are in go on.

use std::net::SocketAddr;

use millpond_tests::overload::{from, others};
use millpond_tests::until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{CONNACK, Client, PATIENCE};
use super::{Duration, SMALL, Stage};

#[tokio::test]
async fn beyond_the_connections_of_the_server_a_client_is_told_so_and_those_who_are_in_go_on() {
    let stage = Stage::set(&[SMALL[0], ("MILLPOND__LIMITS__CONNECTIONS_MAX", "12")]).await;
    let of_all = r#"limit="all""#;
    let mut there = Client::sign_in(&stage.server, &stage.field.good[0], "there").await;
    let mut held = Vec::new();
    for n in 0..11 {
        let who = &stage.field.bad[n % stage.field.bad.len()];
        held.push(Client::sign_in(&stage.server, who, &format!("c{n}")).await);
    }
    for n in 0..5 {
        let who = &stage.field.bad[7];
        let mut over = Client::open_from("127.0.0.3", &stage.server, who, "more", 0).await;
        assert_eq!(over.answer(CONNACK).await, "0x97");
        assert_eq!(there.publish("app/demo/x", &[], b"x").await, "0x00", "after {n} newcomers");
    }
    assert_eq!(stage.metric("millpond_gate_connections_refused_total", of_all).await, 5.0);
    drop(held);
    until("there are places again", async || stage.metric("millpond_gate_connections ", "").await == 1.0)
        .await;
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}

/// A connection of HTTP that stays open.
struct Kept(TcpStream);

impl Kept {
    async fn ask(&mut self, path: &str) {
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    }

    /// The status and the body of an answer.
    async fn answer(&mut self) -> (u16, String) {
        let read = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            self.0.read_exact(&mut body).await.unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8(body).unwrap())
        };
        timeout(PATIENCE, read).await.expect("no answer")
    }

    async fn get(&mut self, path: &str) -> (u16, String) {
        self.ask(path).await;
        self.answer().await
    }
}

/// Takes all places of a port from two addresses. A newcomer waits meanwhile, and comes in behind them.
async fn fill(stage: &Stage, name: &str, at: SocketAddr, path: &str, status: u16) {
    let mut there = Kept(from("127.0.0.1", at).await.unwrap());
    assert_eq!(there.get(path).await.0, status);
    // Metrics are asked for on a connection that is there.
    let mut watch = Kept(from("127.0.0.1", stage.field.http).await.unwrap());
    let full = format!("millpond_full_total{{listener=\"{name}\"}}");
    assert!(!watch.get("/metrics").await.1.contains(&full), "nobody was there yet");
    let mut held = Vec::new();
    for n in 0..16 {
        held.push(from(&format!("127.0.0.{}", 2 + n % 2), at).await.unwrap());
    }
    loop {
        if watch.get("/metrics").await.1.contains(&full) {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut newcomer = Kept(from("127.0.0.1", at).await.unwrap());
    newcomer.ask(path).await;
    for _ in 0..20 {
        assert_eq!(there.get(path).await.0, status);
    }
    let unheard = newcomer.0.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(unheard.kind(), std::io::ErrorKind::WouldBlock);
    drop(held);
    assert_eq!(newcomer.answer().await.0, status);
}

#[tokio::test]
async fn with_all_places_of_http_or_of_storage_taken_newcomers_wait_and_those_who_are_in_go_on() {
    let stage = Stage::set(&[
        SMALL[0],
        ("MILLPOND__HTTP__CONNECTIONS_MAX", "16"),
        ("MILLPOND__HTTP__CONNECTIONS_PER_ADDRESS", "8"),
        ("MILLPOND__STORAGE__CONNECTIONS_MAX", "16"),
        ("MILLPOND__STORAGE__CONNECTIONS_PER_ADDRESS", "8"),
    ])
    .await;
    fill(&stage, "storage", stage.field.storage, "/", 403).await;
    fill(&stage, "http", stage.field.http, "/healthz", 200).await;
    others(&stage.field, "beside", Duration::ZERO, 5).await.unwrap();
}
