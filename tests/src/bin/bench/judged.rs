//! Sessions whose certificates are judged again because a list of revocations was replaced, and those beside them, with and without
//! in turns; then how soon those end whose certificate is on the list. It fails where others wait for longer than [`allowed`],
//! or a revoked one goes on for longer than [`WITHIN`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use millpond_tests::openssl::{authority, certificate, revoke};
use millpond_tests::overload::others;
use millpond_tests::wire::connect_of;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::overload::{KINDS, allowed, field_in, p99};

/// Sessions that one certificate signed in: each is judged for itself.
const SESSIONS: usize = 5_000;
/// Those of each certificate that is revoked.
const REVOKED: usize = 50;
/// Handshakes under way at once.
const AT_ONCE: usize = 64;
const RUNS: usize = 5;
const FOR: Duration = Duration::from_secs(3);
/// Between two lists: the server looks as often, so all are judged once with each.
const EVERY: Duration = Duration::from_secs(1);
/// From the file's replacement to the end of the last whose certificate is on it: the look, and a second.
const WITHIN: Duration = Duration::from_secs(2);

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let tls = dir.path().join("tls");
    millpond::authority::init(&tls, &["127.0.0.1".to_owned()], 30)?;
    std::fs::create_dir(tls.join("clients"))?;
    authority(&tls, "p");
    let lists = Lists::make(&tls)?;
    let (server, field) = field_in(dir.path(), 16, 1).await?;
    let address = server.addresses.mqtts.context("the server speaks no TLS")?;
    let client = |name: &str| client(&tls, name);
    let _there = open(address, client("good")?, "good", SESSIONS).await?;
    let mut revoked = Vec::new();
    for run in 0..RUNS {
        let name = format!("lost{run}");
        revoked.push(open(address, client(&name)?, &name, REVOKED).await?);
    }
    println!(
        "{SESSIONS} sessions of certificates are judged again each second: others' p99 in ms, median of {RUNS} runs with and as many without, \
         in turns"
    );
    let (mut without, mut with, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (run, lost) in revoked.into_iter().enumerate() {
        without.push(others(&field, &format!("a{run}"), FOR, 20).await?);
        let beside = format!("b{run}");
        let judged = async {
            for list in &lists.harmless {
                lists.replace(list)?;
                tokio::time::sleep(EVERY).await;
            }
            anyhow::Ok(())
        };
        let (fared, judged) = tokio::join!(others(&field, &beside, FOR, 20), judged);
        judged?;
        with.push(fared?);
        ends.push(ended(lost, || lists.replace(&lists.of_lost[run])).await?);
    }
    let mut wrong = Vec::new();
    for (kind, of) in KINDS {
        let (without, with) = (p99(&without, of), p99(&with, of));
        println!("  {kind:<9} {without:>9.2} without {with:>9.2} with, {:>6.2}", with / without);
        if with > allowed(without) {
            wrong.push(format!("others' {kind} are harmed"));
        }
    }
    for (first, last) in ends {
        println!(
            "  {REVOKED} revoked ones end {:.2} to {:.2} s after their list was put there, of which up to 1 s is the look",
            first.as_secs_f64(),
            last.as_secs_f64()
        );
        if last > WITHIN {
            wrong.push(format!("a revoked one went on for {last:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

/// What the authority's list becomes, one after the other.
struct Lists {
    path: std::path::PathBuf,
    /// They revoke nobody who is there, and each is another one.
    harmless: Vec<Vec<u8>>,
    of_lost: Vec<Vec<u8>>,
}

impl Lists {
    /// Makes certificates and lists; the server begins with one that revokes nobody.
    fn make(tls: &Path) -> Result<Self> {
        let path = tls.join("clients/p.crl");
        let revoking = |name: &str| -> Result<Vec<u8>> {
            revoke(tls, "p", name);
            Ok(std::fs::read(&path)?)
        };
        let names = (0..RUNS).map(|run| format!("lost{run}")).chain(["good".into(), "nobody".into()]);
        names.for_each(|name| drop(certificate(tls, "p", "millpond://p/lis0", &name)));
        let of_lost = (0..RUNS).map(|run| revoking(&format!("lost{run}"))).collect::<Result<_>>()?;
        // Signed anew, each has other bytes.
        let harmless = (0..FOR.as_secs()).map(|_| revoking("nobody")).collect::<Result<_>>()?;
        Ok(Self { path, harmless, of_lost })
    }

    fn replace(&self, list: &[u8]) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::write(&new, list)?;
        Ok(std::fs::rename(new, &self.path)?)
    }
}

fn client(tls: &Path, name: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(tls.join("ca.crt"))?)?;
    let chain = vec![CertificateDer::from_pem_file(tls.join(format!("{name}.crt")))?];
    let key = PrivateKeyDer::from_pem_file(tls.join(format!("{name}.key")))?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

type Line = TlsStream<TcpStream>;

/// Signs so many in by that certificate alone.
async fn open(address: SocketAddr, config: Arc<ClientConfig>, name: &str, count: usize) -> Result<Vec<Line>> {
    let connector = TlsConnector::from(config);
    stream::iter(0..count)
        .map(|n| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let mut io = connector.connect(ServerName::from(address.ip()), stream).await?;
                io.write_all(&connect_of(4, 2, &[], &[&format!("{name}-{n}")])).await?;
                io.flush().await?;
                let mut answer = [0; 4];
                io.read_exact(&mut answer).await?;
                ensure!(answer == [0x20, 2, 0, 0], "CONNACK {answer:?}");
                Ok(io)
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// After how long the first and the last of them end.
async fn ended(lost: Vec<Line>, revoke: impl FnOnce() -> Result<()>) -> Result<(Duration, Duration)> {
    let mut ending: JoinSet<Instant> = JoinSet::new();
    for mut line in lost {
        ending.spawn(async move {
            // Over 3.1.1 it just ends, one way or the other.
            let _ = line.read(&mut [0; 16]).await;
            Instant::now()
        });
    }
    let begun = Instant::now();
    revoke()?;
    let mut ends = Vec::new();
    while let Some(end) = tokio::time::timeout(10 * WITHIN, ending.join_next()).await? {
        ends.push(end?.duration_since(begun));
    }
    ends.sort();
    ends.first().copied().zip(ends.last().copied()).context("nobody was there")
}
