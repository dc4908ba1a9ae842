//! A 3.1.1 client: one thing at a time, by polling its own socket.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, SubscribeReasonCode,
};

use crate::{Credentials, Message};

/// Longest wait for any packet.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open 3.1.1 connection. Dropped, it vanishes.
pub struct Plain {
    pub who: Credentials,
    client: AsyncClient,
    events: EventLoop,
    unread: VecDeque<Message>,
}

impl Plain {
    /// Connects, and subscribes to nothing.
    ///
    /// # Errors
    /// If the server refuses the CONNECT.
    pub async fn connect(who: Credentials) -> anyhow::Result<Self> {
        Self::connect_with(who, |_| {}).await
    }

    /// Connects with a will.
    ///
    /// # Errors
    /// If the server refuses the CONNECT.
    pub async fn connect_with_will(who: Credentials, topic: &str) -> anyhow::Result<Self> {
        Self::connect_with(who, |options| {
            options.set_last_will(LastWill::new(topic, "gone", QoS::AtLeastOnce, false));
        })
        .await
    }

    async fn connect_with(who: Credentials, change: impl FnOnce(&mut MqttOptions)) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new(&who.client_id, who.mqtt.ip().to_string(), who.mqtt.port());
        options
            .set_credentials(format!("{}/{}", who.pool, who.member), &who.token)
            .set_max_packet_size(8 << 20, 64 << 20);
        change(&mut options);
        let (client, events) = AsyncClient::new(options, 16);
        let mut plain = Self { who, client, events, unread: VecDeque::new() };
        plain
            .until("CONNACK", |event| matches!(event, Event::Incoming(Packet::ConnAck(_))).then_some(()))
            .await?;
        Ok(plain)
    }

    /// Subscribes at QoS 1; whether the server granted it.
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn subscribe(&mut self, filter: &str) -> anyhow::Result<bool> {
        self.client.subscribe(filter, QoS::AtLeastOnce).await?;
        self.until("SUBACK", |event| match event {
            Event::Incoming(Packet::SubAck(ack)) => {
                Some(matches!(ack.return_codes.first(), Some(SubscribeReasonCode::Success(_))))
            }
            _ => None,
        })
        .await
    }

    /// Publishes at QoS 1 and waits for the PUBACK.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn publish(&mut self, topic: &str, payload: impl Into<Bytes>) -> anyhow::Result<()> {
        self.send(topic, payload, QoS::AtLeastOnce, false).await
    }

    /// Publishes and waits until it is acknowledged as its QoS says.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn send(
        &mut self,
        topic: &str,
        payload: impl Into<Bytes>,
        qos: QoS,
        retain: bool,
    ) -> anyhow::Result<()> {
        self.client.publish(topic, qos, retain, payload.into()).await?;
        self.until("acknowledgement", |event| match (qos, event) {
            (QoS::AtMostOnce, Event::Outgoing(Outgoing::Publish(_)))
            | (QoS::AtLeastOnce, Event::Incoming(Packet::PubAck(_)))
            | (QoS::ExactlyOnce, Event::Incoming(Packet::PubComp(_))) => Some(()),
            _ => None,
        })
        .await
    }

    /// The next message.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn next(&mut self) -> anyhow::Result<Message> {
        if let Some(message) = self.unread.pop_front() {
            return Ok(message);
        }
        self.until("a message", |event| match event {
            Event::Incoming(Packet::Publish(_)) => Some(()),
            _ => None,
        })
        .await?;
        self.unread.pop_front().context("a message was just put there")
    }

    /// The next message on this topic; others are dropped.
    ///
    /// # Errors
    /// If the connection ends first.
    pub async fn next_on(&mut self, topic: &str) -> anyhow::Result<Bytes> {
        loop {
            let message = self.next().await?;
            if message.topic == topic {
                return Ok(message.payload);
            }
        }
    }

    /// Says DISCONNECT.
    pub async fn close(mut self) {
        if self.client.disconnect().await.is_ok() {
            // Whatever ends it, it is closed.
            let done = |event: &Event| matches!(event, Event::Outgoing(Outgoing::Disconnect)).then_some(());
            let _ = self.until("the end", done).await;
        }
    }

    /// Waits for the connection's end.
    pub async fn ended(&mut self) -> String {
        self.until("the end", |_| None::<()>).await.unwrap_err().to_string()
    }

    async fn until<T>(
        &mut self,
        what: &str,
        mut found: impl FnMut(&Event) -> Option<T>,
    ) -> anyhow::Result<T> {
        // For the whole wait: pings alone would keep it going for ever.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let Ok(event) = tokio::time::timeout_at(deadline, self.events.poll()).await else {
                bail!("{} waited in vain for {what}", self.who.member);
            };
            let event = event.with_context(|| format!("{} waited for {what}", self.who.member))?;
            if let Event::Incoming(Packet::Publish(publish)) = &event {
                self.unread.push_back(Message {
                    topic: publish.topic.clone(),
                    payload: publish.payload.clone(),
                    user_properties: Vec::new(),
                });
            }
            if let Some(found) = found(&event) {
                return Ok(found);
            }
        }
    }
}
