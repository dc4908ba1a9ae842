//! A spool that grows while it is sent.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use millpond_edge::clock::Stamp;
use millpond_edge::sender::{self, Options, Report};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::spool::{About, Complete, Limits, Spool};
use millpond_protocol::{Role, Timestamp};
use millpond_tests::{Edge, Server, Shape};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(120);

/// Puts a file there that belongs to that time, or to now.
fn add(spool: &mut Spool, id: &str, size: usize, event_time: Option<Timestamp>) {
    let about = |_| About {
        upload: id.parse().unwrap(),
        name: id.parse().unwrap(),
        event_time,
        label: None,
        content_type: None,
        meta: None,
        captured: Stamp::now(),
    };
    let content: Vec<u8> = id.bytes().cycle().take(size).collect();
    let staged = spool.stage(content.as_slice(), about).unwrap();
    spool.add(vec![staged]).unwrap();
}

#[tokio::test]
async fn what_is_spooled_while_the_backlog_is_sent_goes_before_the_rest_of_it_and_statements_are_told() {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "window", "window_s": 86_400 })).await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let edge = Edge::new(&server, who.clone()).await;
    // A line that takes seconds for all of it.
    edge.relay.shape(Shape { rate: Some(100_000), ..Shape::default() });
    let at = edge.relay.address();
    let config = Config::new(at.ip().to_string(), at.port(), who.pool, who.member, Token::new(&who.token));
    let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
    session.connected(PATIENCE).await.unwrap();

    let mut spool = Spool::open(&edge.spool(), Limits::default()).unwrap();
    // As another process has it open.
    let mut other = Spool::open(&edge.spool(), Limits::default()).unwrap();
    let yesterday = Timestamp::clamped(Timestamp::clamped(Stamp::now().wall_ms).as_millis() - 2 * 86_400_000);
    for n in 0..60 {
        add(&mut spool, &format!("old-{n}"), 10_000, Some(yesterday));
    }
    let (mut order, mut told) = (Vec::new(), None);
    let mut report = |report: Report<'_>| match report {
        Report::Stored(entry, _) => {
            order.push(entry.upload.to_string());
            if order.len() == 5 {
                add(&mut other, "now", 10, None);
                other.complete(Complete::Through(yesterday)).unwrap();
                // Not spoken of by it, and there when it is told.
                add(&mut other, "later", 10, None);
            }
        }
        Report::Told(_) => told = Some(()),
        report => panic!("{report:?}"),
    };
    // One file is one message, and two of them are under way.
    let options = Options { bundle: 8 << 10, ..Options::default() };
    let flush = sender::flush(&mut spool, &session, &mut inbox, &options, &mut report);
    let summary = tokio::time::timeout(PATIENCE, flush).await.unwrap().unwrap();
    assert_eq!((summary.stored, summary.left), (62, 0));
    for id in ["now", "later"] {
        let place = order.iter().position(|stored| stored == id).unwrap();
        assert!(place < 45, "{id} was stored as number {place}");
    }
    assert!(told.is_some(), "the statement is told");
}
