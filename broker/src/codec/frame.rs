//! Where packets begin and end in a stream, and what may be buffered of it.
//!
//! A PUBLISH that is long is judged by its head before its payload is there, so that what will be refused is read past
//! and never buffered; no PUBLISH is buffered before its bytes fit the budget of all connections.

use bytes::{Buf, Bytes, BytesMut};
use millpond_protocol::{Refusal, limits};

use super::packet::{Bad, Head, Version};
use super::read::{self, Reader};
use super::reason;

/// Bytes after the fixed header from which on a PUBLISH is long: judged by its head alone, which must end within them.
/// So a long one always has room for a head behind which bytes are still to come.
pub(crate) const LONG: usize = limits::PACKET_OVERHEAD;

/// What the framer can do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A packet: the first byte, and what follows the fixed header.
    Packet(u8, Bytes),
    /// A PUBLISH that was refused by its head has been read past.
    ReadPast(Box<(Head, Refusal)>),
    /// More bytes have to arrive.
    Bytes,
    /// The next packet needs so many bytes of the budget: see [`Framer::grant`].
    Budget(usize),
}

/// Cuts a stream into packets.
#[derive(Debug)]
pub(crate) struct Framer {
    version: Version,
    read_past_max: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between packets. `judged`: the head of the long PUBLISH ahead was admitted.
    Open {
        judged: bool,
        granted: bool,
    },
    Past {
        refused: Box<(Head, Refusal)>,
        left: usize,
    },
}

const OPEN: State = State::Open { judged: false, granted: false };

impl Framer {
    pub(crate) fn new(version: Version, read_past_max: usize) -> Self {
        Self { version, read_past_max, state: OPEN }
    }

    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The budget that [`Next::Budget`] asked for is there.
    pub(crate) fn grant(&mut self) {
        if let State::Open { granted, .. } = &mut self.state {
            *granted = true;
        }
    }

    /// Whether the stream stands inside a packet.
    pub(crate) fn is_inside(&self, stream: &BytesMut) -> bool {
        !stream.is_empty() || matches!(self.state, State::Past { .. })
    }

    /// Takes the next packet off `stream`. `judge` sees the head and the payload's length of a long PUBLISH.
    pub(crate) fn next(
        &mut self,
        stream: &mut BytesMut,
        mut judge: impl FnMut(&Head, usize) -> Result<(), Refusal>,
    ) -> Result<Next, Bad> {
        loop {
            if let State::Past { left, .. } = &mut self.state {
                let n = stream.len().min(*left);
                stream.advance(n);
                *left -= n;
                if *left > 0 {
                    return Ok(Next::Bytes);
                }
                if let State::Past { refused, .. } = std::mem::replace(&mut self.state, OPEN) {
                    return Ok(Next::ReadPast(refused));
                }
            }
            let Some((first, header, body)) = fixed_header(stream, self.version)? else {
                return Ok(Next::Bytes);
            };
            let is_publish = first >> 4 == 3;
            let (judged, granted) = match self.state {
                State::Open { judged, granted } => (judged, granted),
                State::Past { .. } => (false, false),
            };
            if is_publish && body > LONG && !judged {
                match self.head_of(stream, first, header, body)? {
                    None => return Ok(Next::Bytes),
                    Some((head, head_len)) => match judge(&head, body - head_len) {
                        Ok(()) => self.state = State::Open { judged: true, granted: false },
                        Err(refusal) => {
                            stream.advance(header + head_len);
                            let refused = Box::new((head, refusal));
                            self.state = State::Past { refused, left: body - head_len };
                        }
                    },
                }
                continue;
            }
            if !is_publish && body > limits::PACKET_OVERHEAD {
                return Err(TOO_LARGE);
            }
            if is_publish && !granted {
                return Ok(Next::Budget(body));
            }
            if stream.len() < header + body {
                stream.reserve(header + body - stream.len());
                return Ok(Next::Bytes);
            }
            self.state = OPEN;
            stream.advance(header);
            return Ok(Next::Packet(first, stream.split_to(body).freeze()));
        }
    }

    fn head_of(
        &self,
        stream: &BytesMut,
        first: u8,
        header: usize,
        body: usize,
    ) -> Result<Option<(Head, usize)>, Bad> {
        if body > self.read_past_max {
            return Err(TOO_LARGE);
        }
        let there = &stream[header..stream.len().min(header + LONG)];
        let needed = head_length(self.version, first, there);
        if needed.map_or(there.len() >= LONG, |needed| needed > LONG) {
            return Err(TOO_LARGE);
        }
        let Some(needed) = needed.filter(|needed| *needed <= there.len()) else {
            return Ok(None);
        };
        let mut from = Reader(Bytes::copy_from_slice(&there[..needed]));
        let head = read::head(self.version, first & 0x0F, &mut from)?;
        Ok(Some((head, needed)))
    }
}

const TOO_LARGE: Bad = Bad { code: reason::PACKET_TOO_LARGE, what: "the packet is too large" };

/// How long the head of a PUBLISH is, once enough of it is there to tell.
fn head_length(version: Version, first: u8, there: &[u8]) -> Option<usize> {
    let topic = usize::from(u16::from_be_bytes([*there.first()?, *there.get(1)?]));
    let id = if first & 0b0110 == 0 { 0 } else { 2 };
    let at = 2 + topic + id;
    if version == Version::V4 {
        return Some(at);
    }
    let mut length = 0;
    for (i, shift) in [0, 7, 14, 21].into_iter().enumerate() {
        let byte = *there.get(at + i)?;
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 || shift == 21 {
            return Some(at + i + 1 + length);
        }
    }
    None
}

/// First byte, length of the fixed header, and length of what follows; `None` until it is all there.
pub(crate) fn fixed_header(stream: &[u8], version: Version) -> Result<Option<(u8, usize, usize)>, Bad> {
    let Some((first, rest)) = stream.split_first() else {
        return Ok(None);
    };
    let mut length = 0;
    for (i, shift) in [0, 7, 14, 21].into_iter().enumerate() {
        let Some(byte) = rest.get(i) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            if *byte == 0 && i > 0 && version == Version::V5 {
                return Err(Bad::malformed("an overlong remaining length"));
            }
            return Ok(Some((*first, 2 + i, length)));
        }
    }
    Err(Bad::malformed("a remaining length of more than four bytes"))
}
