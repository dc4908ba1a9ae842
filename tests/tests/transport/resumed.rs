//! A client that comes back by its ticket is judged like one that never was there.

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate};
use millpond_tests::{Server, tool};
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use super::client::{Line, client};

const BAD_CREDENTIALS: u8 = 0x86;

#[tokio::test]
async fn a_ticket_brings_nobody_in_whose_member_was_revoked_also_not_as_another_of_that_name() {
    if !tool("openssl") {
        return;
    }
    for version in [&TLS12, &TLS13] {
        let files = tempfile::tempdir().unwrap();
        let dir = files.path();
        std::fs::create_dir(dir.join("clients")).unwrap();
        authority(dir, "lab");
        let clients = dir.join("clients").display().to_string();
        let server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
        server.pool("lab", json!({})).await;
        server.member("lab", "dev", Role::Publisher).await;
        let path = certificate(dir, "lab", "millpond://lab/dev", "dev");
        let device = client(&[&server.ca()], Some(&path), version);
        let enter = async |resumed: bool| {
            let mut line = Line::open(&device, server.mqtts()).await;
            assert_eq!(line.is_resumed(), resumed, "{version:?}");
            line.sign_in("x", None).await.1
        };
        assert_eq!(enter(false).await, 0);
        assert_eq!(enter(true).await, 0);
        server.api().delete("/v1/pools/lab/members/dev").await;
        assert_eq!(enter(true).await, BAD_CREDENTIALS, "{version:?}");
        server.member("lab", "dev", Role::Publisher).await;
        assert_eq!(enter(true).await, BAD_CREDENTIALS, "{version:?}");
    }
}
