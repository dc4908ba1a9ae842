//! The main job on a storage that is not ours: `millpond serve` with SeaweedFS.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read as _, Write as _};
use std::process::Command;

use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Pointer, answer};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Beside, Edge, Link, Mill, Place, SeaweedFs, Server, listed, recent_hour, tool, until};
use reqwest::Method;
use serde_json::{Value, json};

/// The least that S3 takes as a part that is not the last.
const PART: usize = 5 << 20;

#[tokio::test]
async fn the_main_job_works_on_seaweedfs_with_small_and_large_files() {
    let Some(storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    what_is_wrong_is_said(&storage);
    what_is_right_but_for_others_is_a_warning_or_nothing(&storage);
    a_clock_that_is_wrong_is_said(&storage);

    let server = Server::with(&storage.settings()).await;
    let no_storage = ("MILLPOND__STORAGE__ENDPOINT", &*format!("http://{}", server.ports().http));
    let checked = storage.check(&[no_storage]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.code() == Some(2) && said.contains("is no S3 server"), "{said}");
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = Link::open(server.member("demo", "edge", Role::Publisher).await).await.unwrap();
    let mut listener = Link::open(server.member("demo", "listener", Role::Listener).await).await.unwrap();
    listener.subscribe("mp/demo/result").await.unwrap();
    let api = server.api();

    let topic = |upload: &str| format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    let medium = vec![b'm'; limits::SMALL_MAX + 1];
    edge.publish(&topic("small"), "small", Beside::default()).await.unwrap();
    edge.publish(&topic("medium"), medium.clone(), Beside::default()).await.unwrap();
    let single: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let parts: Vec<u8> = (0..PART + 1_000).map(|n| (n / 11) as u8).collect();
    let put: answer::Put = edge.ask(Op::Put, &grant("single", &single, &json!({}))).await.unwrap();
    assert_eq!(api.send(&put.to.unwrap(), single.clone()).await, 200);
    let wanted: Vec<_> = parts
        .chunks(PART)
        .enumerate()
        .map(|(i, part)| json!({ "n": i + 1, "sha256": Sha256::of(part) }))
        .collect();
    let wanted = json!({ "part_size": PART, "parts": wanted });
    let put: answer::Put = edge.ask(Op::Put, &grant("parts", &parts, &wanted)).await.unwrap();
    for (part, bytes) in put.parts.iter().zip(parts.chunks(PART)) {
        assert_eq!(api.send(part.to.as_ref().unwrap(), bytes.to_vec()).await, 200);
    }
    let commit = json!({ "id": "commit", "uploads": ["single", "parts"], "wait_s": 30 });
    let committed: answer::Commit = edge.ask(Op::Commit, &commit).await.unwrap();
    assert!(committed.uploads.iter().all(|receipt| receipt.outcome == Outcome::Stored), "{committed:?}");

    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let leased = mill.fetch(mill.trigger(&json!({})).await.unwrap()).await.unwrap();
    let files: Vec<_> = leased.files.keys().map(String::as_str).collect();
    assert_eq!(files, ["edge/medium", "edge/parts", "edge/single", "edge/small"]);
    assert!(leased.files["edge/medium"] == medium && leased.files["edge/small"] == "small");
    assert!(leased.files["edge/single"] == single && leased.files["edge/parts"] == parts);

    let result = vec![b'r'; limits::SMALL_MAX + 7];
    mill.answer(&leased.lease, result.clone()).await.unwrap();
    let pointer: Pointer = serde_json::from_slice(&listener.next().await.unwrap().payload).unwrap();
    assert_eq!(api.fetch(&pointer.url).await, result);
}

#[tokio::test]
async fn a_device_is_served_a_storage_that_hangs_is_waited_for_and_a_check_finds_what_it_lost() {
    let Some(storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    let place = Place::SeaweedFs(storage);
    let server = place.server(&[("MILLPOND__STORAGE__CALL_TIMEOUT_S", "2")]).await;
    let Place::SeaweedFs(storage) = &place else { unreachable!() };

    // Above what MQTT takes, so by URL; and in parts.
    let device = Edge::new(&server, server.member("demo", "device", Role::Publisher).await).await;
    let sizes = [3_000_000, 17 << 20];
    for size in sizes {
        device.file(&size.to_string(), &(0..size).map(|n| (n / 13) as u8).collect::<Vec<_>>());
        let out = device.done(&["push", &size.to_string()]).await;
        assert!(out.starts_with("stored"), "{out}");
    }
    let sent: Vec<_> = server.uploads("demo").await.iter().map(|upload| upload["size"].clone()).collect();
    assert_eq!(sent, sizes);
    // Chosen now: what hangs below leaves an object that nobody has acknowledged, and that none will miss.
    let objects = place.storage(&server);
    let lost = listed(&objects).await.into_iter().find(|key| key.contains("/upload/")).unwrap();

    let edge = server.member("demo", "edge", Role::Publisher).await;
    let topic = |upload: &str| format!("mp/demo/c/edge/up/{upload}/{}", recent_hour());
    let medium = vec![b'm'; limits::SMALL_MAX + 1];
    storage.hang();
    let link = Link::connect(edge.clone()).await.unwrap();
    link.publish(&topic("small"), "small", Beside::default()).await.unwrap();
    let refused = link.publish(&topic("medium"), medium.clone(), Beside::default()).await;
    assert!(refused.is_err(), "an upload was acknowledged that is nowhere");
    storage.go_on();
    let link = Link::connect(edge).await.unwrap();
    link.publish(&topic("medium"), medium, Beside::default()).await.unwrap();
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let leased = mill.fetch(mill.trigger(&json!({})).await.unwrap()).await.unwrap();
    assert_eq!(leased.files.keys().collect::<Vec<_>>(), ["edge/medium", "edge/small"]);

    let differences = || {
        let done = server.cli().args(["check", "--deep", "--json"]).output().unwrap();
        let lines = String::from_utf8(done.stdout).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let found = lines.filter_map(|line| {
            let difference = line.get("difference")?;
            Some((difference["kind"].as_str()?.to_owned(), difference["about"].as_str()?.to_owned()))
        });
        (done.status.code(), found.collect::<Vec<_>>())
    };
    assert_eq!(differences(), (Some(0), vec![]));
    let extra = Bytes::from_static(b"extra");
    objects.put(&"9/pack/extra".parse().unwrap(), extra.clone(), Sha256::of(&extra)).await.unwrap();
    objects.delete(&lost.parse().unwrap()).await.unwrap();
    let (code, found) = differences();
    let planted =
        [("object-missing".to_owned(), lost), ("object-unknown".to_owned(), "9/pack/extra".to_owned())];
    assert!(code == Some(1) && planted.iter().all(|planted| found.contains(planted)), "{found:?}");
}

#[tokio::test]
async fn a_bucket_that_is_gone_is_named_by_readyz_whatever_the_credentials_may() {
    if !tool("curl") {
        return;
    }
    let Some(storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    let bucket = |method: &str| {
        let done = Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "--noproxy",
                "*",
                "--aws-sigv4",
                "aws:amz:us-east-1:s3",
                "-X",
                method,
                "-u",
            ])
            .arg(format!("{}:{}", SeaweedFs::ADMIN, SeaweedFs::SECRET_KEY))
            .arg(format!("{}/another", storage.endpoint))
            .output()
            .unwrap();
        assert!(done.status.success(), "{method}: {}", String::from_utf8_lossy(&done.stderr));
    };
    for key in [SeaweedFs::ACCESS_KEY, SeaweedFs::ADMIN] {
        bucket("PUT");
        let mut settings = storage.settings().to_vec();
        settings.extend([("MILLPOND__STORAGE__BUCKET", "another"), ("MILLPOND__STORAGE__ACCESS_KEY", key)]);
        let server = Server::with(&settings).await;
        bucket("DELETE");
        until("the bucket is said to be missing", async || {
            let (status, found) = server.api().call(Method::GET, "/readyz", None).await;
            status == 503 && found["problems"].to_string().contains("the bucket does not exist")
        })
        .await;
        bucket("PUT");
        until("it is ready again", async || server.is_ready().await).await;
        drop(server);
        bucket("DELETE");
    }
}

fn grant(upload: &str, bytes: &[u8], more: &serde_json::Value) -> serde_json::Value {
    let mut ask = json!({ "id": upload, "upload": upload, "size": bytes.len(), "sha256": Sha256::of(bytes),
        "event_time": recent_hour() });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ask
}

fn what_is_wrong_is_said(storage: &SeaweedFs) {
    let wrong = |key: &str, value: &str, said: &str| {
        let checked = storage.check(&[(&format!("MILLPOND__STORAGE__{key}"), value)]);
        let text = String::from_utf8(checked.stderr).unwrap();
        assert!(checked.status.code() == Some(2) && text.contains(said), "{key}: {text}");
    };
    wrong("SECRET_KEY", "wrong", "SignatureDoesNotMatch");
    wrong("ACCESS_KEY", SeaweedFs::READER, "may not do this");
    wrong("ENDPOINT", "http://127.0.0.1:9", "Connection refused");
    wrong("ENDPOINT", &storage.tls_endpoint, "certificate");
    wrong("BUCKET", "another-bucket", "the bucket does not exist");
    // Twice: credentials that may make a bucket have not made it.
    for _ in 0..2 {
        let admin = ("MILLPOND__STORAGE__ACCESS_KEY", SeaweedFs::ADMIN);
        let checked = storage.check(&[admin, ("MILLPOND__STORAGE__BUCKET", "another-bucket")]);
        let text = String::from_utf8(checked.stderr).unwrap();
        assert!(checked.status.code() == Some(2) && text.contains("the bucket does not exist"), "{text}");
    }
    wrong("CA_FILE", "/nowhere", "storage.ca_file: /nowhere cannot be read");
    wrong("PROXY", "http://127.0.0.1:9", "Connection refused");
}

fn what_is_right_but_for_others_is_a_warning_or_nothing(storage: &SeaweedFs) {
    let checked = |changed: &[(&str, &str)]| {
        let checked = storage.check(changed);
        let text = String::from_utf8(checked.stderr).unwrap();
        assert!(checked.status.success(), "{changed:?}: {text}");
        text
    };
    let said = checked(&[("MILLPOND__STORAGE__PUBLIC_URL", "http://127.0.0.1:9")]);
    assert!(said.contains("http://127.0.0.1:9 does not answer"), "{said}");
    // An authority of one's own that is named is trusted.
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, &storage.ca).unwrap();
    let tls = ("MILLPOND__STORAGE__ENDPOINT", storage.tls_endpoint.as_str());
    assert_eq!(checked(&[tls, ("MILLPOND__STORAGE__CA_FILE", ca.to_str().unwrap())]), "");
}

/// A storage that refuses everybody, and lives in another year.
fn a_clock_that_is_wrong_is_said(storage: &SeaweedFs) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The head of a request is in one piece here, and its body need not be read.
            let _ = stream.read(&mut [0; 8_192]);
            let body = "<Error><Code>AccessDenied</Code><Message>no</Message></Error>";
            let _ = write!(
                stream,
                "HTTP/1.1 403 Forbidden\r\ndate: Wed, 01 Jan 2020 00:00:00 GMT\r\nconnection: close\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let checked = storage.check(&[("MILLPOND__STORAGE__ENDPOINT", &endpoint)]);
    let text = String::from_utf8(checked.stderr).unwrap();
    let said = text.contains("the clocks of this machine and of storage differ") && text.contains("behind");
    assert!(checked.status.code() == Some(2) && said, "{text}");
}
