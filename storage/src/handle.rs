//! [`Storage`]: the one handle through which the server uses storage.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use millpond_protocol::Sha256;

use crate::client::{Client, ObjectStream, Stat};
use crate::config::{BadConfig, StorageConfig};
use crate::error::Error;
use crate::key::ObjectKey;
use crate::limits;
use crate::presign::Presigner;
use crate::probe::Outsider;

/// Storage, as the server uses it. Cheap to clone; every method may be called again after any failure.
///
/// A call ends within [`StorageConfig::call_timeout`], and is tried again within that time while storage is away. Each
/// counts in `millpond_storage_calls_total{op, outcome}` and `millpond_storage_call_seconds{op}`.
#[derive(Clone)]
pub struct Storage(Arc<Inner>, Option<Arc<str>>);

struct Inner {
    client: Client,
    presigner: Presigner,
    outsider: Outsider,
    call_timeout: Duration,
    attempts: u32,
    confirm: bool,
    names_holders: bool,
}

impl Storage {
    /// A handle; nothing is sent yet, see [`Storage::probe`] for that.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the configuration.
    pub fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        config.validate()?;
        let inner = Inner {
            client: Client::new(config)?,
            presigner: Presigner::new(config)?,
            outsider: Outsider::new(config)?,
            call_timeout: config.call_timeout,
            attempts: config.attempts,
            confirm: config.confirm,
            names_holders: config.names_holders,
        };
        Ok(Self(Arc::new(inner), None))
    }

    /// The same storage, and the URLs that it makes for others say whom they were made for, where storage knows
    /// [holders](crate::embedded::Holders).
    #[must_use]
    pub fn held_by(&self, holder: &str) -> Self {
        Self(Arc::clone(&self.0), self.0.names_holders.then(|| holder.into()))
    }

    /// Whom its URLs are made for.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.1.as_deref()
    }

    /// The same in somebody's hands: nothing goes over the network.
    ///
    /// # Errors
    ///
    /// As [`Storage::new`].
    #[cfg(feature = "simulated")]
    pub fn in_hands(config: &StorageConfig, hands: Arc<dyn crate::hands::Hands>) -> Result<Self, BadConfig> {
        let mut storage = Self::new(config)?;
        if let Some(inner) = Arc::get_mut(&mut storage.0) {
            inner.client.http.hands = Some(hands);
        }
        Ok(storage)
    }

    /// Stores an object, in place of one of the same key. `Ok` means that storage has compared the bytes with `sha256`
    /// and, as far as it says when it is asked, has them.
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes, sha256: Sha256) -> Result<(), Error> {
        self.call("put", || async {
            self.0.client.put(key, bytes.clone(), sha256).await?;
            self.confirm(key, bytes.len() as u64, sha256).await
        })
        .await
    }

    /// Whether what storage said yes to is there: on it depends what is deleted elsewhere, and what clients forget.
    pub(crate) async fn confirm(&self, key: &ObjectKey, size: u64, sha256: Sha256) -> Result<(), Error> {
        if !self.0.confirm {
            return Ok(());
        }
        match self.0.client.stat(key).await {
            Ok(stat) if stat.size == size && stat.sha256.is_none_or(|found| found == sha256) => Ok(()),
            Ok(_) => {
                Err(Error::Unavailable("storage said that it has an object, and has another one".into()))
            }
            Err(Error::NotFound) => {
                Err(Error::Unavailable("storage said that it has an object, and has it not".into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches a whole object of at most `max` bytes; a larger one is a [`Error::Mismatch`] and is not read.
    pub async fn get(&self, key: &ObjectKey, max: usize) -> Result<Bytes, Error> {
        self.call("get", || async {
            let mut object = self.0.client.get(key, None).await?;
            if object.size > max as u64 {
                return Err(Error::Mismatch(format!("{} bytes where at most {max} belong", object.size)));
            }
            let mut bytes = BytesMut::new();
            while let Some(chunk) = object.next().await {
                let chunk = chunk?;
                if bytes.len() + chunk.len() > max {
                    return Err(Error::Mismatch(format!("more than {max} bytes")));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes.freeze())
        })
        .await
    }

    /// Opens an object for reading piece by piece, from and to the byte offsets of `range` (end exclusive, not empty)
    /// where one is given. The stream fails if it stands still for 30 s.
    pub async fn get_stream(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
    ) -> Result<ObjectStream, Error> {
        let object = self.call("get_stream", || self.0.client.get(key, range.clone())).await?;
        Ok(object.wrap(|object| {
            stream::unfold(Some(object), |object| async {
                let mut object = object?;
                match tokio::time::timeout(limits::STALL, object.next()).await {
                    Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(object))),
                    Ok(Some(Err(error))) => Some((Err(error), None)),
                    Ok(None) => None,
                    Err(_) => Some((Err(Error::Unavailable("the download stands still".into())), None)),
                }
            })
        }))
    }

    /// What storage knows of an object; `None` if there is none.
    pub async fn stat(&self, key: &ObjectKey) -> Result<Option<Stat>, Error> {
        self.call("stat", || async {
            match self.0.client.stat(key).await {
                Ok(stat) => Ok(Some(stat)),
                Err(Error::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Removes an object; that there is none is fine.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), Error> {
        self.call("delete", || self.0.client.delete(key)).await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn presigner(&self) -> &Presigner {
        &self.0.presigner
    }

    pub(crate) fn outsider(&self) -> &Outsider {
        &self.0.outsider
    }

    /// Makes `attempt` until it succeeds or fails for good, within the time of one call.
    pub(crate) async fn call<T, F>(&self, op: &'static str, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let started = Instant::now();
        let limit = self.0.call_timeout;
        let result = match tokio::time::timeout(limit, self.retry(attempt)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Unavailable(format!("no answer within {limit:?}"))),
        };
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| "ok");
        metrics::counter!("millpond_storage_calls_total", "op" => op, "outcome" => outcome).increment(1);
        metrics::histogram!("millpond_storage_call_seconds", "op" => op)
            .record(started.elapsed().as_secs_f64());
        result
    }

    async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = limits::BACKOFF;
        for _ in 1..self.0.attempts {
            match attempt().await {
                Err(Error::Unavailable(_)) => tokio::time::sleep(shortened(pause)).await,
                settled => return settled,
            }
            pause *= 4;
        }
        attempt().await
    }
}

/// `pause` less up to half of it, at random.
fn shortened(pause: Duration) -> Duration {
    let mut byte = [0];
    // Without randomness everybody pauses equally long, which is worse but not wrong.
    let _ = getrandom::fill(&mut byte);
    pause - pause.mul_f64(f64::from(byte[0]) / 512.0)
}
