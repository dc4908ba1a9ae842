//! The edge client's session against the real server, over a network that is cut.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::task::{Context, Waker};
use std::time::Duration;

use millpond_edge::backoff::Backoff;
use millpond_edge::clock::Stamp;
use millpond_edge::sender;
use millpond_edge::session::{
    self, Ack, Cause, Config, Event, Inbox, Properties, Session, SessionError, Token, Topic,
};
use millpond_edge::spool::{About, Limits, Spool};
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Receipt, answer};
use millpond_protocol::{Code, Role, Sha256, Timestamp};
use millpond_tests::{Credentials, Relay, Server, recent_hour};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(who: &Credentials, relay: &Relay) -> Config {
    let address = relay.address();
    let (pool, member) = (who.pool.clone(), who.member.clone());
    let config = Config::new(address.ip().to_string(), address.port(), pool, member, Token::new(&who.token));
    Config { backoff: Backoff::new(Duration::from_millis(5), Duration::from_millis(50)), ..config }
}

async fn publisher() -> (Server, Credentials, Relay) {
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "window", "window_s": 3_600 })).await;
    let who = server.member("demo", "edge-1", Role::Publisher).await;
    let relay = Relay::to(server.mqtt()).await;
    (server, who, relay)
}

async fn receipt(inbox: &mut Inbox) -> (Receipt, Ack) {
    loop {
        let event = tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap();
        if let Event::Receipt(receipt, ack) = event {
            return (receipt, ack);
        }
    }
}

async fn online(session: &Session, inbox: &mut Inbox) {
    while !matches!(tokio::time::timeout(PATIENCE, inbox.next()).await.unwrap().unwrap(), Event::Online) {}
    session.connected(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn an_upload_is_acknowledged_and_receipted_with_what_was_said_of_it() {
    let (server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay).topics([Topic::Receipts, Topic::Card]));
    online(&session, &mut inbox).await;
    let properties = Properties {
        name: Some("temperatures.csv".into()),
        event_time: Some(Timestamp::clamped(recent_hour())),
        sha256: Some(Sha256::of(b"21.5")),
        meta: Some(r#"{"sensor":7}"#.into()),
        content_type: Some("text/csv".into()),
        label: None,
    };
    session.upload(&"u1".parse().unwrap(), &b"21.5"[..], properties.clone()).await.unwrap();
    let (told, ack) = receipt(&mut inbox).await;
    assert_eq!((told.upload.as_str(), told.outcome, told.late), ("u1", Outcome::Stored, false));
    assert_eq!(told.event_time.unwrap().as_millis(), recent_hour());
    ack.done().await;
    let wrong = session.upload(&"u1".parse().unwrap(), &b"22.0"[..], Properties::default()).await;
    assert!(matches!(wrong, Err(SessionError::Refused(0x83))), "{wrong:?}");
    assert_eq!(receipt(&mut inbox).await.0.error.unwrap().code, Code::Conflict);
    let uploads = server.uploads("demo").await;
    assert_eq!((uploads.len(), uploads[0]["name"].as_str()), (1, Some("temperatures.csv")));
}

#[tokio::test]
async fn a_receipt_comes_again_until_it_is_acknowledged() {
    let (server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay).topics([Topic::Receipts]));
    online(&session, &mut inbox).await;
    session.upload(&"u1".parse().unwrap(), &b"one"[..], Properties::default()).await.unwrap();
    let (told, ack) = receipt(&mut inbox).await;
    drop(ack);
    relay.cut();
    relay.mend(server.mqtt());
    let (again, ack) = receipt(&mut inbox).await;
    assert_eq!(told, again);
    ack.done().await;
    session.upload(&"u2".parse().unwrap(), &b"two"[..], Properties::default()).await.unwrap();
    assert_eq!(receipt(&mut inbox).await.0.upload, "u2");
}

#[tokio::test]
async fn a_publish_that_was_cut_says_so_and_status_tells_what_became_of_it() {
    let (server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay).topics([Topic::Receipts]));
    online(&session, &mut inbox).await;
    relay.cut_after(100_000);
    let cut = session.upload(&"u1".parse().unwrap(), vec![7; 500_000], Properties::default()).await;
    assert!(matches!(cut, Err(SessionError::Cut)), "{cut:?}");
    relay.was_cut().await;
    relay.mend(server.mqtt());
    let status = session.ask::<answer::UploadInfo>(Op::Status, &json!({ "upload": "u1" }), PATIENCE).await;
    // Nobody has an upload that did not arrive whole, and nobody may know whether others have.
    assert!(
        matches!(&status, Err(SessionError::Answer(refusal)) if !refusal.code.is_temporary()),
        "{status:?}"
    );
    session.upload(&"u1".parse().unwrap(), vec![7; 500_000], Properties::default()).await.unwrap();
    let status: answer::UploadInfo =
        session.ask(Op::Status, &json!({ "upload": "u1" }), PATIENCE).await.unwrap();
    assert_eq!((status.outcome, status.size), (Outcome::Stored, 500_000));
}

#[tokio::test]
async fn an_ask_is_repeated_over_connections_until_it_is_answered() {
    let (mut server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay));
    online(&session, &mut inbox).await;
    relay.cut_after(10);
    let asked = tokio::spawn({
        let session = session.clone();
        async move { session.ask::<answer::Time>(Op::Time, &json!({}), PATIENCE).await }
    });
    relay.was_cut().await;
    server.terminate().await;
    server.launch().await;
    relay.mend(server.mqtt());
    asked.await.unwrap().unwrap();
    let (offset, _) = session.clock_offset(PATIENCE).await.unwrap();
    assert!(Duration::from_millis(offset.ms.unsigned_abs()) <= offset.within, "{offset:?}");
}

#[tokio::test]
async fn who_is_not_wanted_learns_it_at_once_and_others_when_their_time_is_over() {
    let (_server, who, relay) = publisher().await;
    let stranger = Credentials { token: "mpd_wrong".into(), ..who.clone() };
    let (session, _inbox) = session::open(config(&stranger, &relay));
    let refused = session.connected(PATIENCE).await;
    assert!(matches!(refused, Err(SessionError::Offline(Cause::Refused(_)))), "{refused:?}");

    relay.cut();
    let (session, _inbox) = session::open(config(&who, &relay));
    let offline = session.connected(Duration::from_millis(200)).await;
    assert!(matches!(offline, Err(SessionError::Offline(Cause::Lost(_)))), "{offline:?}");
}

#[tokio::test]
async fn a_closed_session_ends_for_both_halves() {
    let (_server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay));
    online(&session, &mut inbox).await;
    session.close().await;
    assert!(matches!(inbox.next().await, Some(Event::Offline(Cause::Closed))));
    assert!(inbox.next().await.is_none());
    let late = session.upload(&"u1".parse().unwrap(), &b"x"[..], Properties::default()).await;
    assert!(matches!(late, Err(SessionError::Offline(Cause::Closed))), "{late:?}");
}

#[tokio::test]
async fn an_upload_that_nobody_waits_for_any_more_takes_no_other_ones_acknowledgement() {
    let (_server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay).topics([Topic::Receipts]));
    online(&session, &mut inbox).await;
    let upload = |n: usize| {
        let (session, id) = (session.clone(), format!("u{n}").parse().unwrap());
        Box::pin(async move { session.upload(&id, vec![0; n + 1], Properties::default()).await })
    };
    // More than are handed over before the connection's task runs, which it does not between two polls.
    let mut uploads: Vec<_> = (0..200).map(upload).collect();
    for upload in &mut uploads {
        assert!(upload.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    uploads.truncate(10);
    for upload in uploads {
        tokio::time::timeout(PATIENCE, upload).await.unwrap().unwrap();
    }
    let taken = "u1".parse().unwrap();
    let wrong = session.upload(&taken, &b"other"[..], Properties::default());
    let wrong = tokio::time::timeout(PATIENCE, wrong).await.unwrap();
    assert!(matches!(wrong, Err(SessionError::Refused(0x83))), "{wrong:?}");
}

#[tokio::test]
async fn a_session_that_is_kept_sends_the_spool_as_often_as_it_is_asked() {
    let (server, who, relay) = publisher().await;
    let (session, mut inbox) = session::open(config(&who, &relay).topics(sender::TOPICS));
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(directory.path(), Limits::default()).unwrap();
    for id in ["one", "two"] {
        let about = |_| About {
            upload: id.parse().unwrap(),
            name: id.parse().unwrap(),
            event_time: None,
            label: None,
            content_type: None,
            meta: None,
            captured: Stamp::now(),
        };
        let staged = spool.stage(id.as_bytes(), about).unwrap();
        spool.add(vec![staged]).unwrap();
        let (options, mut quiet) = (sender::Options::default(), |_: sender::Report<'_>| {});
        let flush = sender::flush(&mut spool, &session, &mut inbox, &options, &mut quiet);
        let sent = tokio::time::timeout(PATIENCE, flush).await.expect("it sends").unwrap();
        assert_eq!((sent.stored, sent.left), (1, 0), "{id}");
    }
    assert_eq!(server.uploads("demo").await.len(), 2);
}
