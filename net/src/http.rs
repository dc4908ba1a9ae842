//! Connections of an HTTP server: how many, how long, and how they end.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Arrival, Entered, Entrance, Listener, Places};

/// Bytes of one request's head: a presigned URL is under 2 KiB.
const HEAD: usize = 32 << 10;
/// Headers of one request.
const HEADERS: usize = 64;

/// How a server treats its connections. A request's head has 32 KiB and 64 headers at most.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Whose they are, in log lines.
    pub of: &'static str,
    /// The listener's name in metrics.
    pub name: &'static str,
    /// How many at once; who comes later waits in the listener's backlog.
    pub max: usize,
    /// How many of them from one address; of that address half as many as `max` wait beside those, for `idle`.
    pub per_address: usize,
    /// How long a request's head may take, and a connection stay idle.
    pub idle: Duration,
    /// How long an answer may stand still because its client takes no byte of it.
    pub stall: Duration,
    /// How long requests may go on after the server was told to stop.
    pub grace: Duration,
}

impl Connections {
    /// Answers requests on `listener` until `shutdown`, then lets those that are under way go on for `grace`. `service`
    /// makes what answers those of one connection. A listener that stops working for a moment is tried again.
    pub async fn serve<S, B>(
        self,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
        service: impl Fn(SocketAddr) -> S,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { of, grace, .. } = self;
        let mut listener = listener.into();
        let places = Places::new(self.max, self.per_address);
        let entrance =
            Entrance::new(self.name, places, Places::new(self.max, (self.max / 2).max(1)), self.idle);
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                entrance.vacancy().await;
                listener.accept().await
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = accepted => match accepted {
                    Ok(arrival) => {
                        let Some(place) = entrance.arrive(arrival.from().ip()) else { continue };
                        let (service, stop) = (service(arrival.from()), shutdown.clone());
                        let connection = self.clone().connection(arrival, service, shutdown.clone());
                        connections.spawn(async move {
                            let place = tokio::select! {
                                place = place => place,
                                () = stop.cancelled() => None,
                            };
                            if place.is_some() {
                                connection.await;
                            }
                        });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: others may close some meanwhile.
                        tracing::warn!(%error, of, "a connection cannot be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, drained).await.is_err() {
            tracing::warn!(left = connections.len(), of, "connections were cut off");
        }
        connections.shutdown().await;
    }

    async fn connection<S, B>(self, arrival: Arrival, service: S, shutdown: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let entered = tokio::select! {
            entered = arrival.enter(self.stall) => entered.ok(),
            () = shutdown.cancelled() => None,
        };
        let Some(Entered { stream, .. }) = entered else { return };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.idle)
            .max_headers(HEADERS)
            .max_header_size(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, of = self.of, "a connection broke");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const LONG: Duration = Duration::from_secs(30);

    fn connections(max: usize, per_address: usize, stall: Duration) -> Connections {
        let (of, name, idle, grace) = ("the test", "test", LONG, Duration::ZERO);
        Connections { of, name, max, per_address, idle, stall, grace }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let arrival = Listener::from(listener).accept().await.unwrap();
        // More than any socket buffers.
        let service = service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![0; 64 << 20]))))
        });
        let connections = connections(1, 1, Duration::from_millis(50));
        let connection = connections.connection(arrival, service, CancellationToken::new());
        client.write_all(REQUEST).await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), connection).await.expect("it stands still for ever");
        drop(client);
    }

    /// A connection from an address of this machine.
    async fn from(source: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
        socket.connect(to).await.unwrap()
    }

    async fn is_answered(io: &mut TcpStream) -> bool {
        io.write_all(REQUEST).await.unwrap();
        let read = tokio::time::timeout(LONG, io.read(&mut [0; 64])).await;
        matches!(read.expect("nothing comes"), Ok(1..))
    }

    #[tokio::test]
    async fn silent_connections_of_one_address_take_its_share_and_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let service = |_| service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
        let served = tokio::spawn(connections(4, 2, LONG).serve(listener, stop.clone(), service));
        let mut silent = Vec::new();
        // Two have places, two wait, and the fifth is closed.
        for _ in 0..4 {
            silent.push(from("127.0.0.1", at).await);
        }
        let mut over = from("127.0.0.1", at).await;
        assert!(matches!(over.read(&mut [0; 1]).await, Ok(0) | Err(_)), "it is not closed");
        for _ in 0..10 {
            assert!(is_answered(&mut from("127.0.0.2", at).await).await);
        }
        // Those who have waited get the places of those who go.
        let waited = silent.split_off(2);
        silent.clear();
        for mut waited in waited {
            assert!(is_answered(&mut waited).await);
        }
        stop.cancel();
        served.await.unwrap();
    }

    /// A server that answers everything with nothing, while its test runs.
    async fn served(connections: Connections) -> (SocketAddr, tokio_util::sync::DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let service = |_| service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
        tokio::spawn(connections.serve(listener, stop.clone(), service));
        (at, stop.drop_guard())
    }

    /// What comes until the server ends the connection.
    async fn rest(io: &mut TcpStream) -> String {
        let mut said = Vec::new();
        // Reset rather than closed, where it had not read everything.
        let _ = tokio::time::timeout(LONG, io.read_to_end(&mut said)).await.expect("it stays for ever");
        String::from_utf8(said).unwrap()
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_and_a_connection_that_is_idle_are_ended() {
        let idle = Duration::from_millis(200);
        let (at, _stop) = served(Connections { idle, ..connections(4, 4, LONG) }).await;
        for begun in [&b""[..], &REQUEST[..10]] {
            let mut io = TcpStream::connect(at).await.unwrap();
            io.write_all(begun).await.unwrap();
            let said = rest(&mut io).await;
            assert!(!said.contains("200 OK"), "{said}");
        }
        let mut io = TcpStream::connect(at).await.unwrap();
        io.write_all(REQUEST).await.unwrap();
        let said = rest(&mut io).await;
        assert!(said.starts_with("HTTP/1.1 200 OK") && said.matches("HTTP/1.1").count() == 1, "{said}");
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_or_has_too_many_headers_is_refused_and_one_below_is_not() {
        let (at, _stop) = served(connections(4, 4, LONG)).await;
        let ask = async |headers: String| {
            let mut io = TcpStream::connect(at).await.unwrap();
            let head = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
            // It may hang up before all of it is written.
            let _ = io.write_all(head.as_bytes()).await;
            rest(&mut io).await.split(' ').nth(1).map(str::to_owned).unwrap_or_default()
        };
        let many = |count: usize| (0..count).map(|n| format!("x-{n}: x\r\n")).collect::<String>();
        let long = |size: usize| format!("x: {}\r\n", "x".repeat(size));
        // Beside the two that are always there.
        assert_eq!(ask(many(HEADERS - 2)).await, "200");
        assert_eq!(ask(many(HEADERS - 1)).await, "431");
        assert_eq!(ask(long(HEAD - 1_000)).await, "200");
        assert_ne!(ask(long(HEAD + 1_000)).await, "200");
    }
}
