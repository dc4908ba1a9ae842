//! What an earlier version left on disk is opened by this one: ledger, embedded storage and spool of every version are kept as
//! text under `tests/fixtures/`, and become directories again that the real programs go on with.
//!
//! Each release adds a directory:
//!
//! ```text
//! cargo test -p millpond-tests --test upgrade -- --ignored
//! ```
//!
//! Before a version is released its fixture is made anew where the schema has changed; afterwards never again.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod live;
mod sql;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Credentials, Edge, Link, Mill, Server, Shim, recent_hour, repository};
use serde_json::{Value, json};

use live::{FIRST, PART, STAGED, film};

const POOLS: [&str; 3] = ["windows", "labels", "counts"];
const LEDGER: &str = "ledger.db";
const CATALOG: &str = "objects/catalog.sqlite";

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

/// The fixture of the version that is being worked on.
fn this_version() -> String {
    let mut numbers = env!("CARGO_PKG_VERSION").split('.');
    format!("v{}.{}", numbers.next().unwrap(), numbers.next().unwrap())
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What the API says of everything, as far as time alone does not change it.
async fn story(server: &Server) -> Value {
    let api = server.api();
    let mut story = json!({});
    for pool in POOLS {
        for what in ["members", "uploads", "batches", "rounds", "results", "joins"] {
            story[pool][what] = api.get(&format!("/v1/pools/{pool}/{what}")).await[what].take();
        }
    }
    story
}

/// Everything that was there before is there now; there may be more keys.
fn still(before: &Value, now: &Value, at: &str) {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            for (key, before) in before {
                // Whoever was connected is not, and a lease that was live has its full term again.
                if !["connected", "until"].contains(&key.as_str()) {
                    still(before, now.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"));
                }
            }
        }
        (Value::Array(before), Value::Array(now)) => {
            assert_eq!(before.len(), now.len(), "{at}");
            for (n, (before, now)) in before.iter().zip(now).enumerate() {
                still(before, now, &format!("{at}[{n}]"));
            }
        }
        _ => assert_eq!(before, now, "{at}"),
    }
}

fn check(server: &Server) {
    let done = server.cli().args(["check", "--deep"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
}

fn run(server: &Server, args: &[&str]) -> String {
    let done = server.cli().args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test]
#[ignore = "writes the fixture of this version: cargo test -p millpond-tests --test upgrade -- --ignored"]
async fn the_fixture_of_this_version_is_made() {
    let hour = recent_hour();
    let mut server = Server::start().await;
    let members = live::live(&server, hour).await;
    let edge = Edge::new(&server, members["windows/spooler"].clone()).await;
    live::spool(&edge, hour).await;
    let story = story(&server).await;
    check(&server);
    assert!(server.terminate().await.success());

    let directory = fixtures().join(this_version());
    fs::create_dir_all(&directory).unwrap();
    let tokens: BTreeMap<_, _> = members.iter().map(|(name, who)| (name, &who.token)).collect();
    let about = json!({ "version": env!("CARGO_PKG_VERSION"), "made": now(), "hour": hour, "tokens": tokens, "story": story });
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
    write("about.json", &format!("{about:#}\n"));
    write("ledger.sql", &sql::dump(&server.data().join(LEDGER)));
    write("catalog.sql", &sql::dump(&server.data().join(CATALOG)));
    let made_at_a_start = |name: &str| {
        ["lock", "ports.json"].contains(&name) || [LEDGER, CATALOG].iter().any(|file| name.starts_with(file))
    };
    let data = text::of(&server.data(), |name| !made_at_a_start(name));
    let shard = |line: &&str| !line.starts_with("directory 700 objects/blobs/");
    write("data.txt", &data.lines().filter(shard).map(|line| format!("{line}\n")).collect::<String>());
    write("spool.txt", &text::of(&edge.spool(), |_| true));
}

/// What a fixture says of itself.
struct Fixture {
    directory: PathBuf,
    about: Value,
    shim: Shim,
}

impl Fixture {
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.directory.join(name)).unwrap()
    }

    fn hour(&self) -> i64 {
        self.about["hour"].as_i64().unwrap()
    }

    /// A server on what the fixture's server left, a minute after it ended.
    fn server(&self) -> Server {
        let mut server = Server::prepare(&[]);
        server.set_environment(self.shim.clocked());
        fs::create_dir(server.data()).unwrap();
        fs::set_permissions(server.data(), fs::Permissions::from_mode(0o700)).unwrap();
        text::make(&self.text("data.txt"), &server.data());
        sql::make(&self.text("ledger.sql"), &server.data().join(LEDGER));
        sql::make(&self.text("catalog.sql"), &server.data().join(CATALOG));
        server
    }

    fn who(&self, server: &Server, name: &str) -> Credentials {
        let (pool, member) = name.split_once('/').unwrap();
        let token = self.about["tokens"][name].as_str().unwrap().to_owned();
        let (pool, member) = (pool.parse().unwrap(), member.parse().unwrap());
        Credentials {
            mqtt: server.mqtt(),
            pool,
            member,
            client_id: format!("{name}-later").replace('/', "-"),
            token,
        }
    }

    async fn link(&self, server: &Server, name: &str) -> Link {
        Link::open(self.who(server, name)).await.unwrap()
    }

    async fn mill(&self, server: &Server, name: &str) -> Mill {
        Mill::over(self.link(server, name).await, server.api())
    }

    async fn edge(&self, server: &Server, name: &str) -> Edge {
        let mut edge = Edge::new(server, self.who(server, name)).await;
        edge.set_environment(self.shim.clocked());
        edge
    }
}

#[tokio::test]
async fn what_every_version_left_on_disk_is_opened_and_its_life_goes_on() {
    let mut versions = BTreeSet::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let directory = entry.unwrap().path();
        versions.insert(directory.file_name().unwrap().to_str().unwrap().to_owned());
        let Some(shim) = Shim::new() else { return };
        let about: Value = serde_json::from_slice(&fs::read(directory.join("about.json")).unwrap()).unwrap();
        shim.set_clock(about["made"].as_i64().unwrap() + 60_000 - now());
        let fixture = Fixture { directory, about, shim };
        let mut server = fixture.server();
        server.launch().await;
        still(&fixture.about["story"], &story(&server).await, "");
        check(&server);
        results_are_there(&fixture, &server).await;
        leases_and_grants_go_on(&fixture, &server).await;
        the_spool_is_sent(&fixture, &server).await;
        the_open_batch_is_ground(&fixture, &server).await;
        check(&server);
        assert!(server.terminate().await.success());
        the_schema_is_that_of_this_version(server.data().as_path()).await;
    }
    assert!(versions.contains(&this_version()), "there is no fixture of this version: {MAKE}");
}

const MAKE: &str = "make it by `cargo test -p millpond-tests --test upgrade -- --ignored`";

async fn results_are_there(fixture: &Fixture, server: &Server) {
    let shown = run(server, &["upload", "show", "windows", "edge-2", "staged"]);
    assert!(shown.contains(&Sha256::of(&vec![b's'; STAGED]).to_string()), "{shown}");
    let listed = run(server, &["result", "list", "windows", "--json"]);
    assert!(listed.contains(&Sha256::of(FIRST.as_bytes()).to_string()), "{listed}");
    let edge = fixture.edge(server, "windows/listener").await;
    edge.done(&["listen", "--once"]).await;
    assert_eq!(fs::read_to_string(edge.directory().join("results/current")).unwrap(), FIRST);
    let link = fixture.link(server, "windows/listener").await;
    let second: Value = link.ask(Op::Get, &json!({ "version": 2 })).await.unwrap();
    assert_eq!(server.api().fetch(second["url"].as_str().unwrap()).await, vec![b'r'; STAGED]);
}

async fn leases_and_grants_go_on(fixture: &Fixture, server: &Server) {
    let mill = fixture.mill(server, "labels/mill").await;
    let beat = json!({ "id": "beat", "round": 1, "attempt": 1, "wait_s": 30 });
    let leased = mill.fetch(mill.link.ask(Op::Beat, &beat).await.unwrap()).await.unwrap();
    assert_eq!(leased.files["edge-3/of-night"], "night\n");
    mill.answer(&leased.lease, "night is ground").await.unwrap();

    let edge = fixture.link(server, "windows/edge-2").await;
    let (film, at) = (film(), fixture.hour() + 2 * 3_600_000);
    let half = live::put(&edge, "half", &film, at, live::parts(&film)).await;
    assert_eq!(half.there, [(1, 1)], "a part that came before");
    let last = half.parts.iter().find(|part| part.n == 2).unwrap().to.as_ref().unwrap();
    assert_eq!(server.api().send(last, film[PART..].to_vec()).await, 200);
    let bytes = b"nothing of it came";
    let granted = live::put(&edge, "granted", bytes, at, json!({})).await;
    assert_eq!(server.api().send(&granted.to.unwrap(), bytes.to_vec()).await, 200);
    live::commit(&edge, &["half", "granted"]).await;
}

async fn the_spool_is_sent(fixture: &Fixture, server: &Server) {
    let edge = fixture.edge(server, "windows/spooler").await;
    text::make(&fixture.text("spool.txt"), &edge.spool());
    fs::set_permissions(edge.spool(), fs::Permissions::from_mode(0o700)).unwrap();
    let listed = edge.done(&["spool", "list"]).await;
    for name in ["words.txt", "bytes.bin", "large.bin", "empty", "complete through"] {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    edge.done(&["spool", "flush"]).await;
    let uploads = server.uploads("windows").await;
    for (name, bytes) in [
        ("words.txt", b"two words\n".to_vec()),
        ("bytes.bin", (0..=255).collect()),
        ("large.bin", vec![b'l'; STAGED]),
    ] {
        let upload = uploads
            .iter()
            .find(|upload| upload["name"] == name)
            .unwrap_or_else(|| panic!("{name}: {uploads:#?}"));
        assert_eq!(upload["sha256"], Sha256::of(&bytes).to_string(), "{name}");
        assert_eq!(upload["late"], false, "{name} is of the open batch");
    }
    let left = edge.done(&["spool", "list"]).await;
    assert!(left.contains("\n0 files with") && !left.contains("complete through"), "{left}");
}

async fn the_open_batch_is_ground(fixture: &Fixture, server: &Server) {
    let mill = fixture.mill(server, "windows/mill").await;
    // The ids of the fixture's own asks are remembered.
    let ask = json!({ "id": "later", "window": fixture.hour() + 2 * 3_600_000 });
    let lease = mill.trigger(&ask).await.unwrap();
    let leased = mill.fetch(lease).await.unwrap();
    let listed: BTreeSet<_> = leased.lines.iter().map(|line| line["upload"].as_str().unwrap()).collect();
    for upload in ["open", "whole", "film", "half", "granted"] {
        assert!(listed.contains(upload), "{upload}: {listed:?}");
    }
    assert_eq!(leased.lines.len(), 8);
    mill.answer(&leased.lease, "of a later version").await.unwrap();
    let listener = server.member("windows", "newcomer", Role::Listener).await;
    let link = Link::open(listener).await.unwrap();
    let latest: Value = link.ask(Op::Latest, &json!({})).await.unwrap();
    let bytes = server.api().fetch(latest["result"]["url"].as_str().unwrap()).await;
    assert_eq!(bytes, "of a later version");
}

async fn the_schema_is_that_of_this_version(data: &Path) {
    let mut fresh = Server::start().await;
    assert!(fresh.terminate().await.success());
    for file in [LEDGER, CATALOG] {
        let (opened, made) = (sql::schema(&data.join(file)), sql::schema(&fresh.data().join(file)));
        let (only, missing): (Vec<_>, Vec<_>) =
            (opened.difference(&made).collect(), made.difference(&opened).collect());
        assert!(
            only.is_empty() && missing.is_empty(),
            "{file} of the fixture has {only:?} and lacks {missing:?}: once a version was released a migration is missing; before that, {MAKE}"
        );
    }
}
