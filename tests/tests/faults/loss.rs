//! A network that loses packets, and one that ends connections in the middle of them.
//!
//! For the first one the test runs once more in a network of its own, whose loopback drops packets: server, storage and clients
//! are all behind it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, Pointer, answer};
use millpond_protocol::{Role, Sha256, limits};
use millpond_tests::{Api, Beside, Credentials, Link, Mill, Plain, Relay, Server, Shape, skip, tool};
use rumqttc::v5::mqttbytes::v5::PubAckReason;
use serde_json::json;

use super::check;

const PATIENCE: Duration = Duration::from_secs(120);
/// Tells the test where it runs.
const HERE: &str = "MILLPOND_TEST_LOSES_PACKETS";
/// One packet in ten, as the kernel's filters have it: take a random number; unless it is above a tenth of all, drop the packet.
const DROP: &str = "4,32 0 0 4294963256,37 0 1 429496729,6 0 0 0,6 0 0 2";
const PUBLISHERS: usize = 4;
/// Files of each: small ones, those that are staged, and one by URL.
const FILES: usize = 30;

/// Runs a test of this file where packets get lost.
fn run_where_packets_get_lost(test: &str) {
    if !(tool("ip") && tool("tc")) {
        return;
    }
    let may = Command::new("unshare").args(["-n", "true"]).output().is_ok_and(|done| done.status.success());
    if !may {
        skip("unshare -n needs root");
        return;
    }
    let script = format!(
        "ip link set lo up && tc qdisc add dev lo clsact && \
         tc filter add dev lo egress bpf da bytecode '{DROP}' && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", &script, "sh"]).arg(std::env::current_exe().unwrap());
    let status = command.args(["--exact", test, "--nocapture"]).env(HERE, "1").status().unwrap();
    assert!(status.success(), "where packets get lost: {status}");
}

/// TCP segments of this network that were sent again.
fn sent_again() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
    let (names, numbers) = (tcp.next().unwrap(), tcp.next().unwrap());
    names.zip(numbers).find(|(name, _)| *name == "RetransSegs").unwrap().1.parse().unwrap()
}

fn content(member: &str, n: usize) -> Vec<u8> {
    let size = if n % 10 == 7 { limits::SMALL_MAX + 1_000 } else { 700 };
    format!("{member} {n} ").into_bytes().into_iter().cycle().take(size).collect()
}

/// Publishes all its files and asks for room for one by URL, each again on a new connection until the server has said that it has it.
async fn publishes(who: Credentials, mqtt: SocketAddr, api: Api) {
    let (member, begin) = (who.member.clone(), Instant::now());
    let mut n = 0;
    while n <= FILES {
        assert!(begin.elapsed() < PATIENCE, "{n} files of {member}");
        let Ok(link) = Link::open(Credentials { mqtt, ..who.clone() }).await else { continue };
        while n <= FILES {
            let (upload, bytes) = (format!("u{n}"), content(member.as_str(), n));
            if n == FILES {
                let ask =
                    json!({ "id": "p", "upload": upload, "size": bytes.len(), "sha256": Sha256::of(&bytes) });
                let Ok(put) = link.ask::<answer::Put>(Op::Put, &ask).await else { break };
                if let Some(to) = put.to {
                    assert_eq!(api.send(&to, bytes).await, 200);
                }
                let ask = json!({ "id": "c", "uploads": [upload], "wait_s": 30 });
                let Ok(done) = link.ask::<answer::Commit>(Op::Commit, &ask).await else { break };
                assert_eq!(done.uploads[0].outcome, Outcome::Stored);
            } else {
                let topic = format!("mp/demo/c/{member}/up/{upload}");
                let Ok(reason) = link.offer(&topic, bytes, Beside::default()).await else { break };
                let had = [PubAckReason::Success, PubAckReason::NoMatchingSubscribers].contains(&reason);
                assert!(had, "{upload} of {member}: {reason:?}");
            }
            n += 1;
        }
    }
}

/// Everybody works over `mqtt`: each file counts once, and the listener has the result.
async fn everybody_works(server: &Server, mqtt: SocketAddr) {
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let listener = server.member("demo", "listener", Role::Listener).await;
    let mut plain = Plain::connect(listener).await.unwrap();
    assert!(plain.subscribe("mp/demo/result").await.unwrap());
    let mut publishers = Vec::new();
    for n in 0..PUBLISHERS {
        let who = server.member("demo", &format!("edge-{n}"), Role::Publisher).await;
        publishers.push(publishes(who, mqtt, server.api()));
    }
    join_all(publishers).await;

    let uploads = server.uploads("demo").await;
    assert_eq!(uploads.len(), PUBLISHERS * (FILES + 1), "each file is there once");
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let leased = mill.fetch(mill.trigger(&json!({})).await.unwrap()).await.unwrap();
    assert_eq!(leased.files.len(), uploads.len());
    for (path, bytes) in &leased.files {
        let (member, upload) = path.split_once("/u").unwrap();
        assert!(bytes == &content(member, upload.parse().unwrap()), "{path}");
    }
    mill.answer(&leased.lease, "ground").await.unwrap();
    let pointer = plain.next_on("mp/demo/result").await.unwrap();
    let pointer: Pointer = serde_json::from_slice(&pointer).unwrap();
    assert_eq!(&server.api().fetch(&pointer.url).await[..], b"ground");
    check(server).await;
}

#[tokio::test]
async fn where_one_packet_in_ten_gets_lost_every_file_counts_once_and_the_result_arrives() {
    if std::env::var_os(HERE).is_none() {
        return run_where_packets_get_lost(
            "loss::where_one_packet_in_ten_gets_lost_every_file_counts_once_and_the_result_arrives",
        );
    }
    let server = Server::start().await;
    everybody_works(&server, server.mqtt()).await;
    assert!(sent_again() > 10, "{} segments were sent again", sent_again());
}

#[tokio::test]
async fn where_connections_end_in_mid_packet_every_file_counts_once_and_the_result_arrives() {
    let server = Server::start().await;
    let relay = Relay::to(server.mqtt()).await;
    // Less than a large file and its acknowledgement take: some get through at once, others after some tries.
    relay.shape(Shape { cut_every: Some(150_000), seed: 7, ..Shape::default() });
    everybody_works(&server, relay.address()).await;
    assert!(relay.cuts() > 5, "{} connections have ended", relay.cuts());
}
