//! The attacks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use millpond_protocol::limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy, sink};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Field, from, storage};
use crate::wire::{Connection, packet, publish, text};

/// Between two attempts of one attacker.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections of one member.
const CONNECTIONS: usize = 8;
/// Messages in one go.
const WINDOW: u16 = 60;

/// What somebody does who is broken, or means harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Fifty subscribers take no byte of the messages of 200 KiB that a publisher sends.
    SlowReaders,
    /// Sixty bundles of 4 MiB come in at 5 KiB a second.
    SlowWriters,
    /// So many connections say nothing, or half of a CONNECT, two thirds of them to MQTT, the others to HTTP.
    HalfOpen(usize),
    /// One member sends uploads of 1 KiB on all its connections as fast as it can.
    Flood,
    /// Fifty subscribers read messages of 64 KiB and acknowledge none.
    NeverAcknowledge,
    /// Members ask as fast as they can, and read no answer.
    UnreadAnswers(usize),
    /// In another pool, whose members retain as many messages as they may, one subscribes on all its connections, as fast as it
    /// can and in packets of as many filters as there may be, to what matches none of them.
    Subscribe,
    /// In another pool, so many subscribers read at QoS 0 what one member publishes on all its connections as fast as it can.
    FanOut(usize),
    /// So many connections to storage: one in twenty sends requests without a signature, and another one with a wrong one, as
    /// fast as they can; the others files of 4 MiB at 5 KiB a second.
    Storage(usize),
}

impl Attack {
    /// In a few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlowReaders => "slow readers",
            Self::SlowWriters => "slow writers",
            Self::HalfOpen(_) => "half-open",
            Self::Flood => "a flood",
            Self::NeverAcknowledge => "no acks",
            Self::UnreadAnswers(_) => "unread answers",
            Self::Subscribe => "subscriptions",
            Self::FanOut(_) => "a fan-out",
            Self::Storage(_) => "storage",
        }
    }

    /// Begins it; it goes on, whatever the server does about it, until the set is dropped.
    pub fn begin(self, field: &Arc<Field>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        match self {
            Self::SlowReaders => {
                subscribers(&mut tasks, field, 200 << 10, async |mut connection| {
                    // What it may still say is how it learns that it was thrown out.
                    loop {
                        connection.write.write_all(&[0xC0, 0]).await?;
                        sleep(PAUSE).await;
                    }
                });
            }
            Self::SlowWriters => again(&mut tasks, field, 0..60, async |field, n| {
                let mut connection = field.bad(n).await?;
                let member = &field.bad[n % field.bad.len()].member;
                let topic = format!("mp/{}/c/{member}/bundle/slow-{n}", field.pool());
                let bytes = publish(1, &topic, &vec![0; 4 << 20]);
                for piece in bytes.chunks(512) {
                    connection.write.write_all(piece).await?;
                    sleep(PAUSE).await;
                }
                Ok(())
            }),
            Self::HalfOpen(count) => again(&mut tasks, field, 0..count, async |field, n| {
                let to = if n % 3 == 0 { field.http } else { field.mqtt };
                let mut io = from("127.0.0.2", to).await?;
                if n % 2 == 0 {
                    io.write_all(b"\x10\x40\x00\x04MQ").await?;
                }
                while io.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
                // What it is about is to hold on, not to come often.
                sleep(10 * PAUSE).await;
                Ok(())
            }),
            Self::Flood => again(&mut tasks, field, 0..CONNECTIONS, async |field, n| {
                let member = &field.bad[0].member;
                let topic = format!("mp/{}/c/{member}/up/flood-{n}", field.pool());
                flood(open_first(&field, n).await?, &topic, 1 << 10).await
            }),
            Self::NeverAcknowledge => {
                subscribers(&mut tasks, field, 64 << 10, async |mut connection| {
                    copy(&mut connection.read, &mut sink()).await?;
                    Ok(())
                });
            }
            Self::UnreadAnswers(count) => again(&mut tasks, field, 0..count, async |field, n| {
                let mut connection = field.bad(n).await?;
                let member = &field.bad[n % field.bad.len()].member;
                connection.subscribe(&format!("mp/{}/d/{member}/#", field.pool())).await?;
                let topic = format!("mp/{}/c/{member}/ask/history", field.pool());
                let asks: Vec<u8> =
                    (1..=WINDOW).flat_map(|id| publish(id, &topic, br#"{"max_answer": 262144}"#)).collect();
                loop {
                    connection.write.write_all(&asks).await?;
                }
            }),
            Self::Subscribe => {
                again(&mut tasks, field, 0..field.apart.len(), async |field, n| retain(&field, n).await);
                again(&mut tasks, field, 0..CONNECTIONS, async |field, n| subscribe(&field, n).await);
            }
            Self::FanOut(subscribers) => {
                again(&mut tasks, field, 0..subscribers, async |field, n| {
                    // The first one's connections publish.
                    let mut connection =
                        field.apart(n % (field.apart.len() - 1) + 1, &format!("s{n}")).await?;
                    let mut body = vec![0, 1];
                    text(&mut body, &fan_topic(&field));
                    body.push(0);
                    connection.write.write_all(&packet(0x82, &body)).await?;
                    copy(&mut connection.read, &mut sink()).await?;
                    Ok(())
                });
                again(&mut tasks, field, 0..CONNECTIONS, async |field, n| {
                    let connection = field.apart(0, &format!("p{n}")).await?;
                    windows(connection, |id| publish(id, &fan_topic(&field), &[b'x'; 64])).await
                });
            }
            Self::Storage(count) => again(&mut tasks, field, 0..count, async |field, n| match n % 20 {
                0 => storage::unsigned(&field).await,
                1 => storage::wrongly_signed(&field, n).await,
                _ => storage::slow_body(&field, n, PAUSE).await,
            }),
        }
        tasks
    }
}

fn feed_topic(field: &Field) -> String {
    format!("app/{}/feed", field.pool())
}

/// Has each of the attackers begin again when it was thrown out, or is done.
fn again<F>(
    tasks: &mut JoinSet<()>,
    field: &Arc<Field>,
    attackers: std::ops::Range<usize>,
    attack: impl Fn(Arc<Field>, usize) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Result<()>> + Send,
{
    for n in attackers {
        let (field, attack) = (field.clone(), attack.clone());
        tasks.spawn(async move {
            loop {
                // Whatever ended it, it comes again.
                let _ = attack(field.clone(), n).await;
                sleep(PAUSE).await;
            }
        });
    }
}

/// Fifty that subscribe to what a publisher feeds them, and then do that.
fn subscribers<F>(
    tasks: &mut JoinSet<()>,
    field: &Arc<Field>,
    bytes: usize,
    then: impl Fn(Connection) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Result<()>> + Send,
{
    let subscribed = feed(tasks, field, bytes);
    again(tasks, field, 1..51, move |field, n| {
        let (subscribed, then) = (subscribed.clone(), then.clone());
        async move {
            let mut connection = field.bad(n).await?;
            connection.subscribe(&feed_topic(&field)).await?;
            subscribed.add_permits(1);
            then(connection).await
        }
    });
}

/// A publisher that sends to the topic of the subscribers, once fifty of them have said so to what this answers.
fn feed(tasks: &mut JoinSet<()>, field: &Arc<Field>, bytes: usize) -> Arc<Semaphore> {
    let subscribed = Arc::new(Semaphore::new(0));
    let all = subscribed.clone();
    again(tasks, field, 0..1, move |field, _| {
        let all = all.clone();
        async move {
            let _all = all.acquire_many(50).await?;
            let mut connection = open_first(&field, 0).await?;
            let message = publish(1, &feed_topic(&field), &vec![0; bytes]);
            loop {
                connection.write.write_all(&message).await?;
                connection.receive().await?;
            }
        }
    });
    subscribed
}

/// A connection of the first of the members.
async fn open_first(field: &Field, n: usize) -> Result<Connection> {
    let stream = from("127.0.0.2", field.mqtt).await?;
    Connection::open_as(stream, &field.bad[0], &format!("first-{n}")).await
}

/// Publishes each upload as a new one.
async fn flood(connection: Connection, topic: &str, bytes: usize) -> Result<()> {
    let payload = vec![0; bytes];
    let stamp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros();
    let mut count = 0;
    let next = |id| {
        count += 1;
        publish(id, &format!("{topic}-{stamp}-{count}"), &payload)
    };
    windows(connection, next).await
}

/// Publishes a window at a time.
async fn windows(mut connection: Connection, mut publish: impl FnMut(u16) -> Vec<u8>) -> Result<()> {
    loop {
        let window: Vec<u8> = (1..=WINDOW).flat_map(&mut publish).collect();
        let sent = async {
            connection.write.write_all(&window).await?;
            for _ in 0..WINDOW {
                // Whoever is held back waits.
                connection.read.read_u8().await?;
                connection.read.read_exact(&mut [0; 3]).await?;
            }
            anyhow::Ok(())
        };
        timeout(Duration::from_secs(60), sent).await??;
    }
}

fn fan_topic(field: &Field) -> String {
    format!("app/{}/fan", field.apart[0].pool)
}

/// Has one of those apart retain as many messages as a member may, and stay.
async fn retain(field: &Field, n: usize) -> Result<()> {
    let mut connection = field.apart(n, "retains").await?;
    for id in 1..=limits::RETAINED_PER_MEMBER as u16 {
        let mut message = publish(id, &format!("app/{}/kept/{n}/{id}", field.apart[n].pool), b"x");
        message[0] |= 1;
        connection.write.write_all(&message).await?;
        connection.receive().await?;
    }
    copy(&mut connection.read, &mut sink()).await?;
    Ok(())
}

async fn subscribe(field: &Field, n: usize) -> Result<()> {
    let mut connection = field.apart(0, &format!("subscribes-{n}")).await?;
    let mut body = vec![0, 1];
    for filter in 0..limits::SUBSCRIPTIONS_MAX {
        text(&mut body, &format!("app/{}/kept/+/none-{filter}", field.apart[0].pool));
        body.push(1);
    }
    let packet = packet(0x82, &body);
    let write = async {
        loop {
            connection.write.write_all(&packet).await?;
        }
    };
    let mut sink = sink();
    tokio::select! {
        ended = write => ended,
        ended = copy(&mut connection.read, &mut sink) => Ok(ended.map(drop)?),
    }
}
