//! What broken and hostile clients do to a server, and how those beside them fare meanwhile: for tests and the benchmark.
//!
//! Attackers come from an address of their own, 127.0.0.2, and those beside them from 127.0.0.1; who signs in again and again from
//! 127.0.0.3, because addresses have turns at that.

mod attack;
mod others;
mod storage;

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::net::{TcpSocket, TcpStream};

pub use attack::Attack;
pub use others::{Fared, Watch, others, others_watched};

use crate::Api;
use crate::wire::{Connection, Who};

/// A server, and publishers of one pool that has the app topics `app/{pool}/#`.
#[derive(Debug, Clone)]
pub struct Field {
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub storage: SocketAddr,
    /// Eight at least.
    pub bad: Vec<Who>,
    /// Four at least.
    pub good: Vec<Who>,
    /// Publishers of another pool with app topics of its own, for attacks on whom they share the server with.
    pub apart: Vec<Who>,
}

impl Field {
    fn pool(&self) -> &str {
        &self.good[0].pool
    }

    async fn good(&self, n: usize) -> Result<Connection> {
        self.good_over(TcpStream::connect(self.mqtt).await?, n).await
    }

    /// The same from an address of its own.
    async fn alone(&self, n: usize) -> Result<Connection> {
        self.good_over(from("127.0.0.3", self.mqtt).await?, n).await
    }

    async fn good_over(&self, stream: TcpStream, n: usize) -> Result<Connection> {
        let who = self.good.get(n).context("too few members")?;
        Connection::open_as(stream, who, &who.member).await
    }

    fn api(&self, who: &Who, source: [u8; 4]) -> Api {
        Api::from(source.into(), format!("http://{}", self.http), who.token.clone())
    }

    async fn bad(&self, n: usize) -> Result<Connection> {
        let who = &self.bad[n % self.bad.len()];
        Connection::open_as(from("127.0.0.2", self.mqtt).await?, who, &format!("{n}")).await
    }

    async fn apart(&self, n: usize, client_id: &str) -> Result<Connection> {
        let who = self.apart.get(n % self.apart.len().max(1)).context("nobody is apart")?;
        Connection::open_as(from("127.0.0.2", self.mqtt).await?, who, client_id).await
    }
}

/// Connects from an address of this machine, with a small buffer for what is not read.
///
/// # Errors
/// As any connect.
pub async fn from(source: &str, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(8 << 10)?;
    socket.bind(format!("{source}:0").parse()?)?;
    Ok(socket.connect(to).await?)
}
