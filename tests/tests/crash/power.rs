//! The power fails while everybody works: the server goes on from what it had synced.
//!
//! It dies as in the other tests, and also when it is about to sync something for the n-th time; then its data directory becomes
//! one that the disk may hold after that ([`Loss`]). Now and then only the process dies, and what it left unsynced is lost by
//! a later failure. `MILLPOND_LOSSES` says how often the power fails (12; with `MILLPOND_SLOW`, 200).

use std::time::{Duration, Instant};

use millpond_failpoint::{Point, Program};
use millpond_protocol::{Role, limits};
use millpond_tests::{Dice, Disk, Link, Loss, Server, Shim, Taken, was_killed};

use super::oracle::Depth;
use super::world::World;
use super::{again, ends_well, migration, oracle, points, say};

/// Failures of power that one world sees: what it holds is copied at each.
const OF_A_WORLD: u32 = 25;
/// Between two looks at every byte.
const DEEP: u32 = 4;

pub fn losses() -> Option<u32> {
    match std::env::var("MILLPOND_LOSSES") {
        Ok(losses) => Some(losses.parse().unwrap()),
        Err(_) => std::env::var_os("MILLPOND_SLOW").map(|_| 200),
    }
}

/// What is left this time.
fn chance(dice: &mut Dice) -> Loss<'_> {
    match dice.below(6) {
        0 => Loss::Everything,
        1 => Loss::Bytes,
        2 => Loss::Names,
        _ => Loss::Chance(dice),
    }
}

/// The power fails, and the server is gone.
pub fn fail(disk: &mut Disk, dice: &mut Dice) -> Taken {
    disk.fail(&mut chance(dice))
}

/// The server dies, one way or another.
async fn dies(world: &mut World, disk: &Disk, dice: &mut Dice, points: &[Point]) {
    match dice.below(3) {
        0 => world.die_after(Duration::from_millis(dice.below(400))).await,
        1 => {
            disk.fail_at(1 + dice.below(80));
            world.die_within(Duration::from_millis(600)).await;
        }
        _ => {
            let point = dice.pick(points);
            let nth = 1 + u32::try_from(dice.below(6)).unwrap();
            world.die_near(point, nth, Duration::from_millis(600)).await;
        }
    }
    disk.fail_at(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_of_power_takes_nothing_acknowledged_and_nothing_counts_twice() {
    if !super::has_points("MILLPOND_BIN") {
        return;
    }
    let Some(shim) = Shim::new() else { return };
    let mut dice = Dice::new("the loss of power");
    let (points, begin) = (points(&[Program::Server]), Instant::now());
    let (mut left, mut taken) = (losses().unwrap_or(12), Taken::default());
    while left > 0 {
        let mut disk = None;
        let mut world = World::begin(&mut dice, |server| {
            let own = Disk::new(&shim, server.directory(), &["data"]);
            server.set_environment(own.environment());
            disk = Some(own);
        })
        .await;
        let mut disk = disk.unwrap();
        let here = left.min(OF_A_WORLD);
        for n in 0..here {
            dies(&mut world, &disk, &mut dice, &points).await;
            while dice.below(3) == 0 {
                // This time it is the process alone, and what was not synced is still there.
                again(&mut world).await;
                dies(&mut world, &disk, &mut dice, &points).await;
            }
            taken += fail(&mut disk, &mut dice);
            if dice.below(4) == 0 {
                // It comes again and fails again, at any sync of the start.
                disk.fail_at(1 + dice.below(12));
                if world.rises_or_dies().await {
                    dies(&mut world, &disk, &mut dice, &points).await;
                }
                taken += fail(&mut disk, &mut dice);
            }
            again(&mut world).await;
            if n % DEEP == 0 {
                oracle::check_is_content(&world, Depth::All).await;
            }
        }
        left -= here;
        say(&format!("power failed {here} times, {left} to come, {taken:?}, {:?}", begin.elapsed()));
        ends_well(&mut world).await;
    }
    say(&format!("in all {:?}", begin.elapsed()));
    assert!(taken.files > 0 && taken.names > 0, "the power has never failed: {taken:?}");
}

/// Syncs of a first start, or of a migration, at which the power fails, unless [`losses`] are asked for: then at each.
const FIRST: usize = 8;

#[tokio::test]
async fn a_first_start_whose_power_fails_is_made_good_by_the_next_one_which_keeps_its_promises() {
    let Some(shim) = Shim::new() else { return };
    let prepared = || {
        let mut server = Server::prepare(&[]);
        let disk = Disk::new(&shim, server.directory(), &["data"]);
        server.set_environment(disk.environment());
        (server, disk)
    };
    let mut dice = Dice::new("the loss of power at the first start");
    let (mut server, disk) = prepared();
    server.launch().await;
    server.kill();
    // The first is the one that makes the data directory last.
    let mut syncs: Vec<_> = (2..=disk.syncs()).collect();
    dice.shuffle(&mut syncs);
    syncs.truncate(losses().map_or(FIRST, |_| usize::MAX));
    for nth in std::iter::once(1).chain(syncs) {
        let (mut server, mut disk) = prepared();
        disk.fail_at(nth);
        match server.try_launch().await {
            Ok(()) => server.kill(),
            Err(status) => assert!(was_killed(status), "sync {nth}: it ended with {status}"),
        }
        // Or only the process dies, and the next one finds what is not synced.
        if nth > 1 && dice.below(2) == 0 {
            fail(&mut disk, &mut dice);
        }
        disk.fail_at(0);
        server.launch().await;
        let token = server.data().join("admin.token");
        let promised = std::fs::read(&token).unwrap();
        server.pool("demo", serde_json::json!({})).await;
        let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
        let staged = vec![b's'; limits::SMALL_MAX + 1];
        edge.publish("mp/demo/c/edge/up/staged", staged, Default::default()).await.unwrap();
        server.kill();
        disk.fail(&mut Loss::Everything);
        server.launch().await;
        assert!(std::fs::read(&token).unwrap() == promised, "sync {nth}: the admin has another token");
        let kept = server.uploads("demo").await;
        assert_eq!(kept.len(), 1, "sync {nth}: the upload that was acknowledged is gone");
        let checked = server.cli().args(["check", "--deep"]).output().unwrap();
        assert!(checked.status.success(), "sync {nth}: {checked:?}");
    }
}

#[tokio::test]
async fn a_migration_whose_power_fails_is_made_good_by_the_next_start_and_leaves_a_whole_copy() {
    if !super::has_points("MILLPOND_BIN") {
        return;
    }
    let Some(shim) = Shim::new() else { return };
    let old = async || {
        let mut server = Server::prepare(&[]);
        let mut disk = Disk::new(&shim, server.directory(), &["data"]);
        server.set_environment(disk.environment());
        server.launch().await;
        server.pool("demo", serde_json::json!({})).await;
        server.kill();
        disk.fail(&mut Loss::Everything);
        server.set_environment([migration::one_more()]);
        (server, disk)
    };
    let mut dice = Dice::new("the loss of power over a migration");
    let (mut server, disk) = old().await;
    server.launch().await;
    server.kill();
    let mut syncs: Vec<_> = (1..=disk.syncs()).collect();
    dice.shuffle(&mut syncs);
    syncs.truncate(losses().map_or(FIRST, |_| usize::MAX));
    for nth in syncs {
        let (mut server, mut disk) = old().await;
        disk.fail_at(nth);
        match server.try_launch().await {
            Ok(()) => server.kill(),
            Err(status) => assert!(was_killed(status), "sync {nth}: it ended with {status}"),
        }
        fail(&mut disk, &mut dice);
        server.launch().await;
        migration::is_done(&server);
        server.api().get("/v1/pools/demo").await;
    }
}
