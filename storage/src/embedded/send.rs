//! Bodies on their way out: large reads on a blocking thread, one ahead of the connection.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use tokio::task::{JoinHandle, spawn_blocking};

use super::blobs::BlobId;
use super::catalog::{CatalogError, Object};
use super::room;
use super::store::Store;
use crate::limits::embedded as limits;

/// The bytes of an object, in one file or in those of its parts, which stay as long as this does.
pub(super) struct Body {
    /// The file that is being read, with the bytes in it.
    file: Option<(File, u64)>,
    rest: std::vec::IntoIter<(BlobId, u64)>,
    pinned: Option<(Arc<Store>, room::Pin)>,
}

impl Body {
    pub(super) fn one(file: File, size: u64) -> Self {
        Self { file: Some((file, size)), rest: Vec::new().into_iter(), pinned: None }
    }

    pub(super) fn parts(store: &Arc<Store>, object: &Object) -> Result<Self, CatalogError> {
        let pinned = Some((Arc::clone(store), store.pin(object.id)));
        let mut this = Self { file: None, rest: Vec::new().into_iter(), pinned };
        let parts = store.catalog().parts(object.id, 0, limits::PARTS as usize)?;
        this.rest = parts.into_iter().map(|part| (part.file, part.size)).collect::<Vec<_>>().into_iter();
        Ok(this)
    }

    /// Passes over so many bytes. Blocks.
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            if let Some((file, left)) = &mut self.file {
                let step = bytes.min(*left);
                file.seek_relative(i64::try_from(step).map_err(io::Error::other)?)?;
                (*left, bytes) = (*left - step, bytes - step);
                if *left > 0 {
                    return Ok(());
                }
            }
            // Whole parts are passed over without opening them.
            while let Some((_, size)) = self.rest.as_slice().first()
                && *size <= bytes
            {
                bytes -= size;
                self.rest.next();
            }
            if !self.open_next()? {
                break;
            }
        }
        if bytes == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The next bytes, up to so many; they end at the end of a part. Blocks.
    fn read(&mut self, most: usize) -> io::Result<Vec<u8>> {
        while self.file.as_ref().is_none_or(|(_, left)| *left == 0) {
            if !self.open_next()? {
                return Ok(Vec::new());
            }
        }
        let Some((file, left)) = &mut self.file else { return Ok(Vec::new()) };
        let wanted = (*left).min(most as u64);
        let mut bytes = Vec::with_capacity(wanted as usize);
        io::Read::by_ref(file).take(wanted).read_to_end(&mut bytes)?;
        *left -= bytes.len() as u64;
        if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn open_next(&mut self) -> io::Result<bool> {
        let (Some((file, size)), Some((store, _))) = (self.rest.next(), &self.pinned) else {
            return Ok(false);
        };
        self.file = Some((store.open_file(file)?, size));
        Ok(true)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some((store, pin)) = self.pinned.take() {
            store.let_go(&pin);
        }
    }
}

/// A span of an object as a stream of chunks. It ends with an error if a file is shorter than its row says.
pub(super) struct Outgoing {
    /// Bytes that have not been handed on.
    left: u64,
    /// Bytes that no read has been started for.
    unread: u64,
    next: Next,
}

enum Next {
    Ready(Option<Body>, Bytes),
    Reading(JoinHandle<io::Result<(Body, Bytes)>>),
    End,
}

impl Outgoing {
    /// Opens a span and reads its first chunk, so that a small object takes no second trip. Blocks.
    pub(super) fn open(mut body: Body, span: Range<u64>) -> io::Result<Self> {
        let left = span.end - span.start;
        body.skip(span.start)?;
        let (body, first) = read(body, left)?;
        let unread = left - first.len() as u64;
        let next = if left == 0 { Next::End } else { Next::Ready((unread > 0).then_some(body), first) };
        Ok(Self { left, unread, next })
    }

    fn hand_on(&mut self, body: Option<Body>, chunk: Bytes) -> Bytes {
        self.left -= chunk.len() as u64;
        self.next = match body {
            Some(body) => {
                let unread = self.unread;
                Next::Reading(spawn_blocking(move || read(body, unread)))
            }
            None => Next::End,
        };
        chunk
    }
}

/// Reads the next chunk of a body of which `unread` bytes are still wanted.
fn read(mut body: Body, unread: u64) -> io::Result<(Body, Bytes)> {
    let most = unread.min(limits::CHUNK as u64) as usize;
    let chunk = body.read(most)?;
    if chunk.is_empty() && most > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((body, chunk.into()))
}

impl Stream for Outgoing {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (body, chunk) = match &mut self.next {
            Next::End => return Poll::Ready(None),
            Next::Ready(body, chunk) => (body.take(), std::mem::take(chunk)),
            Next::Reading(task) => {
                match ready!(Pin::new(task).poll(cx)).map_err(io::Error::other).flatten() {
                    Ok((body, chunk)) => {
                        self.unread -= chunk.len() as u64;
                        ((self.unread > 0).then_some(body), chunk)
                    }
                    Err(error) => {
                        tracing::error!(%error, "the body of an object cannot be read");
                        self.next = Next::End;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
            }
        };
        Poll::Ready(Some(Ok(self.hand_on(body, chunk))))
    }
}

impl ByteStream for Outgoing {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.left).unwrap_or(usize::MAX))
    }
}
