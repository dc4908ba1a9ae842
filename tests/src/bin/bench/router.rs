//! Fan-out without sockets: rumqttd's router beside the hub, each in a process of its own, one publisher before it and the same
//! sink behind it. A copy counts when it has become the bytes that a socket would take, and its packet id is acknowledged.

use std::collections::VecDeque;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millpond_broker::alone::{Alone, Subscriber};
use millpond_protocol::Refusal;
use rumqttd::local::{LinkBuilder, LinkRx, LinkTx};
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::{
    Filter, Packet, Protocol, PubAck, PubAckReason, Publish, QoS, RetainForwardRule, Subscribe,
};
use rumqttd::{Notification, RouterConfig};
use serde::{Deserialize, Serialize};
use std::process::Command;

use super::{server, wire};

const SUBSCRIBERS: usize = 500;
const WINDOW: usize = 20;
const TOPIC: &str = "app/p/x";
/// Of each contestant, in turns; the middle one is printed.
const TIMES: usize = 5;
/// Bytes of a payload, and messages.
const RUNS: [(usize, usize); 2] = [(1 << 10, 4_000), (200 << 10, 2_000)];
/// What is taken for the end of a run in which messages were lost.
const SILENCE: Duration = Duration::from_secs(2);
/// The router's log as rumqttd's own configuration has it, and so small that the hub's bounds allow as much: bytes of a segment,
/// and segments.
const SHIPPED: (usize, usize) = (100 << 20, 10);
const SMALL: (usize, usize) = (8 << 20, 2);
/// Payloads from this size on are shared with the sink, as the gate does it.
const SHARED_FROM: usize = 4 << 10;

/// What fans out.
const SIDES: [(&str, &str); 3] =
    [("hub", "hub"), ("router", "router, its log 1 GiB"), ("small", "router, its log 24 MiB")];

/// What one run found.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Found {
    deliveries: u64,
    seconds: f64,
    /// Seconds of processor time.
    cpu: f64,
    /// MiB, resident: with all subscribers there and nothing published, and at the peak.
    idle: f64,
    peak: f64,
}

impl Found {
    fn rate(&self) -> f64 {
        self.deliveries as f64 / self.seconds
    }

    /// Microseconds of the processor for each.
    fn cost(&self) -> f64 {
        self.cpu / self.deliveries as f64 * 1e6
    }
}

pub async fn run() -> Result<()> {
    println!(
        "fan-out 1 to {SUBSCRIBERS} without sockets, QoS 1, window {WINDOW}, medians of {TIMES} in turns"
    );
    for (bytes, messages) in RUNS {
        println!("  {} KiB, {messages} messages", bytes >> 10);
        let all = (messages * SUBSCRIBERS) as u64;
        let mut found: [Vec<Found>; SIDES.len()] = Default::default();
        for _ in 0..TIMES {
            for ((side, _), found) in SIDES.iter().zip(&mut found) {
                found.push(child(side, bytes, messages)?);
            }
        }
        let middle = |of: &[Found], value: fn(&Found) -> f64| {
            let mut values: Vec<f64> = of.iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let [hub, ..] = &found;
        for ((_, name), of) in SIDES.iter().zip(&found) {
            let fewest = of.iter().map(|found| found.deliveries).min().unwrap_or_default();
            println!(
                "    {name:<24}{:>10.0} deliveries/s{:>7.2} µs of processor each   memory {:>4.0} → {:>4.0} MiB   lost {:.2} % at worst   hub: {:.2} × the rate, {:.2} × the processor",
                middle(of, Found::rate),
                middle(of, Found::cost),
                middle(of, |found| found.idle),
                middle(of, |found| found.peak),
                (1.0 - fewest as f64 / all as f64) * 100.0,
                middle(hub, Found::rate) / middle(of, Found::rate),
                middle(hub, Found::cost) / middle(of, Found::cost),
            );
        }
    }
    Ok(())
}

fn child(side: &str, bytes: usize, messages: usize) -> Result<Found> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["router", &format!("{side},{bytes},{messages}")]);
    let output = command.stderr(Stdio::inherit()).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{side} ended: {}", output.status))
}

/// The child's side: one run, whose figures it prints.
pub async fn side(what: &str) -> Result<()> {
    let parts: Vec<&str> = what.split(',').collect();
    let [side, bytes, messages] = parts[..] else { bail!("it is SIDE,BYTES,MESSAGES") };
    let (payload, messages) = (Bytes::from(vec![b'x'; bytes.parse()?]), messages.parse()?);
    let count = Arc::new(AtomicU64::new(0));
    let found = match side {
        "hub" => {
            let hub = Alone::start("p".parse()?)?;
            for n in 0..SUBSCRIBERS {
                let subscriber = hub.subscriber(n as i64 + 1, TOPIC).context("no name for a member")?;
                tokio::spawn(from_hub(subscriber, count.clone()));
            }
            measure(&count, messages, publish_to_hub(&hub, &payload, messages)).await?
        }
        "router" | "small" => {
            let mut router = Router::new(if side == "small" { SMALL } else { SHIPPED });
            for n in 0..SUBSCRIBERS {
                let (mut tx, mut rx) = router.link(&format!("m{n}"))?;
                subscribe(&mut tx, &mut rx).await?;
                tokio::spawn(from_router(tx, rx, count.clone()));
            }
            let publisher = router.link("publisher")?;
            measure(&count, messages, publish_to_router(publisher, &payload, messages)).await?
        }
        other => bail!("nothing fans out by the name {other}"),
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// From the first PUBLISH to the last delivery.
async fn measure(
    count: &AtomicU64,
    messages: usize,
    publish: impl Future<Output = Result<()>>,
) -> Result<Found> {
    let id = std::process::id();
    server::reset_peak(id)?;
    let (idle, _) = server::memory(id)?;
    let (begun, cpu) = (Instant::now(), server::cpu(id)?);
    publish.await?;
    let all = (messages * SUBSCRIBERS) as u64;
    let (mut deliveries, mut last) = (count.load(Ordering::Relaxed), Instant::now());
    while deliveries < all && last.elapsed() < SILENCE {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = count.load(Ordering::Relaxed);
        if now != deliveries {
            (deliveries, last) = (now, Instant::now());
        }
    }
    let cpu = server::cpu(id)? - cpu;
    let seconds = (last - begun).as_secs_f64();
    Ok(Found { deliveries, seconds, cpu, idle, peak: server::memory(id)?.1 })
}

/// What is behind both: takes a PUBLISH off, looks at no payload, and tells its packet id.
fn sink(packets: &mut impl Buf) -> u16 {
    packets.advance(1);
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = packets.get_u8();
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let topic = usize::from(packets.get_u16());
    packets.advance(topic);
    let id = packets.get_u16();
    packets.advance(length - topic - 4);
    id
}

async fn publish_to_hub(hub: &Alone, payload: &Bytes, messages: usize) -> Result<()> {
    let mut under_way: VecDeque<BoxFuture<'_, Result<(), Refusal>>> = VecDeque::new();
    for _ in 0..messages {
        if under_way.len() == WINDOW
            && let Some(oldest) = under_way.pop_front()
        {
            oldest.await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        under_way.push_back(Box::pin(hub.publish(TOPIC, payload.clone())));
    }
    for published in under_way {
        published.await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    }
    Ok(())
}

async fn from_hub(mut subscriber: Subscriber, count: Arc<AtomicU64>) {
    let mut ids = Vec::new();
    loop {
        {
            let Some(mut packets) = subscriber.packets().await else { break };
            while packets.has_remaining() {
                ids.push(sink(&mut packets));
            }
        }
        count.fetch_add(ids.len() as u64, Ordering::Relaxed);
        ids.drain(..).for_each(|id| subscriber.acknowledge(id));
        tokio::task::consume_budget().await;
    }
    eprintln!("the hub ended a subscriber");
}

type Link = (LinkTx, LinkRx);
type Connect = dyn FnMut(&str) -> Result<Link>;

/// rumqttd's router with nothing around it.
struct Router {
    link: Box<Connect>,
}

impl Router {
    fn new((max_segment_size, max_segment_count): (usize, usize)) -> Self {
        let config = RouterConfig {
            max_connections: SUBSCRIBERS + 1,
            max_outgoing_packet_count: 200,
            max_segment_size,
            max_segment_count,
            ..RouterConfig::default()
        };
        let router = rumqttd::Router::new(0, config).spawn();
        // The sender's type cannot be named outside of rumqttd.
        let link = move |id: &str| {
            let (tx, rx, _) = LinkBuilder::new(id, router.clone()).build()?;
            Ok((tx, rx))
        };
        Self { link: Box::new(link) }
    }

    fn link(&mut self, id: &str) -> Result<Link> {
        (self.link)(id)
    }
}

async fn subscribe(tx: &mut LinkTx, rx: &mut LinkRx) -> Result<()> {
    let retain_forward_rule = RetainForwardRule::Never;
    let (nolocal, preserve_retain, qos) = (false, false, QoS::AtLeastOnce);
    let filter = Filter { path: TOPIC.into(), qos, nolocal, preserve_retain, retain_forward_rule };
    tx.send(Packet::Subscribe(Subscribe { pkid: 1, filters: vec![filter] }, None)).await?;
    while !matches!(rx.next().await?, Some(Notification::DeviceAck(_))) {}
    Ok(())
}

async fn publish_to_router((mut tx, mut rx): Link, payload: &Bytes, messages: usize) -> Result<()> {
    let (mut sent, mut acknowledged) = (0, 0);
    while acknowledged < messages {
        while sent < messages && sent - acknowledged < WINDOW {
            sent += 1;
            // Only what was read off a connection has a QoS.
            let packet = wire::publish((sent % 1_000) as u16 + 1, TOPIC, payload);
            let packet = V4.read_mut(&mut BytesMut::from(&packet[..]), packet.len());
            tx.send(packet.map_err(|error| anyhow::anyhow!("{error:?}"))?).await?;
        }
        match rx.next().await? {
            Some(Notification::DeviceAck(_)) => acknowledged += 1,
            Some(Notification::Unschedule) => rx.wake().await?,
            _ => {}
        }
    }
    Ok(())
}

async fn from_router(mut tx: LinkTx, mut rx: LinkRx, count: Arc<AtomicU64>) -> Result<()> {
    let (mut last, mut acks, mut head) = (0, Vec::new(), BytesMut::new());
    loop {
        let next = match rx.next().now_or_never() {
            Some(next) => next,
            None => {
                // It is told once of all that it had put there.
                count.fetch_add(acks.len() as u64, Ordering::Relaxed);
                if let Some(newest) = acks.pop() {
                    tx.buffer().extend(acks.drain(..));
                    tx.send(newest).await?;
                }
                rx.next().await
            }
        };
        match next? {
            Some(Notification::Forward(forward)) => {
                // Its ids go round, and it tells them to its own writer alone, which copies the payload.
                last = last % 100 + 1;
                let pkid = take(&mut head, &forward.publish, last);
                acks.push(Packet::PubAck(PubAck { pkid, reason: PubAckReason::Success }, None));
            }
            Some(Notification::Unschedule) => rx.wake().await?,
            Some(_) | None => {}
        }
    }
}

/// Writes the packet, and has the sink take it.
fn take(head: &mut BytesMut, publish: &Publish, id: u16) -> u16 {
    let mut length = 2 + publish.topic.len() + 2 + publish.payload.len();
    head.put_u8(0x32);
    while length > 0x7F {
        head.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    head.put_u8(length as u8);
    head.put_u16(publish.topic.len() as u16);
    head.put_slice(&publish.topic);
    head.put_u16(id);
    if publish.payload.len() < SHARED_FROM {
        head.put_slice(&publish.payload);
        return sink(head);
    }
    sink(&mut head.chain(publish.payload.clone()))
}
