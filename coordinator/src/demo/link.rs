//! One member's MQTT 5 connection: publish and wait for the acknowledgement, ask and wait for the answer, read the rest.
//!
//! rumqttc hands out packet ids only when it writes; publishes are therefore matched with their ids in order.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use millpond_protocol::access::Op;
use millpond_protocol::error::ErrorBody;
use millpond_protocol::{MemberName, PoolName, limits, topic};
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How long anything may take before the connection counts as stuck: longer than any `wait_s`.
const PATIENCE: Duration = Duration::from_secs(90);
/// Messages that nobody has read yet.
const UNREAD_MAX: usize = 10_000;

/// Who connects, and where to.
#[derive(Clone)]
pub struct Credentials {
    pub mqtt: SocketAddr,
    pub pool: PoolName,
    pub member: MemberName,
    /// A second connection needs another one, or it takes the first one over.
    pub client_id: String,
    pub token: String,
}

/// A message that is no answer: receipts, states, events.
#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    pub user_properties: Vec<(String, String)>,
}

/// What goes beside a payload.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    pub user_properties: Vec<(String, String)>,
    pub content_type: Option<String>,
}

/// An open connection. Dropped, it vanishes without a DISCONNECT.
pub struct Link {
    pub who: Credentials,
    client: AsyncClient,
    /// Held while a publish or subscribe is handed over, so that `waiting` has the same order.
    order: tokio::sync::Mutex<u64>,
    book: Arc<Mutex<Book>>,
    messages: mpsc::Receiver<Message>,
    driver: JoinHandle<()>,
}

/// What waits for a packet from the server.
#[derive(Default)]
struct Book {
    /// Why the connection ended.
    ended: Option<String>,
    connected: Option<oneshot::Sender<()>>,
    publishes: Waiting<PubAckReason>,
    subscribes: Waiting<SubscribeReasonCode>,
    answers: HashMap<Bytes, oneshot::Sender<Bytes>>,
}

struct Waiting<T> {
    unsent: VecDeque<oneshot::Sender<T>>,
    sent: HashMap<u16, oneshot::Sender<T>>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { unsent: VecDeque::new(), sent: HashMap::new() }
    }
}

impl<T> Waiting<T> {
    fn on_sent(&mut self, id: u16) {
        if let Some(waiter) = self.unsent.pop_front() {
            self.sent.insert(id, waiter);
        }
    }

    fn on_ack(&mut self, id: u16, ack: T) {
        if let Some(waiter) = self.sent.remove(&id) {
            let _ = waiter.send(ack);
        }
    }
}

impl Link {
    /// Connects, and subscribes to everything addressed to the member.
    pub async fn open(who: Credentials) -> anyhow::Result<Self> {
        let link = Self::connect(who).await?;
        let own = format!("mp/{}/d/{}/#", link.who.pool, link.who.member);
        link.subscribe(&own).await?;
        Ok(link)
    }

    /// Connects, and subscribes to nothing.
    pub async fn connect(who: Credentials) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new(&who.client_id, who.mqtt.ip().to_string(), who.mqtt.port());
        options
            .set_credentials(format!("{}/{}", who.pool, who.member), &who.token)
            .set_clean_start(true)
            // rumqttc sets memory aside for all that may be in flight: 65,535 unless it is told, some 15 MB a connection.
            .set_outgoing_inflight_upper_limit(u16::try_from(limits::UNCOMMITTED_PER_CONNECTION)?)
            .set_max_packet_size(Some(u32::try_from(limits::BUNDLE_MAX + limits::PACKET_OVERHEAD)?));
        let (client, event_loop) = AsyncClient::new(options, 64);
        let (connected, on_connected) = oneshot::channel();
        let book = Arc::new(Mutex::new(Book { connected: Some(connected), ..Book::default() }));
        let (deliver, messages) = mpsc::channel(UNREAD_MAX);
        let driver = tokio::spawn(drive(event_loop, Arc::clone(&book), deliver));
        let link = Self { who, client, order: tokio::sync::Mutex::new(0), book, messages, driver };
        link.wait("CONNACK", on_connected).await?;
        Ok(link)
    }

    /// Publishes at QoS 1 and waits for the PUBACK.
    ///
    /// # Errors
    /// If the connection ends first, or the server refuses the message.
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        beside: Beside,
    ) -> anyhow::Result<()> {
        match self.offer(topic, payload, beside).await? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => bail!("{topic} was refused: {reason:?}"),
        }
    }

    /// Publishes at QoS 1 and answers the PUBACK's reason.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn offer(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        beside: Beside,
    ) -> anyhow::Result<PubAckReason> {
        let properties = PublishProperties {
            user_properties: beside.user_properties,
            content_type: beside.content_type,
            ..PublishProperties::default()
        };
        let acknowledged = self.hand_over(topic, payload.into(), properties).await?;
        self.wait("PUBACK", acknowledged).await
    }

    async fn hand_over(
        &self,
        topic: &str,
        payload: Bytes,
        properties: PublishProperties,
    ) -> anyhow::Result<oneshot::Receiver<PubAckReason>> {
        let (acknowledge, acknowledged) = oneshot::channel();
        let _order = self.order.lock().await;
        lock(&self.book).publishes.unsent.push_back(acknowledge);
        let handed_over =
            self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).await;
        if handed_over.is_err() {
            // rumqttc itself refuses what is no topic name; nothing will be written for it.
            lock(&self.book).publishes.unsent.pop_back();
        }
        handed_over.with_context(|| format!("{topic} cannot be published to; {}", self.ended()))?;
        Ok(acknowledged)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// If the connection ends first, the server answers an error (a [`millpond_protocol::Refusal`] inside), or the answer is no `T`.
    pub async fn ask<T: DeserializeOwned>(&self, op: Op, ask: &Value) -> anyhow::Result<T> {
        let answer = self.ask_raw(op, ask.to_string()).await?;
        if let Ok(body) = serde_json::from_slice::<ErrorBody>(&answer) {
            return Err(anyhow::Error::from(body.error).context(format!("{} asked {op}", self.who.member)));
        }
        serde_json::from_slice(&answer)
            .with_context(|| format!("answer to {op}: {}", String::from_utf8_lossy(&answer)))
    }

    /// Asks with these bytes, and waits for whatever is answered.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn ask_raw(&self, op: Op, ask: impl Into<Bytes>) -> anyhow::Result<Bytes> {
        let (pool, member) = (&self.who.pool, &self.who.member);
        let (answer, answered) = oneshot::channel();
        let correlation = {
            let mut count = self.order.lock().await;
            *count += 1;
            // Answers go to every connection of the member.
            Bytes::from(format!("{}-{count}", self.who.client_id))
        };
        lock(&self.book).answers.insert(correlation.clone(), answer);
        let properties = PublishProperties {
            response_topic: Some(topic::answer(pool, member, op)),
            correlation_data: Some(correlation),
            ..PublishProperties::default()
        };
        let topic = format!("mp/{pool}/c/{member}/ask/{op}");
        let acknowledged = self.hand_over(&topic, ask.into(), properties).await?;
        match self.wait("PUBACK", acknowledged).await? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                self.wait("answer", answered).await
            }
            reason => bail!("ask {op} was refused: {reason:?}"),
        }
    }

    /// Subscribes at QoS 1 and waits for the SUBACK.
    ///
    /// # Errors
    /// If the connection ends first, or the server refuses the filter.
    pub async fn subscribe(&self, filter: &str) -> anyhow::Result<()> {
        let (grant, granted) = oneshot::channel();
        {
            let _order = self.order.lock().await;
            lock(&self.book).subscribes.unsent.push_back(grant);
            let handed_over = self.client.subscribe(filter, QoS::AtLeastOnce).await;
            if handed_over.is_err() {
                lock(&self.book).subscribes.unsent.pop_back();
            }
            handed_over.with_context(|| format!("{filter} cannot be subscribed to; {}", self.ended()))?;
        }
        match self.wait("SUBACK", granted).await? {
            SubscribeReasonCode::Success(_) => Ok(()),
            reason => bail!("subscription to {filter} was refused: {reason:?}"),
        }
    }

    /// The next message that is no answer.
    ///
    /// # Errors
    /// If the connection ends, or nothing comes for very long.
    pub async fn next(&mut self) -> anyhow::Result<Message> {
        let next = tokio::time::timeout(PATIENCE, self.messages.recv()).await;
        next.with_context(|| format!("{} waited in vain for a message", self.who.member))?
            .ok_or_else(|| anyhow!(self.ended()))
    }

    /// Says DISCONNECT and waits until it is written.
    pub async fn close(mut self) {
        if self.client.disconnect().await.is_ok() {
            let _ = tokio::time::timeout(PATIENCE, &mut self.driver).await;
        }
    }

    async fn wait<T>(&self, what: &str, reply: oneshot::Receiver<T>) -> anyhow::Result<T> {
        match tokio::time::timeout(PATIENCE, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(anyhow!(self.ended())),
            Err(_) => bail!("{} waited in vain for {what}", self.who.member),
        }
    }

    fn ended(&self) -> String {
        match &lock(&self.book).ended {
            Some(why) => format!("{}'s connection ended: {why}", self.who.member),
            None => format!("{} is connected", self.who.member),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owns the socket until it ends; then everything that waits is told so by its channel's end.
async fn drive(mut event_loop: EventLoop, book: Arc<Mutex<Book>>, deliver: mpsc::Sender<Message>) {
    let why = loop {
        match event_loop.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let properties = publish.properties.unwrap_or_default();
                let waiter = properties
                    .correlation_data
                    .and_then(|correlation| lock(&book).answers.remove(&correlation));
                if let Some(waiter) = waiter {
                    let _ = waiter.send(publish.payload);
                    continue;
                }
                let message = Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload,
                    user_properties: properties.user_properties,
                };
                if deliver.try_send(message).is_err() {
                    break "nobody reads its messages".to_owned();
                }
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => break "it was closed".to_owned(),
            Ok(event) => note(&mut lock(&book), event),
            Err(error) => break error.to_string(),
        }
    };
    let mut book = lock(&book);
    *book = Book { ended: Some(why), ..Book::default() };
}

fn note(book: &mut Book, event: Event) {
    match event {
        Event::Incoming(Packet::ConnAck(_)) => {
            if let Some(connected) = book.connected.take() {
                let _ = connected.send(());
            }
        }
        Event::Outgoing(Outgoing::Publish(id)) => book.publishes.on_sent(id),
        Event::Incoming(Packet::PubAck(ack)) => book.publishes.on_ack(ack.pkid, ack.reason),
        Event::Outgoing(Outgoing::Subscribe(id)) => book.subscribes.on_sent(id),
        Event::Incoming(Packet::SubAck(ack)) => {
            let code = ack.return_codes.first().copied().unwrap_or(SubscribeReasonCode::Unspecified);
            book.subscribes.on_ack(ack.pkid, code);
        }
        Event::Incoming(_) | Event::Outgoing(_) => {}
    }
}
