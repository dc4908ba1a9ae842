//! External storage that is slow, refuses, or lies.

use std::time::{Duration, Instant};

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, Refusal, Role, Sha256, limits};
use millpond_tests::{Credentials, Liar, Lie, Link, Mill, Server, recent_hour};
use serde_json::{Value, json};

use super::{check, publish, slow};

/// A server on a storage that may lie.
struct Stage {
    server: Server,
    liar: Liar,
    edge: Credentials,
    mill: Mill,
    /// The real storage: the embedded one of a server that does nothing else.
    _s3: Server,
}

async fn stage() -> Stage {
    let s3 = Server::with(&[
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
    ])
    .await;
    let liar = Liar::before(s3.ports().storage.unwrap()).await;
    let server = Server::with(&[
        ("MILLPOND__STORAGE__MODE", "external"),
        ("MILLPOND__STORAGE__ENDPOINT", &liar.endpoint()),
        ("MILLPOND__STORAGE__ACCESS_KEY", "key"),
        ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test"),
    ])
    .await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    Stage { server, liar, edge, mill, _s3: s3 }
}

impl Stage {
    /// A new connection: the gate closes those whose message it could not keep.
    async fn link(&self) -> Link {
        Link::open(self.edge.clone()).await.unwrap()
    }

    /// The lease once it is ready, and everything of it.
    async fn files(&self, round: u64) -> Vec<String> {
        let ask = json!({ "id": self.mill.id(), "round": round, "attempt": 1, "wait_s": 60 });
        let lease = self.mill.link.ask(Op::Beat, &ask).await.unwrap();
        let leased = self.mill.fetch(lease).await.unwrap();
        self.mill.answer(&leased.lease, vec![b'r'; LARGE]).await.unwrap();
        leased.files.into_keys().collect()
    }
}

/// Bytes that do not stay in the ledger.
const LARGE: usize = limits::SMALL_MAX + 1;
/// Bytes of a part.
const PART: usize = 5 << 20;

#[tokio::test]
async fn storage_that_is_slow_keeps_what_needs_it_waiting_and_nothing_else() {
    let stage = stage().await;
    let delay = Duration::from_millis(if slow() { 2_000 } else { 300 });
    stage.liar.tell(Lie::Slow(delay));
    let link = stage.link().await;
    let calls = stage.liar.calls();
    publish(&link, "small", vec![1]).await.unwrap();
    assert_eq!(stage.liar.calls(), calls, "a small file has nothing to do with storage");
    let begin = Instant::now();
    publish(&link, "large", vec![2; LARGE]).await.unwrap();
    assert!(begin.elapsed() >= delay, "it was acknowledged before storage had it");
    let lease = stage.mill.trigger(&json!({})).await.unwrap();
    assert_eq!(stage.files(lease.round).await, ["edge/large", "edge/small"]);
    stage.liar.tell(Lie::None);
    check(&stage.server).await;
}

#[tokio::test]
async fn storage_that_refuses_for_now_gets_nothing_acknowledged_that_needs_it_and_everything_when_it_is_well()
{
    let stage = stage().await;
    let refusals = [(500, "InternalError"), (503, "ServiceUnavailable"), (503, "SlowDown")];
    for ((status, code), n) in refusals.into_iter().zip(1..) {
        stage.liar.tell(Lie::Refuse(status, code));
        publish(&stage.link().await, &format!("small-{n}"), vec![1]).await.unwrap();
        let refused = publish(&stage.link().await, &format!("large-{n}"), vec![2; LARGE]).await;
        assert!(refused.is_err(), "{code}: acknowledged, and nowhere");
        let lease = stage.mill.trigger(&json!({ "wait_s": 0 })).await.unwrap();
        assert!(!lease.ready, "{code}: ready without storage");
        stage.liar.tell(Lie::None);
        assert_eq!(stage.files(lease.round).await, [format!("edge/small-{n}")]);
        // Its window is closed by now, so it joins the next one.
        publish(&stage.link().await, &format!("large-{n}"), vec![2; LARGE]).await.unwrap();
        let lease = stage.mill.trigger(&json!({})).await.unwrap();
        assert_eq!(stage.files(lease.round).await, [format!("edge/large-{n}")]);
    }
    check(&stage.server).await;
}

#[tokio::test]
async fn a_file_that_storage_does_not_let_be_verified_is_as_good_as_before_and_its_commit_unavailable() {
    let stage = stage().await;
    let link = stage.link().await;
    let file = vec![3; PART + 1];
    let parts: Vec<Value> =
        file.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) })).collect();
    let ask = json!({ "id": "p", "upload": "film", "size": file.len(), "sha256": Sha256::of(&file),
        "event_time": recent_hour(), "part_size": PART, "parts": parts });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(file.chunks(PART)) {
        assert_eq!(stage.server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
    let commit = |id: &str| json!({ "id": id, "uploads": ["film"], "wait_s": 30 });
    // What a clock that is off, or a session token that has ended, comes to.
    stage.liar.tell(Lie::RefuseWrites(403, "RequestTimeTooSkewed"));
    let refused = link.ask::<answer::Commit>(Op::Commit, &commit("c1")).await.unwrap_err();
    let refused = refused.downcast::<Refusal>().unwrap();
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    stage.liar.tell(Lie::None);
    let done: answer::Commit = link.ask(Op::Commit, &commit("c2")).await.unwrap();
    assert_eq!(done.uploads[0].outcome, Outcome::Stored);
    check(&stage.server).await;
}

#[tokio::test]
async fn a_result_that_storage_does_not_let_be_verified_is_as_good_as_before_and_its_done_unavailable() {
    let stage = stage().await;
    publish(&stage.link().await, "small", vec![1]).await.unwrap();
    let lease = stage.mill.trigger(&json!({})).await.unwrap();
    let (file, link) = (vec![4; PART + 1], &stage.mill.link);
    let parts: Vec<Value> =
        file.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) })).collect();
    let ask = json!({ "id": "p", "round": lease.round, "attempt": lease.attempt, "size": file.len(),
        "sha256": Sha256::of(&file), "part_size": PART, "parts": parts });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(file.chunks(PART)) {
        assert_eq!(stage.server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
    let done =
        json!({ "id": "d", "round": lease.round, "attempt": lease.attempt, "log": "ground", "wait_s": 30 });
    stage.liar.tell(Lie::RefuseWrites(403, "RequestTimeTooSkewed"));
    for _ in 0..2 {
        let refused = link.ask::<Value>(Op::Done, &done).await.unwrap_err().downcast::<Refusal>().unwrap();
        assert_eq!(refused.code, Code::Unavailable, "{refused}");
    }
    stage.liar.tell(Lie::None);
    let done: Value = link.ask(Op::Done, &done).await.unwrap();
    assert_eq!((&done["version"], &done["attempt"]), (&json!(1), &json!(1)), "{done}");
    let round = stage.server.api().get(&format!("/v1/pools/demo/rounds/{}", lease.round)).await;
    assert_eq!(round["log"].as_array().map(Vec::len), Some(1), "{round}");
    check(&stage.server).await;
}

#[tokio::test]
async fn storage_that_says_yes_and_keeps_nothing_is_not_believed() {
    let stage = stage().await;
    let file = vec![3; LARGE];
    let link = stage.link().await;
    let ask = json!({ "id": "p", "upload": "by-url", "size": LARGE, "sha256": Sha256::of(&file), "event_time": recent_hour() });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    let to = put.to.unwrap();
    publish(&link, "small", vec![1]).await.unwrap();

    stage.liar.tell(Lie::Swallow);
    let refused = publish(&stage.link().await, "large", vec![2; LARGE]).await;
    assert!(refused.is_err(), "acknowledged, and nowhere");
    assert_eq!(stage.server.api().send(&to, file.clone()).await, 200, "so it says");
    let link = stage.link().await;
    let commit = |id: &str| json!({ "id": id, "uploads": ["by-url"], "wait_s": 30 });
    let early = link.ask::<answer::Commit>(Op::Commit, &commit("c1")).await.unwrap_err();
    let early = format!("{early:#}");
    assert!(early.contains("nothing has been PUT"), "{early}");
    let lease = stage.mill.trigger(&json!({ "wait_s": 0 })).await.unwrap();
    let ask = json!({ "id": stage.mill.id(), "round": lease.round, "attempt": 1, "wait_s": 3 });
    let beat: Value = stage.mill.link.ask(Op::Beat, &ask).await.unwrap();
    assert_eq!(beat["ready"], false, "packs that are not there: {beat}");

    stage.liar.tell(Lie::None);
    assert_eq!(stage.files(lease.round).await, ["edge/small"], "the ledger has kept it");
    assert_eq!(stage.server.api().send(&to, file).await, 200);
    let done: answer::Commit = link.ask(Op::Commit, &commit("c2")).await.unwrap();
    assert_eq!(done.uploads[0].outcome, Outcome::Stored);
    publish(&link, "large", vec![2; LARGE]).await.unwrap();
    let lease = stage.mill.trigger(&json!({})).await.unwrap();
    assert_eq!(stage.files(lease.round).await, ["edge/by-url", "edge/large"]);
    check(&stage.server).await;
}

#[tokio::test]
async fn an_etag_that_is_wrong_changes_nothing_where_hashes_are_compared() {
    let stage = stage().await;
    stage.liar.tell(Lie::WrongEtag);
    let link = stage.link().await;
    let film = vec![b'f'; (5 << 20) + 1_000];
    let parts: Vec<_> = film
        .chunks(5 << 20)
        .zip(1..)
        .map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) }))
        .collect();
    let ask = json!({ "id": "p", "upload": "film", "size": film.len(), "sha256": Sha256::of(&film), "event_time": recent_hour(),
        "part_size": 5 << 20, "parts": parts });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(film.chunks(5 << 20)) {
        assert_eq!(stage.server.api().send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
    let commit = json!({ "id": "c", "uploads": ["film"], "wait_s": 60 });
    let done: answer::Commit = link.ask(Op::Commit, &commit).await.unwrap();
    assert_eq!(done.uploads[0].outcome, Outcome::Stored);
    publish(&link, "large", vec![2; LARGE]).await.unwrap();
    let lease = stage.mill.trigger(&json!({})).await.unwrap();
    assert_eq!(stage.files(lease.round).await, ["edge/film", "edge/large"]);
    check(&stage.server).await;
}
