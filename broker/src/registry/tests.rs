//! Who holds a session, and who no longer may.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use millpond_net::Places;
use millpond_protocol::{Principal, Role, limits};
use tokio::sync::oneshot;

use super::away::Judged;
use super::{EndReason, Leaving, NotRegistered, Registered, Registration, Registry, Wish, lock};
use crate::hub::message::Message;
use crate::session::Kept;

const HOUR: Duration = Duration::from_secs(3_600);

fn who(role: Role) -> Principal {
    Principal { pool: "p".parse().unwrap(), name: "m".parse().unwrap(), role, id: 1 }
}

fn register(registry: &Arc<Registry>, who: &Principal) -> Registered {
    register_as(registry, who, "x").unwrap()
}

fn register_as(
    registry: &Arc<Registry>,
    who: &Principal,
    client_id: &str,
) -> Result<Registered, NotRegistered> {
    let endings = registry.endings();
    let (places, from) = (&Places::new(9, 9), IpAddr::from([127, 0, 0, 1]));
    let wish = Wish { client_id, clean: false, connections_max: 4, places, from, endings, force: false };
    registry.register(who, wish)
}

/// For an hour, with a will in half of one.
fn leaving() -> Leaving {
    let will = Message::event("app/p/will".into(), Bytes::from_static(b"gone"));
    Leaving { expiry: HOUR, kept: Kept::default(), will: Some((HOUR / 2, Box::new(will))) }
}

/// Leaves. Answers whether the session is kept, if anybody is told.
fn leave(registration: Registration, leaving: Leaving, judged: &mut Option<Judged>) -> Option<bool> {
    let mut told = None;
    registration.leave(leaving, judged, |is_kept| told = Some(is_kept));
    told
}

#[test]
fn nobody_can_take_a_session_before_it_was_told_that_its_connection_has_left() {
    for expiry in [HOUR, Duration::ZERO] {
        let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
        let registration = register(&registry, &who).registration;
        let mut was_told = false;
        registration.leave(Leaving { expiry, ..leaving() }, &mut None, |_| {
            was_told = true;
            // Who comes now waits for the lock, or hears that it is held.
            let is_locked = registry.members.try_lock().is_err();
            assert!(is_locked || register_as(&registry, &who, "x").is_err(), "another has it, {expiry:?}");
        });
        assert!(was_told && register_as(&registry, &who, "x").is_ok());
    }
}

#[test]
fn of_a_session_that_was_taken_up_again_nothing_is_due() {
    let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
    for _ in 0..3 {
        let registered = register(&registry, &who);
        assert_eq!(lock(&registry.members).due.len(), 0);
        assert_eq!(leave(registered.registration, leaving(), &mut None), Some(true));
        assert_eq!(lock(&registry.members).due.len(), 2);
    }
    registry.end(&who.pool, &who.name, EndReason::Revoked);
    assert_eq!(lock(&registry.members).due.len(), 0);
}

#[test]
fn a_session_does_not_outlive_a_revocation_that_its_connection_does_not_hear_of() {
    for before in [None, Some(EndReason::TakenOver), Some(EndReason::QueueFull), Some(EndReason::Behind)] {
        let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
        let registered = register(&registry, &who);
        if let Some(reason) = before {
            registered.registration.mailbox.end(reason);
        }
        registry.end(&who.pool, &who.name, EndReason::Revoked);
        assert_eq!(leave(registered.registration, leaving(), &mut None), Some(false), "{before:?}");
        assert_eq!(registry.hub.outbox().len(), 0, "no will of who was revoked");
        assert!(register(&registry, &who).kept.is_none(), "{before:?}");
    }
}

#[test]
fn a_connection_that_sees_through_what_was_sent_hears_of_a_revocation_whatever_became_of_its_session() {
    let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
    let mut drains = Vec::new();
    for expiry in [HOUR, HOUR, Duration::ZERO] {
        let registration = register(&registry, &who).registration;
        let mailbox = registration.mailbox.clone();
        drains.push((registration.drain(), mailbox));
        leave(registration, Leaving { expiry, kept: Kept::default(), will: None }, &mut None);
    }
    let other = Principal { name: "other".parse().unwrap(), ..who.clone() };
    registry.end(&other.pool, &other.name, EndReason::Revoked);
    registry.end(&who.pool, &who.name, EndReason::TakenOver);
    assert!(drains.iter().all(|(_, mailbox)| !mailbox.is_revoked()));
    registry.end(&who.pool, &who.name, EndReason::Revoked);
    assert!(drains.iter().all(|(_, mailbox)| mailbox.is_revoked()));
    for left in (0..3).rev() {
        drains.pop();
        let draining = &lock(&registry.members).draining;
        assert_eq!(draining.values().map(Vec::len).sum::<usize>(), left);
        assert_eq!(draining.is_empty(), left == 0);
    }
}

#[test]
fn a_session_is_not_taken_up_in_another_role() {
    let registry = Arc::new(Registry::default());
    leave(register(&registry, &who(Role::Publisher)).registration, leaving(), &mut None);
    registry.end_all(EndReason::Behind);
    let registered = register(&registry, &who(Role::Listener));
    assert!(registered.kept.is_none());
    assert_eq!(registered.discarded, Some(who(Role::Publisher)));
}

#[test]
fn a_member_has_so_many_sessions_comes_back_to_each_and_keeps_nobody_else_from_one() {
    let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
    for n in 0..limits::SESSIONS_PER_MEMBER {
        let registered = register_as(&registry, &who, &n.to_string()).unwrap();
        leave(registered.registration, leaving(), &mut None);
    }
    let one_more = register_as(&registry, &who, "one more");
    assert!(matches!(one_more, Err(NotRegistered::TooMany)));
    assert!(register_as(&registry, &who, "3").unwrap().kept.is_some());
    let other = Principal { name: "other".parse().unwrap(), id: 2, ..who };
    assert!(register_as(&registry, &other, "3").is_ok());
}

/// A session that a certificate began, and what takes that back.
fn certified(
    registry: &Arc<Registry>,
    who: &Principal,
) -> (Registration, Option<Judged>, oneshot::Sender<()>) {
    let registration = register(registry, who).registration;
    let (lose, lost) = oneshot::channel();
    let judged = registration.judge(async { drop(lost.await) }.boxed());
    (registration, Some(judged), lose)
}

/// Lets all others have their turn.
async fn turns() {
    for _ in 0..9 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_certificate_that_is_lost_ends_what_it_began_and_nothing_that_another_credential_took_up() {
    let (registry, who) = (Arc::new(Registry::default()), who(Role::Publisher));
    // Of a session that waits for its client nothing is left, its will neither.
    let (registration, mut judged, lose) = certified(&registry, &who);
    assert_eq!(leave(registration, leaving(), &mut judged), Some(true));
    lose.send(()).unwrap();
    turns().await;
    let next = register(&registry, &who);
    assert!(next.kept.is_none() && next.discarded.is_some());
    assert_eq!(registry.hub.outbox().len(), 0);
    drop(next);

    // What the client of one that is over had sent is ended too.
    let (registration, mut judged, lose) = certified(&registry, &who);
    let mailbox = registration.mailbox.clone();
    let over = Leaving { expiry: Duration::ZERO, kept: Kept::default(), will: None };
    assert_eq!(leave(registration, over, &mut judged), Some(false));
    lose.send(()).unwrap();
    turns().await;
    assert!(mailbox.is_revoked());

    let (registration, mut judged, lose) = certified(&registry, &who);
    let (key, id) = (registration.key.clone(), registration.id);
    assert_eq!(leave(registration, leaving(), &mut judged), Some(true));
    let other = register(&registry, &who);
    turns().await;
    assert!(other.kept.is_some() && lose.send(()).is_err(), "nobody waits for it");
    // Who had waited may have been told right before.
    registry.lose(&key, &other.registration.mailbox, id);
    assert!(!other.registration.mailbox.is_revoked());
}
