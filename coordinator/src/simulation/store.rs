//! Storage as the server sees it: calls that wait until the scheduler says what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use millpond_protocol::Sha256;
use millpond_storage::hands::{Answer, Call, Hands};
use tokio::sync::oneshot;

const CHECKSUM: &str = "x-amz-checksum-sha256";

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// Storage does it, and nobody hears of it.
    Unheard,
    /// Storage says that it cannot now.
    Refused,
    /// The caller gives up, and storage does it until then.
    Late(Duration),
}

/// Objects, and calls that wait.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Bytes>,
    calls: Vec<(Call, oneshot::Sender<Option<Answer>>)>,
    late: Vec<(Duration, Call)>,
    /// Keys of calls that were late.
    were_late: BTreeSet<String>,
}

impl Hands for Store {
    fn take(&self, call: Call) -> BoxFuture<'static, Option<Answer>> {
        let (answer, answered) = oneshot::channel();
        self.inner().calls.push((call, answer));
        answered.map(|answer| answer.ok().flatten()).boxed()
    }
}

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it was when it was new.
    pub(super) fn clear(&self) {
        *self.inner() = Inner::default();
    }

    /// Calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.inner().calls.len()
    }

    /// Settles the n-th of the calls that wait; what it was.
    pub(super) fn settle(&self, nth: usize, fate: Fate) -> String {
        let mut inner = self.inner();
        let (call, answer) = inner.calls.remove(nth);
        let kind = call.key.split('/').nth(1).unwrap_or_default();
        let what = format!("{} {kind}", call.method);
        let said = match fate {
            Fate::Done => Some(inner.perform(&call)),
            Fate::Unheard => {
                inner.perform(&call);
                None
            }
            Fate::Refused => Some(Answer { status: 503, ..Answer::default() }),
            Fate::Late(until) => {
                inner.were_late.insert(call.key.clone());
                inner.late.push((until, call));
                None
            }
        };
        // Who asked may be gone.
        drop(answer.send(said));
        what
    }

    /// Who made the calls that wait is gone; storage does those of them of which `does` says so.
    pub(super) fn crash(&self, mut does: impl FnMut() -> bool) {
        let mut inner = self.inner();
        for (call, _) in std::mem::take(&mut inner.calls) {
            if does() {
                inner.perform(&call);
            }
        }
    }

    /// Whether a call for that object was done after its caller had given up.
    pub(super) fn was_late(&self, key: &str) -> bool {
        self.inner().were_late.contains(key)
    }

    /// Does what was to be late, if its time has come.
    pub(super) fn catch_up(&self, now: Duration) {
        let mut inner = self.inner();
        let (due, rest) = std::mem::take(&mut inner.late).into_iter().partition(|(until, _)| *until <= now);
        inner.late = rest;
        let due: Vec<(Duration, Call)> = due;
        due.iter().for_each(|(_, call)| drop(inner.perform(call)));
    }

    /// The object that a URL names.
    pub(super) fn fetch(&self, url: &str) -> Option<Bytes> {
        self.object(url.split('?').next()?.split_once("/millpond/")?.1)
    }

    pub(super) fn object(&self, key: &str) -> Option<Bytes> {
        self.inner().objects.get(key).cloned()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.inner().objects.keys().cloned().collect()
    }
}

impl Inner {
    fn perform(&mut self, call: &Call) -> Answer {
        let found = self.objects.get(&call.key);
        match (call.method, found) {
            ("PUT", _) => {
                let sha256 = STANDARD.encode(Sha256::of(&call.body).0);
                let declared = call.headers.iter().find(|(name, _)| *name == CHECKSUM);
                if declared.is_some_and(|(_, declared)| *declared != sha256) {
                    return Answer { status: 400, ..Answer::default() };
                }
                self.objects.insert(call.key.clone(), call.body.clone());
                Answer { status: 200, headers: vec![(CHECKSUM, sha256)], body: Bytes::new() }
            }
            ("DELETE", _) => {
                self.objects.remove(&call.key);
                Answer { status: 204, ..Answer::default() }
            }
            ("HEAD" | "GET", Some(bytes)) => {
                let sha256 = STANDARD.encode(Sha256::of(bytes).0);
                let headers = vec![("content-length", bytes.len().to_string()), (CHECKSUM, sha256)];
                let body = if call.method == "GET" { bytes.clone() } else { Bytes::new() };
                Answer { status: 200, headers, body }
            }
            (_, _) => Answer { status: 404, ..Answer::default() },
        }
    }
}
