//! A processor's finished result against servers with other limits and networks that fail: it is returned all the same.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millpond_edge::process::{self, Options, ProcessError, Report, Trigger};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::transfer::{self, Transfer};
use millpond_protocol::Role;
use millpond_tests::{Edge, Liar, Lie, Link, Relay, Server, Shape, until};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

/// A round of one upload, which whoever asks for one gets: its files are written.
async fn round(server: &Server) {
    server.pool("demo", json!({ "grouping": "count", "count": 1 })).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    link.publish("mp/demo/c/edge-1/up/u1", vec![1], Default::default()).await.unwrap();
    link.close().await;
    until("the round is offered", async || state(server).await == "offered").await;
}

async fn state(server: &Server) -> Value {
    server.api().get("/v1/pools/demo/rounds/1").await["state"].clone()
}

async fn committed(server: &Server) -> bool {
    state(server).await == "committed"
}

#[tokio::test]
async fn the_first_round_already_knows_what_the_server_takes_over_mqtt() {
    let server = Server::with(&[("MILLPOND__MQTT__PUBLISH_MAX", "100000")]).await;
    round(&server).await;
    let edge = Edge::new(&server, server.member("demo", "mill", Role::Processor).await).await;
    let exec = r#"head -c 300000 /dev/zero > "$MILLPOND_OUTPUT""#;
    let mut process = edge.start("process", &["process", "--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
    assert!(committed(&server).await);
}

/// What answers in storage's place: it closes every connection, and counts.
struct Broken {
    at: SocketAddr,
    refused: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Broken {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, refused) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
        let count = Arc::clone(&refused);
        let task = tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { at, refused, task }
    }

    fn refused(&self) -> u32 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server with a round, and its storage behind a relay.
async fn behind_a_relay() -> (Server, Relay) {
    let storage = Relay::to("127.0.0.1:1".parse().unwrap()).await;
    let public = format!("http://{}", storage.address());
    let server = Server::with(&[("MILLPOND__STORAGE__PUBLIC_URL", &public)]).await;
    storage.mend(server.ports().storage.unwrap());
    round(&server).await;
    (server, storage)
}

/// The member `mill`, which reaches the server there.
async fn mill(server: &Server, at: SocketAddr) -> Config {
    let mill = server.member("demo", "mill", Role::Processor).await;
    let token = Token::new(&mill.token);
    Config::new(at.ip().to_string(), at.port(), mill.pool, mill.member, token).topics(process::TOPICS)
}

/// Works on one round as the member `mill`, which reaches the server there.
async fn work(
    server: &Server,
    at: SocketAddr,
    directory: &Path,
    exec: String,
) -> JoinHandle<Result<(), ProcessError>> {
    let config = mill(server, at).await;
    let options = Options { once: true, ..Options::new(exec, directory.join("work")) };
    tokio::spawn(async move {
        let (session, mut inbox) = session::open(config);
        // One attempt is what a transfer makes; another one is for the processor to make.
        let transfer = transfer::Options { attempts: 1, ..transfer::Options::default() };
        let (transfer, mut quiet) = (Arc::new(Transfer::new(transfer)), |_: Report<'_>| {});
        let never = Box::pin(std::future::pending());
        process::process(&session, &mut inbox, &transfer, &options, &mut quiet, never).await
    })
}

#[tokio::test]
async fn a_session_that_processes_again_knows_what_it_was_told_before() {
    let (server, _storage) = behind_a_relay().await;
    let directory = tempfile::tempdir().unwrap();
    let (session, mut inbox) = session::open(mill(&server, server.mqtt()).await);
    let (transfer, mut quiet) = (Arc::new(Transfer::new(transfer::Options::default())), |_: Report<'_>| {});
    let once = Options::new("echo flour > \"$MILLPOND_OUTPUT\"", directory.path().join("work"));
    // What is on offer now: the round, and the second time nothing.
    let options = Options { trigger: Trigger::Never, ..once };
    for _ in 0..2 {
        let never = Box::pin(std::future::pending());
        process::process(&session, &mut inbox, &transfer, &options, &mut quiet, never).await.unwrap();
        assert!(committed(&server).await);
    }
}

/// A line of a command that waits for a file.
fn wait_for(file: &Path) -> String {
    format!("while ! test -e '{}'; do sleep 0.02; done", file.display())
}

#[tokio::test]
async fn a_result_that_storage_does_not_take_now_is_offered_until_it_does() {
    let (server, storage) = behind_a_relay().await;
    let broken = Broken::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (made, go) = (directory.path().join("made"), directory.path().join("go"));
    let exec = format!(
        "touch '{}'; {}; head -c 3000000 /dev/zero > \"$MILLPOND_OUTPUT\"",
        made.display(),
        wait_for(&go)
    );
    let working = work(&server, server.mqtt(), directory.path(), exec).await;
    until("the command runs", async || made.exists()).await;
    storage.cut();
    storage.mend(broken.at);
    std::fs::write(&go, "").unwrap();
    until("refused attempts", async || {
        assert!(!working.is_finished(), "it gave up");
        broken.refused() >= 2
    })
    .await;
    storage.mend(server.ports().storage.unwrap());
    working.await.unwrap().unwrap();
    assert!(committed(&server).await);
}

#[tokio::test]
async fn a_result_for_which_storage_has_no_room_is_not_sent_again_at_once_and_the_round_says_what_it_waits_for()
 {
    let (server, storage) = behind_a_relay().await;
    let full = Liar::before(server.ports().storage.unwrap()).await;
    let directory = tempfile::tempdir().unwrap();
    let (made, go) = (directory.path().join("made"), directory.path().join("go"));
    let exec = format!(
        "touch '{}'; {}; head -c 3000000 /dev/zero > \"$MILLPOND_OUTPUT\"",
        made.display(),
        wait_for(&go)
    );
    let working = work(&server, server.mqtt(), directory.path(), exec).await;
    until("the command runs", async || made.exists()).await;
    full.tell(Lie::RefuseWrites(507, "InsufficientStorage"));
    storage.cut();
    storage.mend(full.endpoint().strip_prefix("http://").unwrap().parse().unwrap());
    std::fs::write(&go, "").unwrap();
    until("its log", async || {
        assert!(!working.is_finished(), "it gave up");
        let round = server.api().get("/v1/pools/demo/rounds/1").await;
        round["log"].to_string().contains("the result is sent again in 60 s")
    })
    .await;
    // The line came with a beat, some seconds after the refusal.
    assert_eq!(full.calls(), 1);
    working.abort();
}

#[tokio::test]
async fn a_result_that_went_by_url_for_a_slow_line_alone_goes_as_a_message_where_storage_is_not_reached() {
    let (server, storage) = behind_a_relay().await;
    let broken = Broken::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (told, go) = (directory.path().join("told"), directory.path().join("go"));
    let exec = format!(
        "head -c 8000 /dev/zero | tr '\\0' x; echo; {}; echo again; {}; head -c 200000 /dev/zero > \"$MILLPOND_OUTPUT\"",
        wait_for(&told),
        wait_for(&go)
    );
    // At this rate the result would keep the line busy for more than half a minute.
    let line = Relay::to(server.mqtt()).await;
    line.shape(Shape { rate: Some(4_000), ..Shape::default() });
    let working = work(&server, line.address(), directory.path(), exec).await;
    let says = async |what: &str| {
        assert!(!working.is_finished());
        server.api().get("/v1/pools/demo/rounds/1").await["log"].to_string().contains(what)
    };
    // The second message follows the answer to the first, so how long that took is known by then.
    until("its log", async || says("xxxx").await).await;
    std::fs::write(&told, "").unwrap();
    until("more of its log", async || says("again").await).await;
    // Of what was measured nothing is forgotten when the connection ends, and the next one is fast.
    line.shape(Shape::default());
    line.cut();
    line.mend(server.mqtt());
    storage.cut();
    storage.mend(broken.at);
    std::fs::write(&go, "").unwrap();
    tokio::time::timeout(PATIENCE, working).await.unwrap().unwrap().unwrap();
    assert!(broken.refused() > 0, "by URL first");
    assert!(line.upward() > 200_000, "then as a message");
    assert!(committed(&server).await);
}
