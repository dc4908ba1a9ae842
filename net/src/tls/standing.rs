//! Whether a certificate that was good at the door still is.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use super::InUse;

/// The certificates that a member showed, and the files by which they were judged.
pub struct Standing {
    files: watch::Receiver<Arc<InUse>>,
    chain: Vec<CertificateDer<'static>>,
}

impl Standing {
    /// Of a handshake that used what was last seen of `files`.
    pub(crate) fn new(files: watch::Receiver<Arc<InUse>>, chain: &[CertificateDer<'_>]) -> Self {
        Self { files, chain: chain.iter().map(|one| one.clone().into_owned()).collect() }
    }

    /// Waits until the certificate was taken back: it is on a new list of revocations, or its authority is none any more. It is
    /// looked at whenever files are renewed. One that only ran out lasts as long as its connection.
    pub async fn lost(mut self) {
        // Without anybody who looks at the files nothing new is heard of.
        while self.files.changed().await.is_ok() {
            let in_use = self.files.borrow_and_update().clone();
            if in_use.has_lost(&self.chain) {
                return;
            }
        }
        std::future::pending().await
    }
}
