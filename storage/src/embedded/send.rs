//! Bodies on their way out: large reads on a blocking thread, one ahead of the connection.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::limits::embedded as limits;

/// A span of a file as a stream of chunks. It ends with an error if the file is shorter than the span.
pub(super) struct Outgoing {
    /// Bytes that have not been handed on.
    left: u64,
    /// Bytes that no read has been started for.
    unread: u64,
    next: Next,
}

enum Next {
    Ready(Option<File>, Bytes),
    Reading(JoinHandle<io::Result<(File, Bytes)>>),
    End,
}

impl Outgoing {
    /// Opens a span and reads its first chunk, so that a small object takes no second trip. Blocks.
    pub(super) fn open(mut file: File, span: Range<u64>) -> io::Result<Self> {
        let left = span.end - span.start;
        if span.start > 0 {
            file.seek(SeekFrom::Start(span.start))?;
        }
        let (file, first) = read(file, left)?;
        let unread = left - first.len() as u64;
        let next = if left == 0 { Next::End } else { Next::Ready((unread > 0).then_some(file), first) };
        Ok(Self { left, unread, next })
    }

    fn hand_on(&mut self, file: Option<File>, chunk: Bytes) -> Bytes {
        self.left -= chunk.len() as u64;
        self.next = match file {
            Some(file) => {
                let unread = self.unread;
                self.unread -= unread.min(limits::CHUNK as u64);
                Next::Reading(spawn_blocking(move || read(file, unread)))
            }
            None => Next::End,
        };
        chunk
    }
}

/// Reads the next chunk of a file of which `unread` bytes are still wanted.
fn read(mut file: File, unread: u64) -> io::Result<(File, Bytes)> {
    let size = unread.min(limits::CHUNK as u64);
    let mut chunk = Vec::with_capacity(size as usize);
    (&mut file).take(size).read_to_end(&mut chunk)?;
    if chunk.len() as u64 == size {
        Ok((file, chunk.into()))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

impl Stream for Outgoing {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (file, chunk) = match &mut self.next {
            Next::End => return Poll::Ready(None),
            Next::Ready(file, chunk) => (file.take(), std::mem::take(chunk)),
            Next::Reading(task) => {
                match ready!(Pin::new(task).poll(cx)).map_err(io::Error::other).flatten() {
                    Ok((file, chunk)) => ((self.unread > 0).then_some(file), chunk),
                    Err(error) => {
                        tracing::error!(%error, "the body of an object cannot be read");
                        self.next = Next::End;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
            }
        };
        Poll::Ready(Some(Ok(self.hand_on(file, chunk))))
    }
}

impl ByteStream for Outgoing {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.left).unwrap_or(usize::MAX))
    }
}
