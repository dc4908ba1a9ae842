//! The server's certificate, for all listeners: rustls with ring, TLS 1.2 and 1.3.
//!
//! Clients that come back resume with a ticket: the server keeps nothing for them, and the tickets' keys, which change
//! every few hours, never leave the process. Renewed files are taken up while it runs; connections that are open go on,
//! but for those whose member's certificate is good no more ([`Standing`]).

mod clients;
mod files;
mod lists;
mod reload;
#[cfg(test)]
mod resumed_tests;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use clients::Certified;
pub use files::{Files, Part, WrongFile, authority};
pub use reload::Renewal;
pub use standing::Standing;

use clients::Authorities;
use files::Loaded;

/// Tickets that a TLS 1.3 client gets: one is enough to come back with once.
const TICKETS: usize = 1;

/// Sessions whose certificates are judged again before others have their turn: some tenths of a millisecond.
const JUDGED_AT_ONCE: usize = 8;

/// The certificate in use; clones share it.
#[derive(Clone)]
pub struct Tls {
    files: Files,
    current: Arc<watch::Sender<Arc<InUse>>>,
    /// What the files held when they were read last.
    read: Arc<files::Bytes>,
}

/// What handshakes use.
pub(crate) struct InUse {
    /// Where clients are not asked for a certificate.
    anybody: Arc<ServerConfig>,
    /// Where members may show one, if there are authorities for any.
    members: Option<(Arc<ServerConfig>, Authorities)>,
    /// For those who have their certificates judged again.
    turns: Semaphore,
    /// When the server's certificate ends.
    expires: Timestamp,
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
        let in_use = InUse::new(loaded, &files)?;
        Ok(Self { files, current: Arc::new(watch::Sender::new(Arc::new(in_use))), read: Arc::new(read) })
    }

    /// What the next handshake uses, and later what others use.
    pub(crate) fn current(&self) -> watch::Receiver<Arc<InUse>> {
        self.current.subscribe()
    }

    /// Looks at the files every so often, and takes up what is new and good, until `shutdown`. What became of it is told.
    pub async fn watch<F: Future<Output = ()>>(
        self,
        every: Duration,
        tell: impl Fn(Renewal) -> F,
        shutdown: CancellationToken,
    ) {
        reload::run(self, every, tell, shutdown).await;
    }
}

impl InUse {
    fn new(loaded: Loaded, files: &Files) -> Result<Self, Vec<WrongFile>> {
        let refused = |error: rustls::Error| vec![files.refused(&error)];
        let anybody = config(&loaded, None).map_err(refused)?;
        let members = match &loaded.authorities {
            Some(authorities) => Some(config(&loaded, Some(authorities.for_handshakes())).map_err(refused)?),
            None => None,
        };
        let members = members.zip(loaded.authorities);
        Ok(Self { anybody, members, turns: Semaphore::new(JUDGED_AT_ONCE), expires: loaded.expires })
    }

    /// What a handshake uses; `asks`: whether a client may show who it is.
    pub(crate) fn config(&self, asks: bool) -> Arc<ServerConfig> {
        let members = self.members.as_ref().filter(|_| asks);
        members.map_or(&self.anybody, |(config, _)| config).clone()
    }

    /// Whom the certificates of a client name.
    pub(crate) fn certified(&self, chain: &[CertificateDer<'_>]) -> Option<Certified> {
        self.members.as_ref()?.1.certified(chain)
    }

    /// Whether the certificates of a client that named somebody before were taken back. A few are judged at a time, and others
    /// have their turn in between, so that thousands of sessions hold up nobody. Who was asked must go on polling, or be
    /// dropped. `good_by`: what found them good last.
    pub(crate) async fn has_lost(&self, chain: &[CertificateDer<'_>], good_by: Option<&Self>) -> bool {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        // All are woken at once: without a pause each would find its turn free, right behind the one before.
        tokio::task::yield_now().await;
        let before = good_by.and_then(|by| by.members.as_ref()).map(|(_, authorities)| authorities);
        self.members.as_ref().is_none_or(|(_, authorities)| authorities.has_lost(chain, before))
    }

    /// Says when what is in use ends, and that a list should have been replaced.
    fn announce(&self) {
        metrics::gauge!("millpond_tls_certificate_expires_seconds").set(self.expires.as_second() as f64);
        let due = self.members.as_ref().and_then(|(_, authorities)| authorities.due());
        let seconds = due.map_or(0, |(due, _)| due.as_second());
        metrics::gauge!("millpond_tls_revocations_due_seconds").set(seconds as f64);
        if let Some((due, pool)) = due.filter(|(due, _)| *due < Timestamp::now()) {
            tracing::warn!(%pool, %due, "the list of revocations is out of date and still counts: put a newer one there");
        }
    }
}

/// What rustls serves with.
fn config(
    loaded: &Loaded,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(loaded.chain.clone(), loaded.key.clone_key())?;
    config.ticketer = ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}
