//! A network that can be cut: a TCP relay between a client and a server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Relays to a server until it is told otherwise. Dropped, it is gone.
pub struct Relay {
    address: SocketAddr,
    control: Arc<watch::Sender<Control>>,
    upward: Arc<AtomicU64>,
    accept: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct Control {
    /// Where connections go; none: they are closed at once.
    target: Option<SocketAddr>,
    /// Connections of an earlier era end.
    era: u64,
    /// Bytes from the client after which its connection is cut, once.
    cut_after: Option<u64>,
}

impl Relay {
    /// A relay to that address.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let start = Control { target: Some(target), era: 0, cut_after: None };
        let control = Arc::new(watch::Sender::new(start));
        let watched = Arc::clone(&control);
        let upward = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&upward);
        let accept = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(relay(client, Arc::clone(&watched), Arc::clone(&counted)));
            }
        });
        Self { address, control, upward, accept }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that clients sent so far and that were passed on.
    pub fn upward(&self) -> u64 {
        self.upward.load(Ordering::Relaxed)
    }

    /// Ends every connection and lets none through.
    pub fn cut(&self) {
        self.control.send_modify(Control::cut);
    }

    /// Lets connections through again, to that address.
    pub fn mend(&self, target: SocketAddr) {
        self.control.send_modify(|control| control.target = Some(target));
    }

    /// Cuts like [`Relay::cut`] when clients have sent so many more bytes.
    pub fn cut_after(&self, bytes: u64) {
        let at = self.upward() + bytes;
        self.control.send_modify(|control| control.cut_after = Some(at));
    }

    /// Waits until [`Relay::cut_after`] has cut.
    pub async fn was_cut(&self) {
        self.control.subscribe().wait_for(|control| control.target.is_none()).await.unwrap();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accept.abort();
        self.control.send_modify(|control| control.era += 1);
    }
}

impl Control {
    fn cut(&mut self) {
        *self = Self { target: None, era: self.era + 1, cut_after: None };
    }
}

async fn relay(mut client: TcpStream, control: Arc<watch::Sender<Control>>, upward: Arc<AtomicU64>) {
    let now = *control.borrow();
    let Some(target) = now.target else { return };
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
            let before = upward.fetch_add(n as u64, Ordering::Relaxed);
            let cut = control.borrow().cut_after.filter(|at| before + n as u64 >= *at);
            let pass = cut.map_or(n, |at| usize::try_from(at.saturating_sub(before)).unwrap());
            let passed = to_server.write_all(&buffer[..pass]).await;
            if cut.is_some() {
                control.send_modify(Control::cut);
            }
            if passed.is_err() || cut.is_some() {
                break;
            }
        }
    };
    let down = async {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    };
    let mut ended = control.subscribe();
    tokio::select! {
        () = up => {}
        () = down => {}
        _ = ended.wait_for(|control| control.era != now.era) => {}
    }
}
