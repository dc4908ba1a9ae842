//! MQTT over WebSocket, on the server's side: a stream of bytes in binary messages (RFC 6455; MQTT 5, section 6).
//!
//! Where a message or a frame begins says nothing about packets, so nothing waits for a whole one: bytes of a frame are
//! handed on as they come, whatever length it announces, and MQTT's own limits hold for what they are. All that a
//! connection holds is a frame's header, one control frame, and `OUT` bytes on their way out.

mod frames;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use frames::{Close, Frames, Next};

/// The subprotocol that clients have to ask for, and get.
pub const SUBPROTOCOL: &str = "mqtt";

/// Bytes on their way out that are not with the connection below yet; each message has at most as many.
const OUT: usize = 16 << 10;
/// Bytes read ahead: a client's small packets in one go. Longer frames are read to where they belong.
const AHEAD: usize = 1 << 10;
/// Bytes of a frame that are read in one step.
const STEP: usize = 16 << 10;

/// The value of `Sec-WebSocket-Accept` for that of `Sec-WebSocket-Key`.
pub fn accept_key(key: &[u8]) -> String {
    tungstenite::handshake::derive_accept_key(key)
}

/// The bytes that come and go in the messages on a connection whose handshake is done.
pub struct WebSocket<S> {
    io: S,
    frames: Frames,
    /// Read, and not looked at.
    ahead: BytesMut,
    out: BytesMut,
    /// A Close was sent, or will be with what is in `out`.
    closed: bool,
    /// Nothing more comes in.
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// On this connection.
    pub fn new(io: S) -> Self {
        let (ahead, out) = (BytesMut::new(), BytesMut::new());
        Self { io, frames: Frames::default(), ahead, out, closed: false, ended: false }
    }

    fn close(&mut self, why: Close) {
        if !std::mem::replace(&mut self.closed, true) {
            frames::close(why, &mut self.out);
        }
    }

    /// Writes what waits. Pending while some still does.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out.has_remaining() {
            if ready!(poll_write_buf(Pin::new(&mut self.io), cx, &mut self.out))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        // An idle connection holds nothing.
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    /// Puts the next bytes of messages into `into`; without any at the end.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.frames.next(&mut self.ahead) {
                Ok(Next::Data(left)) => {
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(into.remaining());
                    let before = into.filled().len();
                    if self.ahead.is_empty() {
                        let mut part = ReadBuf::new(into.initialize_unfilled_to(most.min(STEP)));
                        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
                        let read = part.filled().len();
                        if read == 0 {
                            self.ended = true;
                            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                        }
                        into.advance(read);
                    } else {
                        let n = most.min(self.ahead.len());
                        into.put_slice(&self.ahead[..n]);
                        self.ahead.advance(n);
                    }
                    self.frames.unmask(&mut into.filled_mut()[before..]);
                    return Poll::Ready(Ok(()));
                }
                Ok(Next::Pong(body)) => {
                    // Of pings that come faster than they can be answered, the newest is.
                    if !self.closed && self.out.len() < OUT {
                        frames::pong(body, &mut self.out);
                        let _ = self.poll_drain(cx)?;
                    }
                }
                Ok(Next::Closed) => {
                    self.ended = true;
                    self.close(Close::Normal);
                    let _ = self.poll_drain(cx)?;
                    return Poll::Ready(Ok(()));
                }
                Ok(Next::More) => {
                    self.ahead.reserve(AHEAD);
                    if ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.ahead))? == 0 {
                        self.ended = true;
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(wrong) => {
                    self.ended = true;
                    self.close(wrong);
                    let _ = self.poll_drain(cx)?;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, wrong.why())));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended || into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        this.poll_bytes(cx, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_drain(cx))?;
        let taken = &bytes[..bytes.len().min(OUT)];
        frames::message(taken, &mut this.out);
        // What does not go now goes with the next write or flush.
        let _ = this.poll_drain(cx)?;
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.close(Close::Normal);
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
