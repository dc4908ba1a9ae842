//! Bodies that somebody may stop reading half-way.
//!
//! Many clients write a whole body before they read the answer. If the server refuses the body, answers and closes, such
//! a client sees a broken connection instead of the reason. So what is left of a refused body is read and dropped, up to
//! a limit, before the answer goes out.
//!
//! And nobody waits for ever for one that stands still. Whoever receives an object looks after that itself; this is for what
//! `s3s` reads as a whole, of an STS request even before it looks at the signature.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::limits::embedded as limits;

/// A request's body that can be handed on and finished by somebody else.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

struct State {
    body: Incoming,
    /// Whether the client was waiting to be asked for its body, and has not been.
    held_back: bool,
    stall: Duration,
    /// Until when [`limits::STALL_BYTES`] are to come, while somebody waits for them.
    patience: Option<Pin<Box<Sleep>>>,
    /// Bytes since patience was last renewed.
    fresh: usize,
    /// When somebody last got something; none while somebody waits.
    got: Option<Instant>,
    broken: Option<Broken>,
}

/// How a body came to no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Stalled,
    /// The connection, or the encoding of the body.
    Off,
}

/// Why a body does not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Connection(#[from] hyper::Error),
    #[error("the body stood still for too long")]
    Stalled,
}

impl Shared {
    /// `held_back`: the client sends `Expect: 100-continue`, so it sends the body only when somebody begins to read.
    /// `stall`: how long whoever receives an object waits for the next bytes; twice as long is too long for everybody.
    pub(super) fn new(body: Incoming, held_back: bool, stall: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            body,
            held_back,
            stall,
            patience: None,
            fresh: 0,
            got: None,
            broken: None,
        })))
    }

    /// How it came to no end, if that is so.
    pub(super) fn broken(&self) -> Option<Broken> {
        self.with(|state| state.broken)
    }

    /// Reads and drops what is left, unless the client has not begun to send. Returns whether the connection can be used
    /// again: the body is at its end, and the client was asked for it if it wanted to be. (Some clients take the next
    /// answer for this one otherwise, even when there was nothing to send.)
    pub(super) async fn drain(&self) -> bool {
        if self.with(|state| state.held_back) {
            return false;
        }
        let drain = async {
            let mut left = limits::DRAIN_BYTES;
            while let Some(frame) = std::future::poll_fn(|cx| self.poll(cx)).await {
                let Ok(frame) = frame else { return false };
                left = match left.checked_sub(frame.data_ref().map_or(0, |data| data.len() as u64)) {
                    Some(left) => left,
                    None => return false,
                };
            }
            true
        };
        tokio::time::timeout(limits::DRAIN_TIME, drain).await.unwrap_or(false)
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.with(|state| state.poll(cx))
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.body.is_end_stream() {
            return Poll::Ready(None);
        }
        self.held_back = false;
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.got = Some(Instant::now());
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len));
            self.fresh += bytes.unwrap_or(0);
            if self.fresh >= limits::STALL_BYTES {
                (self.fresh, self.patience) = (0, None);
            }
            if matches!(frame, Some(Err(_))) {
                self.broken = Some(Broken::Off);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)));
        }
        // The time in which nobody wanted anything is not the client's.
        if self.got.take().is_some_and(|got| got.elapsed() > self.stall) {
            self.patience = None;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(self.stall * 2)));
        std::task::ready!(patience.as_mut().poll(cx));
        self.broken = Some(Broken::Stalled);
        Poll::Ready(Some(Err(BodyError::Stalled)))
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}
