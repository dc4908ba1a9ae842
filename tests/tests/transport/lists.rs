//! Lists of revocations that cannot be what they say, and such as are out of date.

use std::path::Path;
use std::process::Command;

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate, revoke};
use millpond_tests::{Server, tool, until};
use rustls::version::TLS13;
use serde_json::{Value, json};

use super::client::{Line, client};

/// An authority of pool `lab` in a directory of its own, with a certificate of the member and its number on a list.
fn made(dir: &Path) {
    std::fs::create_dir_all(dir.join("clients")).unwrap();
    authority(dir, "lab");
    for name in ["lost", "kept"] {
        certificate(dir, "lab", "millpond://lab/dev", name);
    }
    revoke(dir, "lab", "lost");
}

/// What the trail has of that action, oldest first.
async fn trail(server: &Server, action: &str) -> Vec<Value> {
    let found = server.api().get("/v1/audit?limit=1000").await;
    let entries = found["entries"].as_array().unwrap().iter().rev();
    entries.filter(|entry| entry["action"] == action).cloned().collect()
}

#[tokio::test]
async fn a_list_that_another_key_signed_is_refused_at_the_start_and_leaves_the_old_one_in_use_later() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let (own, foreign) = (files.path().join("own"), files.path().join("foreign"));
    made(&own);
    made(&foreign);
    let list = own.join("clients/lab.crl");
    let good = std::fs::read(&list).unwrap();
    let forged = std::fs::read(foreign.join("clients/lab.crl")).unwrap();
    let clients = own.join("clients").display().to_string();
    let settings = [("MILLPOND__TLS__CLIENTS_DIR", clients.as_str()), ("MILLPOND__TLS__RELOAD_S", "1")];
    let mut server = Server::prepare(&settings);
    server.certify("localhost");

    // Its name is that of the pool's authority; its key is not.
    std::fs::write(&list, &forged).unwrap();
    let check = server.command().args(["--check-config"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr);
    assert_eq!(check.status.code(), Some(2), "{said}");
    for says in ["tls.clients_dir", &clients, "lab.crl", "did not sign it", "from the authority itself"] {
        assert!(said.contains(says), "{says} is not in: {said}");
    }
    assert!(server.try_launch().await.is_err_and(|code| code.code() == Some(2)));

    std::fs::write(&list, &good).unwrap();
    server.launch().await;
    server.pool("lab", json!({})).await;
    server.member("lab", "dev", Role::Publisher).await;
    let (at, ca) = (server.mqtts(), server.ca());
    let [lost, kept] = ["lost", "kept"].map(|name| client(&[&ca], Some(&own.join(name)), &TLS13));
    let sign_in = async |who, id| Line::open(who, at).await.sign_in(id, None).await.1;
    let mut there = Line::open(&kept, at).await;
    assert_eq!(there.sign_in("there", None).await, (0, 0));
    assert_eq!(sign_in(&lost, "lost").await, 0x86);

    std::fs::write(&list, &forged).unwrap();
    until("the trail says that it is refused", async || !trail(&server, "tls-refuse").await.is_empty()).await;
    let refused = trail(&server, "tls-refuse").await;
    let why = refused[0]["detail"]["reason"].as_str().unwrap();
    assert!(why.contains("lab.crl") && why.contains("did not sign it"), "{why}");
    assert_eq!((&refused[0]["who"], &refused[0]["from"]), (&json!("server"), &json!("local")));
    let metrics = server.api().get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains(r#"millpond_tls_reloads_total{outcome="refused"} 1"#));
    // What the old one says still holds: for who is there, for newcomers, for who is on it.
    there.ping().await;
    assert_eq!((sign_in(&kept, "new").await, sign_in(&lost, "lost").await), (0, 0x86));

    // The next one that the authority makes is taken up.
    revoke(&own, "lab", "kept");
    assert_eq!(there.ended().await, Some(0x87));
    until("the trail says that it is in use", async || !trail(&server, "tls-renew").await.is_empty()).await;
    let renewed = trail(&server, "tls-renew").await;
    assert_eq!(renewed[0]["detail"], json!({"changed": ["lab.crl"]}));
    assert_eq!((renewed.len(), refused.len()), (1, 1));
}

#[tokio::test]
async fn a_list_that_is_out_of_date_still_counts_and_can_be_seen_to_be() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    made(dir);
    // The same list, which should have been replaced at the beginning of 2021.
    let script = r#"openssl ca -config ca.conf -cert clients/lab.crt -keyfile lab-ca.key -gencrl \
        -crl_lastupdate 20200101000000Z -crl_nextupdate 20210101000000Z -out clients/lab.crl"#;
    let made = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let clients = dir.join("clients").display().to_string();
    let server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
    server.pool("lab", json!({})).await;
    server.member("lab", "dev", Role::Publisher).await;
    let (at, ca) = (server.mqtts(), server.ca());
    for (name, code) in [("lost", 0x86), ("kept", 0)] {
        let who = client(&[&ca], Some(&dir.join(name)), &TLS13);
        assert_eq!(Line::open(&who, at).await.sign_in(name, None).await.1, code, "{name}");
    }
    let due = "millpond_tls_revocations_due_seconds 1609459200";
    assert!(server.api().get("/metrics").await.as_str().unwrap().contains(due));
}

#[test]
fn a_list_that_is_signed_with_sha_1_is_refused() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let clients = files.path().join("clients");
    std::fs::create_dir(&clients).unwrap();
    for (digest, code) in [("sha256", 0), ("sha1", 2)] {
        let script = r#"openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj "/CN=Fleet CA" \
                -keyout ca.key -out clients/lab.crt
            printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ndefault_crl_days=9\ncrlnumber=number\n' > ca.conf
            : > index.txt; echo 01 > number
            openssl ca -config ca.conf -cert clients/lab.crt -keyfile ca.key -md "$1" -gencrl -out clients/lab.crl"#;
        let made = Command::new("sh").args(["-ec", script, "sh", digest]).current_dir(files.path()).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Server::prepare(&[("MILLPOND__TLS__CLIENTS_DIR", clients.to_str().unwrap())]);
        server.certify("localhost");
        let check = server.command().args(["--check-config"]).output().unwrap();
        let said = String::from_utf8_lossy(&check.stderr);
        assert_eq!(check.status.code(), Some(code), "{digest}: {said}");
        assert_eq!(said.contains("signed with SHA-1"), code == 2, "{said}");
    }
}
