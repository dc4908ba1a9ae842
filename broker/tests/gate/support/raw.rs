//! A client that sends exactly the bytes it is told.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::SOON;

/// A client that is a socket.
pub struct Raw {
    pub io: TcpStream,
    pub level: u8,
}

impl Raw {
    /// Signs in as that member of pool `p`.
    pub async fn sign_in(mut self, level: u8, member: &str, client_id: &str) -> Self {
        self.level = level;
        self.send(&connect(level, client_id, &format!("p/{member}"), &[])).await;
        let (first, body) = self.packet().await;
        assert_eq!((first, body[0], body[1]), (0x20, 0, 0), "CONNACK {body:?}");
        self
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next packet: first byte, and what follows the fixed header.
    pub async fn packet(&mut self) -> (u8, Vec<u8>) {
        self.packet_or_end().await.expect("the connection ended")
    }

    /// The next packet, or `None` at the end of the connection.
    pub async fn packet_or_end(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.io.read_u8().await.ok()?;
            let (mut len, mut shift) = (0, 0);
            loop {
                let byte = self.io.read_u8().await.ok()?;
                len |= usize::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; len];
            self.io.read_exact(&mut body).await.ok()?;
            Some((first, body))
        };
        tokio::time::timeout(SOON, read).await.expect("nothing comes")
    }

    /// The reason code of the DISCONNECT that ends the connection; 0 where it just ends.
    pub async fn end(&mut self) -> u8 {
        let mut code = 0;
        while let Some((first, body)) = self.packet_or_end().await {
            if first == 0xE0 {
                code = body[0];
            }
        }
        code
    }

    pub async fn publish(&mut self, qos: u8, id: u16, topic: &str, payload: &[u8]) {
        let bytes = publish(self.level, qos, id, topic, &[], payload);
        self.send(&bytes).await;
    }

    /// Subscribes at QoS `qos` and returns the code.
    pub async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        let bytes = subscribe(self.level, 9, &[(filter, qos)]);
        self.send(&bytes).await;
        let (first, body) = self.packet().await;
        assert_eq!((first, &body[..2]), (0x90, &[0, 9][..]));
        *body.last().unwrap()
    }

    /// The next PUBLISH; acknowledged if it asks for it.
    pub async fn message(&mut self) -> Message {
        let (first, body) = self.packet().await;
        assert_eq!(first >> 4, 3, "packet {first:#x} {body:?}");
        let message = Message::parse(self.level, first, &body);
        if let Some(id) = message.id {
            self.send(&[0x40, 2, (id >> 8) as u8, id as u8]).await;
        }
        message
    }

    /// Makes a round trip, after which everything sent before has been read.
    pub async fn ping(&mut self) {
        self.send(&[0xC0, 0]).await;
        assert_eq!(self.packet().await, (0xD0, vec![]));
    }
}

/// A PUBLISH that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub id: Option<u16>,
    pub retain: bool,
    pub properties: Vec<u8>,
}

impl Message {
    pub fn parse(level: u8, first: u8, body: &[u8]) -> Self {
        let topic_len = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let mut at = 2 + topic_len;
        let mut id = None;
        if first & 6 != 0 {
            id = Some(u16::from_be_bytes([body[at], body[at + 1]]));
            at += 2;
        }
        let mut properties = Vec::new();
        if level == 5 {
            let len = usize::from(body[at]);
            properties = body[at + 1..at + 1 + len].to_vec();
            at += 1 + len;
        }
        Self {
            topic: String::from_utf8(body[2..2 + topic_len].to_vec()).unwrap(),
            payload: body[at..].to_vec(),
            id,
            retain: first & 1 == 1,
            properties,
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u16).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut len = body.len();
    loop {
        let byte = (len & 0x7F) as u8;
        len >>= 7;
        bytes.push(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

/// CONNECT with a clean session and the token `secret`. `properties` are of MQTT 5.
pub fn connect(level: u8, client_id: &str, user: &str, properties: &[u8]) -> Vec<u8> {
    connect_with(level, 0xC2, 0, client_id, properties, &[text(user), text("secret")].concat())
}

pub fn connect_with(
    level: u8,
    flags: u8,
    keep_alive: u16,
    client_id: &str,
    properties: &[u8],
    rest: &[u8],
) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([level, flags]);
    body.extend(keep_alive.to_be_bytes());
    if level >= 5 {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend(text(client_id));
    body.extend(rest);
    packet(0x10, &body)
}

pub fn publish(level: u8, qos: u8, id: u16, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend(id.to_be_bytes());
    }
    if level == 5 {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend(payload);
    packet(0x30 | qos << 1, &body)
}

pub fn subscribe(level: u8, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if level == 5 {
        body.push(0);
    }
    for (filter, options) in filters {
        body.extend(text(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}
