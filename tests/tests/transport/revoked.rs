//! A certificate that its authority takes back while its member is connected, or has gone and may come back.

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate, revoke};
use millpond_tests::wire::{connect_of, packet, text};
use millpond_tests::{Server, tool, until};
use rusqlite::{Connection, OpenFlags};
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use super::client::{Line, client};

/// Of CONNACK and DISCONNECT.
const BAD_CREDENTIALS: u8 = 0x86;
const NOT_AUTHORIZED: u8 = 0x87;

#[tokio::test]
async fn a_certificate_that_is_revoked_ends_its_sessions_and_its_ticket_brings_nobody_back() {
    if !tool("openssl") {
        return;
    }
    for version in [&TLS12, &TLS13] {
        let files = tempfile::tempdir().unwrap();
        let dir = files.path();
        std::fs::create_dir(dir.join("clients")).unwrap();
        authority(dir, "lab");
        let clients = dir.join("clients").display().to_string();
        let settings = [("MILLPOND__TLS__CLIENTS_DIR", clients.as_str()), ("MILLPOND__TLS__RELOAD_S", "1")];
        let server = Server::secure(&settings).await;
        server.pool("lab", json!({})).await;
        let who = server.member("lab", "dev", Role::Publisher).await;
        let (lost, kept) = (
            certificate(dir, "lab", "millpond://lab/dev", "lost"),
            certificate(dir, "lab", "millpond://lab/dev", "kept"),
        );
        let (at, ca) = (server.mqtts(), server.ca());
        let of = |path| client(&[&ca], Some(path), version);
        let (thief, owner) = (of(&lost), of(&kept));

        let mut first = Line::open(&thief, at).await;
        assert!(!first.is_resumed());
        assert_eq!(first.sign_in("first", None).await, (0, 0));
        // It comes back by its ticket, and the certificate is known all the same.
        let mut second = Line::open(&thief, at).await;
        assert!(second.is_resumed(), "{version:?}");
        assert_eq!(second.sign_in("second", None).await, (0, 0));
        // Who signed in by a token holds by that; and another certificate of the member is another matter.
        let mut by_token = Line::open(&thief, at).await;
        assert_eq!(by_token.sign_in("token", Some(["lab/dev", &who.token])).await, (0, 0));
        let mut other = Line::open(&owner, at).await;
        assert_eq!(other.sign_in("other", None).await, (0, 0));

        revoke(dir, "lab", "lost");
        assert_eq!(first.ended().await, Some(NOT_AUTHORIZED), "{version:?}");
        assert_eq!(second.ended().await, Some(NOT_AUTHORIZED), "{version:?}");
        by_token.ping().await;
        other.ping().await;
        let mut back = Line::open(&thief, at).await;
        assert!(!back.is_resumed(), "the keys of tickets are those of before");
        assert_eq!(back.sign_in("first", None).await, (0, BAD_CREDENTIALS), "{version:?}");
        // Of its session nothing is left for who has the name.
        let mut again = Line::open(&owner, at).await;
        assert_eq!(again.sign_in("first", None).await, (0, 0));

        let ended = r#"millpond_gate_ended_total{code="0x87"} 2"#;
        until("both are counted", async || {
            server.api().get("/metrics").await.as_str().unwrap().contains(ended)
        })
        .await;
    }
}

/// A will that is sent a day after its client, if the session lasts for as long.
fn with_will(client_id: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    // The session is kept for an hour.
    body.extend([5, 0b0000_1100, 0, 0, 5, 17, 0, 0, 14, 16]);
    text(&mut body, client_id);
    body.extend([5, 24, 0, 1, 81, 128]);
    text(&mut body, "app/lab/will");
    text(&mut body, "gone");
    packet(0x10, &body)
}

/// What is kept of sessions, as the ledger has it.
fn sessions(server: &Server) -> Vec<String> {
    let sql = Connection::open_with_flags(server.data().join("ledger.db"), OpenFlags::SQLITE_OPEN_READ_ONLY);
    let sql = sql.unwrap();
    let mut rows = sql.prepare("SELECT client_id FROM sessions ORDER BY client_id").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_session_that_waits_for_its_client_ends_with_the_certificate_that_signed_it_in() {
    if !tool("openssl") {
        return;
    }
    for restarts in [false, true] {
        let files = tempfile::tempdir().unwrap();
        let dir = files.path();
        std::fs::create_dir(dir.join("clients")).unwrap();
        authority(dir, "lab");
        let clients = dir.join("clients").display().to_string();
        let mut server = Server::secure(&[
            ("MILLPOND__TLS__CLIENTS_DIR", clients.as_str()),
            ("MILLPOND__TLS__RELOAD_S", "1"),
            ("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#),
        ])
        .await;
        server.pool("lab", json!({})).await;
        let who = server.member("lab", "dev", Role::Publisher).await;
        let ca = server.ca();
        let of = |name| {
            let path = certificate(dir, "lab", "millpond://lab/dev", name);
            client(&[&ca], Some(&path), &TLS13)
        };
        let (thief, owner) = (of("lost"), of("kept"));
        // One by each certificate, and one that a token holds beside the certificate that is lost.
        let token = Some(["lab/dev", &who.token]);
        for (id, by, token) in [("lost", &thief, None), ("kept", &owner, None), ("token", &thief, token)] {
            let mut line = Line::open(by, server.mqtts()).await;
            if token.is_some() {
                assert_eq!(line.sign_in(id, token).await, (0, 0));
            } else {
                line.send(&with_will(id)).await;
                assert_eq!(line.packet().await.unwrap().1[..2], [0, 0]);
            }
            line.subscribe("app/lab/#").await;
            // Without a goodbye, so that the will is due.
        }
        until("nobody is connected", async || {
            server.api().get("/metrics").await.as_str().unwrap().contains("\nmillpond_gate_connections 0")
        })
        .await;
        let mut watch = Line::open(&owner, server.mqtts()).await;
        assert_eq!(watch.sign_in("watch", token).await, (0, 0));
        watch.publish("app/lab/secret", "x").await;
        assert_eq!(sessions(&server), ["kept", "lost", "token"]);

        if restarts {
            drop(watch);
            assert!(server.terminate().await.success());
            revoke(dir, "lab", "lost");
            server.launch().await;
        } else {
            revoke(dir, "lab", "lost");
        }
        until("its session is over", async || sessions(&server) == ["kept", "token"]).await;
        // Of the one nothing is left; the others are as they were, with what came meanwhile.
        for (id, is_there) in [("lost", 0), ("kept", 1), ("token", 1)] {
            let mut line = Line::open(&owner, server.mqtts()).await;
            assert_eq!(line.sign_in(id, token).await, (is_there, 0), "{id}");
            if is_there == 1 && !restarts {
                let (_, message) = line.packet().await.unwrap();
                assert!(message.starts_with(b"\0\x0eapp/lab/secret"), "{message:?}");
            }
            line.ping().await;
            line.goodbye().await;
        }
        let wills = server.api().get("/metrics").await;
        assert!(!wills.as_str().unwrap().contains("millpond_gate_wills_total 1"), "a will was sent");
    }
}

#[tokio::test]
async fn after_a_restart_a_session_is_judged_by_the_certificate_that_it_was_left_with() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    std::fs::create_dir(dir.join("clients")).unwrap();
    authority(dir, "lab");
    let clients = dir.join("clients").display().to_string();
    let mut server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
    server.pool("lab", json!({})).await;
    server.member("lab", "dev", Role::Publisher).await;
    let of = |name| {
        let path = certificate(dir, "lab", "millpond://lab/dev", name);
        client(&[&server.ca()], Some(&path), &TLS13)
    };
    let (thief, owner) = (of("lost"), of("kept"));
    let mut line = Line::open(&owner, server.mqtts()).await;
    assert_eq!(line.sign_in("x", None).await, (0, 0));
    line.subscribe("mp/lab/result").await;
    line.goodbye().await;
    // Somebody else takes it up, and is gone before anything of that can be written down.
    let mut line = Line::open(&thief, server.mqtts()).await;
    let hour = [17, 0, 0, 14, 16];
    line.send(&[&connect_of(5, 0, &hour, &["x"])[..], &[0xE0, 0]].concat()).await;
    while line.packet().await.is_some() {}
    assert_eq!(sessions(&server), ["x"]);

    assert!(server.terminate().await.success());
    revoke(dir, "lab", "lost");
    server.launch().await;
    until("its session is over", async || sessions(&server).is_empty()).await;
}
