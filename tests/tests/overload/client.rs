//! The client of those who go over a limit.

use std::time::Duration;

use millpond_tests::Server;
use millpond_tests::overload::from;
use millpond_tests::wire::{Who, connect_of, packet, text};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest wait for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const PUBACK: u8 = 0x40;
pub(super) const SUBACK: u8 = 0x90;
pub(super) const CONNACK: u8 = 0x20;
pub(super) const DISCONNECT: u8 = 0xE0;

/// A client of MQTT 5 that comes from where attackers come from.
pub(super) struct Client(pub(super) TcpStream);

impl Client {
    /// Sends CONNECT, with a session that is kept for so many seconds.
    pub(super) async fn open(server: &Server, who: &Who, client_id: &str, expiry_s: u32) -> Self {
        Self::open_from("127.0.0.2", server, who, client_id, expiry_s).await
    }

    pub(super) async fn open_from(
        source: &str,
        server: &Server,
        who: &Who,
        client_id: &str,
        expiry_s: u32,
    ) -> Self {
        let expiry = [&[17][..], &expiry_s.to_be_bytes()].concat();
        Self::open_with(source, server, who, client_id, &expiry).await
    }

    /// The same with properties.
    pub(super) async fn open_with(
        source: &str,
        server: &Server,
        who: &Who,
        client_id: &str,
        properties: &[u8],
    ) -> Self {
        let io = from(source, server.mqtt()).await.unwrap();
        let user = format!("{}/{}", who.pool, who.member);
        let mut client = Self(io);
        client.send(&connect_of(5, 0xC2, properties, &[client_id, &user, &who.token])).await;
        client
    }

    pub(super) async fn sign_in(server: &Server, who: &Who, client_id: &str) -> Self {
        let mut client = Self::open(server, who, client_id, 0).await;
        assert_eq!(client.answer(CONNACK).await, "0x00");
        client
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The code in the next packet of that kind.
    pub(super) async fn answer(&mut self, kind: u8) -> String {
        let next = async {
            loop {
                let (first, body) = self.packet().await;
                let code = match first {
                    PUBACK => body.get(2).copied().unwrap_or(0),
                    SUBACK => body[body.len() - 1],
                    CONNACK => body[1],
                    DISCONNECT => body[0],
                    0 => return "closed".to_owned(),
                    _ => continue,
                };
                return if first == kind {
                    format!("{code:#04x}")
                } else {
                    format!("packet {first:#x} {body:?}")
                };
            }
        };
        timeout(PATIENCE, next).await.unwrap_or_else(|_| "nothing".to_owned())
    }

    pub(super) async fn packet(&mut self) -> (u8, Vec<u8>) {
        // At the end of the connection one that there is not.
        let Ok(first) = self.0.read_u8().await else { return (0, Vec::new()) };
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.unwrap();
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        (first, body)
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> String {
        let mut body = vec![0, 1, 0];
        text(&mut body, filter);
        body.push(1);
        self.send(&packet(0x82, &body)).await;
        self.answer(SUBACK).await
    }

    pub(super) async fn publish(&mut self, topic: &str, properties: &[u8], payload: &[u8]) -> String {
        self.send(&publish(topic, 0, properties, payload)).await;
        self.answer(PUBACK).await
    }

    pub(super) async fn retain(&mut self, topic: &str) -> String {
        let mut bytes = publish(topic, 0, &[], b"x");
        bytes[0] |= 1;
        self.send(&bytes).await;
        self.answer(PUBACK).await
    }

    /// Has these retained, all in one go.
    pub(super) async fn retain_all(&mut self, topics: &[String]) {
        let retained = |(topic, id): (&String, u16)| {
            let mut bytes = publish(topic, id, &[], b"x");
            bytes[0] |= 1;
            bytes
        };
        let all: Vec<u8> = topics.iter().zip(0..).flat_map(retained).collect();
        self.send(&all).await;
        for topic in topics {
            assert_eq!(self.answer(PUBACK).await, "0x00", "{topic}");
        }
    }

    /// Says goodbye, and waits until the server has taken note.
    pub(super) async fn end(mut self) {
        self.send(&[DISCONNECT, 0]).await;
        assert_eq!(timeout(PATIENCE, self.0.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    }
}

/// A QoS 1 PUBLISH of MQTT 5.
pub(super) fn publish(topic: &str, id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend((id + 1).to_be_bytes());
    // A length is coded as in a packet's head.
    body.extend(&packet(0, properties)[1..]);
    body.extend(payload);
    packet(0x32, &body)
}
