//! Start and stop of the gate: the accept loop.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use millpond_net::{Entered, Listener, Outside, Places, Stream, Tls};
use millpond_protocol::{Principal, Refusal};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Admitted};
use crate::backend::Backend;
use crate::budget::Budget;
use crate::config::GateConfig;
use crate::handle::GateHandle;
use crate::handshake::Welcome;
use crate::rate::Rates;
use crate::{bus, connection, handshake};

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often gauges are brought up to date.
const GAUGES: Duration = Duration::from_secs(5);
/// Connections that have ended and are still written more than a few bytes. A client that takes them is done in no time.
const FAREWELLS: usize = 256;

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
    shared: Arc<Shared>,
    router_dead: CancellationToken,
    stop: CancellationToken,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) config: Arc<GateConfig>,
    pub(crate) handle: GateHandle,
    pub(crate) backend: Arc<dyn Backend>,
    /// Bytes that may be read and not committed.
    pub(crate) budget: Arc<Budget>,
    pub(crate) bytes_in: metrics::Counter,
    pub(crate) bytes_out: metrics::Counter,
    pub(crate) publishes: metrics::Counter,
    pub(crate) ack_seconds: metrics::Histogram,
    pub(crate) rates: Rates,
    /// Lets those in who have not signed in yet.
    admission: Admission,
    /// Places for those that have.
    pub(crate) connections: Places,
    /// Connections that have ended and write long last words.
    pub(crate) farewells: Semaphore,
}

impl Shared {
    fn measure(&self) {
        metrics::gauge!("millpond_gate_uncommitted_bytes").set(self.budget.used() as f64);
        self.admission.measure();
        metrics::gauge!("millpond_gate_router_queue").set(self.handle.hub().outbox().len() as f64);
        metrics::gauge!("millpond_gate_router_queue_peak").set(self.handle.hub().outbox().most() as f64);
    }
}

impl Gate {
    /// Starts the router, on the runtime that calls. Connections are accepted by [`Gate::serve`].
    ///
    /// # Errors
    /// The router could not be started.
    pub fn start(
        config: GateConfig,
        handle: GateHandle,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, GateError> {
        handle.set_bytes_max(config.out_queue_max);
        handle.hub().set_pool_bytes_max(config.pool_bytes_max);
        let router_dead = bus::start(handle.hub()).map_err(GateError::Start)?;
        let shared = Shared {
            budget: Arc::new(Budget::new(config.uncommitted_bytes_max, config.packet_max())),
            rates: Rates::new(config.member_rate, config.pool_rate),
            admission: Admission::new(&config),
            connections: Places::new(config.connections_max, config.connections_per_address),
            farewells: Semaphore::new(FAREWELLS),
            config: Arc::new(config),
            handle,
            backend,
            bytes_in: metrics::counter!("millpond_gate_bytes_in_total"),
            bytes_out: metrics::counter!("millpond_gate_bytes_out_total"),
            publishes: metrics::counter!("millpond_gate_publishes_total"),
            ack_seconds: metrics::histogram!("millpond_gate_ack_seconds"),
        };
        let (shared, stop) = (Arc::new(shared), CancellationToken::new());
        let (timed, stopped) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            let ended = |who: &Principal, id: &str| timed.backend.session_left(who, id, None);
            timed.handle.registry().run(&stopped, ended).await;
        });
        Ok(Self { shared, router_dead, stop })
    }

    /// Brings back the sessions of the run before: their messages on app topics are queued from now on. To be called once,
    /// before [`Gate::serve`]. Those that a certificate signed in end if it was taken back meanwhile, or if without
    /// `tls` nobody can tell.
    ///
    /// # Errors
    /// The backend does not answer.
    pub async fn restore(&self, tls: Option<&Tls>) -> Result<(), Refusal> {
        for (who, session) in self.shared.backend.sessions().await? {
            let lost = session.certificates.as_ref().map(|certificates| match tls {
                Some(tls) => tls.standing(certificates).lost().boxed(),
                None => std::future::ready(()).boxed(),
            });
            self.shared.handle.registry().restore(&who, session, lost);
        }
        Ok(())
    }

    /// The coordinator's way to the connections.
    pub fn handle(&self) -> GateHandle {
        self.shared.handle.clone()
    }

    /// Accepts connections until `shutdown`; then waits for their acknowledgements, tells them, and returns. May be
    /// called for several listeners at once.
    ///
    /// # Errors
    /// [`GateError::RouterDead`]: live messages would no longer arrive.
    pub async fn serve(
        &self,
        listener: impl Into<Listener>,
        shutdown: CancellationToken,
    ) -> Result<(), GateError> {
        let mut listener = listener.into();
        let tasks = TaskTracker::new();
        let stop = shutdown.child_token();
        let abort = CancellationToken::new();
        let _abort = abort.clone().drop_guard();
        // Those who wait for their turn.
        let mut line = FuturesUnordered::new();
        let mut gauges = tokio::time::interval(GAUGES);
        let mut pause = None;
        let result = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                () = self.router_dead.cancelled() => break Err(GateError::RouterDead),
                _ = gauges.tick() => self.shared.measure(),
                Some(admitted) = line.next() => if let Some(admitted) = admitted {
                    self.begin(admitted, &tasks, &stop, &abort);
                },
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => pause = None,
                accepted = listener.accept(), if pause.is_none() => match accepted {
                    Ok(arrival) => line.extend(self.shared.admission.arrive(arrival)),
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        pause = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                },
            }
        };
        drop((listener, line));
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(self.shared.config.shutdown_grace, tasks.wait()).await.is_err() {
            tracing::warn!(connections = tasks.len(), "connections did not end within the grace");
            abort.cancel();
            tasks.wait().await;
        }
        result
    }

    fn begin(
        &self,
        admitted: Admitted,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        abort: &CancellationToken,
    ) {
        let (gate, stop, abort) = (self.shared.clone(), stop.clone(), abort.clone());
        tasks.spawn(async move {
            let welcomed = tokio::select! {
                // On the heap, or each connection would be as large for as long as it lasts.
                welcomed = Box::pin(welcome(admitted, &gate)) => welcomed,
                () = stop.cancelled() => None,
            };
            if let Some((io, welcome)) = welcomed {
                tokio::select! {
                    () = Box::pin(connection::run(io, welcome, gate, stop)) => {}
                    () = abort.cancelled() => {}
                }
            }
        });
    }
}

/// From a connection that was accepted to a session; none: it has been told why, where that is possible.
async fn welcome(admitted: Admitted, gate: &Shared) -> Option<(Stream, Welcome)> {
    let Admitted { arrival, stranger: _stranger, mut turn } = admitted;
    let from = arrival.from();
    let entered = turn.within(arrival.enter(gate.config.stall_timeout)).await;
    let Entered { stream: mut io, shown, standing } = match entered {
        Ok(entered) => entered,
        Err(Outside::Certificate) => {
            handshake::refused(
                gate,
                None,
                from,
                "no authority of members signed the certificate, or it has ended",
            );
            return None;
        }
        Err(Outside::Other) => return None,
    };
    let welcome = handshake::welcome(&mut io, from, (shown, standing), turn, gate).await?;
    Some((io, welcome))
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.handle.hub().outbox().stop();
        self.stop.cancel();
    }
}
