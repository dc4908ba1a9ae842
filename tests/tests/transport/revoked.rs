//! A certificate that its authority takes back while its member is connected.

use millpond_protocol::Role;
use millpond_tests::{Server, tool, until};
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use super::client::{Line, client};
use super::identity::{authority, certificate, revoke};

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
