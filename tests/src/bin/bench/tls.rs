//! Connections with TLS: how fast they are established and signed in, what each costs the server's processor, and what an
//! idle one keeps in memory. The client works on the same two cores, so the rate is that of both together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::server::{Server, prepare};
use super::wire;

const CONNECTIONS: usize = 5_000;
/// Handshakes under way at once.
const AT_ONCE: usize = 64;

/// A connection that stays open.
trait Open: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Open for S {}

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 0, CONNECTIONS).await?;
    drop(ledger);
    let _ = ended.await;
    millpond::authority::init(&dir.path().join("tls"), &["127.0.0.1".to_owned()], 30)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.path().join("tls/ca.crt"))?)?;
    println!("TLS: {CONNECTIONS} connections, {AT_ONCE} at once, until CONNACK");
    let plain = measure(&dir, None, "plain (the reference)").await?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut whole = config.clone();
    whole.resumption = rustls::client::Resumption::disabled();
    let tls = measure(&dir, Some(Arc::new(whole)), "TLS 1.3, whole handshakes").await?;
    measure(&dir, Some(Arc::new(config)), "TLS 1.3, resumed").await?;
    println!("  TLS keeps {:.1} KiB more of an idle connection than plain", tls - plain);
    Ok(())
}

/// Measures one kind of connection on a server of its own, and answers the KiB that each keeps.
async fn measure(dir: &tempfile::TempDir, tls: Option<Arc<ClientConfig>>, name: &str) -> Result<f64> {
    let server = Server::start(dir.path()).await?;
    let address = match tls {
        Some(_) => server.addresses.mqtts.context("the server speaks no TLS")?,
        None => server.addresses.mqtt,
    };
    let connector = tls.map(TlsConnector::from);
    // The first one brings a ticket, where tickets are wanted.
    drop(open(address, connector.clone(), 0).await?);
    let (memory, cpu, begin) = (server.memory()?.0, server.cpu()?, Instant::now());
    let (mut opened, mut opening) = (Vec::with_capacity(CONNECTIONS), JoinSet::new());
    for n in 0..CONNECTIONS {
        if opening.len() >= AT_ONCE {
            opened.push(opening.join_next().await.context("none is under way")???);
        }
        opening.spawn(open(address, connector.clone(), n));
    }
    while let Some(connection) = opening.join_next().await {
        opened.push(connection??);
    }
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), server.cpu()? - cpu);
    let each = (server.memory()?.0 - memory) * 1024.0 / CONNECTIONS as f64;
    let count = opened.len() as f64;
    println!(
        "  {name:<26} {:>7.0} a second   {:>6.2} ms of the server's processor each   {each:>6.1} KiB each",
        count / seconds,
        cpu * 1_000.0 / count
    );
    Ok(each)
}

async fn open(address: SocketAddr, tls: Option<TlsConnector>, n: usize) -> Result<Box<dyn Open>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut io: Box<dyn Open> = match tls {
        Some(tls) => Box::new(tls.connect(ServerName::from(address.ip()), stream).await?),
        None => Box::new(stream),
    };
    io.write_all(&wire::connect_member(&format!("lis{n}"))).await?;
    io.flush().await?;
    let mut answer = [0; 4];
    io.read_exact(&mut answer).await?;
    ensure!(answer == [0x20, 2, 0, 0], "CONNACK {answer:?}");
    Ok(io)
}
