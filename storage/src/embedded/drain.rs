//! Bodies that somebody may stop reading half-way.
//!
//! Many clients write a whole body before they read the answer. If the server refuses the body, answers and closes, such
//! a client sees a broken connection instead of the reason. So what is left of a refused body is read and dropped, up to
//! a limit, before the answer goes out.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::limits::embedded as limits;

/// A request's body that can be handed on and finished by somebody else.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<State>>);

struct State {
    body: Incoming,
    /// Whether the client was waiting to be asked for its body, and has not been.
    held_back: bool,
}

impl Shared {
    /// `held_back`: the client sends `Expect: 100-continue`, so it sends the body only when somebody begins to read.
    pub(super) fn new(body: Incoming, held_back: bool) -> Self {
        Self(Arc::new(Mutex::new(State { body, held_back })))
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

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|state| {
            if state.body.is_end_stream() {
                return Poll::Ready(None);
            }
            state.held_back = false;
            Pin::new(&mut state.body).poll_frame(cx)
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}
