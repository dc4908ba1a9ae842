//! Certificates: made, checked at the start, renewed while the server runs.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use millpond_protocol::Role;
use millpond_tests::wire::connect_as;
use millpond_tests::{Server, binary, tool, until};
use rustls::version::TLS13;
use serde_json::json;

use super::client::{Line, client};

fn init(dir: &Path, names: &[&str]) -> (i32, String) {
    let mut command = Command::new(binary());
    command.args(["tls", "init", "--dir"]).arg(dir);
    for name in names {
        command.args(["--name", name]);
    }
    let said = command.output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    (said.status.code().unwrap(), text)
}

/// The exit code of `serve --check-config` with these settings, and what it says.
fn check_config(settings: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(binary());
    command.args(["serve", "--check-config"]).envs(settings.iter().copied());
    let said = command.output().unwrap();
    (said.status.code().unwrap(), String::from_utf8_lossy(&said.stderr).into_owned())
}

/// The serial number of the certificate that a new connection sees.
fn serial(server: &Server) -> String {
    let script = format!(
        "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -serial",
        server.mqtts()
    );
    let said = Command::new("sh").args(["-c", &script]).output().unwrap();
    let serial = String::from_utf8(said.stdout).unwrap();
    assert!(serial.starts_with("serial="), "no certificate came: {serial:?}");
    serial
}

#[test]
fn tls_init_makes_a_pair_that_verifies_keeps_keys_closed_and_never_writes_over() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    let (code, said) = init(&tls, &["mill.example.org", "192.0.2.7"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("[tls]") && said.contains("cert_file = \"/"), "{said}");
    for (file, mode) in [("ca.key", 0o600), ("server.key", 0o600), ("ca.crt", 0o644), ("server.crt", 0o644)] {
        let found = std::fs::metadata(tls.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let before = std::fs::read(tls.join("server.key")).unwrap();
    let (code, said) = init(&tls, &[]);
    assert_eq!(code, 2);
    assert!(said.contains("ca.crt is there already") && said.contains("--dir"), "{said}");
    assert_eq!(std::fs::read(tls.join("server.key")).unwrap(), before);
    assert_eq!(init(&dir.path().join("other"), &["a b"]).0, 2);
    assert!(!dir.path().join("other").exists(), "a refusal leaves nothing behind");
    if tool("openssl") {
        for name in
            ["-verify_hostname=mill.example.org", "-verify_ip=192.0.2.7", "-verify_hostname=localhost"]
        {
            let (option, name) = name.split_once('=').unwrap();
            let mut verify = Command::new("openssl");
            verify.args(["verify", "-x509_strict", "-purpose", "sslserver", option, name, "-CAfile"]);
            let said = verify.arg(tls.join("ca.crt")).arg(tls.join("server.crt")).output().unwrap();
            assert!(said.status.success(), "{name}: {said:?}");
        }
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for made in [&one, &two] {
        assert_eq!(init(made, &[]).0, 0);
    }
    let path = |path: &Path| path.display().to_string();
    let (cert, key) = (path(&one.join("server.crt")), path(&one.join("server.key")));
    let with = |cert: &str, key: &str| {
        check_config(&[("MILLPOND__TLS__CERT_FILE", cert), ("MILLPOND__TLS__KEY_FILE", key)])
    };
    assert_eq!(with(&cert, &key), (0, String::new()));
    let refused = |cert: &str, key: &str, says: &[&str]| {
        let (code, said) = with(cert, key);
        assert_eq!(code, 2, "{said}");
        for says in says {
            assert!(said.contains(says), "{says:?} is not in: {said}");
        }
    };
    refused(
        &cert,
        &path(&two.join("server.key")),
        &["tls.key_file", "is not the key of the first certificate"],
    );
    refused(&cert, "/nowhere/key", &["tls.key_file", "is not there", "tls init"]);
    for file in [&cert, &key] {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    refused(&key, &cert, &["tls.cert_file", "holds no certificate", "tls.key_file", "holds no private key"]);
    let open = dir.path().join("open.key");
    std::fs::copy(&key, &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(&cert, &path(&open), &["tls.key_file", "chmod 600"]);
    let (code, said) = check_config(&[("MILLPOND__TLS__CERT_FILE", &cert)]);
    assert!(code == 2 && said.contains("tls.key_file: is needed"), "{said}");
}

#[test]
fn beyond_loopback_every_listener_wants_tls_or_the_word_that_plain_text_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(init(dir.path().join("tls").as_path(), &[]).0, 0);
    let file = |name: &str| dir.path().join("tls").join(name).display().to_string();
    let (cert, key) = (file("server.crt"), file("server.key"));
    let tls = [("MILLPOND__TLS__CERT_FILE", cert.as_str()), ("MILLPOND__TLS__KEY_FILE", key.as_str())];
    for (listener, name, key) in [
        ("MILLPOND__MQTT__LISTEN", "mqtt.listen", ""),
        ("MILLPOND__HTTP__LISTEN", "http.listen", "MILLPOND__HTTP__TLS"),
        ("MILLPOND__STORAGE__LISTEN", "storage.listen", "MILLPOND__STORAGE__TLS"),
    ] {
        let public =
            [(listener, "0.0.0.0:4000"), ("MILLPOND__STORAGE__PUBLIC_URL", "https://192.0.2.1:4000")];
        let (code, said) = check_config(&public);
        assert!(code == 2 && said.contains(&format!("{name}: 0.0.0.0:4000 can be reached")), "{said}");
        let meant = [&public[..], &[("MILLPOND__SERVER__ALLOW_PLAINTEXT", "true")]].concat();
        assert_eq!(check_config(&meant), (0, String::new()));
        let encrypted = [&public[..], &tls].concat();
        if key.is_empty() {
            // That listener is for plain text alone.
            assert!(check_config(&encrypted).1.contains("mqtt.tls_listen"));
            continue;
        }
        assert_eq!(check_config(&encrypted), (0, String::new()));
        let off = [&encrypted[..], &[(key, "false")]].concat();
        assert!(check_config(&off).1.contains(&format!("{name}: 0.0.0.0:4000 can be reached")));
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_up_and_a_bad_one_is_not_and_who_is_connected_stays() {
    if !tool("openssl") {
        return;
    }
    let server = Server::secure(&[("MILLPOND__TLS__RELOAD_S", "1")]).await;
    let first = serial(&server);
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Listener).await;
    // A connection that is there before, and stays: bytes in, bytes out.
    let mut open = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-connect", &server.mqtts().to_string()])
        .arg("-CAfile")
        .arg(server.ca())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (open.stdin.take().unwrap(), open.stdout.take().unwrap());
    let mut say = |bytes: &[u8], answer: &[u8]| {
        to.write_all(bytes).unwrap();
        to.flush().unwrap();
        let mut said = vec![0; answer.len()];
        from.read_exact(&mut said).unwrap();
        assert_eq!(said, answer);
    };
    say(&connect_as("dev", ["p/dev", &who.token]), &[0x20, 2, 0, 0]);
    let metric = async |line: &str| {
        let metrics = server.api().get("/metrics").await;
        metrics.as_str().unwrap().contains(line)
    };

    // A certificate without its key, as in the middle of a replacement that stands still.
    let (other, tls) = (server.directory().join("other"), server.tls());
    assert_eq!(init(&other, &[]).0, 0);
    let kept = std::fs::read(tls.join("server.crt")).unwrap();
    std::fs::write(tls.join("server.crt"), std::fs::read(other.join("server.crt")).unwrap()).unwrap();
    until("the new file is refused", async || {
        metric(r#"millpond_tls_reloads_total{outcome="refused"} 1"#).await
    })
    .await;
    assert_eq!(serial(&server), first);
    std::fs::write(tls.join("server.crt"), &kept).unwrap();

    // The whole pair, from the same directory by another way: a rename.
    for file in ["server.crt", "server.key"] {
        std::fs::rename(other.join(file), tls.join(file)).unwrap();
    }
    until("the new certificate is in use", async || serial(&server) != first).await;
    say(&[0xC0, 0], &[0xD0, 0]);
    open.kill().unwrap();
    open.wait().unwrap();
}

#[tokio::test]
async fn every_port_takes_a_renewed_certificate_up_and_what_is_open_on_it_goes_on() {
    let server = Server::secure(&[("MILLPOND__TLS__RELOAD_S", "1")]).await;
    let other = server.directory().join("other");
    assert_eq!(init(&other, &[]).0, 0);
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Listener).await;
    let config = client(&[&server.ca(), &other.join("ca.crt")], None, &TLS13);
    let ports = server.ports();
    let (mqtts, http, storage) = (server.mqtts(), ports.http, ports.storage.unwrap());
    let (mut gate, mut api, mut objects) = (
        Line::open(&config, mqtts).await,
        Line::open(&config, http).await,
        Line::open(&config, storage).await,
    );
    assert_eq!(gate.sign_in("dev", Some(["p/dev", &who.token])).await, (0, 0));
    // Who asks storage for nothing in particular is refused, and may go on.
    for _ in 0..2 {
        assert_eq!((api.get("/healthz").await, objects.get("/").await), (200, 403));
    }
    let before = gate.certificate();
    assert_eq!((api.certificate(), objects.certificate()), (before.clone(), before.clone()));

    for file in ["server.crt", "server.key"] {
        std::fs::rename(other.join(file), server.tls().join(file)).unwrap();
    }
    for at in [mqtts, http, storage] {
        let what = format!("the new certificate is in use at {at}");
        until(&what, async || Line::open(&config, at).await.certificate() != before).await;
    }
    gate.ping().await;
    assert_eq!((api.get("/healthz").await, objects.get("/").await), (200, 403));
}
