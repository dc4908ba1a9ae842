//! What has to hold after any crash: nothing that was acknowledged is lost, nothing counts twice, what was decided stays, and
//! in the end nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use millpond_protocol::Sha256;
use millpond_tests::{Place, Plain, listed, until};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::home::Here;
use super::readers::Listener;
use super::world::World;

const POOLS: [&str; 2] = ["mill", "edge"];

/// A list of the API, newest first: its first page, or all of it.
async fn list(here: &Here, pool: &str, what: &str, depth: Depth) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    let limit = if depth == Depth::New { 200 } else { 1_000 };
    loop {
        let page = here.api.get(&format!("/v1/pools/{pool}/{what}?limit={limit}{cursor}")).await;
        found.extend(page[what].as_array().unwrap().iter().cloned());
        let Some(next) = page["cursor"].as_str().filter(|_| depth == Depth::All) else { return found };
        cursor = format!("&cursor={next}");
    }
}

async fn all(here: &Here, pool: &str, what: &str) -> Vec<Value> {
    list(here, pool, what, Depth::All).await
}

/// How much of what there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What is young.
    New,
    /// Everything since the beginning.
    All,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}"))
}

/// All rounds and their states.
pub async fn rounds(here: &Here, pool: &str) -> Vec<(u64, String)> {
    let rounds = all(here, pool, "rounds").await;
    rounds.iter().map(|round| (round["round"].as_u64().unwrap(), text(round, "state").to_owned())).collect()
}

/// What was acknowledged before it was asked for is there, once, as it was; what was decided is what it was.
pub async fn nothing_is_lost(world: &World, depth: Depth) {
    let here = world.here();
    current_is_whole(world, &here, depth).await;
    for pool in POOLS {
        uploads_are_there(world, &here, pool, depth).await;
        // What the clients know now: the server has to know it, and may know more.
        let (manifests, results, delivered) = {
            let facts = world.book.facts();
            (facts.manifests.clone(), facts.results.clone(), facts.delivered.clone())
        };
        let batches = list(&here, pool, "batches", depth).await;
        for batch in batches.iter().filter(|batch| batch["round"].is_u64()) {
            let round = batch["round"].as_u64().unwrap();
            let manifest = |round| manifests.get(&(pool.to_owned(), round));
            let Some(read) = manifest(round) else { continue };
            let sha256 = read.sha256.to_string();
            assert_eq!(text(batch, "manifest_sha256"), sha256, "the manifest of round {round} was read");
            if let Some(before) = manifest(round - 1) {
                let before = before.sha256.to_string();
                assert_eq!(read.prev.as_ref(), Some(&before), "round {round} names the manifest before");
            }
        }
        let committed = list(&here, pool, "results", depth).await;
        let mut of_rounds = BTreeMap::new();
        for result in committed.iter().filter(|result| result["of"].is_null()) {
            let twice = of_rounds.insert(result["round"].as_u64().unwrap(), text(result, "sha256"));
            assert_eq!(twice, None, "two results of a round: {result}");
        }
        let oldest = of_rounds.keys().next().copied().filter(|_| depth == Depth::New).unwrap_or(0);
        for ((_, round), sha256) in results.iter().filter(|((of, round), _)| of == pool && *round >= oldest) {
            let there = of_rounds.get(round).map(ToString::to_string);
            assert_eq!(there, Some(sha256.to_string()), "the result of round {round} was acknowledged");
        }
        for (result, state) in committed.iter().filter_map(|result| {
            let sha256 = text(result, "sha256").parse().unwrap();
            Some((result, delivered.get(&(pool.to_owned(), sha256))?))
        }) {
            assert_eq!(result[state], 1, "that it is {state} was acknowledged: {result}");
        }
        let versions: Vec<_> = committed.iter().map(|result| result["version"].as_u64().unwrap()).collect();
        assert!(versions.is_sorted_by(|a, b| *a == b + 1), "versions are counted: {versions:?}");
        assert!(depth == Depth::New || versions.last().is_none_or(|first| *first == 1), "{versions:?}");
    }
}

/// What a listening device shows is a result, whole, and never an older one than before.
async fn current_is_whole(world: &World, here: &Here, depth: Depth) {
    let shown = world.book.facts().shown;
    let current =
        || world.edges.iter().find_map(|edge| std::fs::read(edge.directory().join("results/current")).ok());
    // It may be replaced, and the one before be removed, while it is read.
    let Some(current) = (0..10).find_map(|_| current()) else {
        return assert_eq!(shown, 0, "nothing is shown any more");
    };
    let sha256 = Sha256::of(&current).to_string();
    let results = list(here, "edge", "results", depth).await;
    let version = results.iter().find(|result| text(result, "sha256") == sha256);
    let version = version.expect("current is a whole result")["version"].as_u64().unwrap();
    assert!(version >= shown, "version {version} is shown after {shown}");
    world.book.facts().shown = version;
}

async fn uploads_are_there(world: &World, here: &Here, pool: &str, depth: Depth) {
    let of_pool = format!("{pool}/");
    let mut acknowledged: BTreeMap<String, String> = {
        let mut facts = world.book.facts();
        let new = facts.new.extract_if(.., |key, _| key.starts_with(&of_pool)).collect();
        let all = || facts.acknowledged.iter().filter(|(key, _)| key.starts_with(&of_pool));
        let known: BTreeMap<_, _> =
            if depth == Depth::All { all().map(|(k, v)| (k.clone(), *v)).collect() } else { new };
        known.into_iter().map(|(key, sha256)| (key, sha256.to_string())).collect()
    };
    let (mut kept, mut cursor) = (BTreeSet::new(), String::new());
    // The newest come first.
    while depth == Depth::All || !acknowledged.is_empty() {
        let page = here.api.get(&format!("/v1/pools/{pool}/uploads?limit=300{cursor}")).await;
        for upload in page["uploads"].as_array().unwrap() {
            assert_eq!(text(upload, "outcome"), "stored", "{upload}");
            let key = format!("{pool}/{}/{}", text(upload, "member"), text(upload, "upload"));
            if let Some(sha256) = acknowledged.remove(&key) {
                assert_eq!(text(upload, "sha256"), sha256, "{key} was acknowledged with other bytes");
            }
            let sent = world.book.facts().sent.get(&key).map(ToString::to_string);
            // What `push` has sent is noted when it ends, which it may not have done yet.
            if sent.is_some() || pool == "mill" {
                assert_eq!(sent.as_deref(), upload["sha256"].as_str(), "{key} is not what was sent");
            }
            assert!(kept.insert(key), "{upload} is there twice");
        }
        let Some(next) = page["cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(acknowledged.is_empty(), "lost, although acknowledged: {:?}", acknowledged.keys());
}

/// `millpond check` has nothing to say: of rows, and of every byte if it is to look at all.
pub async fn check_is_content(world: &World, depth: Depth) {
    let mut check = world.cli();
    check.args(["check", "--json"]).args((depth == Depth::All).then_some("--deep"));
    let done = tokio::task::spawn_blocking(move || check.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let found: Vec<_> = said.lines().filter(|line| !line.starts_with(r#"{"progress"#)).collect();
    assert!(done.status.success(), "{found:#?}\n{}", String::from_utf8_lossy(&done.stderr));
}

/// Every upload that anybody sent is in exactly one manifest, and was ground.
pub async fn everything_counts_once(world: &World) {
    let here = world.here();
    for pool in POOLS {
        let kept = all(&here, pool, "uploads").await.len();
        let facts = world.book.facts();
        let of_pool = format!("{pool}/");
        let sent: BTreeSet<_> = facts.sent.keys().filter(|key| key.starts_with(&of_pool)).collect();
        let lost: Vec<_> = sent.iter().filter(|key| !facts.acknowledged.contains_key(**key)).collect();
        assert_eq!(sent.len(), kept, "{lost:?} were sent and never acknowledged");
        if pool == "mill" {
            let listed: BTreeSet<_> = facts.listed.keys().filter(|key| key.starts_with(&of_pool)).collect();
            assert_eq!(listed, sent, "what the manifests of all rounds list");
        }
    }
    for pool in POOLS {
        let (batches, rounds) = (all(&here, pool, "batches").await, rounds(&here, pool).await);
        let counted: u64 = batches.iter().map(|batch| batch["count"].as_u64().unwrap()).sum();
        let facts = world.book.facts();
        let sent = facts.sent.keys().filter(|key| key.starts_with(&format!("{pool}/"))).count() as u64;
        assert_eq!((counted, batches.len()), (sent, rounds.len()), "batches of {pool}");
    }
}

/// The result that the pool's pointer names.
async fn newest(here: &Here, pool: &str) -> Option<Value> {
    let results = list(here, pool, "results", Depth::New).await;
    results.into_iter().find(|result| result["current"] == true)
}

/// Whoever connects is shown the newest result there is by then, and its bytes are there.
pub async fn newcomers_converge(world: &World) {
    let here = world.here();
    let Some(before) = newest(&here, "mill").await else { return };
    let who = world.newcomer.clone();
    let mut plain = Plain::connect(here.of(&who)).await.unwrap();
    assert!(plain.subscribe("mp/mill/result").await.unwrap());
    let mut listener =
        Listener { who, book: world.book.clone(), version: before["version"].as_u64().unwrap() };
    listener.look(&mut plain, &here).await.unwrap();
}

/// Whoever connects, and whoever came and went all the time, has the newest result.
pub async fn everybody_converges(world: &World) {
    newcomers_converge(world).await;
    let here = world.here();

    let keeper = world.edges.iter().find(|edge| edge.directory().join("results").exists()).unwrap();
    keeper.done(&["listen", "--once"]).await;
    let current = std::fs::read(keeper.directory().join("results/current")).unwrap();
    assert_eq!(Sha256::of(&current).to_string(), text(&newest(&here, "edge").await.unwrap(), "sha256"));
    for edge in &world.edges {
        let spooled = edge.done(&["spool", "list", "--json"]).await;
        assert_eq!(spooled, "", "a spool is not empty");
        let staging = std::fs::read_dir(edge.spool().join("staging")).into_iter().flatten();
        let left: Vec<_> = staging.map(|file| file.unwrap().file_name()).collect();
        assert!(left.is_empty() || left == ["scratch"], "left over of pushes: {left:?}");
    }
}

pub fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

fn keys(sql: &Connection, query: &str) -> BTreeSet<String> {
    let mut statement = sql.prepare(query).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// When every grace is over, storage holds what counts and nothing else, and its directory what it holds.
pub async fn nothing_is_left_over(world: &mut World) {
    assert!(world.server.terminate().await.success());
    let (ledger, objects) = (world.server.data().join("ledger.db"), world.server.data().join("objects"));
    {
        // As if two days had gone by: grants end, and no PUT can be on its way any more.
        let sql = Connection::open(&ledger).unwrap();
        let days = 2 * 86_400_000;
        let age = format!(
            "UPDATE objects SET created = created - {days}, url_until = url_until - {days}; \
             UPDATE grants SET expires = expires - {days};"
        );
        sql.execute_batch(&age).unwrap();
    }
    world.server.launch().await;
    let sql = open(&ledger);
    let api = world.server.api();
    until("everything that does not count is swept", async || {
        api.post("/v1/gc", &json!({})).await;
        keys(&sql, "SELECT key FROM objects WHERE state IN ('granted', 'doomed')").is_empty()
    })
    .await;
    check_is_content(world, Depth::All).await;

    let listed: BTreeSet<String> = listed(&Place::Here.storage(&world.server)).await.into_iter().collect();
    assert_eq!(listed, keys(&sql, "SELECT key FROM objects WHERE state = 'live'"), "storage and ledger");

    let catalog = open(&objects.join("catalog.sqlite"));
    // Parts of uploads that have not ended are named by rows too, and would be what is left over.
    let named = keys(
        &catalog,
        "SELECT lower(hex(id)) FROM object WHERE parts = 0 \
         UNION ALL SELECT lower(hex(file)) FROM part WHERE upload NOT IN (SELECT id FROM upload)",
    );
    let names = |dir: std::path::PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = || -> BTreeSet<String> {
        let name = |path: std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        names(objects.join("blobs")).flat_map(names).map(name).collect()
    };
    // Files go after their rows, on another thread.
    until("storage's directory holds what its rows name", async || files() == named).await;
    assert_eq!(names(objects.join("incoming")).count(), 0);
}
