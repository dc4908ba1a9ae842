//! `/v1/pools/{pool}/events`: the event feed, as pages or as a stream of server-sent events.
//!
//! Both resume by `seq`: what a client has seen it names in `since`, or in `Last-Event-ID`, and nothing is left out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::Stream;
use millpond_protocol::access::Action;
use millpond_protocol::{Code, MemberName, PoolName, Refusal};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};

use super::Api;
use super::api::{EventRow, Events};
use super::auth::Caller;
use super::error::{Asked, Failed, Params, malformed};
use crate::fanout::feed;
use crate::ledger::{Commit, PoolId, manage};

/// Events of one page.
const PAGE: usize = 500;
/// Events that a page begins with where the request does not say.
const LAST: u64 = 50;
/// How often uploads are summed to one event.
const SUM: Duration = Duration::from_secs(1);
/// Events between reader and client.
const QUEUE: usize = 64;

/// The query.
#[derive(Deserialize)]
pub(super) struct From {
    /// Only what came after this event.
    since: Option<u64>,
}

pub(super) async fn feed(
    State(api): State<Api>,
    caller: Caller,
    Params(pool): Params<PoolName>,
    Asked(From { since }): Asked<From>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    caller.check(&pool, Action::Inspect)?;
    let named = pool.clone();
    let (id, last): (PoolId, u64) = api
        .0
        .ledger
        .read(move |sql| {
            let id = manage::find_pool(sql, &named)?;
            let seq = sql
                .prepare_cached("SELECT seq FROM pools WHERE id = ?1")?
                .query_row([id], |row| row.get(0))?;
            Ok((id, seq))
        })
        .await?;
    let wants_stream = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if !wants_stream {
        let since = since.unwrap_or(last.saturating_sub(LAST));
        let events = page(&api, id, since).await?;
        let next = events.last().map_or(since.min(last), |event| event.seq);
        return Ok(Json(Events { events, next }).into_response());
    }
    // A browser that reconnects names what it saw last in the header.
    let seen = match headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default().parse()) {
        None => None,
        Some(Ok(seq)) => Some(seq),
        Some(Err(_)) => return Err(malformed("Last-Event-ID is no number of an event".to_owned())),
    };
    let Ok(place) = api.0.streams.clone().try_acquire_owned() else {
        return Err(Refusal::new(Code::Quota, "too many event streams are open")
            .retry_after_ms(10_000)
            .into());
    };
    let (send, receive) = mpsc::channel(QUEUE);
    let member = caller.member().map(|member| member.name.clone());
    let follower = Follower {
        commits: api.0.ledger.commits(),
        id,
        pool,
        member,
        seen: seen.or(since).unwrap_or(last),
        send,
    };
    tokio::spawn(follower.run(api, place));
    Ok(Sse::new(stream(receive)).keep_alive(KeepAlive::default()).into_response())
}

async fn page(api: &Api, pool: PoolId, since: u64) -> Result<Vec<EventRow>, Refusal> {
    api.0
        .ledger
        .read(move |sql| {
            let events = feed::after(sql, pool, since, PAGE)?;
            events.into_iter().map(|event| Ok(serde_json::from_value(event.body)?)).collect()
        })
        .await
}

fn stream(receive: mpsc::Receiver<EventRow>) -> impl Stream<Item = Result<Event, Infallible>> {
    futures_util::stream::unfold(receive, |mut receive| async {
        let row = receive.recv().await?;
        let data = serde_json::to_string(&row).unwrap_or_default();
        Some((Ok(Event::default().id(row.seq.to_string()).event(row.kind).data(data)), receive))
    })
}

/// Reads the feed for one client until it goes, the server stops, or its credentials end.
struct Follower {
    commits: broadcast::Receiver<Arc<Commit>>,
    id: PoolId,
    pool: PoolName,
    /// Who follows; none: the admin.
    member: Option<MemberName>,
    seen: u64,
    send: mpsc::Sender<EventRow>,
}

impl Follower {
    async fn run(mut self, api: Api, _place: OwnedSemaphorePermit) {
        // Subscribed before the first read, so nothing falls in between.
        loop {
            let Ok(events) = page(&api, self.id, self.seen).await else { return };
            let more = events.len() >= PAGE;
            for event in events {
                self.seen = event.seq;
                if self.send.send(event).await.is_err() {
                    return;
                }
            }
            if !more && !self.wait(&api).await {
                return;
            }
        }
    }

    /// Waits for something to tell; false: there is nobody to tell it to any more.
    async fn wait(&mut self, api: &Api) -> bool {
        let mut sum: Option<tokio::time::Instant> = None;
        loop {
            let due = async {
                match sum {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = api.0.shutdown.cancelled() => return false,
                () = self.send.closed() => return false,
                () = due => return true,
                commit = self.commits.recv() => match commit {
                    Ok(commit) => {
                        if self.ended(&commit) {
                            return false;
                        }
                        match commit.pools.get(&self.id) {
                            Some(change) if change.events => return true,
                            Some(change) if change.uploads => {
                                sum.get_or_insert_with(|| tokio::time::Instant::now() + SUM);
                            }
                            _ => {}
                        }
                    }
                    // Something was missed: look.
                    Err(RecvError::Lagged(_)) => return true,
                    Err(RecvError::Closed) => return false,
                },
            }
        }
    }

    fn ended(&self, commit: &Commit) -> bool {
        commit
            .ended
            .iter()
            .any(|(pool, member, _)| *pool == self.pool && Some(member) == self.member.as_ref())
    }
}
