//! One file that cannot be removed from the spool, or read, at once: it is sent and removed all the same, and so are the others.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use millpond_edge::sender::{self, Options, Report, SendError};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::spool::{Limits, Spool};
use millpond_tests::Edge;

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_file_whose_removal_failed_is_told_to_be_stored_and_leaves_the_spool() {
    let (server, edge) = Edge::device().await;
    edge.spooled(1, 100).await;
    let (at, who) = (edge.relay.address(), edge.who().clone());
    let config = Config::new(at.ip().to_string(), at.port(), who.pool, who.member, Token::new(&who.token));
    let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
    let mut spool = Spool::open(&edge.spool(), Limits::default()).unwrap();
    // Removal beside the work opens the lock for itself, and finds something else; the spool has it open.
    let (lock, away) = (edge.spool().join("lock"), edge.directory().join("lock"));
    std::fs::rename(&lock, &away).unwrap();
    std::fs::create_dir(&lock).unwrap();
    let mut stored = 0;
    let mut report = |report: Report<'_>| match report {
        Report::Stored(..) => stored += 1,
        report => panic!("{report:?}"),
    };
    let options = Options::default();
    let flush = sender::flush(&mut spool, &session, &mut inbox, &options, &mut report);
    let failed = tokio::time::timeout(PATIENCE, flush).await.unwrap();
    assert!(matches!(failed, Err(SendError::Spool(_))), "{failed:?}");
    assert_eq!((stored, std::fs::read_dir(edge.spool().join("ready")).unwrap().count()), (1, 0));
    std::fs::remove_dir(&lock).unwrap();
    std::fs::rename(away, lock).unwrap();
    assert_eq!(edge.done(&["spool", "flush"]).await, "0 stored, 0 refused, 0 left\n");
    assert_eq!(server.uploads("demo").await.len(), 1);
}

#[tokio::test]
async fn a_file_that_the_disk_does_not_give_keeps_no_other_from_being_sent() {
    let (server, edge) = Edge::device().await;
    edge.spooled(4, 100).await;
    let ready = edge.spool().join("ready");
    let entry = std::fs::read_dir(&ready).unwrap().next().unwrap().unwrap().path();
    let away = edge.directory().join("away");
    std::fs::rename(&entry, &away).unwrap();
    // No bytes can be read of a directory, whoever reads.
    std::fs::create_dir(&entry).unwrap();
    edge.done(&["complete", "--offline"]).await;
    let flush = edge.run(&["spool", "flush"]).await;
    let (out, err) = (String::from_utf8_lossy(&flush.stdout), String::from_utf8_lossy(&flush.stderr));
    assert_eq!((flush.status.code(), &*out), (Some(75), "3 stored, 0 refused, 1 left\n"), "{err}");
    assert!(err.contains("Is a directory"), "{err}");
    assert!(
        edge.done(&["spool", "list"]).await.contains("complete through"),
        "it speaks of what is left, perhaps"
    );
    std::fs::remove_dir(&entry).unwrap();
    std::fs::rename(away, entry).unwrap();
    assert_eq!(edge.done(&["spool", "flush"]).await, "1 stored, 0 refused, 0 left\n");
    assert_eq!(server.uploads("demo").await.len(), 4);
}
