//! From an accepted socket to a stream.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::Error as TlsError;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::moving::Moving;
use crate::{Certified, Standing, Stream, Tls};

/// How long a connection may be silent until its peer is asked whether it is still there, how often it is asked, and
/// how many times without an answer.
const ALIVE_AFTER: Duration = Duration::from_secs(60);
const ALIVE_EVERY: Duration = Duration::from_secs(10);
const ALIVE_TRIES: u32 = 3;

/// What every connection to a listener passes first.
#[derive(Clone, Default)]
pub struct Door(Option<Lock>);

#[derive(Clone)]
struct Lock {
    of: &'static str,
    tls: Tls,
    time: Duration,
    /// Whether members may show a certificate.
    asks: bool,
}

impl Door {
    /// An open door: the connection is what it is.
    pub fn plain() -> Self {
        Self(None)
    }

    /// A TLS handshake, which may take `time`; `of` is the listener's name in metrics.
    pub fn tls(of: &'static str, tls: Tls, time: Duration) -> Self {
        Self(Some(Lock { of, tls, time, asks: false }))
    }

    /// The same, and members may show a certificate.
    pub fn members(of: &'static str, tls: Tls, time: Duration) -> Self {
        Self(Some(Lock { of, tls, time, asks: true }))
    }
}

/// Where connections come from: a TCP listener and its door, or a program that hands over what came to it.
pub struct Listener(Source);

enum Source {
    Tcp(TcpListener, Door),
    Handed(mpsc::Receiver<Arrival>),
}

impl Listener {
    /// A listener behind that door.
    pub fn new(tcp: TcpListener, door: Door) -> Self {
        Self(Source::Tcp(tcp, door))
    }

    /// A listener for streams that are handed over, of which so many wait.
    pub fn handed(waiting_max: usize) -> (Handover, Self) {
        let (give, take) = mpsc::channel(waiting_max);
        (Handover(give), Self(Source::Handed(take)))
    }

    /// Waits for the next connection; what it has to pass is left to [`Arrival::enter`]. Safe to cancel.
    ///
    /// # Errors
    /// Want of descriptors or memory, mostly: others may close some meanwhile.
    pub async fn accept(&mut self) -> io::Result<Arrival> {
        match &mut self.0 {
            Source::Tcp(tcp, door) => {
                let (socket, from) = tcp.accept().await?;
                Ok(Arrival { came: Came::Socket(socket, door.clone()), from })
            }
            Source::Handed(take) => match take.recv().await {
                Some(arrival) => Ok(arrival),
                // Nobody is left to hand anything over.
                None => std::future::pending().await,
            },
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self::new(tcp, Door::plain())
    }
}

/// The other end of [`Listener::handed`].
#[derive(Clone)]
pub struct Handover(mpsc::Sender<Arrival>);

impl Handover {
    /// Hands a stream over; without a place it is closed, as a listener's backlog would.
    pub fn pass(&self, io: Stream, from: SocketAddr) {
        let _ = self.0.try_send(Arrival { came: Came::Stream(io), from });
    }
}

/// A connection that has passed the door.
pub struct Entered {
    pub stream: Stream,
    pub shown: Shown,
    /// Of a certificate that was shown.
    pub standing: Option<Standing>,
}

/// What a client showed of itself at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    Nothing,
    /// A certificate by which no member signs in: it names none of a pool whose authority signed it, or was revoked.
    Nobody,
    /// The good certificate of a member.
    Member(Certified),
}

/// Why a connection did not pass the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// It showed a certificate that no authority of members signed, or that does not hold now.
    Certificate,
    /// It took too long, or is not what the door is for.
    Other,
}

impl Entered {
    fn stranger(stream: Stream) -> Self {
        Self { stream, shown: Shown::Nothing, standing: None }
    }
}

/// A connection that stands at the door.
pub struct Arrival {
    came: Came,
    from: SocketAddr,
}

enum Came {
    Socket(TcpStream, Door),
    Stream(Stream),
}

impl Arrival {
    /// Where it comes from.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// Passes the door. Writes on the stream may stand still for `stall`.
    ///
    /// # Errors
    /// Why it did not; the client has been told where TLS has words for that.
    pub async fn enter(self, stall: Duration) -> Result<Entered, Outside> {
        let (socket, door) = match self.came {
            Came::Socket(socket, door) => (socket, door),
            Came::Stream(stream) => return Ok(Entered::stranger(stream)),
        };
        // A socket that refuses it is as good as closed.
        prepare(&socket).map_err(|_| Outside::Other)?;
        let io = Moving::new(socket, stall);
        let Some(Lock { of, tls, time, asks }) = door.0 else {
            return Ok(Entered::stranger(Stream::plain(io)));
        };
        let mut files = tls.current();
        let in_use = files.borrow_and_update().clone();
        let handshake = TlsAcceptor::from(in_use.config(asks)).accept(io);
        let (outcome, entered) = match tokio::time::timeout(time, handshake).await {
            Ok(Ok(stream)) => {
                let chain = stream.get_ref().1.peer_certificates().filter(|_| asks);
                let shown = match chain {
                    None => Shown::Nothing,
                    Some(chain) => in_use.certified(chain).map_or(Shown::Nobody, Shown::Member),
                };
                let good_by = matches!(shown, Shown::Member(_)).then_some(in_use);
                let standing = chain.map(|chain| Standing::new(files, chain, good_by));
                ("done", Ok(Entered { stream: Stream::tls(stream), shown, standing }))
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, of, client.address = %self.from, "a TLS handshake failed");
                // The only certificate that a server verifies is its client's.
                let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
                let is_refused = matches!(cause, Some(TlsError::InvalidCertificate(_)));
                ("failed", Err(if is_refused { Outside::Certificate } else { Outside::Other }))
            }
            Err(_) => ("late", Err(Outside::Other)),
        };
        metrics::counter!("millpond_tls_handshakes_total", "listener" => of, "outcome" => outcome)
            .increment(1);
        entered
    }
}

/// Small packets do not wait for one another, and a peer that vanished is found out although neither side has anything to
/// say. Without that, connections without a keep-alive would stay for ever, and each takes somebody's place.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    let alive =
        TcpKeepalive::new().with_time(ALIVE_AFTER).with_interval(ALIVE_EVERY).with_retries(ALIVE_TRIES);
    SockRef::from(socket).set_tcp_keepalive(&alive)?;
    socket.set_nodelay(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanishes_is_found_out_within_a_minute_and_a_half() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        prepare(&io).unwrap();
        let socket = SockRef::from(&io);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        let tries = socket.tcp_keepalive_retries().unwrap();
        let found_out =
            socket.tcp_keepalive_time().unwrap() + socket.tcp_keepalive_interval().unwrap() * tries;
        assert_eq!(found_out, Duration::from_secs(90));
    }
}
