//! The power of a device fails: what `push` has promised is in the spool or on the server, and `current` is a whole result.

use futures_util::future::join_all;
use millpond_protocol::Role;
use millpond_tests::{Dice, Disk, Edge, Link, Loss, Mill, Process, Server, Shim, Taken, was_killed};
use serde_json::json;

use super::edge::{Device, PATIENCE, PROVE};
use super::power::{fail, losses};
use super::publishers::content;
use super::{has_points, say};

/// Runs it until it ends, well or by the failure of the power; whether it was well.
async fn ends(mut process: Process, disk: &Disk) -> bool {
    let status = process.wait(PATIENCE).await;
    disk.fail_at(0);
    assert!(status.success() || was_killed(status), "{status}\n{}", process.stderr());
    status.success()
}

/// The power fails at some sync of `push --offline`, or after it, and then again while it sends.
async fn push(server: &Server, shim: &Shim, n: u32, dice: &mut Dice) -> Taken {
    let mut device = Device::new(server, format!("power-{n}")).await;
    let mut disk = Disk::new(shim, device.edge.directory(), &["spool"]);
    device.edge.set_environment(disk.environment());
    let mut taken = Taken::default();

    disk.fail_at(dice.below(28));
    let is_promised = ends(device.push(&["--offline"]), &disk).await;
    // Or the process alone dies, and the next one relies on what is not synced.
    let is_promised = match is_promised || dice.below(2) == 0 {
        true => is_promised,
        false => {
            disk.fail_at(dice.below(40));
            ends(device.push(&["--offline"]), &disk).await
        }
    };
    taken += fail(&mut disk, dice);
    let kept = device.kept().await;
    if is_promised {
        assert_eq!(kept.len(), device.files(), "device {n} has {kept:?}");
        let stated = std::fs::read(device.edge.spool().join("complete")).unwrap();
        assert!(!stated.is_empty(), "device {n} has lost its statement");
    }
    disk.fail_at(dice.below(40));
    ends(device.push(&[]), &disk).await;
    taken += fail(&mut disk, dice);
    let still = device.kept().await;
    assert!(still.is_superset(&kept), "device {n}: {still:?} of {kept:?}");
    device.made_good().await;
    taken
}

/// Who makes results.
struct Source {
    link: Link,
    mill: Mill,
    made: Vec<Vec<u8>>,
}

impl Source {
    async fn join(server: &Server, pool: &str) -> Self {
        let mill = Mill::join(server.member(pool, "mill", Role::Processor).await, server.api()).await;
        let link = Link::open(server.member(pool, "source", Role::Publisher).await).await.unwrap();
        Self { link, mill, made: Vec::new() }
    }

    /// One more, by URL and over MQTT in turn.
    async fn make(&mut self) {
        let (pool, n) = (&self.link.who.pool, self.made.len());
        let topic = format!("mp/{pool}/c/source/up/u{n}");
        self.link.publish(&topic, vec![1], Default::default()).await.unwrap();
        let lease = self.mill.trigger(&json!({})).await.unwrap();
        self.made.push(content(&format!("result {n}"), if n % 2 == 0 { 300_000 } else { 3_000 }));
        self.mill.answer(&lease, self.made[n].clone()).await.unwrap();
    }
}

/// A device that listens on a disk of its own.
async fn listener(server: &Server, shim: &Shim, pool: &str) -> (Edge, Disk) {
    let mut edge = Edge::new(server, server.member(pool, "keeper", Role::Listener).await).await;
    let disk = Disk::new(shim, edge.directory(), &["results"]);
    edge.set_environment(disk.environment());
    (edge, disk)
}

/// The power fails at some sync of `listen`, or after it.
async fn listen(server: &Server, shim: &Shim, results: usize, dice: &mut Dice) -> Taken {
    let (edge, mut disk) = listener(server, shim, "power").await;
    let mut source = Source::join(server, "power").await;
    let listen = ["listen", "--once", "--keep", "1", "--exec", PROVE];
    let shown = |edge: &Edge| {
        let current = edge.directory().join("results/current");
        std::fs::symlink_metadata(&current).is_ok().then(|| std::fs::read(&current))
    };
    let (mut promised, mut taken) = (None, Taken::default());
    for n in 0..=results {
        source.make().await;
        // The last one is shown in peace.
        for _ in 0..if n < results { 3 } else { 0 } {
            disk.fail_at(dice.below(24));
            if ends(edge.start("listen", &listen), &disk).await {
                promised = Some(n);
            }
            if dice.below(3) == 0 {
                continue;
            }
            taken += fail(&mut disk, dice);
            let Some(current) = shown(&edge) else {
                assert_eq!(promised, None, "nothing is shown any more");
                continue;
            };
            let current = current.unwrap_or_else(|error| panic!("current names no result: {error}"));
            let version = source.made.iter().position(|result| *result == current);
            let version = version.expect("current is a whole result");
            assert!(Some(version) >= promised, "result {version} is shown after {promised:?}");
        }
    }
    edge.done(&listen).await;
    assert!(shown(&edge).unwrap().unwrap() == *source.made.last().unwrap(), "current is not the newest");
    let entries = std::fs::read_dir(edge.directory().join("results")).unwrap();
    let versions = entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count() - 1;
    assert_eq!(versions, 1, "versions are left over");
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_of_power_takes_nothing_that_the_edge_client_promised() {
    if !has_points("MILLPOND_EDGE_BIN") {
        return;
    }
    let Some(shim) = Shim::new() else { return };
    let mut dice = Dice::new("the loss of power of a device");
    let server = Server::start().await;
    for pool in ["demo", "power"] {
        server.pool(pool, json!({ "grouping": "count", "count": 10_000, "spread_s": 0 })).await;
    }
    let number = losses().unwrap_or(12);
    let mut taken = listen(&server, &shim, 1 + number as usize / 4, &mut dice).await;
    for n in (0..number).step_by(4) {
        let throws: Vec<_> = (n..number.min(n + 4)).map(|n| (n, dice.child())).collect();
        let pushes = throws.into_iter().map(async |(n, mut dice)| push(&server, &shim, n, &mut dice).await);
        join_all(pushes).await.into_iter().for_each(|more| taken += more);
    }
    say(&format!("{number} devices, {taken:?}"));
    assert!(taken.files > 0 && taken.names > 0, "the power has never failed: {taken:?}");
    let checked = server.cli().args(["check", "--deep"]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

/// The first `listen` dies at one sync after the other and the power stays: the next one finds all that was never synced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_listen_has_ended_with_lasts_whichever_sync_the_one_before_died_at() {
    if !has_points("MILLPOND_EDGE_BIN") {
        return;
    }
    let Some(shim) = Shim::new() else { return };
    let server = Server::start().await;
    server.pool("last", json!({ "grouping": "count", "count": 10_000, "spread_s": 0 })).await;
    let (edge, mut disk) = listener(&server, &shim, "last").await;
    let mut source = Source::join(&server, "last").await;
    // Nothing is pruned, for that syncs the directory too.
    let listen = ["listen", "--once", "--keep", "100", "--exec", PROVE];
    for nth in 1.. {
        source.make().await;
        disk.fail_at(nth);
        let ended = ends(edge.start("listen", &listen), &disk).await;
        edge.done(&listen).await;
        disk.fail(&mut Loss::Everything);
        let current = std::fs::read(edge.directory().join("results/current")).unwrap();
        assert!(
            Some(&current) == source.made.last(),
            "sync {nth}: current is not what `listen` has ended with"
        );
        if ended {
            return assert!(nth > 8, "it syncs {nth} times");
        }
    }
}
