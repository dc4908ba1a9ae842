//! PUT: one request for a file, or one for each part, several at a time.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, stream};
use reqwest::{Body, StatusCode, Url};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::attempt::{Failure, Patience, refusal, stands_still, told};
use super::throttle::Throttle;
use super::{Meter, Transfer, TransferError};

/// One presigned PUT and the bytes of the file that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub url: String,
    /// Sent as they stand: they are signed.
    pub headers: Vec<(String, String)>,
    /// Where in the file the bytes begin.
    pub offset: u64,
    pub size: u64,
}

/// How many attempts may be on their way at once: one less whenever one was cut, down to one at a time. On a line that ends before it
/// has carried all of them, none would ever be through.
#[derive(Debug)]
struct Lanes {
    free: Semaphore,
    open: AtomicUsize,
}

impl Lanes {
    fn new(count: usize) -> Self {
        let count = count.clamp(1, Semaphore::MAX_PERMITS);
        Self { free: Semaphore::new(count), open: AtomicUsize::new(count) }
    }

    /// The attempt in that lane was cut.
    fn cut(&self, lane: Option<SemaphorePermit<'_>>) {
        let closed = |open: usize| (open > 1).then(|| open - 1);
        if let (Ok(_), Some(lane)) =
            (self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, closed), lane)
        {
            lane.forget();
        }
    }
}

/// What an attempt leaves behind for those who watch it.
#[derive(Debug, Default)]
struct Watch {
    moved: AtomicU64,
    /// Why the file could not be read; the HTTP client only knows that the body ended.
    unreadable: Mutex<Option<io::Error>>,
}

impl Transfer {
    /// Sends a file by the given requests: the only one of a small grant, or those of the parts that are missing. Each is
    /// repeated by itself; the first that fails for good ends the call, and those that are through stay through.
    ///
    /// # Errors
    /// As [`TransferError`] says. With `Expired`, ask for the grant again and call again with what is still missing.
    pub async fn send(&self, file: &Path, puts: &[Put], meter: &Meter) -> Result<(), TransferError> {
        let lanes = Lanes::new(self.options.parallel);
        let (mut waiting, mut running) = (puts.iter(), FuturesUnordered::new());
        loop {
            while running.len() < self.options.parallel.max(1)
                && let Some(put) = waiting.next()
            {
                running.push(self.put(file, put, &lanes, meter));
            }
            match running.next().await {
                Some(through) => through?,
                None => return Ok(()),
            }
        }
    }

    async fn put(&self, file: &Path, put: &Put, lanes: &Lanes, meter: &Meter) -> Result<(), TransferError> {
        let mut patience = Patience::new(&self.options);
        loop {
            let watch = Arc::new(Watch::default());
            // They are never closed.
            let lane = lanes.free.acquire().await.ok();
            let result = self.attempt(file, put, &watch, meter).await;
            let moved = watch.moved.load(Ordering::Relaxed);
            match result {
                Ok(()) => {
                    meter.add(put.size);
                    return Ok(());
                }
                Err(failure) => {
                    lanes.cut(lane);
                    patience.after(failure, moved).await?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        file: &Path,
        put: &Put,
        watch: &Arc<Watch>,
        meter: &Meter,
    ) -> Result<(), Failure> {
        let url: Url = put.url.parse().map_err(|_| Failure::Again("the grant holds no URL".into()))?;
        let body = body(file, put, Arc::clone(&self.options.throttle), Arc::clone(watch)).await?;
        let mut request = self.client(&url)?.put(url).body(body);
        for (name, value) in &put.headers {
            // The URL says it, and the connection is made by it.
            if !name.eq_ignore_ascii_case("host") {
                request = request.header(name, value);
            }
        }
        let answer = tokio::select! {
            answer = request.send() => answer,
            () = stands_still(&watch.moved, put.size, &self.options, || meter.moves()) => {
                return Err(Failure::Again(format!("no byte moved for {:?}", self.options.stall)));
            }
        };
        if let Some(error) = watch.unreadable.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(TransferError::local(file, error).into());
        }
        let response = answer.map_err(|error| Failure::Again(told(error)))?;
        match response.status() {
            status if status.is_success() => Ok(()),
            // `if-none-match: *`: an attempt before this one was through, only its answer was lost.
            StatusCode::PRECONDITION_FAILED => Ok(()),
            _ => Err(refusal(response, self.options.stall).await),
        }
    }
}

/// The bytes of the file as a stream.
async fn body(file: &Path, put: &Put, throttle: Arc<Throttle>, watch: Arc<Watch>) -> Result<Body, Failure> {
    let local = |error| Failure::Final(TransferError::local(file, error));
    let mut from = File::open(file).await.map_err(local)?;
    from.seek(SeekFrom::Start(put.offset)).await.map_err(local)?;
    let pieces = stream::try_unfold((from, put.size), move |(mut from, left)| {
        let (throttle, watch) = (Arc::clone(&throttle), Arc::clone(&watch));
        async move {
            if left == 0 {
                return Ok(None);
            }
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(throttle.piece());
            let mut piece = vec![0; want];
            if let Err(error) = from.read_exact(&mut piece).await {
                let kind = error.kind();
                *watch.unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return Err(io::Error::from(kind));
            }
            throttle.pass(want).await;
            watch.moved.fetch_add(want as u64, Ordering::Relaxed);
            Ok(Some((Bytes::from(piece), (from, left - want as u64))))
        }
    });
    Ok(Body::wrap_stream(pieces))
}
