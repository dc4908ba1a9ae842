//! Frames without I/O: what the bytes of a client are. tungstenite reads and writes headers.

use std::io::Cursor;

use bytes::{Buf, BufMut, BytesMut};
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Bytes of a control frame's body: what the standard allows.
const CONTROL_MAX: u64 = 125;

/// Why a Close is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    Normal = 1000,
    Protocol = 1002,
    NoBinary = 1003,
}

impl Close {
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::Normal => "the WebSocket was closed",
            Self::Protocol => "frames against RFC 6455",
            Self::NoBinary => "MQTT comes in binary messages",
        }
    }
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At most so many bytes of a message, at least one; [`Frames::unmask`] is told which they were.
    Data(u64),
    /// A ping came: its body goes back.
    Pong(BytesMut),
    /// A Close came.
    Closed,
    /// Nothing without more bytes.
    More,
}

/// Where in its frames a client is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The frame whose bytes come.
    frame: Option<Frame>,
    /// A message is under way of which the last frame has not begun.
    fragmented: bool,
}

#[derive(Debug)]
struct Frame {
    kind: Kind,
    mask: [u8; 4],
    /// Bytes that have not come, and those that have, modulo 4.
    left: u64,
    phase: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Ping,
    Pong,
    Close,
}

impl Frames {
    /// What the bytes in `ahead` are next. Takes headers and control frames out of it, and leaves data there.
    pub(super) fn next(&mut self, ahead: &mut BytesMut) -> Result<Next, Close> {
        loop {
            let Some(frame) = &mut self.frame else {
                if !self.begin(ahead)? {
                    return Ok(Next::More);
                }
                continue;
            };
            if frame.kind == Kind::Data {
                if frame.left > 0 {
                    return Ok(Next::Data(frame.left));
                }
                self.frame = None;
                continue;
            }
            // A control frame has 125 bytes at most.
            let length = usize::try_from(frame.left).unwrap_or(usize::MAX);
            if ahead.len() < length {
                return Ok(Next::More);
            }
            let mut body = ahead.split_to(length);
            frame.unmask(&mut body);
            let kind = frame.kind;
            self.frame = None;
            match kind {
                Kind::Ping => return Ok(Next::Pong(body)),
                Kind::Close => return Ok(Next::Closed),
                Kind::Pong | Kind::Data => {}
            }
        }
    }

    /// Removes the mask of the bytes that came after [`Next::Data`].
    pub(super) fn unmask(&mut self, bytes: &mut [u8]) {
        if let Some(frame) = &mut self.frame {
            frame.unmask(bytes);
        }
    }

    /// Reads a header; false: it is not whole.
    fn begin(&mut self, ahead: &mut BytesMut) -> Result<bool, Close> {
        let mut cursor = Cursor::new(&ahead[..]);
        let Some((header, left)) = FrameHeader::parse(&mut cursor).map_err(|_| Close::Protocol)? else {
            return Ok(false);
        };
        let length = usize::try_from(cursor.position()).map_err(|_| Close::Protocol)?;
        let FrameHeader { is_final, rsv1, rsv2, rsv3, opcode, mask } = header;
        let kind = match opcode {
            OpCode::Data(Data::Binary) => Kind::Data,
            OpCode::Data(Data::Continue) => Kind::Data,
            OpCode::Data(Data::Text) => return Err(Close::NoBinary),
            OpCode::Data(Data::Reserved(_)) => return Err(Close::Protocol),
            OpCode::Control(Control::Ping) => Kind::Ping,
            OpCode::Control(Control::Pong) => Kind::Pong,
            OpCode::Control(Control::Close) => Kind::Close,
            OpCode::Control(Control::Reserved(_)) => return Err(Close::Protocol),
        };
        let Some(mask) = mask else { return Err(Close::Protocol) };
        let good = if kind == Kind::Data {
            // A message goes on, or one begins, and not both.
            (opcode == OpCode::Data(Data::Continue)) == self.fragmented && left >> 63 == 0
        } else {
            // A Close says nothing, or a code of two bytes and why.
            is_final && left <= CONTROL_MAX && (kind != Kind::Close || left != 1)
        };
        if rsv1 || rsv2 || rsv3 || !good {
            return Err(Close::Protocol);
        }
        if kind == Kind::Data {
            self.fragmented = !is_final;
        }
        ahead.advance(length);
        self.frame = Some(Frame { kind, mask, left, phase: 0 });
        Ok(true)
    }
}

impl Frame {
    fn unmask(&mut self, bytes: &mut [u8]) {
        let mut mask = self.mask;
        mask.rotate_left(self.phase);
        for chunk in bytes.chunks_mut(4) {
            chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        }
        self.phase = (self.phase + bytes.len()) % 4;
        self.left = self.left.saturating_sub(bytes.len() as u64);
    }
}

/// Appends a binary message.
pub(super) fn message(bytes: &[u8], out: &mut BytesMut) {
    frame(OpCode::Data(Data::Binary), bytes, out);
}

/// Appends a Pong.
pub(super) fn pong(body: BytesMut, out: &mut BytesMut) {
    frame(OpCode::Control(Control::Pong), &body, out);
}

/// Appends a Close.
pub(super) fn close(why: Close, out: &mut BytesMut) {
    frame(OpCode::Control(Control::Close), &(why as u16).to_be_bytes(), out);
}

fn frame(opcode: OpCode, body: &[u8], out: &mut BytesMut) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    out.reserve(header.len(body.len() as u64) + body.len());
    // Writing to memory does not fail.
    let written = header.format(body.len() as u64, &mut out.writer());
    debug_assert!(written.is_ok());
    out.put_slice(body);
}
