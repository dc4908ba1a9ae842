//! Bodies on their way out: large reads, one ahead of the connection, on a blocking thread where the disk has to be waited for.
//!
//! What is in memory is read at once: to pass each chunk from thread to thread and back costs as much as to copy it.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _, Seek as _};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use rustix::io::{ReadWriteFlags, preadv2};
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

    /// The next bytes, up to so many, if they are in memory.
    fn read_now(&mut self, most: usize) -> Option<Vec<u8>> {
        let (file, left) = self.file.as_mut().filter(|(_, left)| *left > 0)?;
        let mut bytes = vec![0; (*left).min(most as u64) as usize];
        // From where the file stands. What fails, fails again where it may be waited for.
        let got = preadv2(file, &mut [IoSliceMut::new(&mut bytes)], u64::MAX, ReadWriteFlags::NOWAIT).ok()?;
        bytes.truncate(got);
        *left -= got as u64;
        (got > 0).then_some(bytes)
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
            Some(mut body) => match body.read_now(self.unread.min(limits::CHUNK as u64) as usize) {
                Some(next) => {
                    self.unread -= next.len() as u64;
                    Next::Ready((self.unread > 0).then_some(body), next.into())
                }
                None => {
                    let unread = self.unread;
                    Next::Reading(spawn_blocking(move || read(body, unread)))
                }
            },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_goes_on_where_was_read_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("body");
        let whole: Vec<u8> = (0..100_000_u32).map(|n| (n / 7) as u8).collect();
        std::fs::write(&path, &whole).unwrap();
        let mut body = Body::one(File::open(&path).unwrap(), 90_000);
        body.skip(1_000).unwrap();
        let mut read = Vec::new();
        while read.len() < 89_000 {
            // Of a file system that cannot say what is in memory nothing comes.
            read.extend(body.read_now(700).unwrap_or_default());
            read.extend(body.read(300).unwrap());
        }
        assert_eq!(read, whole[1_000..90_000]);
        assert_eq!((body.read_now(1), body.read(1).unwrap()), (None, Vec::new()));
    }
}
