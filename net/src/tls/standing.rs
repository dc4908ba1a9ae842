//! Whether a certificate that was good at the door still is.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{InUse, Tls};

/// The certificates that a member showed, and the files by which they were judged.
pub struct Standing {
    files: watch::Receiver<Arc<InUse>>,
    chain: Vec<CertificateDer<'static>>,
    /// What found them good last.
    good_by: Option<Arc<InUse>>,
}

impl Standing {
    /// Of a handshake that used what was last seen of `files`, which found them good.
    pub(crate) fn new(
        files: watch::Receiver<Arc<InUse>>,
        chain: &[CertificateDer<'_>],
        good_by: Option<Arc<InUse>>,
    ) -> Self {
        Self { files, chain: chain.iter().map(|one| one.clone().into_owned()).collect(), good_by }
    }

    /// The certificates in DER, one after the other, for [`Tls::standing`].
    pub fn certificates(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|one| one.iter().copied()).collect()
    }

    /// Waits until the certificate was taken back: it is on a new list of revocations, or its authority is none any more. It is
    /// looked at whenever files are renewed. One that only ran out lasts as long as its connection. To be polled or dropped:
    /// others wait for their turn.
    pub async fn lost(mut self) {
        // Without anybody who looks at the files nothing new is heard of.
        while self.files.changed().await.is_ok() {
            let in_use = self.files.borrow_and_update().clone();
            if in_use.has_lost(&self.chain, self.good_by.as_deref()).await {
                return;
            }
            self.good_by = Some(in_use);
        }
        std::future::pending().await
    }
}

impl Tls {
    /// What was written down of a [`Standing`], to be looked at anew at once. What cannot be read is lost.
    pub fn standing(&self, mut certificates: &[u8]) -> Standing {
        let mut chain = Vec::new();
        while let Ok((rest, _)) = X509Certificate::from_der(certificates) {
            let (one, rest) = certificates.split_at(certificates.len() - rest.len());
            chain.push(CertificateDer::from(one.to_vec()));
            certificates = rest;
        }
        let mut files = self.current();
        files.mark_changed();
        Standing { files, chain, good_by: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::JUDGED_AT_ONCE;
    use super::super::clients::tests::{Issuer, authority, certificate, revocations};
    use super::super::files::tests::pair;
    use super::*;
    use crate::Tls;

    #[tokio::test]
    async fn however_many_sessions_are_judged_everybody_else_has_turns_in_between() {
        const MANY: usize = 200;
        let dir = tempfile::tempdir().unwrap();
        let clients = dir.path().join("clients");
        std::fs::create_dir(&clients).unwrap();
        let lab = authority();
        std::fs::write(clients.join("lab.crt"), lab.pem()).unwrap();
        let files = super::super::Files { clients: Some(clients.clone()), ..pair(dir.path(), 2020, 2100) };
        let tls = Tls::load(files.clone()).unwrap();
        let ended = Arc::new(AtomicUsize::new(0));
        let of = |authority: &Issuer, serial| {
            let mut files = tls.current();
            let good_by = Some(files.borrow_and_update().clone());
            let chain = [certificate(authority, serial, &["millpond://lab/dev"])];
            let standing = Standing::new(files, &chain, good_by);
            let ended = ended.clone();
            tokio::spawn(async move {
                standing.lost().await;
                ended.fetch_add(1, Ordering::Relaxed);
            })
        };
        // Of one that was said to be good no signature is verified where the authorities are the same: here it is another's.
        let good = [of(&lab, 8), of(&authority(), 8)];
        let bad: Vec<_> = (0..MANY).map(|_| of(&lab, 7)).collect();
        tokio::task::yield_now().await;

        std::fs::write(clients.join("lab.crl"), revocations(&lab, 7)).unwrap();
        let renewed = Tls::load(files).unwrap();
        tls.current.send_replace(renewed.current().borrow().clone());
        let judged = ended.clone();
        let neighbour = tokio::spawn(async move {
            let (mut before, mut most) = (0, 0);
            while before < MANY {
                tokio::task::yield_now().await;
                let now = judged.load(Ordering::Relaxed);
                most = most.max(now - before);
                before = now;
            }
            most
        });
        let most = neighbour.await.unwrap();
        // The last of those before its turn, and the first of those after.
        assert!(most <= 2 * JUDGED_AT_ONCE, "{most} were judged in one turn");
        for one in bad {
            one.await.unwrap();
        }
        for one in good {
            assert!(!one.is_finished());
            one.abort();
        }
    }
}
