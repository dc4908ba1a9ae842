//! A client of TLS that shows what a handshake was, and speaks a few words of MQTT 5 and HTTP on it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millpond_tests::wire::{connect_of, packet, text};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for what comes at once on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that trusts these authorities, has that certificate, and remembers its tickets.
pub(super) fn client(
    authorities: &[&Path],
    certificate: Option<&Path>,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match certificate {
        Some(path) => {
            let chain = vec![CertificateDer::from_pem_file(path.with_extension("crt")).unwrap()];
            let key = PrivateKeyDer::from_pem_file(path.with_extension("key")).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    })
}

/// One connection.
pub(super) struct Line(TlsStream<TcpStream>);

impl Line {
    pub(super) async fn open(config: &Arc<ClientConfig>, at: SocketAddr) -> Self {
        let tcp = TcpStream::connect(at).await.unwrap();
        let connector = TlsConnector::from(config.clone());
        Self(connector.connect(ServerName::from(at.ip()), tcp).await.unwrap())
    }

    /// Whether the handshake was cut short by a ticket.
    pub(super) fn is_resumed(&self) -> bool {
        self.0.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The server's certificate.
    pub(super) fn certificate(&self) -> Vec<u8> {
        self.0.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// The next packet of MQTT, which is a short one, or the end.
    pub(super) async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let next = async {
            let first = self.0.read_u8().await.ok()?;
            let length = self.0.read_u8().await.ok()?;
            assert!(length < 128, "a long packet {first:#x}");
            let mut body = vec![0; length.into()];
            self.0.read_exact(&mut body).await.ok()?;
            Some((first, body))
        };
        timeout(PATIENCE, next).await.expect("nothing comes")
    }

    /// Signs in with a session that is kept for an hour, and perhaps with a user name and a password. Answers CONNACK's flags
    /// and code.
    pub(super) async fn sign_in(&mut self, client_id: &str, who: Option<[&str; 2]>) -> (u8, u8) {
        let fields = [&[client_id][..], who.as_ref().map_or(&[], |who| &who[..])].concat();
        let flags = if who.is_some() { 0xC0 } else { 0 };
        self.send(&connect_of(5, flags, &[17, 0, 0, 14, 16], &fields)).await;
        let (first, body) = self.packet().await.expect("the sign-in is not answered");
        assert_eq!(first, 0x20);
        (body[0], body[1])
    }

    /// Subscribes at QoS 1.
    pub(super) async fn subscribe(&mut self, filter: &str) {
        let mut body = vec![0, 1, 0];
        text(&mut body, filter);
        body.push(1);
        self.send(&packet(0x82, &body)).await;
        assert_eq!(self.packet().await, Some((0x90, vec![0, 1, 0, 1])));
    }

    /// Publishes at QoS 1.
    pub(super) async fn publish(&mut self, topic: &str, payload: &str) {
        let mut body = Vec::new();
        text(&mut body, topic);
        body.extend([0, 1, 0]);
        body.extend(payload.as_bytes());
        self.send(&packet(0x32, &body)).await;
        assert_eq!(self.packet().await.unwrap().0, 0x40);
    }

    /// Ends the connection without a will.
    pub(super) async fn goodbye(mut self) {
        self.send(&[0xE0, 0]).await;
        assert_eq!(self.packet().await, None);
    }

    pub(super) async fn ping(&mut self) {
        self.send(&[0xC0, 0]).await;
        assert_eq!(self.packet().await, Some((0xD0, vec![])));
    }

    /// Waits for the end, and answers the reason that was said.
    pub(super) async fn ended(mut self) -> Option<u8> {
        let mut reason = None;
        while let Some((first, body)) = self.packet().await {
            if first == 0xE0 {
                reason = body.first().copied();
            }
        }
        reason
    }

    /// A GET on the connection, which stays; its status.
    pub(super) async fn get(&mut self, path: &str) -> u16 {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await;
        let head = self.head().await;
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        timeout(PATIENCE, self.0.read_exact(&mut body)).await.expect("no body").unwrap();
        head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The head of an answer, in small letters.
    pub(super) async fn head(&mut self) -> String {
        let answer = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.0.read_u8().await.unwrap());
            }
            String::from_utf8(head).unwrap().to_ascii_lowercase()
        };
        timeout(PATIENCE, answer).await.expect("no answer")
    }
}
