//! Bodies that somebody may stop reading half-way.
//!
//! Many clients write a whole body before they read the answer. If the server refuses the body, answers and closes, such
//! a client sees a broken connection instead of the reason. So what is left of a refused body is read and dropped, up to
//! a limit, before the answer goes out.
//!
//! Whoever reads, and whatever the bytes are, a body that stands still or crawls ends here: [`Pace`] says when.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use s3s::StdError;
use tokio::time::{Instant, Sleep, sleep};

use super::chunks::Chunks;
use crate::limits::embedded as limits;

/// A request's body that can be handed on and finished by somebody else.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

struct State {
    body: Incoming,
    /// Of a body in chunks of S3's own.
    chunks: Option<Chunks>,
    /// A chunk announces more than it may.
    oversized: bool,
    pace: Pace,
    /// Since when a reader waits for bytes, and what wakes it when there were none for too long.
    since: Option<Instant>,
    patience: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    /// The connection, or the encoding of the body, ended before the body did.
    broken: bool,
    /// Whether the client was waiting to be asked for its body, and has not been.
    held_back: bool,
}

impl Shared {
    /// `held_back`: the client sends `Expect: 100-continue`, so it sends the body only when somebody begins to read.
    /// It may stand still for `stall`. `chunked`: it is in chunks of S3's own.
    pub(super) fn new(body: Incoming, held_back: bool, chunked: bool, stall: Duration) -> Self {
        let (pace, since, patience) = (Pace::new(stall), None, None);
        Self(Arc::new(Mutex::new(State {
            body,
            chunks: chunked.then(Chunks::new),
            oversized: false,
            pace,
            since,
            patience,
            stalled: false,
            broken: false,
            held_back,
        })))
    }

    /// Whether it ended because it came too slowly.
    pub(super) fn stalled(&self) -> bool {
        self.with(|state| state.stalled)
    }

    /// Whether it was refused for the length of a chunk.
    pub(super) fn oversized(&self) -> bool {
        self.with(|state| state.oversized)
    }

    /// Whether it broke off.
    pub(super) fn broken(&self) -> bool {
        self.with(|state| state.broken)
    }

    /// Reads and drops what is left, up to so many bytes and for so long, unless the client has not begun to send.
    /// Returns whether the connection can be used again: the body is at its end, and the client was asked for it if it
    /// wanted to be. (Some clients take the next answer for this one otherwise, even when there was nothing to send.)
    pub(super) async fn drain(&self, most: u64, within: Duration) -> bool {
        if self.with(|state| state.held_back) {
            return false;
        }
        // What is dropped may be cut anyhow.
        self.with(|state| state.chunks = None);
        let drain = async {
            let mut left = most;
            while let Some(frame) = std::future::poll_fn(|cx| self.poll(cx)).await {
                let Ok(frame) = frame else { return false };
                left = match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
                    Some(left) => left,
                    None => return false,
                };
            }
            true
        };
        tokio::time::timeout(within, drain).await.unwrap_or(false)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.with(|state| state.poll(cx))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        loop {
            if let Some(bytes) = self.chunks.as_mut().and_then(Chunks::next) {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.stalled {
                return Poll::Ready(Some(Err(too_slow())));
            }
            if self.body.is_end_stream() {
                let rest = self.chunks.as_mut().and_then(Chunks::rest);
                return Poll::Ready(rest.map(|bytes| Ok(Frame::data(bytes))));
            }
            self.held_back = false;
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return self.wait(cx),
                Poll::Ready(frame) => frame,
            };
            let waited = self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            self.pace.came(waited, bytes);
            self.broken |= matches!(frame, Some(Err(_)));
            match (&mut self.chunks, frame) {
                (Some(chunks), Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    if chunks.came(data).is_err() {
                        (self.chunks, self.oversized) = (None, true);
                        return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::InvalidData).into())));
                    }
                }
                (_, frame) => return Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            }
        }
    }

    /// Waits for bytes, for as long as there is patience.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let left = self.pace.patience();
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(left)));
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            patience.as_mut().reset(now + left);
        }
        match patience.as_mut().poll(cx) {
            Poll::Ready(()) => {
                self.stalled = true;
                Poll::Ready(Some(Err(too_slow())))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

fn too_slow() -> StdError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// How long a reader waits for more of a body. Only waiting counts, for the disk may take its time.
#[derive(Debug)]
struct Pace {
    stall: Duration,
    /// Waited since the last [`limits::STALL_BYTES`] came, and the bytes since then.
    still: Duration,
    fresh: usize,
    /// Waited in all, and the bytes in all.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(stall: Duration) -> Self {
        Self { stall, still: Duration::ZERO, fresh: 0, waited: Duration::ZERO, bytes: 0 }
    }

    /// After a wait so many bytes came.
    fn came(&mut self, waited: Duration, bytes: usize) {
        self.still += waited;
        self.waited += waited;
        self.fresh += bytes;
        self.bytes += bytes as u64;
        if self.fresh >= limits::STALL_BYTES {
            (self.still, self.fresh) = (Duration::ZERO, 0);
        }
    }

    /// How long the next wait may take: until nothing has come for too long, or until too little has come in all.
    fn patience(&self) -> Duration {
        let earned = limits::CRAWL + Duration::from_secs(self.bytes / limits::CRAWL_RATE);
        self.stall.saturating_sub(self.still).min(earned.saturating_sub(self.waited))
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.chunks.is_none() && state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // Cut otherwise, chunks take another number of bytes.
        self.with(|state| if state.chunks.is_some() { SizeHint::default() } else { state.body.size_hint() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of patience after `bytes` came every `pause` seconds so many times; none if it did not last.
    fn after(times: usize, pause: u64, bytes: usize) -> Option<u64> {
        let mut pace = Pace::new(limits::STALL);
        for _ in 0..times {
            let pause = Duration::from_secs(pause);
            if pace.patience() < pause {
                return None;
            }
            pace.came(pause, bytes);
        }
        Some(pace.patience().as_secs())
    }

    #[test]
    fn a_slow_device_goes_on_and_a_body_that_crawls_ends() {
        let stall = limits::STALL.as_secs();
        assert_eq!(after(0, 0, 0), Some(stall));
        // A byte now and then is no progress.
        assert_eq!(after(29, 1, 1), Some(1));
        assert_eq!(after(31, 1, 1), None);
        // 5 MiB at 3 KiB/s take half an hour; at 1 KiB/s they are given up after a while, though bytes came.
        assert_eq!(after(1_800, 1, 3 << 10), Some(stall));
        let crawl = limits::CRAWL.as_secs() as usize;
        assert!(after(crawl, 1, 1 << 10).is_some());
        assert_eq!(after(3 * crawl, 1, 1 << 10), None);
    }
}
