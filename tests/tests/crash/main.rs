//! kill -9 at any place and at any time: what was acknowledged stays, and what is sent again counts once.
//!
//! The server dies at every fail-point of the catalogue once, and then by chance: at a point, the first or a later time
//! that it comes there, or after so many milliseconds, also while it starts or brings an older ledger up to date. Meanwhile
//! publishers, listeners and processors work over MQTT, by URL and with `millpond-edge`, and go on after every restart with
//! what was not acknowledged; the processes of `millpond-edge` die by chance all the while. The second test has these die
//! at every fail-point of each of their roles.
//!
//! `MILLPOND_KILLS` says how many chances are taken (50; with `MILLPOND_SLOW`, 600), `MILLPOND_SEED` which:
//!
//! ```text
//! MILLPOND_KILLS=5000 cargo test -p millpond-tests --test crash -- --nocapture kill_9
//! ```

#![allow(clippy::unwrap_used, reason = "tests")]

mod book;
mod devices;
mod edge;
mod grinder;
mod home;
mod migration;
mod oracle;
mod power;
mod power_edge;
mod publishers;
mod readers;
mod unsynced;
mod world;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant};

use millpond_failpoint::{Point, Program};
use millpond_tests::{Dice, Server, skip, was_killed};

use oracle::Depth;
use world::World;

/// Lives between two thorough looks at everything.
const THOROUGH: u32 = 20;
/// Kills between two looks by `check` at all rows, which takes as long as a life; with `MILLPOND_SLOW` it looks after each.
const CHECKED: u32 = 5;
/// Chances after which the world begins anew: each life takes some 20 MB of disk, for nothing that counts is ever removed.
const ANEW: u32 = 200;

fn points(of: &[Program]) -> Vec<Point> {
    Point::ALL.iter().copied().filter(|point| of.contains(&point.program())).collect()
}

/// Chances that are taken after the catalogue.
fn kills() -> u32 {
    match std::env::var("MILLPOND_KILLS") {
        Ok(kills) => kills.parse().unwrap(),
        Err(_) if std::env::var_os("MILLPOND_SLOW").is_some() => 600,
        Err(_) => 50,
    }
}

/// A binary from elsewhere has no fail-points.
fn has_points(variable: &str) -> bool {
    std::env::var_os(variable).is_none() || skip("the binary under test has no fail-points")
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_any_place_and_time_loses_nothing_acknowledged_and_counts_nothing_twice() {
    if !has_points("MILLPOND_BIN") {
        return;
    }
    let mut dice = Dice::new("kill -9 of the server");
    let mut world = world(&mut dice).await;
    let begin = Instant::now();
    let (mut working, starting) = (points(&[Program::Server]), points(&[Program::Start]));
    let migrating = migration::points();
    dice.shuffle(&mut working);
    for point in &working {
        world.die_at(*point).await;
        again(&mut world).await;
    }
    for point in &starting {
        world.die_after(Duration::from_millis(dice.below(300))).await;
        world.die_starting(*point).await;
        again(&mut world).await;
    }
    for point in &migrating {
        world.die_after(Duration::from_millis(dice.below(300))).await;
        migration::age(&world.server);
        world.die_starting(*point).await;
        again(&mut world).await;
        migration::is_done(&world.server);
    }
    let places = working.len() + starting.len() + migrating.len();
    say(&format!("{places} places in {:?}", begin.elapsed()));
    let (all, mut before, mut killed) = (kills(), 0, BTreeSet::new());
    for n in 0..all {
        if n > 0 && n % ANEW == 0 {
            ends_well(&mut world).await;
            killed.extend(world.book.facts().killed.keys().copied());
            before += world.kills;
            world = self::world(&mut dice).await;
        }
        by_chance(&mut world, &mut dice, [&working, &starting, &migrating]).await;
        again_and_thoroughly(&mut world).await;
    }
    say(&format!("{} kills in {:?}", before + world.kills, begin.elapsed()));
    ends_well(&mut world).await;
    killed.extend(world.book.facts().killed.keys().copied());
    say(&format!("in all {:?}; of the devices were killed: {killed:?}", begin.elapsed()));
    assert!(killed.len() == 3, "some role of millpond-edge was never killed: {killed:?}");
}

async fn world(dice: &mut Dice) -> World {
    World::begin(dice, |server| server.set_environment([migration::one_more()])).await
}

/// Everybody comes to an end, and everything has to hold.
async fn ends_well(world: &mut World) {
    world.rest().await;
    oracle::nothing_is_lost(world, Depth::All).await;
    oracle::everything_counts_once(world).await;
    oracle::everybody_converges(world).await;
    // And of every byte when all that does not count is gone.
    oracle::check_is_content(world, Depth::New).await;
    oracle::nothing_is_left_over(world).await;
    let facts = world.book.facts();
    say(&format!("{} uploads, {} rounds of one processor", facts.sent.len(), facts.results.len()));
}

/// The next life, and what has to hold at its beginning; whether it is time for a thorough look.
async fn rises(world: &mut World) -> bool {
    world.rise().await;
    oracle::nothing_is_lost(world, Depth::New).await;
    oracle::newcomers_converge(world).await;
    if world.kills.is_multiple_of(CHECKED) || std::env::var_os("MILLPOND_SLOW").is_some() {
        oracle::check_is_content(world, Depth::New).await;
    }
    // Not of each 20th kill: a life that dies twice before it is ready would pass by that one.
    let is_time = world.kills - world.looked >= THOROUGH;
    if is_time {
        world.looked = world.kills;
    }
    is_time
}

/// The next life; now and then everything is looked at, while everybody works.
async fn again(world: &mut World) {
    if rises(world).await {
        oracle::nothing_is_lost(world, Depth::All).await;
        oracle::check_is_content(world, Depth::All).await;
    }
}

/// The next life; now and then it goes on when everybody has come to rest and everything has held.
async fn again_and_thoroughly(world: &mut World) {
    if rises(world).await {
        let begin = Instant::now();
        ends_well(world).await;
        world.go_on();
        say(&format!("{} kills, and everybody was at rest for {:?}", world.kills, begin.elapsed()));
    }
}

async fn by_chance(world: &mut World, dice: &mut Dice, [working, starting, migrating]: [&[Point]; 3]) {
    let (point, start, migrates) = (dice.pick(working), dice.pick(starting), dice.pick(migrating));
    let nth = 1 + u32::try_from(dice.below(12)).unwrap();
    match dice.below(8) {
        0..=3 => world.die_after(Duration::from_millis(dice.below(400))).await,
        4..=6 => world.die_near(point, nth, Duration::from_millis(600)).await,
        _ => {
            world.die_after(Duration::from_millis(dice.below(100))).await;
            let is_old = dice.below(2) == 0;
            if is_old {
                migration::age(&world.server);
            }
            world.die_starting(if is_old { migrates } else { start }).await;
        }
    }
}

#[tokio::test]
async fn a_first_start_that_dies_anywhere_is_made_good_by_the_next_one() {
    if !has_points("MILLPOND_BIN") {
        return;
    }
    let mut deaths: Vec<_> = points(&[Program::First, Program::Start]).into_iter().map(|p| (p, 1)).collect();
    // There are two secrets.
    deaths.push((Point::SecretWritten, 2));
    for (point, nth) in deaths {
        let mut server = Server::prepare(&[]);
        server.arm(point, nth);
        let Err(status) = server.try_launch().await else { panic!("{} is never reached", point.name()) };
        assert!(was_killed(status), "{}: it ended with {status}", point.name());
        server.disarm();
        server.launch().await;
        server.pool("demo", serde_json::json!({})).await;
    }
}
