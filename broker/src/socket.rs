//! Waiting for a socket in both directions at once, and leaving it so that the last words arrive.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codec::write::Out;

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long, and how many bytes, are read and thrown away so that the last words are not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

/// What the socket did.
pub(crate) enum Moved {
    Read(usize),
    Wrote(usize),
}

/// When the next byte must have moved in one direction, while one is due there.
#[derive(Debug, Default)]
pub(crate) struct Due(Option<Instant>);

impl Due {
    /// Sets the time when a byte becomes due, and forgets it when none is.
    pub(crate) fn follow(&mut self, is_due: bool, max: Duration) -> Option<Instant> {
        self.0 = is_due.then(|| self.0.unwrap_or_else(|| Instant::now() + max));
        self.0
    }

    /// A byte moved.
    pub(crate) fn moved(&mut self) {
        self.0 = None;
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.0.is_some_and(|by| now >= by)
    }
}

/// Writes what can be written, then reads if that is wanted, with room for `room` bytes at least.
pub(crate) fn poll_io<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    out: &mut Out,
    stream: &mut BytesMut,
    room: usize,
    reads: bool,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Moved>> {
    let mut wrote = 0;
    while out.has_remaining() {
        match tokio_util::io::poll_write_buf(Pin::new(&mut *io), cx, out) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(n)) => wrote += n,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => break,
        }
    }
    if wrote > 0 {
        return Poll::Ready(Ok(Moved::Wrote(wrote)));
    }
    // What a stream has taken and not passed on; on a plain socket this does nothing.
    if let Poll::Ready(Err(error)) = Pin::new(&mut *io).poll_flush(cx) {
        return Poll::Ready(Err(error));
    }
    if reads {
        stream.reserve(room);
        if let Poll::Ready(read) = tokio_util::io::poll_read_buf(Pin::new(&mut *io), cx, stream) {
            return Poll::Ready(read.map(Moved::Read));
        }
    }
    Poll::Pending
}

/// Writes what is left to be written, unless the client has said goodbye (`is_over`), and closes. `has_gone`: nothing more
/// comes from it, but it may still read.
pub(crate) async fn last_words<S>(mut io: S, mut out: Out, is_over: bool, has_gone: bool)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let written = async {
        if !is_over {
            io.write_all_buf(&mut out).await?;
        }
        io.shutdown().await
    };
    // A client that is gone cannot be told.
    let told = tokio::time::timeout(GOODBYE, written).await;
    if matches!(told, Ok(Ok(()))) && !is_over && !has_gone {
        linger(&mut io).await;
    }
}

/// Reads and drops what is still coming, for a while: closing a socket with unread bytes resets it, and the client would
/// not see what it was told last.
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S) {
    // Whoever has gone need not be waited for.
    let _ = io.shutdown().await;
    let mut left = LINGER_BYTES;
    let mut scrap = vec![0; 16 << 10];
    let read = async {
        while let Ok(n) = io.read(&mut scrap).await {
            left = left.saturating_sub(n);
            if n == 0 || left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, read).await;
}
