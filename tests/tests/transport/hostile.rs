//! What others do to a port that speaks TLS.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use millpond_tests::{Server, tool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any of the server's own limits here.
const PATIENCE: Duration = Duration::from_secs(60);

/// All listeners that speak TLS.
fn listeners(server: &Server) -> [SocketAddr; 3] {
    [server.mqtts(), server.ports().http, server.ports().storage.unwrap()]
}

/// A handshake that must succeed, made by a program that knows nothing of ours.
fn shake(server: &Server, at: SocketAddr) {
    let mut openssl = Command::new("timeout");
    openssl.args([
        "60",
        "openssl",
        "s_client",
        "-verify_return_error",
        "-connect",
        &at.to_string(),
        "-CAfile",
    ]);
    let said = openssl.arg(server.ca()).stdin(Stdio::null()).output().unwrap();
    assert!(said.status.success(), "{at}: {}", String::from_utf8_lossy(&said.stderr));
}

/// Sends the bytes and waits until the server has closed the connection.
async fn closed_after(at: SocketAddr, bytes: &[u8], half_close: bool) {
    let mut io = TcpStream::connect(at).await.unwrap();
    io.write_all(bytes).await.unwrap();
    if half_close {
        io.shutdown().await.unwrap();
    }
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, io.read_to_end(&mut said)).await;
    // A reset ends it as well.
    assert!(ended.is_ok(), "{at} keeps a connection that sent {} bytes", bytes.len());
    assert!(said.len() < 1_000, "{at} answered {} bytes", said.len());
}

#[tokio::test]
async fn connections_that_say_nothing_hold_up_no_handshake_and_are_closed_in_time() {
    if !tool("openssl") {
        return;
    }
    let server = Server::secure(&[("MILLPOND__LIMITS__CONNECT_TIMEOUT_S", "5")]).await;
    for at in listeners(&server) {
        let mut silent = Vec::new();
        for _ in 0..50 {
            silent.push(TcpStream::connect(at).await.unwrap());
        }
        shake(&server, at);
        for mut io in silent {
            let read = timeout(PATIENCE, io.read(&mut [0; 16])).await;
            assert!(matches!(read.expect("a silent connection stays"), Ok(0) | Err(_)));
        }
    }
    let metrics = server.api().get("/metrics").await;
    let late = r#"millpond_tls_handshakes_total{listener="storage",outcome="late"} 50"#;
    assert!(metrics.as_str().unwrap().contains(late), "{metrics}");
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_harms_nobody() {
    if !tool("openssl") {
        return;
    }
    let server = Server::secure(&[("MILLPOND__LIMITS__CONNECT_TIMEOUT_S", "5")]).await;
    // The head of a real ClientHello, which goes no further.
    let begun = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[9; 40]].concat();
    let connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab";
    for at in listeners(&server) {
        closed_after(at, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", false).await;
        closed_after(at, connect, false).await;
        closed_after(at, &[0xff; 4_096], false).await;
        closed_after(at, &[0; 70_000], false).await;
        closed_after(at, &begun, false).await;
        closed_after(at, &begun, true).await;
        closed_after(at, b"", true).await;
        shake(&server, at);
    }
    // A client that speaks TLS to the port without it.
    closed_after(server.mqtt(), &begun, false).await;
    assert_eq!(server.api().try_call("/readyz").await, Some(200));
}
