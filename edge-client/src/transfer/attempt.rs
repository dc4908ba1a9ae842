//! What single attempts have in common: how they fail, when they stand still, and when it is enough.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Response, StatusCode};
use tokio::time::Instant;

use super::{Options, TransferError, Why};
use crate::backoff::Backoff;

/// Bytes of an error's body that are shown.
const WHY_MAX: usize = 512;

/// How an attempt ended that did not succeed.
pub(super) enum Failure {
    /// Another attempt may succeed.
    Again(String),
    /// None will.
    Final(TransferError),
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        Self::Final(error)
    }
}

/// Counts attempts that brought nothing.
pub(super) struct Patience<'a> {
    options: &'a Options,
    backoff: Backoff,
    failures: u32,
    furthest: u64,
}

impl<'a> Patience<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self { options, backoff: options.backoff.clone(), failures: 0, furthest: 0 }
    }

    /// After a failed attempt that came as far as `reached` bytes: pauses, or gives up.
    pub(super) async fn after(&mut self, failure: Failure, reached: u64) -> Result<(), TransferError> {
        let last = match failure {
            Failure::Again(last) => last,
            Failure::Final(error) => return Err(error),
        };
        if reached > self.furthest {
            self.furthest = reached;
            self.failures = 0;
            self.backoff.reset();
        }
        self.failures += 1;
        if self.failures >= self.options.attempts {
            return Err(TransferError::Stuck { attempts: self.failures, last });
        }
        self.backoff.pause().await;
        Ok(())
    }
}

/// How often a transfer is looked at, at least.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes that may be on their way when the last one of a file was handed over: what this machine and those on the way hold back.
const HELD_BACK: u64 = 1 << 20;

/// Returns once `moved` has not changed for too long; `moves` is called whenever it has. When all of `size` bytes are handed over,
/// the last of them still take their time on a slow line.
pub(super) async fn stands_still(moved: &AtomicU64, size: u64, options: &Options, moves: impl Fn()) {
    let stall = options.stall;
    let (mut seen, mut since) = (moved.load(Ordering::Relaxed), Instant::now());
    let tail = Duration::from_secs(size.min(HELD_BACK) / options.slowest.max(1));
    while since.elapsed() < if seen < size { stall } else { stall + tail } {
        tokio::time::sleep((stall / 8).min(LOOK)).await;
        let now = moved.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
            moves();
        }
    }
}

/// What an answer means that is no success.
pub(super) async fn refusal(mut response: Response, stall: Duration) -> Failure {
    let status = response.status();
    let mut body = Vec::new();
    // Only for people: what does not come at once is left out.
    while body.len() < WHY_MAX
        && let Ok(Ok(Some(chunk))) = tokio::time::timeout(stall, response.chunk()).await
    {
        body.extend_from_slice(&chunk);
    }
    let text: String = String::from_utf8_lossy(&body).chars().take(WHY_MAX).collect();
    let why = Why(text.split_whitespace().collect::<Vec<_>>().join(" "));
    match status {
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            TransferError::Expired { status: status.as_u16(), why }.into()
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS => {
            Failure::Again(format!("HTTP {status}{why}"))
        }
        // It has no room, and will have none at once: the same bytes are not sent again for that.
        StatusCode::INSUFFICIENT_STORAGE => TransferError::Full { why: format!("HTTP {status}{why}") }.into(),
        status if status.is_server_error() => Failure::Again(format!("HTTP {status}{why}")),
        status => TransferError::Refused { status: status.as_u16(), why }.into(),
    }
}

/// An error of the HTTP client with its causes and the server that it is about, and without the URL, which is a secret while it lasts.
pub(crate) fn told(error: reqwest::Error) -> String {
    let server = error.url().map(|url| format!("{}: ", url.origin().ascii_serialization()));
    let error = error.without_url();
    let mut text = format!("{}{error}", server.unwrap_or_default());
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn an_error_names_the_server_and_nothing_of_the_url_that_is_secret() {
        // It holds the port, and nobody listens.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = socket.local_addr().unwrap();
        let url = format!("http://user:word@{at}/bucket/key?X-Amz-Signature=5ec2e7");
        let said = told(reqwest::get(url).await.unwrap_err());
        assert!(said.starts_with(&format!("http://{at}: ")) && said.contains("refused"), "{said}");
        for secret in ["user", "word", "bucket", "5ec2e7"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}
