//! The same gate with a client library that nobody here wrote, in both versions.

use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::{ConnectProperties, PubAckReason, PublishProperties, SubscribeReasonCode};
use rumqttc::{Event, Packet, QoS, v5};

use crate::support::{SOON, Server, server, state};

fn options(server: &Server, member: &str) -> rumqttc::MqttOptions {
    let mut options = rumqttc::MqttOptions::new(member, server.addr.ip().to_string(), server.addr.port());
    options.set_credentials(format!("p/{member}"), "secret").set_keep_alive(Duration::from_secs(5));
    options.set_max_packet_size(4 << 20, 4 << 20);
    options
}

fn options_5(server: &Server, member: &str) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(member, server.addr.ip().to_string(), server.addr.port());
    options.set_credentials(format!("p/{member}"), "secret").set_keep_alive(Duration::from_secs(5));
    options
}

/// Polls until a packet is what the test waits for.
async fn wait<T>(events: &mut rumqttc::EventLoop, mut found: impl FnMut(&Packet) -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.unwrap()
                && let Some(found) = found(&packet)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("nothing comes")
}

async fn wait_5<T>(events: &mut v5::EventLoop, mut found: impl FnMut(&v5::Incoming) -> Option<T>) -> T {
    let wait = async {
        loop {
            if let v5::Event::Incoming(packet) = events.poll().await.unwrap()
                && let Some(found) = found(&packet)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("nothing comes")
}

#[tokio::test]
async fn a_3_1_1_client_publishes_at_every_qos_and_hears_of_results() {
    let server = server().await;
    server.backend.states.lock().unwrap().push(state("mp/p/result", 1, "one"));
    let (client, mut events) = rumqttc::AsyncClient::new(options(&server, "publisher"), 10);
    client.subscribe("mp/p/result/#", QoS::AtLeastOnce).await.unwrap();
    let publish = |packet: &Packet| match packet {
        Packet::Publish(publish) => Some((publish.topic.clone(), publish.payload.clone(), publish.retain)),
        _ => None,
    };
    assert_eq!(wait(&mut events, publish).await, ("mp/p/result".into(), "one".into(), true));
    for (qos, id) in [(QoS::AtMostOnce, "u0"), (QoS::AtLeastOnce, "u1"), (QoS::ExactlyOnce, "u2")] {
        client.publish(format!("mp/p/c/publisher/up/{id}"), qos, false, vec![7; 300_000]).await.unwrap();
    }
    wait(&mut events, |packet| matches!(packet, Packet::PubComp(_)).then_some(())).await;
    assert_eq!(server.backend.taken_ids(), ["u0", "u1", "u2"]);
    server.handle.publish_state(state("mp/p/result", 2, "two"));
    assert_eq!(wait(&mut events, publish).await, ("mp/p/result".into(), "two".into(), false));
}

#[tokio::test]
async fn a_5_client_sees_reason_codes_and_properties() {
    let server = server().await;
    let mut first = state("mp/p/result", 1, "one");
    first.user_properties.push(("version".into(), "1".into()));
    first.content_type = Some("application/json".into());
    server.backend.states.lock().unwrap().push(first);
    let mut options = options_5(&server, "publisher");
    let mut properties = ConnectProperties::new();
    properties.receive_maximum = Some(3);
    options.set_connect_properties(properties);
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    let max = wait_5(&mut events, |packet| match packet {
        v5::Incoming::ConnAck(ack) => ack.properties.clone().map(|properties| properties.receive_max),
        _ => None,
    });
    assert_eq!(max.await, Some(64));

    client.subscribe("mp/p/result", v5::mqttbytes::QoS::ExactlyOnce).await.unwrap();
    client.subscribe("mp/p/offer", v5::mqttbytes::QoS::AtMostOnce).await.unwrap();
    let mut codes = Vec::new();
    let publish = wait_5(&mut events, |packet| match packet {
        v5::Incoming::SubAck(ack) => {
            codes.extend(ack.return_codes.clone());
            None
        }
        v5::Incoming::Publish(publish) => Some(publish.clone()),
        _ => None,
    });
    let publish = publish.await;
    assert_eq!(publish.payload, "one");
    let properties = publish.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.user_properties, [("version".to_owned(), "1".to_owned())]);

    let ask = PublishProperties {
        response_topic: Some("mp/p/d/listener/x".to_owned()),
        correlation_data: Some("c".into()),
        ..PublishProperties::default()
    };
    let topic = "mp/p/c/publisher/ask/status";
    client.publish_with_properties(topic, v5::mqttbytes::QoS::AtLeastOnce, false, "{}", ask).await.unwrap();
    let reason = wait_5(&mut events, |packet| match packet {
        v5::Incoming::SubAck(ack) => {
            codes.extend(ack.return_codes.clone());
            None
        }
        v5::Incoming::PubAck(ack) => Some(ack.reason),
        _ => None,
    });
    assert_eq!(reason.await, PubAckReason::NotAuthorized);
    assert_eq!(
        codes,
        [SubscribeReasonCode::Success(v5::mqttbytes::QoS::AtLeastOnce), SubscribeReasonCode::NotAuthorized]
    );
}

#[tokio::test]
async fn a_thousand_publishes_in_a_window_of_twenty_are_all_acknowledged_in_order() {
    let server = server().await;
    let mut options = options(&server, "publisher");
    options.set_inflight(20);
    let (client, mut events) = rumqttc::AsyncClient::new(options, 100);
    let sender = tokio::spawn(async move {
        for n in 0..1_000 {
            let topic = format!("mp/p/c/publisher/up/u{n}");
            client.publish(topic, QoS::AtLeastOnce, false, vec![0; 1_024]).await.unwrap();
        }
        client
    });
    for _ in 0..1_000 {
        wait(&mut events, |packet| matches!(packet, Packet::PubAck(_)).then_some(())).await;
    }
    let _client = sender.await.unwrap();
    let expected: Vec<String> = (0..1_000).map(|n| format!("u{n}")).collect();
    assert_eq!(server.backend.taken_ids(), expected);
}
