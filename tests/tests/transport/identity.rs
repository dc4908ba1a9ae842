//! Members that sign in with a certificate. The certificates are made as the operator's manual says, by openssl.

use std::path::Path;
use std::process::{Command, Output};

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate, revoke};
use millpond_tests::{Server, tool, until};
use serde_json::json;

/// Publishes with that certificate, and perhaps a user name and a password.
fn publish(server: &Server, certificate: &Path, topic: &str, extra: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", "mosquitto_pub", "-h", "127.0.0.1", "-q", "1", "-m", "x", "-t", topic]);
    command.args(["-p", &server.mqtts().port().to_string(), "--cafile"]).arg(server.ca());
    command.arg("--cert").arg(certificate.with_extension("crt"));
    command.arg("--key").arg(certificate.with_extension("key"));
    command.args(extra).output().unwrap()
}

#[tokio::test]
async fn a_certificate_signs_its_member_in_and_nobody_else() {
    if !tool("openssl") || !tool("mosquitto_pub") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    std::fs::create_dir(dir.join("clients")).unwrap();
    authority(dir, "lab");
    authority(dir, "shop");
    let clients = dir.join("clients").display().to_string();
    let settings = [("MILLPOND__TLS__CLIENTS_DIR", clients.as_str()), ("MILLPOND__TLS__RELOAD_S", "1")];
    let server = Server::secure(&settings).await;
    for pool in ["lab", "shop"] {
        server.pool(pool, json!({})).await;
    }
    let who = server.member("lab", "dev", Role::Publisher).await;
    server.member("lab", "other", Role::Publisher).await;

    let good = certificate(dir, "lab", "millpond://lab/dev", "good");
    let up = |n: u32| format!("mp/lab/c/dev/up/u{n}");
    let accepted = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let refused = |output: Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        // In TLS 1.3 a client learns only after its handshake that its certificate was refused.
        let expected = ["bad user name or password", "TLS error", "connection was lost"];
        assert!(expected.iter().any(|expected| said.contains(expected)), "{said}");
    };
    // No name and no password; the name alone; both.
    accepted(publish(&server, &good, &up(1), &[]));
    accepted(publish(&server, &good, &up(2), &["-u", "lab/dev"]));
    accepted(publish(&server, &good, &up(3), &["-u", "lab/dev", "-P", &who.token]));
    // Another name, a wrong password beside it, no member of that name, another pool's authority.
    refused(publish(&server, &good, &up(4), &["-u", "lab/other"]));
    refused(publish(&server, &good, &up(4), &["-u", "lab/dev", "-P", "wrong"]));
    refused(publish(&server, &certificate(dir, "lab", "millpond://lab/nobody", "nobody"), &up(4), &[]));
    refused(publish(&server, &certificate(dir, "shop", "millpond://lab/dev", "foreign"), &up(4), &[]));
    // An authority that the server does not know.
    std::fs::create_dir_all(dir.join("elsewhere/clients")).unwrap();
    authority(&dir.join("elsewhere"), "lab");
    let stranger = certificate(&dir.join("elsewhere"), "lab", "millpond://lab/dev", "stranger");
    refused(publish(&server, &stranger, &up(4), &[]));
    assert_eq!(server.uploads("lab").await.len(), 3);

    // One certificate is taken back, while the server runs; the other goes on, and so does the other pool's.
    let listed = certificate(dir, "lab", "millpond://lab/dev", "listed");
    accepted(publish(&server, &listed, &up(6), &[]));
    revoke(dir, "lab", "listed");
    until("the list is taken up", async || !publish(&server, &listed, &up(7), &[]).status.success()).await;
    accepted(publish(&server, &good, &up(8), &[]));
    let neighbour = certificate(dir, "shop", "millpond://shop/till", "till");
    server.member("shop", "till", Role::Publisher).await;
    accepted(publish(&server, &neighbour, "mp/shop/c/till/up/u1", &[]));

    // Who is revoked is out, and stays out when the name is given to another.
    server.api().delete("/v1/pools/lab/members/dev").await;
    refused(publish(&server, &good, &up(5), &[]));

    // All of them are in the audit trail, by the name that they gave or proved.
    let not_trusted = "no authority of members signed the certificate, or it has ended";
    let of_nobody = "the certificate names no member here, or was revoked";
    let wrong = "unknown user name or wrong token";
    for (who, why) in [
        ("lab/other", "the user name is another than the certificate's"),
        ("lab/dev", wrong),
        ("lab/nobody", wrong),
        ("unknown", of_nobody),
        ("unknown", not_trusted),
    ] {
        until(&format!("{who}, {why}: is in the trail"), async || {
            let trail = server.api().get("/v1/audit?limit=1000").await;
            trail["entries"].as_array().unwrap().iter().any(|entry| {
                (&entry["who"], &entry["detail"]["reason"]) == (&json!(who), &json!(why))
                    && entry["from"] == "127.0.0.1"
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_certificate_of_an_earlier_member_of_that_name_signs_nobody_in() {
    if !tool("openssl") || !tool("mosquitto_pub") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    std::fs::create_dir(dir.join("clients")).unwrap();
    authority(dir, "lab");
    let clients = dir.join("clients").display().to_string();
    let server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
    server.pool("lab", json!({})).await;
    server.member("lab", "dev", Role::Publisher).await;
    let old = certificate(dir, "lab", "millpond://lab/dev", "old");
    // Certificates count whole seconds: the next one begins after the revocation.
    server.api().delete("/v1/pools/lab/members/dev").await;
    server.member("lab", "dev", Role::Publisher).await;
    let revoked = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    millpond_tests::until("another second has begun", async || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        now > revoked
    })
    .await;
    let new = certificate(dir, "lab", "millpond://lab/dev", "new");
    assert!(!publish(&server, &old, "mp/lab/c/dev/up/a", &[]).status.success());
    let said = publish(&server, &new, "mp/lab/c/dev/up/b", &[]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(server.uploads("lab").await.len(), 1);
}
