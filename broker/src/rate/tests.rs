//! Floods of one member, of two, and of a thousand.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const ONE: Load = Load { messages: 1, bytes: 100 };

fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

fn messages(messages: u64) -> Rate {
    Rate { messages, bytes: 0 }
}

/// Sends as fast as it may from `start` on, for `time`, and returns how many messages.
fn flood(pool: &mut Pool, who: &MemberName, start: Instant, time: Duration) -> u64 {
    let (mut now, mut sent) = (start, 0);
    while now < start + time {
        sent += 1;
        if let Some(pause) = pool.charge(now, who, ONE) {
            now = pause.until;
        }
    }
    sent
}

#[test]
fn a_member_may_send_at_its_rate_and_a_seconds_worth_at_once() {
    let start = Instant::now();
    let mut pool = Pool::new(messages(10), Rate::default(), start);
    let (eager, other) = (name("eager"), name("other"));
    for _ in 0..10 {
        assert_eq!(pool.charge(start, &eager, ONE), None);
    }
    let pause = pool.charge(start, &eager, ONE).unwrap();
    assert_eq!((pause.until, pause.limit), (start + SECOND / 10, "member"));
    assert_eq!(pool.charge(start, &other, ONE), None, "each has a rate of its own");
    let sent = flood(&mut pool, &eager, start + SECOND, 60 * SECOND);
    assert!((600..=612).contains(&sent), "{sent}");
}

#[test]
fn bytes_have_a_rate_too_and_a_large_message_is_paid_for_afterwards() {
    let start = Instant::now();
    let mut pool = Pool::new(Rate { messages: 0, bytes: 1_000 }, Rate::default(), start);
    let pause = pool.charge(start, &name("m"), Load { messages: 1, bytes: 5_000 }).unwrap();
    assert_eq!(pause.until, start + 4 * SECOND);
    assert_eq!(pool.charge(start + 4 * SECOND, &name("m"), Load::default()), None);
}

#[test]
fn who_floods_a_pool_up_to_its_rate_keeps_nobody_waiting_who_is_within_its_share() {
    let start = Instant::now();
    let mut pool = Pool::new(Rate::default(), messages(100), start);
    let (flooder, other) = (name("flooder"), name("other"));
    let (mut sent, mut ready) = (0, start);
    for tenth in 0..600 {
        let now = start + tenth * SECOND / 10;
        // Four a tenth of a second, where its share is five.
        for _ in 0..4 {
            assert_eq!(pool.charge(now, &other, ONE), None, "after {tenth} tenths");
        }
        while ready <= now {
            sent += 1;
            ready = pool.charge(now, &flooder, ONE).map_or(ready, |pause| pause.until);
        }
    }
    // What the other leaves of the pool's rate, and its burst.
    assert!((3_400..=3_800).contains(&sent), "{sent}");
}

#[test]
fn two_that_flood_share_the_pools_rate() {
    let start = Instant::now();
    let mut pool = Pool::new(Rate::default(), messages(100), start);
    let names = [name("a"), name("b")];
    let (mut sent, mut ready) = ([0_u32; 2], [start; 2]);
    for milli in 0..60_000 {
        let now = start + Duration::from_millis(milli);
        for at in 0..2 {
            if ready[at] <= now {
                sent[at] += 1;
                ready[at] = pool.charge(now, &names[at], ONE).map_or(now, |pause| pause.until);
            }
        }
    }
    let all = sent[0] + sent[1];
    assert!((5_900..=6_300).contains(&all), "{sent:?}");
    assert!(sent.iter().all(|n| *n > all * 4 / 10), "{sent:?}");
}

#[test]
fn a_pools_rate_holds_however_many_send() {
    let start = Instant::now();
    let mut pool = Pool::new(Rate::default(), messages(100), start);
    let names: Vec<_> = (0..1_000).map(|n| name(&format!("m{n}"))).collect();
    let (mut sent, mut ready) = (0_u64, vec![start; names.len()]);
    for tenth in 0..600 {
        let now = start + tenth * SECOND / 10;
        for (who, ready) in names.iter().zip(&mut ready) {
            if *ready <= now {
                sent += 1;
                *ready = pool.charge(now, who, ONE).map_or(now, |pause| pause.until);
            }
        }
    }
    // One each is always within a rate, and then a hundred a second.
    assert!((6_000..=9_500).contains(&sent), "{sent}");
}

#[test]
fn what_a_pool_had_room_for_is_held_against_nobody() {
    let start = Instant::now();
    let mut pool = Pool::new(Rate::default(), messages(100), start);
    let (much, little, flooder) = (name("much"), name("little"), name("flooder"));
    // An hour of sixty and thirty a second.
    for second in 0..3_600 {
        let now = start + second * SECOND;
        (0..60).for_each(|_| assert_eq!(pool.charge(now, &much, ONE), None));
        (0..30).for_each(|_| assert_eq!(pool.charge(now, &little, ONE), None));
    }
    let later = start + 3_605 * SECOND;
    flood(&mut pool, &flooder, later, SECOND);
    for tenth in 0..20 {
        let now = later + SECOND + tenth * SECOND / 10;
        pool.charge(now, &flooder, ONE);
        assert_eq!(pool.charge(now, &much, ONE), None, "after {tenth} tenths");
    }
}

#[test]
fn nothing_is_kept_of_members_that_send_no_more() {
    let start = Instant::now();
    let mut pool = Pool::new(messages(10), messages(1_000), start);
    for n in 0..100_000_u32 {
        let now = start + Duration::from_millis(n.into());
        pool.charge(now, &name(&format!("m{n}")), ONE);
    }
    // Each is empty again after a tenth of a second; its share takes longer.
    assert!(pool.members.len() < 20_000, "{}", pool.members.len());
    let later = start + Duration::from_secs(100_000);
    for n in 0..40_000_u32 {
        pool.charge(later + 100 * n * SECOND, &name(&format!("n{n}")), ONE);
    }
    assert!(pool.members.len() <= 2 * REMEMBERED, "{}", pool.members.len());
}

#[test]
fn without_a_rate_there_is_nothing_to_charge() {
    let who = Principal {
        pool: "p".parse().unwrap(),
        name: name("m"),
        role: millpond_protocol::Role::Publisher,
        id: 1,
    };
    assert!(Rates::new(Rate::default(), Rate::default()).meter(&who).is_none());
    let rates = Rates::new(messages(1), Rate::default());
    let (one, two) = (rates.meter(&who).unwrap(), rates.meter(&who).unwrap());
    let now = Instant::now();
    assert_eq!(one.charge(now, ONE), None);
    assert!(two.charge(now, ONE).is_some(), "connections of a member are one");
}
