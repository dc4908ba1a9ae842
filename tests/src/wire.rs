//! The least of an MQTT 3.1.1 client: packets written by hand, so that the load costs little beside the server.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Whom a connection signs in as.
#[derive(Debug, Clone)]
pub struct Who {
    pub pool: String,
    pub member: String,
    pub token: String,
}

/// The flag of CONNECT.
const CLEAN_SESSION: u8 = 0b10;

/// One signed-in connection.
pub struct Connection {
    pub read: BufReader<OwnedReadHalf>,
    pub write: OwnedWriteHalf,
}

impl Connection {
    /// Signs `member` of pool `p` in; its token is its name.
    pub async fn open(address: SocketAddr, member: &str) -> Result<Self> {
        Self::sign_in(address, member, [&format!("p/{member}"), member]).await
    }

    /// Signs somebody in with a user name and a password.
    pub async fn sign_in(address: SocketAddr, client_id: &str, who: [&str; 2]) -> Result<Self> {
        Self::connect(address, client_id, who, CLEAN_SESSION).await
    }

    /// The same with a session that outlives the connection.
    pub async fn sign_in_for_long(address: SocketAddr, client_id: &str, who: [&str; 2]) -> Result<Self> {
        Self::connect(address, client_id, who, 0).await
    }

    async fn connect(address: SocketAddr, client_id: &str, who: [&str; 2], clean: u8) -> Result<Self> {
        Self::over(TcpStream::connect(address).await?, &connect(client_id, who, clean)).await
    }

    /// Signs in with a clean session, on a connection that is there.
    pub async fn open_as(stream: TcpStream, who: &Who, client_id: &str) -> Result<Self> {
        let user = format!("{}/{}", who.pool, who.member);
        Self::over(stream, &connect(client_id, [&user, &who.token], CLEAN_SESSION)).await
    }

    async fn over(stream: TcpStream, connect: &[u8]) -> Result<Self> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        write.write_all(connect).await?;
        let mut connection = Self { read: BufReader::with_capacity(64 << 10, read), write };
        let (kind, answer) = connection.receive().await?;
        ensure!(kind == 0x20 && answer == [0, 0], "CONNACK {kind:#x} {answer:?}");
        Ok(connection)
    }

    /// The first byte and the body of the next packet.
    pub async fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let kind = self.read.read_u8().await?;
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = self.read.read_u8().await?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            ensure!(shift < 28, "the length does not end");
        }
        let mut body = vec![0; length];
        self.read.read_exact(&mut body).await?;
        Ok((kind, body))
    }

    /// Subscribes at QoS 1.
    pub async fn subscribe(&mut self, filter: &str) -> Result<()> {
        let mut body = vec![0, 1];
        text(&mut body, filter);
        body.push(1);
        self.write.write_all(&packet(0x82, &body)).await?;
        loop {
            let (kind, body) = self.receive().await?;
            match kind & 0xf0 {
                0x90 => {
                    ensure!(body.last() == Some(&1), "{filter} was refused");
                    return Ok(());
                }
                0x30 => {}
                _ => bail!("packet {kind:#x} in place of SUBACK"),
            }
        }
    }
}

/// The CONNECT of `member` of pool `p`; its token is its name.
pub fn connect_member(member: &str) -> Vec<u8> {
    connect(member, [&format!("p/{member}"), member], CLEAN_SESSION)
}

/// The CONNECT of a user name and a password.
pub fn connect_as(client_id: &str, who: [&str; 2]) -> Vec<u8> {
    connect(client_id, who, CLEAN_SESSION)
}

fn connect(client_id: &str, who: [&str; 2], clean: u8) -> Vec<u8> {
    // User name and password.
    connect_of(4, 0b1100_0000 | clean, &[], &[client_id, who[0], who[1]])
}

/// A CONNECT of these parts, without keepalive: protocol level, flags, properties of level 5, and fields of the payload.
pub fn connect_of(level: u8, flags: u8, properties: &[u8], fields: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.extend([level, flags, 0, 0]);
    if level == 5 {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    fields.iter().for_each(|field| text(&mut body, field));
    packet(0x10, &body)
}

/// A QoS 1 PUBLISH.
pub fn publish(id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    text(&mut body, topic);
    body.extend(id.to_be_bytes());
    body.extend(payload);
    packet(0x32, &body)
}

/// The topic and the payload of a received PUBLISH with its packet id, if it has one.
pub fn parse_publish(kind: u8, body: &[u8]) -> Option<(&str, Option<u16>, &[u8])> {
    let length = usize::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?));
    let topic = std::str::from_utf8(body.get(2..2 + length)?).ok()?;
    let rest = body.get(2 + length..)?;
    if kind & 0b110 == 0 {
        return Some((topic, None, rest));
    }
    Some((topic, Some(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), &rest[2..]))
}

/// What a client of MQTT 5 published over a connection of which these are the first bytes: topic and payload, in order.
/// A packet that is not whole is none yet.
pub fn published(mut said: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut published = Vec::new();
    while let Some((kind, rest)) = said.split_first()
        && let Some((length, rest)) = number(rest)
        && let Some((body, next)) = rest.split_at_checked(length)
    {
        said = next;
        let Some((topic, _, rest)) = (kind & 0xf0 == 0x30).then(|| parse_publish(*kind, body)).flatten()
        else {
            continue;
        };
        let (properties, rest) = number(rest).unwrap();
        published.push((topic.to_owned(), rest[properties..].to_vec()));
    }
    published
}

/// A number in seven bits a byte, and what follows it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at(last + 1);
    Some((digits.iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f)), rest))
}

/// A PUBACK.
pub fn puback(id: u16) -> Vec<u8> {
    packet(0x40, &id.to_be_bytes())
}

/// Appends a text with its length.
pub fn text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

/// A packet of that first byte and that body.
pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}
