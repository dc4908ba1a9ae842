//! What a member holds ends with its right to it, and how soon: sessions on every way in, those that are kept while it is
//! away, streams of events, grants, leases, URLs.
//!
//! Grants, leases and URLs end with the commit that the HTTP answer waits for, so there is no time to measure: with the answer
//! they are gone. Sessions end behind it, within a second. What a busy machine takes from everybody is not counted: a neighbour
//! pings all the while, on the same way in and in the same process, and what it waits longer than a moment was lost to both.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod held;
mod urls;
mod ways;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millpond_protocol::Role;
use millpond_tests::{Credentials, Server};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use ways::{Client, LEVELS, WAYS, Way, encrypted};

/// What the documents promise.
const PROMISED: Duration = Duration::from_secs(1);
/// A round trip of the neighbour that says nothing about the machine.
const MOMENT: Duration = Duration::from_millis(20);
/// Not authorized.
const REVOKED: u8 = 0x87;

/// Members that stay, one on each way in, and the time that they saw nothing happen.
struct Neighbours {
    lost: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Neighbours {
    async fn move_in(server: &Server) -> Self {
        server.pool("quiet", json!({})).await;
        let (lost, mut tasks) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
        for way in WAYS {
            let who = server.member("quiet", &format!("n{way:?}"), Role::Listener).await;
            let (mut client, _) = Client::open(server, &who, way, 5, "n", false).await;
            let lost = lost.clone();
            tasks.spawn(async move {
                loop {
                    let begun = Instant::now();
                    client.ping().await;
                    let over = begun.elapsed().saturating_sub(MOMENT);
                    lost.fetch_add(u64::try_from(over.as_micros()).unwrap(), Ordering::Relaxed);
                    tokio::time::sleep(MOMENT / 4).await;
                }
            });
        }
        Self { lost, tasks }
    }

    fn lost(&self) -> Duration {
        Duration::from_micros(self.lost.load(Ordering::Relaxed))
    }

    /// None of them was thrown out meanwhile.
    fn are_there(&mut self) {
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("a neighbour is gone: {ended:?}");
        }
    }
}

/// Everything of one member that lasts: a connection on each way in and in each version, a stream of events, and two sessions
/// whose client is away.
struct Present {
    who: Credentials,
    /// What it was, when it ended, and what was said.
    ends: JoinSet<(String, Instant, Option<u8>)>,
}

impl Present {
    /// Of an operator, who may have all of it.
    async fn set(server: &Server, who: Credentials) -> Self {
        let mut ends = JoinSet::new();
        for (way, level) in WAYS.into_iter().flat_map(|way| LEVELS.map(|level| (way, level))) {
            let (client, _) =
                Client::open(server, &who, way, level, &format!("{way:?}-{level}"), false).await;
            ends.spawn(async move {
                let said = client.ended().await;
                (format!("{way:?}, MQTT {level}"), Instant::now(), said)
            });
        }
        let mut stream = encrypted(server, server.ports().http).await;
        let request = format!(
            "GET /v1/pools/{}/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             accept: text/event-stream\r\nauthorization: Bearer {}\r\n\r\n",
            who.pool, who.token
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut head = vec![0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(head, b"HTTP/1.1 200");
        ends.spawn(async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
            ("the stream of events".to_owned(), Instant::now(), None)
        });
        for level in LEVELS {
            for was_there in [false, true] {
                let (mut client, is_there) = Self::away(server, &who, level).await;
                assert_eq!(is_there, was_there, "a session of MQTT {level} is kept");
                client.subscribe(&format!("app/{}/x", who.pool)).await;
            }
        }
        Self { who, ends }
    }

    /// The connection of a session that is kept.
    async fn away(server: &Server, who: &Credentials, level: u8) -> (Client, bool) {
        Client::open(server, who, Way::Tcp, level, &format!("kept-{level}"), true).await
    }

    /// All of it ends within the second from `from`. `lost`: before that.
    async fn ends(mut self, what: &str, from: Instant, neighbours: &mut Neighbours, lost: Duration) {
        let mut longest = Duration::ZERO;
        while let Some(ended) = self.ends.join_next().await {
            let (which, at, said) = ended.unwrap();
            let took = at.saturating_duration_since(from);
            let lost = neighbours.lost().saturating_sub(lost);
            assert!(
                took.saturating_sub(lost) < PROMISED,
                "{what}: {which} took {took:?}, of which {lost:?} nothing happened"
            );
            if which.ends_with('5') {
                assert_eq!(said, Some(REVOKED), "{what}: {which}");
            }
            longest = longest.max(took);
        }
        println!("{what}: all had ended after {longest:?}");
        neighbours.are_there();
    }

    /// Of the kept sessions nothing is left for who signs in now.
    async fn nothing_is_kept(server: &Server, what: &str, who: &Credentials) {
        for level in LEVELS {
            let (_, is_there) = Self::away(server, who, level).await;
            assert!(!is_there, "{what}: the session of MQTT {level} is kept");
        }
    }
}

/// Operators of other pools who change their policies without end, each of which is told to all that listen there.
async fn restless(server: &Server) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for n in 0..8 {
        let pool = format!("restless-{n}");
        server.pool(&pool, json!({})).await;
        let (api, path) = (server.api(), format!("/v1/pools/{pool}"));
        tasks.spawn(async move {
            for window in (1_u64..).map(|n| 60 + n % 2) {
                let (status, answer) =
                    api.call(Method::PATCH, &path, Some(&json!({"window_s": window}))).await;
                assert_eq!(status, 200, "{answer}");
                // As fast as it goes would measure the disk.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }
    tasks
}

async fn stage() -> Server {
    let server = Server::secure(&[("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#)]).await;
    server.pool("p", json!({"grouping": "label"})).await;
    server
}

/// Sends the request that ends what a member has, and answers when its answer came.
async fn call(server: &Server, method: Method, path: &str, body: Option<Value>) -> Instant {
    let (status, answer) = server.api().call(method, path, body.as_ref()).await;
    let at = Instant::now();
    assert_eq!(status, 200, "{path}: {answer}");
    at
}

#[tokio::test]
async fn whatever_ends_a_members_right_ends_its_sessions_on_every_way_in_within_a_second() {
    let server = stage().await;
    let mut neighbours = Neighbours::move_in(&server).await;
    let mut restless = restless(&server).await;
    let member = |name: &'static str| {
        let server = &server;
        async move {
            let who = server.member("p", name, Role::Operator).await;
            Present::set(server, who).await
        }
    };

    let present = member("revoked").await;
    let lost = neighbours.lost();
    let at = call(&server, Method::DELETE, "/v1/pools/p/members/revoked", None).await;
    present.ends("revocation", at, &mut neighbours, lost).await;
    let again = server.member("p", "revoked", Role::Operator).await;
    Present::nothing_is_kept(&server, "revocation", &again).await;

    let present = member("changed").await;
    let (who, lost) = (present.who.clone(), neighbours.lost());
    let role = json!({"role": "listener"});
    let at = call(&server, Method::PATCH, "/v1/pools/p/members/changed", Some(role)).await;
    present.ends("another role", at, &mut neighbours, lost).await;
    Present::nothing_is_kept(&server, "another role", &who).await;

    let present = member("replaced").await;
    let lost = neighbours.lost();
    let (path, rotate) = ("/v1/pools/p/members/replaced/tokens", json!({"replace": true}));
    let (status, new) = server.api().call(Method::POST, path, Some(&rotate)).await;
    let at = Instant::now();
    assert_eq!(status, 200, "{new}");
    let who = Credentials { token: new["token"].as_str().unwrap().to_owned(), ..present.who.clone() };
    present.ends("another token", at, &mut neighbours, lost).await;
    Present::nothing_is_kept(&server, "another token", &who).await;

    let present = member("overlapped").await;
    let lost = neighbours.lost();
    let (path, rotate) = ("/v1/pools/p/members/overlapped/tokens", json!({"replace": true, "overlap_s": 2}));
    let (status, new) = server.api().call(Method::POST, path, Some(&rotate)).await;
    let at = Instant::now() + Duration::from_secs(2);
    assert_eq!(status, 200, "{new}");
    let who = Credentials { token: new["token"].as_str().unwrap().to_owned(), ..present.who.clone() };
    present.ends("the end of an overlap", at, &mut neighbours, lost).await;
    Present::nothing_is_kept(&server, "the end of an overlap", &who).await;

    let present = member("removed").await;
    let lost = neighbours.lost();
    let at = call(&server, Method::DELETE, "/v1/pools/p", None).await;
    present.ends("removal of the pool", at, &mut neighbours, lost).await;
    server.pool("p", json!({})).await;
    let again = server.member("p", "removed", Role::Operator).await;
    Present::nothing_is_kept(&server, "removal of the pool", &again).await;
    assert!(restless.try_join_next().is_none(), "they went on all the while");
}
