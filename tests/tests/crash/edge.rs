//! The same for `millpond-edge`: it dies at every fail-point of its roles, and at any time.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use millpond_failpoint::{Point, Program};
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Dice, Edge, Link, Mill, Process, Server, until, was_killed};
use serde_json::{Value, json};

use super::publishers::content;
use super::{has_points, points};

/// Until a program has done what it is to do, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Proves what a listener was given.
pub const PROVE: &str = r#"test "$(sha256sum < "$MILLPOND_FILE" | cut -c1-64)" = "$MILLPOND_SHA256""#;
/// The round's files, and so much that it goes back by URL.
const GRIND: &str = r#"{ cat "$MILLPOND_INPUT"/*/*; head -c 1200000 /dev/zero; } > "$MILLPOND_OUTPUT""#;

/// Runs it to its end, which is that it was killed.
async fn dies(mut process: Process, point: Point) {
    let status = process.wait(PATIENCE).await;
    assert!(was_killed(status), "{} is not reached: {status}\n{}", point.name(), process.stderr());
}

/// A device that pushes.
pub struct Device<'a> {
    server: &'a Server,
    pub edge: Edge,
    name: String,
    files: Vec<(String, Vec<u8>)>,
}

impl<'a> Device<'a> {
    /// Three small files and one that goes by URL.
    pub async fn new(server: &'a Server, name: String) -> Self {
        let edge = Edge::new(server, server.member("demo", &name, Role::Publisher).await).await;
        let file = |(n, size)| (format!("f{n}"), content(&format!("{name} {n}"), size));
        let files: Vec<_> = (0..).zip([100, 2_000, 30, 1_100_000]).map(file).collect();
        files.iter().for_each(|(name, bytes)| drop(edge.file(name, bytes)));
        Self { server, edge, name, files }
    }

    /// How many.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    pub fn push(&self, more: &[&str]) -> Process {
        let mut args = vec!["push", "--complete-through", "now"];
        args.extend(more);
        args.extend(self.files.iter().map(|(name, _)| name.as_str()));
        self.edge.start("push", &args)
    }

    /// What the server has of it.
    async fn uploads(&self) -> Vec<Value> {
        let path = format!("/v1/pools/demo/uploads?limit=100&member={}", self.name);
        self.server.api().get(&path).await["uploads"].as_array().unwrap().clone()
    }

    /// The uploads that are in its spool, or that the server has.
    pub async fn kept(&self) -> BTreeSet<String> {
        let listed = self.edge.done(&["spool", "list", "--json"]).await;
        let spooled = listed.lines().map(|line| serde_json::from_str(line).unwrap());
        let all = spooled.chain(self.uploads().await);
        all.filter_map(|upload: Value| Some(upload["upload"].as_str()?.to_owned())).collect()
    }

    /// After whatever happened, the same command makes it good, and each file counts once.
    pub async fn made_good(&self) {
        let mut push = self.push(&[]);
        let status = push.wait(PATIENCE).await;
        assert!(status.success(), "{}: {status}: {}", self.name, push.stderr());
        let mut sent: Vec<_> = self.files.iter().map(|(_, bytes)| Sha256::of(bytes).to_string()).collect();
        sent.sort();
        let uploads = self.uploads().await;
        let mut stored: Vec<_> = uploads.iter().map(|u| u["sha256"].as_str().unwrap().to_owned()).collect();
        stored.sort();
        assert_eq!(stored, sent, "{}", self.name);
        assert_eq!(self.edge.done(&["spool", "list", "--json"]).await, "", "{}", self.name);
        let staging = std::fs::read_dir(self.edge.spool().join("staging")).unwrap();
        let left: Vec<_> = staging.map(|file| file.unwrap().file_name()).collect();
        assert!(left.is_empty() || left == ["scratch"], "{}: {left:?}", self.name);
    }
}

/// Files are promised when `push --offline` returns, and then they are there however often it dies.
async fn push_dies_at(server: &Server, point: Point) {
    let device = Device::new(server, point.name().to_owned()).await;
    device.edge.arm(point, 1);
    let mut offline = device.push(&["--offline"]);
    let status = offline.wait(PATIENCE).await;
    if status.success() {
        device.edge.disarm();
        let promised = device.kept().await;
        assert_eq!(promised.len(), device.files.len(), "{}", point.name());
        device.edge.arm(point, 1);
        dies(device.push(&[]), point).await;
        device.edge.disarm();
        let kept = device.kept().await;
        assert!(kept.is_superset(&promised), "{}: {kept:?} of {promised:?}", point.name());
    } else {
        assert!(was_killed(status), "{}: {status}", point.name());
        device.edge.disarm();
    }
    device.made_good().await;
}

async fn push_dies_at_any_time(server: &Server, n: usize, after: Duration) {
    let device = Device::new(server, format!("push-{n}")).await;
    device.edge.done(&["push", "--offline", "f0", "f3"]).await;
    let promised = device.kept().await;
    assert_eq!(promised.len(), 2);
    let mut push = device.push(&[]);
    tokio::time::sleep(after).await;
    push.kill();
    let kept = device.kept().await;
    assert!(kept.is_superset(&promised), "{kept:?} of {promised:?}");
    device.made_good().await;
}

/// `current` is a whole result at any time, and in the end the newest, of which the server knows that it was applied.
async fn listen_dies(server: &Server, points: &[Point], dice: &mut Dice) {
    let edge = Edge::new(server, server.member("results", "keeper", Role::Listener).await).await;
    let mill = Mill::join(server.member("results", "mill", Role::Processor).await, server.api()).await;
    let link = Link::open(server.member("results", "source", Role::Publisher).await).await.unwrap();
    let mut results: Vec<Vec<u8>> = Vec::new();
    let deaths = points.iter().map(|point| Some(*point)).chain(std::iter::repeat_n(None, 4));
    for (n, death) in deaths.enumerate() {
        link.publish(&format!("mp/results/c/source/up/u{n}"), vec![1], Default::default()).await.unwrap();
        let lease = mill.trigger(&json!({})).await.unwrap();
        results.push(content(&format!("result {n}"), 300_000));
        mill.answer(&lease, results[n].clone()).await.unwrap();
        let listen = ["listen", "--exec", PROVE];
        if let Some(point) = death {
            edge.arm(point, 1);
            dies(edge.start("listen", &listen), point).await;
            edge.disarm();
        } else {
            let mut listen = edge.start("listen", &listen);
            tokio::time::sleep(Duration::from_millis(dice.below(250))).await;
            listen.kill();
        }
        let current = edge.directory().join("results/current");
        // The one before was shown, and this one may be.
        if std::fs::symlink_metadata(&current).is_ok() {
            let shown = std::fs::read(&current);
            let shown =
                shown.unwrap_or_else(|error| panic!("current names nothing after {death:?}: {error}"));
            let version = results.iter().position(|result| *result == shown);
            assert!(
                version.is_some_and(|version| version + 1 >= n),
                "current is result {version:?}, not {n} or the one before, after {death:?}"
            );
        } else {
            assert_eq!(n, 0, "nothing is shown any more after {death:?}");
        }
        edge.done(&["listen", "--once", "--exec", PROVE]).await;
        assert!(std::fs::read(&current).unwrap() == results[n], "current is not the newest after {death:?}");
        let told = server.api().get("/v1/pools/results/results").await;
        assert_eq!((&told["results"][0]["applied"], &told["results"][0]["failed"]), (&json!(1), &json!(0)));
    }
}

/// A round comes to one result, the right one, whoever dies over it; and nothing of an attempt is left.
async fn process_dies_at(server: &Server, point: Point) {
    let pool = point.name();
    // A lease that nobody noted has to run out; others last, however slow the machine is.
    let term = if point == Point::ProcessLeased { 5 } else { 600 };
    server.pool(pool, json!({ "grouping": "count", "count": 2, "lease_term_s": term })).await;
    let link = Link::open(server.member(pool, "source", Role::Publisher).await).await.unwrap();
    let publish = async |file: &'static str| {
        let topic = format!("mp/{pool}/c/source/up/{file}");
        link.publish(&topic, file, Default::default()).await.unwrap();
    };
    publish("a").await;
    publish("b").await;
    let edge = Edge::new(server, server.member(pool, "miller", Role::Processor).await).await;
    edge.arm(point, 1);
    dies(edge.start("process", &["process", "--exec", GRIND]), point).await;
    edge.disarm();

    let mut process = edge.start("process", &["process", "--exec", GRIND]);
    publish("c").await;
    publish("d").await;
    let api = server.api();
    until(&format!("both rounds are committed after {pool}"), async || {
        let rounds = api.get(&format!("/v1/pools/{pool}/rounds")).await;
        let rounds = rounds["rounds"].as_array().unwrap();
        rounds.len() == 2 && rounds.iter().all(|round| round["state"] == "committed")
    })
    .await;
    process.signal("TERM");
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let results = api.get(&format!("/v1/pools/{pool}/results")).await;
    let results = results["results"].as_array().unwrap();
    let result = |result: &Value| (result["round"].as_u64(), result["sha256"].as_str().map(str::to_owned));
    let mut results: Vec<_> = results.iter().map(result).collect();
    // The first one paused after its processor had died.
    results.sort();
    let whole = |files: &[u8; 2]| Some(Sha256::of(&[&files[..], &vec![0; 1_200_000]].concat()).to_string());
    assert_eq!(results, [(Some(1), whole(b"ab")), (Some(2), whole(b"cd"))], "{pool}");
    let work = std::fs::read_dir(edge.directory().join("work")).unwrap();
    // The note of a lease stays if it was stopped before `done` was answered: the next start forgets it.
    let own = |name: &std::ffi::OsString| name == "lock" || name == "lease";
    let left: Vec<_> = work.map(|entry| entry.unwrap().file_name()).filter(|name| !own(name)).collect();
    assert!(left.is_empty(), "{pool}: {left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_edge_client_at_any_place_and_time_loses_nothing_that_it_promised() {
    if !has_points("MILLPOND_EDGE_BIN") {
        return;
    }
    let mut dice = Dice::new("kill -9 of millpond-edge");
    let server = Server::start().await;
    for pool in ["demo", "results"] {
        server.pool(pool, json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    }
    let (push, process) = (points(&[Program::Push]), points(&[Program::Process]));
    let times: Vec<Duration> = (0..8).map(|_| Duration::from_micros(dice.below(250_000))).collect();
    let pushes = async {
        join_all(push.iter().map(|point| push_dies_at(&server, *point))).await;
        join_all(times.iter().enumerate().map(|(n, time)| push_dies_at_any_time(&server, n, *time))).await;
    };
    let listen = points(&[Program::Listen]);
    let listens = listen_dies(&server, &listen, &mut dice);
    let processes = join_all(process.iter().map(|point| process_dies_at(&server, *point)));
    tokio::join!(pushes, listens, processes);
    let checked = server.cli().args(["check", "--deep"]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}
