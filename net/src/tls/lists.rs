//! What authorities took back: lists of revoked certificates, each looked at before it counts.
//!
//! rustls looks at a list when it needs it. One of an authority that it does not know would revoke nothing, and nobody would
//! hear of it; one that another key signed would keep out everybody; and every sign-in would hash the whole list. So a list
//! is verified here, once, and its numbers are kept by the name of their authority, which gives none twice (RFC 5280,
//! 4.1.2.2). A list whose time is over (`nextUpdate`) still counts: whom it names stays out, and nobody else is kept out
//! because an authority is late; the log and a metric say that it is.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::oid_registry::{OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// Serial numbers by the name of who gave them, both as they stand in certificates.
#[derive(Default)]
pub(super) struct Revoked {
    numbers: HashMap<Box<[u8]>, HashSet<Box<[u8]>>>,
    due: Option<Timestamp>,
}

impl Revoked {
    /// Whether the certificate is on a list of who issued it.
    pub(super) fn holds(&self, certificate: &CertificateDer<'_>) -> bool {
        // What cannot be read may be anybody's.
        X509Certificate::from_der(certificate).map_or(true, |(_, certificate)| {
            let numbers = self.numbers.get(certificate.issuer().as_raw());
            numbers.is_some_and(|numbers| numbers.contains(certificate.raw_serial()))
        })
    }

    /// When the first of the lists should have been replaced by a newer one.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Adds a list, if it is of one of the `authorities`. The error follows upon the list's name.
    pub(super) fn add(&mut self, list: &[u8], authorities: &[CertificateDer<'_>]) -> Result<(), String> {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|error| format!("holds a list that does not read: {error}"))?;
        let name = list.issuer();
        if [OID_PKCS1_SHA1WITHRSA, OID_SHA1_WITH_RSA].contains(&list.signature_algorithm.algorithm) {
            return Err(format!(
                "holds a list of {name} that is signed with SHA-1: have it signed with SHA-256"
            ));
        }
        let mut verified = Err(format!(
            "holds a list of {name}, and no such authority is beside it, so nothing would be revoked: put the authority's \
             certificate there too, or take its list away"
        ));
        for authority in authorities {
            let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
            if verified.is_err() && authority.subject().as_raw() == name.as_raw() {
                verified = list.verify_signature(authority.public_key()).map_err(|error| {
                    format!(
                        "holds a list that says it is of {name}, and the key of that authority did not sign it ({error}): \
                         take it from the authority itself"
                    )
                });
            }
        }
        verified?;
        let due = list.next_update().and_then(|due| Timestamp::from_second(due.timestamp()).ok());
        self.due = [self.due, due].into_iter().flatten().min();
        let numbers = self.numbers.entry(name.as_raw().into()).or_default();
        numbers.extend(list.iter_revoked_certificates().map(|one| one.raw_serial().into()));
        Ok(())
    }
}
