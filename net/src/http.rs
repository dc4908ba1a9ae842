//! Connections of an HTTP server: how many, how long, and how they end.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Arrival, Entered, Listener};

/// Bytes of one request's head: a presigned URL is under 2 KiB.
const HEAD: usize = 32 << 10;
/// Headers of one request.
const HEADERS: usize = 64;

/// How a server treats its connections. A request's head has 32 KiB and 64 headers at most.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Whose they are, in log lines.
    pub of: &'static str,
    /// How many at once; who comes later waits in the listener's backlog.
    pub max: usize,
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
        let places = Arc::new(Semaphore::new(self.max));
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|arrival| (arrival, place))
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = accepted => match accepted {
                    Ok((arrival, place)) => {
                        let service = service(arrival.from());
                        let connection = self.clone().connection(arrival, service, shutdown.clone());
                        connections.spawn(async move {
                            connection.await;
                            drop(place);
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
            entered = arrival.enter(self.stall) => entered,
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
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn an_answer_that_nobody_reads_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let arrival = Listener::from(listener).accept().await.unwrap();
        // More than any socket buffers.
        let service = service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![0; 64 << 20]))))
        });
        let (idle, stall, grace) = (Duration::from_secs(30), Duration::from_millis(50), Duration::ZERO);
        let connections = Connections { of: "the test", max: 1, idle, stall, grace };
        let connection = connections.connection(arrival, service, CancellationToken::new());
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), connection).await.expect("it stands still for ever");
        drop(client);
    }
}
