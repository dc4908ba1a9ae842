//! A network that can be cut, that vanishes, and one that is slow: a TCP relay between a client and a server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Relays to a server until it is told otherwise. Dropped, it is gone.
pub struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
    accept: JoinHandle<()>,
}

/// What a slow network does to the connections that begin after it was told to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Every byte arrives so much later.
    pub delay: Duration,
    /// Bytes per second in each direction, over all connections.
    pub rate: Option<u64>,
    /// Each connection ends after so many bytes in both directions, about: a random number from half to one and a half of it.
    pub cut_every: Option<u64>,
    /// Of the random numbers.
    pub seed: u64,
}

/// What the relay and its connections share.
struct Link {
    control: watch::Sender<Control>,
    up: Way,
    down: Way,
    /// Connections that were cut by their shape.
    cuts: AtomicU64,
    /// Connections so far.
    begun: AtomicU64,
    /// What each connection of a client said, by its number; none: nobody listens in.
    said: std::sync::Mutex<Option<BTreeMap<u64, Vec<u8>>>>,
}

/// One direction.
#[derive(Default)]
struct Way {
    passed: AtomicU64,
    /// When the link has sent what it was given.
    free_at: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy)]
struct Control {
    /// Where connections go; none: they are closed at once.
    target: Option<SocketAddr>,
    /// Connections of an earlier era end.
    era: u64,
    /// Bytes from the client after which its connection is cut, once.
    cut_after: Option<u64>,
    /// Bytes from clients after which the network vanishes, once.
    vanish_after: Option<u64>,
    /// Connections with a lower number pass nothing, and nobody is told.
    vanished: u64,
    shape: Shape,
}

impl Relay {
    /// A relay to that address.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let start = Control {
            target: Some(target),
            era: 0,
            cut_after: None,
            vanish_after: None,
            vanished: 0,
            shape: Shape::default(),
        };
        let link = Arc::new(Link {
            control: watch::Sender::new(start),
            up: Way::default(),
            down: Way::default(),
            cuts: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            said: std::sync::Mutex::default(),
        });
        let shared = Arc::clone(&link);
        let accept = tokio::spawn(async move {
            for connection in 0.. {
                let (client, _) = listener.accept().await.unwrap();
                shared.begun.store(connection + 1, Ordering::Relaxed);
                tokio::spawn(relay(client, Arc::clone(&shared), connection));
            }
        });
        Self { address, link, accept }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that clients sent so far and that were passed on.
    pub fn upward(&self) -> u64 {
        self.link.up.passed.load(Ordering::Relaxed)
    }

    /// Bytes that the server sent so far and that were passed on.
    pub fn downward(&self) -> u64 {
        self.link.down.passed.load(Ordering::Relaxed)
    }

    /// Connections that their [`Shape`] has cut so far.
    pub fn cuts(&self) -> u64 {
        self.link.cuts.load(Ordering::Relaxed)
    }

    /// Connections that clients have begun so far.
    pub fn begun(&self) -> u64 {
        self.link.begun.load(Ordering::Relaxed)
    }

    /// Keeps what clients say from now on, and forgets what they said before.
    pub fn listen_in(&self) {
        *self.link.said.lock().unwrap() = Some(BTreeMap::new());
    }

    /// What each connection said since [`Relay::listen_in`], in order of their beginning.
    pub fn said(&self) -> Vec<Vec<u8>> {
        self.link.said.lock().unwrap().iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Makes it slow, or lossy.
    pub fn shape(&self, shape: Shape) {
        self.link.control.send_modify(|control| control.shape = shape);
    }

    /// Ends every connection and lets none through.
    pub fn cut(&self) {
        self.link.control.send_modify(Control::cut);
    }

    /// Lets connections through again, to that address.
    pub fn mend(&self, target: SocketAddr) {
        self.link.control.send_modify(|control| control.target = Some(target));
    }

    /// Cuts like [`Relay::cut`] when clients have sent so many more bytes.
    pub fn cut_after(&self, bytes: u64) {
        let at = self.upward() + bytes;
        self.link.control.send_modify(|control| control.cut_after = Some(at));
    }

    /// The network is there no more, and nobody is told: connections stay open, new ones too, and no byte passes.
    pub fn vanish(&self) {
        self.link.control.send_modify(|control| control.vanished = u64::MAX);
    }

    /// The same when clients have sent so many more bytes.
    pub fn vanish_after(&self, bytes: u64) {
        let at = self.upward() + bytes;
        self.link.control.send_modify(|control| control.vanish_after = Some(at));
    }

    /// Waits until [`Relay::vanish_after`] has come true.
    pub async fn has_vanished(&self) {
        self.link.control.subscribe().wait_for(|control| control.vanished == u64::MAX).await.unwrap();
    }

    /// Lets bytes of new connections through again. Those that were open never learn what became of them.
    pub fn come_back(&self) {
        let begun = self.link.begun.load(Ordering::Relaxed);
        self.link.control.send_modify(|control| control.vanished = begun);
    }

    /// Waits until [`Relay::cut_after`] has cut.
    pub async fn was_cut(&self) {
        self.link.control.subscribe().wait_for(|control| control.target.is_none()).await.unwrap();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accept.abort();
        self.link.control.send_modify(|control| control.era += 1);
    }
}

impl Control {
    fn cut(&mut self) {
        *self = Self { target: None, era: self.era + 1, cut_after: None, ..*self };
    }
}

impl Way {
    /// Waits until the link has room for so many bytes.
    async fn wait(&self, bytes: u64, rate: Option<u64>) {
        let Some(rate) = rate else { return };
        let mut free_at = self.free_at.lock().await;
        let begin = free_at.unwrap_or_else(Instant::now).max(Instant::now());
        let end = begin + Duration::from_micros(bytes * 1_000_000 / rate);
        *free_at = Some(end);
        drop(free_at);
        tokio::time::sleep_until(end).await;
    }
}

/// What one connection may pass before its shape cuts it.
struct Budget {
    left: AtomicI64,
    spent: Notify,
}

impl Budget {
    fn new(shape: Shape, connection: u64) -> Self {
        let left = shape.cut_every.map_or(i64::MAX, |every| {
            let random = (shape.seed ^ connection).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            i64::try_from(every / 2 + (random >> 11) % every).unwrap()
        });
        Self { left: AtomicI64::new(left), spent: Notify::new() }
    }

    fn spend(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap();
        if self.left.fetch_sub(bytes, Ordering::Relaxed) <= bytes {
            self.spent.notify_one();
        }
    }
}

/// Returns once a connection passes bytes.
async fn there(link: &Link, connection: u64) {
    let mut control = link.control.subscribe();
    // The sender lives as long as the link.
    let _ = control.wait_for(|control| connection >= control.vanished).await;
}

async fn relay(mut client: TcpStream, link: Arc<Link>, connection: u64) {
    let now = *link.control.borrow();
    if connection < now.vanished {
        // It has been accepted, and that is all: it ends with its era.
        let _ = link.control.subscribe().wait_for(|control| control.era != now.era).await;
        return;
    }
    let Some(target) = now.target else { return };
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let budget = Budget::new(now.shape, connection);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = async {
        let mut cut = false;
        pump((from_client, to_server), (&link, connection), &link.up, now.shape, &budget, |before, bytes| {
            let n = bytes.len() as u64;
            if let Some(said) = link.said.lock().unwrap().as_mut() {
                said.entry(connection).or_default().extend(bytes);
            }
            if link.control.borrow().vanish_after.is_some_and(|at| before + n >= at) {
                link.control.send_modify(|control| {
                    (control.vanish_after, control.vanished) = (None, u64::MAX);
                });
            }
            let at = link.control.borrow().cut_after.filter(|at| before + n >= *at);
            cut = at.is_some();
            at.map_or(n, |at| at.saturating_sub(before))
        })
        .await;
        if cut {
            link.control.send_modify(Control::cut);
        }
    };
    let mut ended = link.control.subscribe();
    tokio::select! {
        () = up => {}
        () = pump((from_server, to_client), (&link, connection), &link.down, now.shape, &budget, |_, bytes| bytes.len() as u64) => {}
        _ = ended.wait_for(|control| control.era != now.era) => {}
        () = budget.spent.notified() => {
            link.cuts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Passes bytes on until one side ends. `allow` says how many of some that come after so many others may pass; if not
/// all, they are the last.
async fn pump(
    (mut from, mut to): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    (link, connection): (&Link, u64),
    way: &Way,
    shape: Shape,
    budget: &Budget,
    mut allow: impl FnMut(u64, &[u8]) -> u64,
) {
    // What is under way on the line; where nothing is late, that is next to nothing.
    let (line, mut due) = mpsc::channel(if shape.delay.is_zero() { 1 } else { 1_024 });
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            way.wait(n as u64, shape.rate).await;
            let before = way.passed.fetch_add(n as u64, Ordering::Relaxed);
            let pass = usize::try_from(allow(before, &buffer[..n])).unwrap();
            let piece: Vec<u8> = buffer[..pass].to_vec();
            let taken = line.send((Instant::now() + shape.delay, piece)).await;
            if taken.is_err() || pass < n {
                break;
            }
        }
    };
    let write = async move {
        while let Some((at, bytes)) = due.recv().await {
            if !shape.delay.is_zero() {
                tokio::time::sleep_until(at).await;
            }
            there(link, connection).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
            budget.spend(bytes.len() as u64);
        }
    };
    tokio::join!(read, write);
    // That a side has gone does not get through either.
    there(link, connection).await;
}
