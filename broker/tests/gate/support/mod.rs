//! A gate on a free port, and what stands around it.

mod memory;
mod raw;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millpond_broker::{Gate, GateConfig, GateError, GateHandle};
use millpond_protocol::AppTopics;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

pub use memory::*;
pub use raw::*;

/// Both versions of the protocol.
pub const LEVELS: [u8; 2] = [4, 5];
/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);

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

/// A gate with the app topics `app/{pool}/#`.
pub async fn app_server() -> Server {
    server_with(app_config()).await
}

pub fn app_config() -> GateConfig {
    GateConfig { app_topics: AppTopics::new(&["app/+/#"]).unwrap(), ..GateConfig::default() }
}

pub async fn server_with(config: GateConfig) -> Server {
    server_over(config, Arc::new(Memory::default())).await
}

/// A gate before a backend that may know sessions.
pub async fn server_over(config: GateConfig, backend: Arc<Memory>) -> Server {
    let handle = GateHandle::new();
    let gate = Gate::start(config, handle.clone(), backend.clone()).unwrap();
    gate.restore(None).await.unwrap();
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

    /// The same from another address of this machine, such as 127.0.0.2.
    pub async fn raw_from(&self, source: &str) -> Raw {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
        Raw { io: socket.connect(self.addr).await.unwrap(), level: 0 }
    }

    /// A raw connection of `member` in pool `p`, signed in, with that client id.
    pub async fn client_as(&self, level: u8, member: &str, client_id: &str) -> Raw {
        self.raw().await.sign_in(level, member, client_id).await
    }

    pub async fn client(&self, level: u8, member: &str) -> Raw {
        self.client_as(level, member, member).await
    }
}
