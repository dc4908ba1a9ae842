//! From an accepted socket to a stream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::moving::Moving;
use crate::{Stream, Tls};

/// What every connection to a listener passes first.
#[derive(Clone, Default)]
pub struct Door(Option<Lock>);

#[derive(Clone)]
struct Lock {
    of: &'static str,
    tls: Tls,
    time: Duration,
}

impl Door {
    /// An open door: the connection is what it is.
    pub fn plain() -> Self {
        Self(None)
    }

    /// A TLS handshake, which may take `time`; `of` is the listener's name in metrics.
    pub fn tls(of: &'static str, tls: Tls, time: Duration) -> Self {
        Self(Some(Lock { of, tls, time }))
    }
}

/// A TCP listener and its door.
pub struct Listener {
    tcp: TcpListener,
    door: Door,
}

impl Listener {
    /// A listener behind that door.
    pub fn new(tcp: TcpListener, door: Door) -> Self {
        Self { tcp, door }
    }

    /// Waits for the next connection; what it has to pass is left to [`Arrival::enter`]. Safe to cancel.
    ///
    /// # Errors
    /// Want of descriptors or memory, mostly: others may close some meanwhile.
    pub async fn accept(&self) -> io::Result<Arrival> {
        let (socket, from) = self.tcp.accept().await?;
        Ok(Arrival { socket, from, door: self.door.clone() })
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self::new(tcp, Door::plain())
    }
}

/// A connection that stands at the door.
pub struct Arrival {
    socket: TcpStream,
    from: SocketAddr,
    door: Door,
}

impl Arrival {
    /// Where it comes from.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The socket, for its options.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Passes the door. `None`: it did not open in time, or the other side is not what it is for; it has been told where
    /// TLS has words for that. Writes on the stream may stand still for `stall`.
    pub async fn enter(self, stall: Duration) -> Option<Stream> {
        let io = Moving::new(self.socket, stall);
        let Some(Lock { of, tls, time }) = self.door.0 else { return Some(Stream::plain(io)) };
        let handshake = TlsAcceptor::from(tls.current()).accept(io);
        let (outcome, stream) = match tokio::time::timeout(time, handshake).await {
            Ok(Ok(stream)) => ("done", Some(Stream::tls(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%error, of, client.address = %self.from, "a TLS handshake failed");
                ("failed", None)
            }
            Err(_) => ("late", None),
        };
        metrics::counter!("millpond_tls_handshakes_total", "listener" => of, "outcome" => outcome)
            .increment(1);
        stream
    }
}
