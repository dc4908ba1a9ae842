//! A gate on a free port, the other side of its seam in memory, and a client that sends exactly the bytes it is told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use millpond_broker::{
    Backend, Gate, GateConfig, GateError, GateHandle, Incoming, ReceiptRow, RefusedPublish, SignIn,
    SignInError, StateMessage,
};
use millpond_protocol::{Principal, Refusal, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

/// Both versions of the protocol.
pub const LEVELS: [u8; 2] = [4, 5];
/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);

/// What the backend was given.
#[derive(Debug, Clone)]
pub struct Taken {
    pub from: String,
    pub message: Incoming,
}

/// How the backend answers to a topic's last level.
#[derive(Debug, Clone)]
pub enum Verdict {
    Refuse(Refusal),
    /// Answers when [`Memory::decide`] is called.
    Wait,
}

/// The coordinator's side of the seam, in memory. Members are `{role}` or `{role}-…`; the token of each is `secret`.
#[derive(Debug, Default)]
pub struct Memory {
    pub taken: Mutex<Vec<Taken>>,
    pub refused: Mutex<Vec<RefusedPublish>>,
    pub verdicts: Mutex<HashMap<String, Verdict>>,
    pub waiting: Mutex<HashMap<String, oneshot::Sender<Result<(), Refusal>>>>,
    pub states: Mutex<Vec<StateMessage>>,
    pub receipts: Mutex<Vec<ReceiptRow>>,
    pub cursor: Mutex<i64>,
    pub sign_in: Mutex<Option<SignInError>>,
    held: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
    pub changed: Notify,
}

impl Memory {
    pub fn decide(&self, id: &str, outcome: Result<(), Refusal>) {
        self.waiting.lock().unwrap().remove(id).unwrap().send(outcome).unwrap();
    }

    pub fn taken_ids(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|taken| id_of(&taken.message)).collect()
    }

    /// Holds the next sign-in after its check: when that is reached, and how it goes on.
    pub fn hold_sign_in(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (reached, wait) = oneshot::channel();
        let (go_on, gone_on) = oneshot::channel();
        *self.held.lock().unwrap() = Some((reached, gone_on));
        (wait, go_on)
    }

    /// Waits until `done` holds.
    pub async fn until(&self, done: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(SOON, wait).await.expect("the backend is never told");
    }
}

pub fn id_of(message: &Incoming) -> String {
    use millpond_protocol::topic::Inbound;
    match &message.to {
        Inbound::Up { upload, .. } => upload.to_string(),
        Inbound::Bundle { id } => id.to_string(),
        Inbound::Ask(op) => op.to_string(),
        Inbound::Result { round, attempt } => format!("{round}/{attempt}"),
        Inbound::Delivery { version } => version.to_string(),
    }
}

#[async_trait]
impl Backend for Memory {
    async fn sign_in(&self, attempt: SignIn) -> Result<Principal, SignInError> {
        if let Some(error) = *self.sign_in.lock().unwrap() {
            return Err(error);
        }
        let held = self.held.lock().unwrap().take();
        if let Some((reached, go_on)) = held {
            reached.send(()).unwrap();
            go_on.await.unwrap();
        }
        let role = attempt.member.as_str().split('-').next().unwrap().parse::<Role>();
        match role {
            Ok(role) if &attempt.token[..] == b"secret" => {
                Ok(Principal { pool: attempt.pool, name: attempt.member, role, id: 1 })
            }
            _ => Err(SignInError::BadCredentials),
        }
    }

    fn take(&self, from: &Principal, message: Incoming) -> BoxFuture<'static, Result<(), Refusal>> {
        let id = id_of(&message);
        self.taken.lock().unwrap().push(Taken { from: from.name.to_string(), message });
        let verdict = self.verdicts.lock().unwrap().get(&id).cloned();
        let answer = match verdict {
            None => std::future::ready(Ok(())).boxed(),
            Some(Verdict::Refuse(refusal)) => std::future::ready(Err(refusal)).boxed(),
            Some(Verdict::Wait) => {
                let (decide, decided) = oneshot::channel();
                self.waiting.lock().unwrap().insert(id, decide);
                async move { decided.await.unwrap() }.boxed()
            }
        };
        self.changed.notify_waiters();
        answer
    }

    fn refused(&self, _from: &Principal, refused: RefusedPublish) {
        self.refused.lock().unwrap().push(refused);
        self.changed.notify_waiters();
    }

    async fn states(&self, _who: &Principal, topics: &[String]) -> Result<Vec<StateMessage>, Refusal> {
        let states = self.states.lock().unwrap();
        Ok(states.iter().filter(|state| topics.contains(&state.topic)).cloned().collect())
    }

    async fn receipt_cursor(&self, _who: &Principal) -> Result<i64, Refusal> {
        Ok(*self.cursor.lock().unwrap())
    }

    async fn receipts(&self, _who: &Principal, after: i64, max: usize) -> Result<Vec<ReceiptRow>, Refusal> {
        let receipts = self.receipts.lock().unwrap();
        Ok(receipts.iter().filter(|row| row.seq > after).take(max).cloned().collect())
    }

    fn receipts_acknowledged(&self, _who: &Principal, seq: i64) {
        let mut cursor = self.cursor.lock().unwrap();
        *cursor = seq.max(*cursor);
        drop(cursor);
        self.changed.notify_waiters();
    }
}

/// A running gate.
pub struct Server {
    pub addr: SocketAddr,
    pub backend: Arc<Memory>,
    pub handle: GateHandle,
    pub shutdown: CancellationToken,
    pub ended: tokio::task::JoinHandle<Result<(), GateError>>,
}

pub async fn server() -> Server {
    server_with(GateConfig::default()).await
}

pub async fn server_with(config: GateConfig) -> Server {
    let backend = Arc::new(Memory::default());
    let handle = GateHandle::new();
    let gate = Gate::start(config, handle.clone(), backend.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let ended = tokio::spawn(async move { gate.serve(listener, stop).await });
    Server { addr, backend, handle, shutdown, ended }
}

impl Server {
    /// A raw connection that has said nothing.
    pub async fn raw(&self) -> Raw {
        Raw { io: TcpStream::connect(self.addr).await.unwrap(), level: 0 }
    }

    /// A raw connection of `member` in pool `p`, signed in, with that client id.
    pub async fn client_as(&self, level: u8, member: &str, client_id: &str) -> Raw {
        let mut raw = self.raw().await;
        raw.level = level;
        raw.send(&connect(level, client_id, &format!("p/{member}"), &[])).await;
        let (first, body) = raw.packet().await;
        assert_eq!((first, body[0], body[1]), (0x20, 0, 0), "CONNACK {body:?}");
        raw
    }

    pub async fn client(&self, level: u8, member: &str) -> Raw {
        self.client_as(level, member, member).await
    }
}

/// A client that is a socket.
pub struct Raw {
    pub io: TcpStream,
    pub level: u8,
}

impl Raw {
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

pub fn state(topic: &str, rank: u64, payload: &str) -> StateMessage {
    StateMessage {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        rank,
        user_properties: Vec::new(),
        content_type: None,
    }
}

pub fn receipt(seq: i64) -> ReceiptRow {
    ReceiptRow { seq, payload: Bytes::from(format!("receipt {seq}")) }
}
