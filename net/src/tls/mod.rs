//! The server's certificate, for all listeners: rustls with ring, TLS 1.2 and 1.3.
//!
//! Clients that come back resume with a ticket: the server keeps nothing for them, and the tickets' keys, which change
//! every few hours, never leave the process. Renewed files are taken up while it runs; connections that are open go on.

mod files;
mod reload;

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::NoServerSessionStorage;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use files::{Files, Part, WrongFile, authority};

use files::Loaded;

/// Tickets that a TLS 1.3 client gets: one is enough to come back with once.
const TICKETS: usize = 1;

/// The certificate in use; clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Files,
    current: Arc<watch::Sender<Arc<ServerConfig>>>,
    /// What the files held when they were read last.
    read: Arc<files::Bytes>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads and checks certificate and key.
    ///
    /// # Errors
    /// Everything that is wrong with the files, and what to do about it.
    pub fn load(files: Files) -> Result<Self, Vec<WrongFile>> {
        let read = files.read()?;
        let loaded = read.check(&files)?;
        announce(&loaded);
        let config = config(loaded, &files)?;
        Ok(Self { files, current: Arc::new(watch::Sender::new(config)), read: Arc::new(read) })
    }

    /// What the next handshake uses.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.borrow().clone()
    }

    /// Looks at the files every so often, and takes up what is new and good, until `shutdown`.
    pub async fn watch(self, every: Duration, shutdown: CancellationToken) {
        reload::run(self, every, shutdown).await;
    }
}

/// What rustls serves with.
fn config(loaded: Loaded, files: &Files) -> Result<Arc<ServerConfig>, Vec<WrongFile>> {
    let refused = |error: rustls::Error| vec![files.refused(&error)];
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .with_no_client_auth()
        .with_single_cert(loaded.chain, loaded.key)
        .map_err(refused)?;
    config.ticketer = ring::Ticketer::new().map_err(refused)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

fn announce(loaded: &Loaded) {
    metrics::gauge!("millpond_tls_certificate_expires_seconds").set(loaded.expires.as_second() as f64);
}
