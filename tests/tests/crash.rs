//! kill -9 at any instant loses nothing that was acknowledged, and what is sent again counts once.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use millpond_protocol::bundle::{self, Bundle, Entry};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Beside, Credentials, Link, Mill, Server, recent_hour, until};
use serde_json::json;

const PUBLISHERS: usize = 4;

/// An upload that this publisher sends as its `n`-th: mostly small, sometimes larger than what the ledger keeps.
fn content(member: &str, n: usize) -> Vec<u8> {
    let size = if n % 25 == 24 { limits::SMALL_MAX + 1_000 } else { 200 + n % 700 };
    format!("{member} {n} ").into_bytes().into_iter().cycle().take(size).collect()
}

/// Sends one upload after the other, every tenth as a bundle, until the connection ends; answers how far it was acknowledged.
async fn pour(
    who: Credentials,
    from: usize,
    acknowledged: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    window: i64,
) -> usize {
    let Ok(link) = Link::connect(who.clone()).await else { return from };
    let member = who.member.to_string();
    let mut n = from;
    while !stop.load(Ordering::Relaxed) {
        let (id, data) = (format!("u{n}"), content(&member, n));
        let sent = if n % 10 == 3 {
            let entry = Entry {
                upload: &id,
                event_time_ms: window,
                name: "",
                content_type: None,
                label: None,
                sha256: None,
                meta: None,
                data: &data,
            };
            let bundle = Bundle { entries: vec![entry], ..Bundle::default() };
            let topic = format!("mp/demo/c/{member}/bundle/b{n}");
            link.publish(&topic, bundle::encode(&bundle).unwrap(), Beside::default()).await
        } else {
            let topic = format!("mp/demo/c/{member}/up/{id}/{window}");
            link.publish(&topic, data, Beside::default()).await
        };
        if sent.is_err() {
            break;
        }
        n += 1;
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    n
}

#[tokio::test]
async fn kill_9_during_ingest_loses_nothing_acknowledged_and_resending_counts_once() {
    let kills = if std::env::var_os("MILLPOND_SLOW").is_some() { 25 } else { 3 };
    let window = recent_hour();
    let mut server = Server::start().await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let mut publishers = Vec::new();
    for number in 0..PUBLISHERS {
        publishers.push((server.member("demo", &format!("edge-{number}"), Role::Publisher).await, 0));
    }
    let mill = server.member("demo", "mill", Role::Processor).await;

    for kill in 0..kills {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let pouring: Vec<_> = publishers
            .iter()
            .map(|(who, from)| {
                tokio::spawn(pour(
                    server.here(who),
                    *from,
                    Arc::clone(&acknowledged),
                    Arc::clone(&stop),
                    window,
                ))
            })
            .collect();
        // Somewhere in the middle, each time elsewhere.
        until("uploads are acknowledged", async || acknowledged.load(Ordering::Relaxed) >= 150 + 37 * kill)
            .await;
        server.kill();
        for (task, publisher) in pouring.into_iter().zip(&mut publishers) {
            publisher.1 = task.await.unwrap();
        }
        server.launch().await;
        let kept = kept(&server).await;
        for (who, next) in &publishers {
            for n in 0..*next {
                let key = format!("{}/u{n}", who.member);
                let sha256 = Sha256::of(&content(who.member.as_str(), n)).to_string();
                assert_eq!(kept.get(&key), Some(&sha256), "{key} was acknowledged before kill {kill}");
            }
            // The one that was on its way is there or not; the publisher sends it again either way.
            let of_member = kept.keys().filter(|key| key.starts_with(&format!("{}/", who.member))).count();
            assert!((*next..=*next + 1).contains(&of_member), "{}: {of_member} of {next}", who.member);
        }
    }

    // The batch has each upload once, and every byte.
    let mill = Mill::join(server.here(&mill), server.api()).await;
    let kept = kept(&server).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    let manifest = server.api().fetch(lease.manifest_url.as_deref().unwrap()).await;
    let lines: Vec<serde_json::Value> = manifest
        .split(|b| *b == b'\n')
        .skip(1)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let listed: BTreeMap<String, String> = lines
        .iter()
        .map(|line| {
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            (format!("{}/{}", text("member"), text("upload")), text("sha256"))
        })
        .collect();
    assert_eq!(listed.len(), lines.len(), "an upload is listed twice");
    assert_eq!(listed, kept);
}

/// What the server says that it has: `member/upload` and hash.
async fn kept(server: &Server) -> BTreeMap<String, String> {
    let uploads = server.uploads("demo").await;
    let count = uploads.len();
    let text = |upload: &serde_json::Value, key: &str| upload[key].as_str().unwrap().to_owned();
    let kept: BTreeMap<_, _> = uploads
        .iter()
        .map(|u| (format!("{}/{}", text(u, "member"), text(u, "upload")), text(u, "sha256")))
        .collect();
    assert_eq!(kept.len(), count, "an upload is there twice");
    kept
}
