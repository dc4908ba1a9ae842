use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};

use super::*;

const BINARY: OpCode = OpCode::Data(Data::Binary);
const MORE: OpCode = OpCode::Data(Data::Continue);
const MASK: [u8; 4] = [0xA1, 0x02, 0x53, 0xF4];

/// A frame as clients send it.
fn frame(opcode: OpCode, is_final: bool, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader { is_final, opcode, mask: Some(MASK), ..FrameHeader::default() };
    let mut bytes = Vec::new();
    Frame::from_payload(header, body.to_vec().into()).format(&mut bytes).unwrap();
    bytes
}

fn pair() -> (DuplexStream, WebSocket<DuplexStream>) {
    let (client, server) = duplex(1 << 20);
    (client, WebSocket::new(server))
}

/// What the server reads of these bytes, handed over `step` at a time, and what it answered.
async fn read(bytes: &[u8], step: usize) -> (io::Result<Vec<u8>>, Vec<u8>) {
    let (mut client, mut server) = pair();
    let reading = async {
        let mut got = Vec::new();
        let read = server.read_to_end(&mut got).await.map(|_| got);
        drop(server);
        read
    };
    let sending = async {
        for part in bytes.chunks(step) {
            // The server may have hung up.
            if client.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        client.shutdown().await.unwrap();
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        said
    };
    let (read, said) = tokio::join!(reading, sending);
    (read, said)
}

#[tokio::test]
async fn bytes_come_out_as_they_went_in_however_they_are_cut() {
    let long: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
    let bytes = [
        frame(BINARY, true, b"one"),
        frame(BINARY, false, b"t"),
        frame(OpCode::Control(Control::Ping), true, b"are you there"),
        frame(MORE, false, b""),
        frame(OpCode::Control(Control::Pong), true, b""),
        frame(MORE, true, b"wo"),
        frame(BINARY, true, &long),
        frame(BINARY, true, b""),
        frame(OpCode::Control(Control::Close), true, &[3, 232]),
    ]
    .concat();
    for step in [1, 2, 3, 7, 1_000, 1 << 20] {
        let (got, said) = read(&bytes, step).await;
        assert_eq!(got.unwrap(), [b"onetwo".as_slice(), &long].concat(), "{step} at a time");
        // A Pong with the same body, and a Close.
        assert_eq!(said, [b"\x8a\x0dare you there".as_slice(), b"\x88\x02\x03\xe8"].concat());
    }
}

#[tokio::test]
async fn what_the_standard_forbids_ends_the_connection_with_the_code_that_says_so() {
    let unmasked = b"\x82\x01x".to_vec();
    let reserved = [&[0xC2, 0x80], MASK.as_slice()].concat();
    let endless = [&[0x82, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0], MASK.as_slice()].concat();
    let twice = [frame(BINARY, false, b"a"), frame(BINARY, true, b"b")].concat();
    for (bytes, code) in [
        (unmasked, 1002_u16),
        (reserved, 1002),
        (endless, 1002),
        (twice, 1002),
        (frame(MORE, true, b"of nothing"), 1002),
        (frame(OpCode::Control(Control::Ping), false, b""), 1002),
        (frame(OpCode::Control(Control::Ping), true, &[0; 126]), 1002),
        (vec![0x83, 0x80, 0, 0, 0, 0], 1002),
        (vec![0x8B, 0x80, 0, 0, 0, 0], 1002),
        (frame(OpCode::Data(Data::Reserved(3)), true, b"what"), 1002),
        (frame(OpCode::Control(Control::Close), true, b"\x03"), 1002),
        (frame(OpCode::Data(Data::Text), true, b"text"), 1003),
    ] {
        let (got, said) = read(&bytes, 1 << 20).await;
        assert_eq!(got.unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        assert_eq!(said, [&[0x88, 2], code.to_be_bytes().as_slice()].concat(), "{bytes:?}");
    }
}

#[tokio::test]
async fn a_frame_that_announces_more_than_memory_costs_what_has_come_of_it() {
    let (mut client, mut server) = pair();
    let head = [&[0x82, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0], MASK.as_slice()].concat();
    client.write_all(&head).await.unwrap();
    client.write_all(&MASK).await.unwrap();
    let mut got = [1; 4];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(got, [0; 4]);
    assert!(server.ahead.capacity() <= 2 * AHEAD);
}

#[tokio::test]
async fn a_connection_that_breaks_inside_a_frame_is_no_end() {
    let bytes = frame(BINARY, true, b"whole");
    let (got, _) = read(&bytes[..bytes.len() - 1], 1 << 20).await;
    assert_eq!(got.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_back_the_writer_after_one_message() {
    let (client, server) = duplex(64);
    let mut server = WebSocket::new(server);
    let bytes = vec![7; 10 * OUT];
    let mut taken = 0;
    let stuck = std::future::poll_fn(|cx| {
        while let Poll::Ready(n) = Pin::new(&mut server).poll_write(cx, &bytes) {
            taken += n.unwrap();
        }
        Poll::Ready(taken)
    });
    assert_eq!(stuck.await, OUT);
    assert!(server.out.len() <= OUT + 14);
    drop(client);
}

#[tokio::test]
async fn the_end_is_said_and_nothing_is_sent_after_it() {
    let (mut client, mut server) = pair();
    server.write_all(b"bytes").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(server.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(server);
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"\x82\x05bytes\x88\x02\x03\xe8");
}
