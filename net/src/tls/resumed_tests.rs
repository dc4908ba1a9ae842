//! Handshakes that a ticket cuts short.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::clients::tests::authority;
use super::files::tests::pair;
use super::*;
use crate::{Door, Listener, Shown};

const LONG: Duration = Duration::from_secs(60);

/// A server's files with an authority of pool `lab`, and a client with a certificate of that authority that ends then.
fn made(dir: &Path, until: Duration, version: &'static SupportedProtocolVersion) -> (Tls, ClientConfig) {
    let clients = dir.join("clients");
    std::fs::create_dir(&clients).unwrap();
    let lab = authority();
    std::fs::write(clients.join("lab.crt"), lab.pem()).unwrap();
    let files = Files { clients: Some(clients), ..pair(dir, 2020, 2100) };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.cert).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("millpond://lab/dev".try_into().unwrap())];
    params.not_after = date_time_ymd(1970, 1, 1) + until;
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &lab).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .unwrap();
    (Tls::load(files).unwrap(), client)
}

/// Passes the door: what the server makes of it, and whether a ticket cut the handshake short.
async fn enter(tls: &Tls, client: &Arc<ClientConfig>) -> (Shown, bool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let mut listener = Listener::new(listener, Door::members("test", tls.clone(), LONG));
    let connect = async {
        let io = TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(client.clone());
        let mut io = connector.connect("localhost".try_into().unwrap(), io).await.unwrap();
        // With what is read comes the ticket.
        assert_eq!(io.read_u8().await.unwrap(), 7);
        io.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    };
    let serve = async {
        let entered = listener.accept().await.unwrap().enter(LONG).await;
        let Ok(mut entered) = entered else { panic!("it does not pass") };
        entered.stream.write_u8(7).await.unwrap();
        entered.stream.flush().await.unwrap();
        entered.shown
    };
    tokio::join!(serve, connect)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

#[tokio::test]
async fn a_certificate_that_has_run_out_names_nobody_though_its_ticket_still_opens_the_door() {
    for version in [&TLS12, &TLS13] {
        let dir = tempfile::tempdir().unwrap();
        let end = Duration::from_secs(now().as_secs() + 3);
        let (tls, client) = made(dir.path(), end, version);
        let client = Arc::new(client);
        let (first, is_resumed) = enter(&tls, &client).await;
        assert!(matches!(first, Shown::Member(_)) && !is_resumed, "{version:?}");
        while now() <= end + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(enter(&tls, &client).await, (Shown::Nobody, true), "{version:?}");
    }
}

#[tokio::test]
async fn a_client_that_would_send_early_data_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let (tls, mut client) = made(dir.path(), now() + LONG, &TLS13);
    client.enable_early_data = true;
    let client = Arc::new(client);
    enter(&tls, &client).await;
    // It has a ticket, and that has no room for any.
    let mut back = ClientConnection::new(client.clone(), "localhost".try_into().unwrap()).unwrap();
    assert!(back.early_data().is_none());
    enter(&tls, &client).await;
    assert!(enter(&tls, &client).await.1, "tickets are given");
}
