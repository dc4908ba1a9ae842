//! The loss of power, for the server: no acknowledgement of any kind leaves before what it promises was synced, the file, the
//! directory that names it, and the row. `edge_power` has the same of the edge client.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use millpond_protocol::access::Op;
use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::message::answer;
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Api, Beside, Link, Mill, Plain, Server, Trace, may_trace, recent_hour};
use rumqttc::QoS;
use serde_json::{Value, json};

/// The shortest part that S3 takes.
const PART: usize = 5 << 20;
const LARGE: usize = limits::SMALL_MAX + 1;

/// What was seen of a server.
struct Seen {
    trace: Trace,
    data: PathBuf,
}

impl Seen {
    /// Commits of the ledger, of storage's catalogue.
    fn commits(&self, file: &str, from: usize, until: usize) -> Vec<(usize, usize)> {
        self.trace.commits(&self.data.join(file), from, until)
    }

    /// Of what is acknowledged between these moments a file came to its place in storage: it was synced before it was renamed, and
    /// then its directory was. Answers when all of that was so.
    fn settled(&self, what: &str, from: usize, until: usize) -> usize {
        let (incoming, blobs) = (self.data.join("objects/incoming"), self.data.join("objects/blobs"));
        let renames = self.trace.renames();
        let mut moves = renames.iter().filter(|(old, new, at)| {
            old.starts_with(&incoming) && new.starts_with(&blobs) && (from..until).contains(at)
        });
        let moved = moves.next();
        let (old, new, at) =
            moved.unwrap_or_else(|| panic!("{what}: acknowledged before a file of it has its place"));
        let file = new.display();
        let whole = !self.trace.commits(old, from, *at).is_empty();
        assert!(whole, "{what}: {file} has its name before its bytes were synced");
        let synced = self.trace.synced_at(new.parent().unwrap(), *at, until);
        synced.unwrap_or_else(|| panic!("{what}: acknowledged before the directory of {file} was synced"))
    }
}

const LEDGER: &str = "ledger.db-wal";
const CATALOG: &str = "objects/catalog.sqlite-wal";

/// How acknowledgements begin, as strace writes them.
const PUBACK: &str = "\"@";
const PUBREC: &str = "\"P\\2";
const SUCCESS: &str = "HTTP/1.1 20";

/// What commits of the ledger alone make good: what came, what of its acknowledgement is seen (of an answer to an ask its topic), and
/// how many commits have to be synced by then: of a file in parts the grant, until when its URLs hold, and what storage calls it.
const BY_COMMITS: [(&str, &str, usize); 19] = [
    ("PUT /v1/pools/demo", SUCCESS, 1),
    ("PATCH /v1/pools/demo", SUCCESS, 1),
    ("POST /v1/pools/demo/members", SUCCESS, 1),
    ("DELETE /v1/pools/demo/members/gone", SUCCESS, 1),
    ("POST /v1/pools/demo/joins", SUCCESS, 1),
    ("POST /v1/pools/demo/enrol", SUCCESS, 1),
    ("POST /v1/pools/demo/results/1/rollback", SUCCESS, 1),
    ("up/small-one", PUBACK, 1),
    ("up/exactly-once", PUBREC, 1),
    ("bundle/of-two", PUBACK, 1),
    ("delivery/1", PUBACK, 1),
    ("ask-for-film", "answer/put", 3),
    ("ask-for-aborted", "answer/put", 2),
    ("abort-of-one", "answer/abort", 1),
    ("beat-of-two", "answer/beat", 1),
    ("done-of-two", "answer/done", 1),
    ("fail-of-three", "answer/fail", 1),
    ("complete-of-edge", "answer/complete", 1),
    ("trigger-alone", "answer/trigger", 1),
];

/// What is small, or not large: all that one commit makes good, but for what the rest of the test does.
async fn small_things(server: &Server, link: &Link, mill: &Mill, listener: &Link) {
    let api = server.api();
    api.patch("/v1/pools/demo", &json!({ "lease_term_s": 700 })).await;
    server.member("demo", "gone", Role::Listener).await;
    api.delete("/v1/pools/demo/members/gone").await;
    let join = json!({ "name": "line", "role": "publisher", "uses": 1, "expires_s": 600 });
    let join = api.post("/v1/pools/demo/joins", &join).await["token"].as_str().unwrap().to_owned();
    let joining = Api::new(format!("http://{}", server.ports().http), join);
    let enrol = json!({ "member": "joined", "token_sha256": Sha256::of(b"joined") });
    joining.post("/v1/pools/demo/enrol", &enrol).await;

    let plain = server.member("demo", "plain", Role::Publisher).await;
    let mut plain = Plain::connect(plain).await.unwrap();
    plain.send("mp/demo/c/plain/up/exactly-once", "once", QoS::ExactlyOnce, false).await.unwrap();
    let entry =
        |upload| Entry { upload, event_time_ms: recent_hour(), data: b"of a bundle", ..Entry::default() };
    let bundle = Bundle { entries: vec![entry("b1"), entry("b2")], ..Bundle::default() };
    let payload = bundle::encode(&bundle).unwrap();
    link.publish("mp/demo/c/edge/bundle/of-two", payload, Beside::default()).await.unwrap();
    let ask = json!({ "id": "ask-for-aborted", "upload": "aborted", "size": 2_000, "sha256": Sha256::of(b"never sent") });
    let _: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    let _: Value = link.ask(Op::Abort, &json!({ "id": "abort-of-one", "upload": "aborted" })).await.unwrap();

    let lease = mill.trigger(&json!({})).await.unwrap();
    let of_two = |id: &str| json!({ "id": id, "round": lease.round, "attempt": lease.attempt });
    let _: Value = mill.link.ask(Op::Beat, &of_two("beat-of-two")).await.unwrap();
    mill.answer(&lease, "a small result").await.unwrap();
    let _: Value = mill.link.ask(Op::Done, &of_two("done-of-two")).await.unwrap();
    let said = json!({ "state": "applied" }).to_string();
    listener.publish("mp/demo/c/listener/delivery/1", said, Beside::default()).await.unwrap();
    api.post("/v1/pools/demo/results/1/rollback", &json!({})).await;

    publish(link, "last-one", 500).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let ask = json!({ "id": "fail-of-three", "round": lease.round, "attempt": lease.attempt, "error": "no",
        "retryable": false });
    let _: Value = mill.link.ask(Op::Fail, &ask).await.unwrap();
    let ask = json!({ "id": "complete-of-edge", "through": recent_hour() });
    let _: Value = link.ask(Op::Complete, &ask).await.unwrap();

    publish(link, "the-very-last", 500).await;
    // Without a lease to wait for, which comes after commits of its own.
    let ask = json!({ "id": "trigger-alone", "take": false });
    let _: Value = mill.link.ask(Op::Trigger, &ask).await.unwrap();
}

async fn publish(link: &Link, upload: &str, size: usize) {
    let topic = format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    link.publish(&topic, vec![b'x'; size], Beside::default()).await.unwrap();
}

#[tokio::test]
async fn no_acknowledgement_leaves_the_server_before_what_it_promises_is_synced() {
    if !may_trace() {
        return;
    }
    let mut server = Server::prepare(&[]);
    server.launch_traced().await;
    server.pool("demo", json!({ "window_s": 3_600, "spread_s": 0 })).await;
    let link = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mut listener = Link::open(server.member("demo", "listener", Role::Listener).await).await.unwrap();
    listener.subscribe("mp/demo/result").await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;

    // One thing at a time: so it is clear what each answer is about.
    publish(&link, "small-one", 500).await;
    publish(&link, "staged-one", LARGE).await;
    let film = vec![b'f'; PART + 1_000];
    let parts: Vec<_> =
        film.chunks(PART).zip(1..).map(|(part, n)| json!({ "n": n, "sha256": Sha256::of(part) })).collect();
    let ask = json!({ "id": "ask-for-film", "upload": "film", "size": film.len(), "sha256": Sha256::of(&film),
        "event_time": recent_hour(), "part_size": PART, "parts": parts });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    let mut urls = Vec::new();
    for (part, bytes) in put.parts.iter().zip(film.chunks(PART)) {
        let to = part.to.as_ref().unwrap();
        assert_eq!(server.api().send(to, bytes.to_vec()).await, 200);
        urls.push(to.url.clone());
    }
    let whole = vec![b'w'; 2_000];
    let ask = json!({ "id": "ask-for-whole", "upload": "whole", "size": whole.len(), "sha256": Sha256::of(&whole),
        "event_time": recent_hour() });
    let put: answer::Put = link.ask(Op::Put, &ask).await.unwrap();
    let to = put.to.unwrap();
    assert_eq!(server.api().send(&to, whole).await, 200);
    urls.push(to.url);
    let commit = json!({ "id": "commit-of-both", "uploads": ["film", "whole"], "wait_s": 60 });
    let _: answer::Commit = link.ask(Op::Commit, &commit).await.unwrap();
    let lease = mill.trigger(&json!({})).await.unwrap();
    mill.answer(&lease, vec![b'r'; LARGE]).await.unwrap();
    let shown = listener.next().await.unwrap();
    assert!(serde_json::from_slice::<Value>(&shown.payload).unwrap()["version"] == 1);
    small_things(&server, &link, &mill, &listener).await;
    let seen = Seen { data: server.data(), trace: server.terminate_traced().await };

    acknowledged_after_its_commits(&seen);
    puback_after_file_and_commit(&seen, "up/staged-one");
    urls.iter().for_each(|url| answer_200_after_the_file_is_settled(&seen, url));
    commit_after_catalogue_and_ledger(&seen);
    // The second is small enough to be shown inline.
    puback_after_file_and_commit(&seen, "result/1/1");
    puback_after_file_and_commit(&seen, "result/2/1");
    pointer_after_the_commit_of_the_result(&seen);
}

fn acknowledged_after_its_commits(seen: &Seen) {
    let too_early = BY_COMMITS.iter().filter_map(|(what, answer, least)| {
        let (connection, came) = seen.trace.received(what);
        let synced = seen.commits(LEDGER, came, seen.trace.sent(connection, answer, came)).len();
        (synced < *least)
            .then(|| format!("{what}: {answer} left when {synced} of {least} commits were synced"))
    });
    let too_early: Vec<_> = too_early.collect();
    assert!(too_early.is_empty(), "acknowledged before the ledger's log was synced: {too_early:#?}");
}

/// Of what is staged: the row that names the object, the object, and the row that counts it.
fn puback_after_file_and_commit(seen: &Seen, topic: &str) {
    let (connection, came) = seen.trace.received(topic);
    let acknowledged = seen.trace.sent(connection, PUBACK, came);
    let settled = seen.settled(topic, came, acknowledged);
    let is_named = !seen.commits(LEDGER, came, settled).is_empty();
    assert!(is_named, "{topic}: an object before the row that names it was synced");
    let is_stored = !seen.commits(CATALOG, settled, acknowledged).is_empty();
    assert!(is_stored, "{topic}: PUBACK before the catalogue's row of its object was synced");
    let counts = !seen.commits(LEDGER, settled, acknowledged).is_empty();
    assert!(counts, "{topic}: PUBACK before the row that counts it was synced");
}

fn answer_200_after_the_file_is_settled(seen: &Seen, url: &str) {
    // A part's number stands behind the key.
    let path = &url[url.find("/millpond/").unwrap()..];
    let what = format!("PUT {}", &path[..path.len().min(300)]);
    let (connection, came) = seen.trace.received(&what);
    let answered = seen.trace.sent(connection, "HTTP/1.1 200", came);
    let settled = seen.settled(&what, came, answered);
    let is_stored = !seen.commits(CATALOG, settled, answered).is_empty();
    assert!(is_stored, "{what}: 200 before the catalogue's row was synced");
}

/// The catalogue has the parts as one object; then the ledger has the verdict on each of the two files, and counts both.
fn commit_after_catalogue_and_ledger(seen: &Seen) {
    let (connection, came) = seen.trace.received("commit-of-both");
    let answered = seen.trace.sent(connection, "stored", came);
    let completed = seen.commits(CATALOG, came, answered);
    let (_, completed) = completed.first().expect("`stored` before the object of its parts was synced");
    let synced = seen.commits(LEDGER, *completed, answered).len();
    assert!(synced >= 3, "`stored` when {synced} of 3 commits were synced");
}

fn pointer_after_the_commit_of_the_result(seen: &Seen) {
    let (_, came) = seen.trace.received("result/1/1");
    let shown = seen.trace.sent("<TCP:[", "mp/demo/result", came);
    let settled = seen.settled("the pointer to result 1", came, shown);
    let counts = !seen.commits(LEDGER, settled, shown).is_empty();
    assert!(counts, "a pointer before the commit of its result was synced");
}
