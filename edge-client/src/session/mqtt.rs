//! rumqttc, and nothing else names it. One value is one connection that is never resumed: what was not acknowledged when
//! it ends is the caller's to send again, because only the caller knows whether that is wanted.
//!
//! What its behaviour imposes: incoming packets are limited to 10 KB unless told otherwise; its table of publishes in flight has
//! as many slots as may ever be in flight (65,535 by default, which are 15 MB); packet ids are given out when a packet is
//! written, so publishes are matched with them in order; `poll` loses what it was writing if it is dropped half-way. Its pings
//! go out every so often, whatever else does, and it ends a connection on which one was not answered by the next: behind a long
//! message on a slow line that is not possible. So it is kept from doing that, and [`Wire::next`] says when the server is gone.

use std::time::Duration;

use bytes::Bytes;
use millpond_protocol::{Code, Refusal, limits};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, DisconnectReasonCode, Filter, Packet, PubAckReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{Outgoing, TlsConfiguration, Transport};

use super::address::Scheme;
use super::book::{Refused, Verdict};
use super::tls::Trust;
use super::{Cause, Config, Message, Shared};

/// Publishes in flight: what the gate takes from one connection before it stops reading.
const IN_FLIGHT: u16 = 64;
/// Requests handed over and not yet written: as many acknowledgements as there are messages that are not acknowledged, so that
/// whoever acknowledges them all need not wait in between.
const REQUESTS: usize = limits::IN_FLIGHT_OUT;
/// The shortest keep-alive that it takes.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// How long connecting may take, TCP and CONNACK together.
const CONNECT_S: u64 = 15;

/// The sending half of a connection.
#[derive(Clone)]
pub(super) struct Pipe(AsyncClient);

/// The other half; nothing moves unless it is polled.
pub(super) struct Wire {
    events: EventLoop,
    address: String,
}

/// What goes beside a payload.
#[derive(Debug, Clone, Default)]
pub(super) struct Beside {
    pub(super) user_properties: Vec<(String, String)>,
    pub(super) content_type: Option<String>,
    pub(super) response: Option<(String, Bytes)>,
}

/// What happened on a connection.
pub(super) enum Happening {
    Connected,
    /// The oldest publish that was handed over got this packet id.
    Published(u16),
    /// A publish is acknowledged: taken, or refused with this code.
    Acknowledged(u16, Verdict),
    /// The answer to the only subscription: the index of a filter that was refused, if any.
    Granted(Option<usize>),
    Message(Message, Token),
}

/// Acknowledges one message.
pub(super) struct Token(Box<Publish>);

/// The connection has ended.
#[derive(Debug)]
pub(super) struct Closed;

/// Why a connection has ended.
pub(super) struct Ended {
    pub(super) cause: Cause,
    /// What the server refused for now, if it ended it because of that.
    pub(super) later: Option<Refusal>,
}

impl From<Cause> for Ended {
    fn from(cause: Cause) -> Self {
        Self { cause, later: None }
    }
}

/// Prepares a connection; the first poll opens it.
pub(super) fn open(config: &Config) -> Result<(Pipe, Wire), Cause> {
    let address = &config.address;
    let mut options = match address.scheme {
        Scheme::Mqtt | Scheme::Mqtts => MqttOptions::new(&config.client_id, &address.host, address.port),
        // It wants the URL in the host's place.
        Scheme::Ws | Scheme::Wss => MqttOptions::new(&config.client_id, address.to_string(), address.port),
    };
    let tls = || trust(config).map(|trust| TlsConfiguration::Rustls(trust.config()));
    options.set_transport(match address.scheme {
        Scheme::Mqtt => Transport::tcp(),
        Scheme::Ws => Transport::ws(),
        Scheme::Mqtts => Transport::tls_with_config(tls()?),
        Scheme::Wss => Transport::wss_with_config(tls()?),
    });
    if let Some(token) = &config.token {
        options.set_credentials(format!("{}/{}", config.pool, config.member), token.reveal());
    }
    let largest = u32::try_from(limits::BUNDLE_MAX + limits::PACKET_OVERHEAD).ok();
    options
        .set_clean_start(true)
        .set_keep_alive(config.keep_alive.max(KEEP_ALIVE_MIN))
        .set_connection_timeout(CONNECT_S)
        .set_outgoing_inflight_upper_limit(IN_FLIGHT)
        .set_manual_acks(true)
        .set_max_packet_size(largest);
    let (client, events) = AsyncClient::new(options, REQUESTS);
    Ok((Pipe(client), Wire { events, address: address.to_string() }))
}

fn trust(config: &Config) -> Result<Trust, Cause> {
    let public = || Trust::new(None, None).map_err(Cause::Lost);
    config.trust.clone().map_or_else(public, Ok)
}

impl Pipe {
    pub(super) async fn publish(&self, topic: &str, payload: Bytes, beside: Beside) -> Result<(), Closed> {
        let (response_topic, correlation_data) = beside.response.unzip();
        let properties = PublishProperties {
            user_properties: beside.user_properties,
            content_type: beside.content_type,
            response_topic,
            correlation_data,
            ..PublishProperties::default()
        };
        let handed_over = self.0.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties);
        handed_over.await.map_err(|_| Closed)
    }

    /// Subscribes at QoS 1 to all of them; once a connection.
    pub(super) fn subscribe(&self, filters: &[String]) -> Result<(), Closed> {
        let filters = filters.iter().map(|filter| Filter::new(filter, QoS::AtLeastOnce));
        self.0.try_subscribe_many(filters).map_err(|_| Closed)
    }

    pub(super) async fn acknowledge(&self, token: Token) {
        // If the connection has ended, the message comes again on the next one.
        let _ = self.0.ack(&token.0).await;
    }

    pub(super) async fn disconnect(&self) {
        let _ = self.0.disconnect().await;
    }
}

impl Wire {
    /// What happens next. Must not be dropped before it returns unless the connection is given up.
    pub(super) async fn next(&mut self, shared: &Shared) -> Result<Happening, Ended> {
        loop {
            let event = self.event(shared).await?;
            let happening = match event {
                Event::Incoming(Packet::ConnAck(_)) => Happening::Connected,
                Event::Outgoing(Outgoing::Publish(id)) => Happening::Published(id),
                Event::Incoming(Packet::PubAck(ack)) => {
                    Happening::Acknowledged(ack.pkid, verdict(ack.reason))
                }
                Event::Incoming(Packet::SubAck(ack)) => {
                    let refused =
                        |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
                    Happening::Granted(ack.return_codes.iter().position(refused))
                }
                Event::Incoming(Packet::Publish(publish)) => message(publish),
                Event::Outgoing(Outgoing::Disconnect) => return Err(Cause::Closed.into()),
                Event::Incoming(_) | Event::Outgoing(_) => continue,
            };
            return Ok(happening);
        }
    }

    /// The next event. The connection has ended if the server says nothing for one and a half keep-alives, in which it
    /// has to answer a ping, beside the time that what is on its way to it takes, and what may be on its way here: bytes that
    /// are no whole packet yet are not seen.
    async fn event(&mut self, shared: &Shared) -> Result<Event, Ended> {
        let silence = self.events.options.keep_alive() * 3 / 2;
        let polled = {
            let poll = self.events.poll();
            tokio::pin!(poll);
            loop {
                let until = shared.book().silent_until(silence);
                match tokio::time::timeout_at(until, &mut poll).await {
                    Ok(polled) => break polled,
                    // Something was handed over, or asked for, meanwhile.
                    Err(_) if shared.book().silent_until(silence) > until => {}
                    Err(_) => {
                        let address = &self.address;
                        return Err(Cause::Lost(format!("{address}: silent for {silence:?}")).into());
                    }
                }
            }
        };
        self.events.state.await_pingresp = false;
        let event = polled.map_err(|error| ended(error, &self.address))?;
        if matches!(event, Event::Incoming(_)) {
            shared.book().heard();
        }
        Ok(event)
    }
}

fn message(publish: Publish) -> Happening {
    let properties = publish.properties.clone().unwrap_or_default();
    let message = Message {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload.clone(),
        user_properties: properties.user_properties,
        correlation: properties.correlation_data,
    };
    Happening::Message(message, Token(Box::new(publish)))
}

/// The reason codes that the protocol's table uses; the others have no meaning here beyond refusal.
fn verdict(reason: PubAckReason) -> Verdict {
    Err(Refused::Code(match reason {
        PubAckReason::Success | PubAckReason::NoMatchingSubscribers => return Ok(()),
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    }))
}

fn ended(error: ConnectionError, address: &str) -> Ended {
    let later = match &error {
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            later(*reason_code, reason_string.as_deref())
        }
        _ => None,
    };
    Ended { cause: cause(error, address), later }
}

/// What a server says that closes the connection because it does not take a message now. When it will is not among it.
fn later(reason: DisconnectReasonCode, why: Option<&str>) -> Option<Refusal> {
    let (code, else_why) = match reason {
        DisconnectReasonCode::QuotaExceeded => (Code::Quota, "more than the server takes now"),
        DisconnectReasonCode::ServerBusy => (Code::Unavailable, "the server cannot take it now"),
        _ => return None,
    };
    Some(Refusal::new(code, why.unwrap_or(else_why)))
}

/// `address`: of the server, which what the network says does not name.
fn cause(error: ConnectionError, address: &str) -> Cause {
    use ConnectReturnCode as Code;
    match error {
        ConnectionError::ConnectionRefused(
            code @ (Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod),
        ) => Cause::Refused(format!("the server refuses these credentials ({code:?})")),
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            let why = reason_string
                .map_or_else(|| format!("{reason_code:?}"), |why| format!("{reason_code:?}, {why}"));
            Cause::Lost(format!("{address}: the server closed the connection: {why}"))
        }
        error => Cause::Lost(format!("{address}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::super::{SessionError, Token};
    use super::*;

    #[tokio::test]
    async fn an_address_at_which_nobody_listens_is_named() {
        // It holds the port, and nobody listens.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        let (pool, member) = ("p".parse().unwrap(), "m".parse().unwrap());
        let config = Config::new("127.0.0.1", port, pool, member, Token::new("x"));
        let (_pipe, mut wire) = open(&config).unwrap();
        let shared = Shared::default();
        shared.book().heard();
        let ended = wire.next(&shared).await.err().unwrap();
        let said = SessionError::Offline(ended.cause).to_string();
        assert!(said.contains(&format!("mqtt://127.0.0.1:{port}: ")) && said.contains("refused"), "{said}");
    }
}
