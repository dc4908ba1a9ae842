//! Members that sign in with a certificate: which authority speaks for which pool, and who a certificate names.
//!
//! A directory holds `{pool}.crt`, the authorities of that pool in PEM, and beside it perhaps `{pool}.crl`, what they
//! revoked ([`lists`](super::lists)). A handshake accepts what any pool's authority signed; then the pool that the certificate
//! names has its own authorities alone look at it, so that no pool's authority can speak for another's members. The names of
//! authorities are not sent to clients: pools do not see each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millpond_protocol::{MemberName, PoolName, Sha256, Timestamp};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, Error, RootCertStore};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::lists::Revoked;

/// What a certificate's URI begins with: `millpond://{pool}/{member}`.
const SCHEME: &str = "millpond://";

/// A member that proved a certificate's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    pub pool: PoolName,
    pub member: MemberName,
    /// Of the certificate.
    pub sha256: Sha256,
    /// From when on it holds.
    pub issued: Timestamp,
}

/// The files of the directory by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Who speaks for which pool.
pub(super) struct Authorities {
    pools: BTreeMap<PoolName, Pool>,
    /// For the handshake, without a look at who is revoked: that is for the pool to say, see `certified`.
    any: Arc<dyn ClientCertVerifier>,
}

struct Pool {
    authorities: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    revoked: Revoked,
}

/// Reads what belongs to pools.
pub(super) fn read(dir: &Path) -> Result<Files, String> {
    let wrong = |error: std::io::Error| format!("{} cannot be read: {error}", dir.display());
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(".crt") || name.ends_with(".crl") {
            let path = entry.path();
            let bytes = super::files::read(&path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
            files.insert(name, bytes);
        }
    }
    Ok(files)
}

impl Authorities {
    /// None without any authority.
    pub(super) fn of(files: &Files, provider: &Arc<CryptoProvider>) -> Result<Option<Self>, String> {
        let (mut pools, mut all) = (BTreeMap::new(), RootCertStore::empty());
        for (file, pem) in files {
            let Some(pool) = file.strip_suffix(".crt") else {
                continue;
            };
            let name: PoolName =
                pool.parse().map_err(|error| format!("{file} is named after no pool: {error}"))?;
            let authorities = authorities(file, pem)?;
            for authority in &authorities {
                all.add(authority.clone()).map_err(|error| format!("{file} holds no authority: {error}"))?;
            }
            pools.insert(name, Pool::of(pool, &authorities, files, provider)?);
        }
        for file in files.keys().filter_map(|file| file.strip_suffix(".crl")) {
            if !files.contains_key(&format!("{file}.crt")) {
                return Err(format!("{file}.crl has no {file}.crt beside it"));
            }
        }
        if pools.is_empty() {
            return Ok(None);
        }
        let any: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(Arc::new(all), provider.clone())
                .clear_root_hint_subjects()
                .allow_unauthenticated()
                .build()
                .map_err(|error| format!("the authorities of all pools together cannot be used: {error}"))?;
        Ok(Some(Self { pools, any }))
    }

    pub(super) fn for_handshakes(&self) -> Arc<dyn ClientCertVerifier> {
        self.any.clone()
    }

    /// Whom these certificates name, if an authority of that pool says so today. Also those of a resumed session: what was
    /// revoked meanwhile names nobody.
    pub(super) fn certified(&self, chain: &[CertificateDer<'_>]) -> Option<Certified> {
        let (own, above) = chain.split_first()?;
        let named = named(own)?;
        let pool = self.pools.get(&named.pool)?;
        pool.verifier.verify_client_cert(own, above, UnixTime::now()).ok()?;
        (!pool.has_revoked(chain)).then_some(named)
    }

    /// Whether these certificates, which named somebody before, were taken back: they are on a list, or no authority of that pool
    /// signed them any more. One that only ran out is not. `good_by`: what found them good last.
    pub(super) fn has_lost(&self, chain: &[CertificateDer<'_>], good_by: Option<&Self>) -> bool {
        use CertificateError::{BadSignature, UnknownIssuer};
        let Some((own, above)) = chain.split_first() else { return true };
        let Some(named) = named(own) else { return true };
        let Some(pool) = self.pools.get(&named.pool) else { return true };
        // Signatures take ten times as long as a look at lists, and the same authorities say the same of them.
        let before = good_by.and_then(|by| by.pools.get(&named.pool));
        let is_signed = before.is_some_and(|before| before.authorities == pool.authorities);
        // Of one that ran out, or was signed by one that did, nobody would say that the authority is not there.
        let judged = || pool.verifier.verify_client_cert(own, above, last_held(chain));
        pool.has_revoked(chain)
            || (!is_signed
                && matches!(judged(), Err(Error::InvalidCertificate(BadSignature | UnknownIssuer))))
    }

    /// Whose list is to be replaced by a newer one first, and when.
    pub(super) fn due(&self) -> Option<(jiff::Timestamp, &PoolName)> {
        self.pools.iter().filter_map(|(pool, its)| Some((its.revoked.due()?, pool))).min()
    }
}

impl Pool {
    fn of(
        name: &str,
        authorities: &[CertificateDer<'static>],
        files: &Files,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let file = format!("{name}.crl");
        let lists = files.get(&file).map(|pem| lists(&file, pem)).transpose()?.unwrap_or_default();
        let mut revoked = Revoked::default();
        for list in &lists {
            revoked.add(list, authorities).map_err(|wrong| format!("{file} {wrong}"))?;
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(authorities.iter().cloned());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        // rustls knows which lists cannot be understood by their numbers alone: changes of another one, those of several
        // authorities, extensions that nobody knows.
        verifier.clone().with_crls(lists).build().map_err(|error| {
            format!("{file} cannot be used, it has to be a whole list of version 2: {error}")
        })?;
        let verifier = verifier.build().map_err(|error| format!("{name}.crt cannot be used: {error}"))?;
        Ok(Self { authorities: authorities.to_vec(), verifier, revoked })
    }

    /// Whether one of the certificates is on a list: the member's own, or an authority's between it and the pool's.
    fn has_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        chain.iter().any(|certificate| self.revoked.holds(certificate))
    }
}

/// Now, or when all of the certificates held last.
fn last_held(chain: &[CertificateDer<'_>]) -> UnixTime {
    let end = |certificate: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        u64::try_from(certificate.validity().not_after.timestamp()).ok()
    };
    let end = chain.iter().filter_map(end).min().unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs().min(end)))
}

/// Whom a certificate names, whoever signed it.
fn named(own: &CertificateDer<'_>) -> Option<Certified> {
    let (_, certificate) = X509Certificate::from_der(own).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut ours = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
        _ => None,
    });
    // One of several would be a matter of order.
    let (Some(ours), None) = (ours.next(), ours.next()) else { return None };
    let (pool, member) = ours.split_once('/')?;
    let issued = certificate.validity().not_before.timestamp().saturating_mul(1_000);
    Some(Certified {
        member: member.parse().ok()?,
        pool: pool.parse().ok()?,
        sha256: Sha256::of(own),
        issued: Timestamp::clamped(issued),
    })
}

fn authorities(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{file} is no PEM: {error}"))?;
    if found.is_empty() {
        return Err(format!("{file} holds no certificate in PEM (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

fn lists(file: &str, pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{file} is no PEM: {error}"))?;
    if found.is_empty() {
        return Err(format!("{file} holds no list in PEM (-----BEGIN X509 CRL-----)"));
    }
    Ok(found)
}

#[cfg(test)]
#[path = "clients_tests.rs"]
pub(super) mod tests;
