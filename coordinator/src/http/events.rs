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
use millpond_protocol::{Code, PoolName, Refusal};
use rusqlite::OptionalExtension as _;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::Api;
use super::api::{EventRow, Events};
use super::auth::Caller;
use super::error::{Asked, Failed, Params, malformed};
use super::streams::Place;
use crate::fanout::feed;
use crate::ledger::{Commit, PoolId, manage};

/// Events of one page.
const PAGE: usize = 500;
/// Events, sums of uploads aside, of the page that a request gets which does not say where to begin.
const LAST: u32 = 50;
/// How often uploads are summed to one event.
const SUM: Duration = Duration::from_secs(1);
/// Between two pages of one stream, however much is committed meanwhile.
const GAP: Duration = Duration::from_millis(200);
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
    // From before the caller is looked up again: whatever ends its token from now on is noticed.
    let commits = api.0.ledger.commits();
    let named = pool.clone();
    let (id, last, begin): (PoolId, u64, u64) = api
        .0
        .ledger
        .read(move |sql| {
            let id = manage::find_pool(sql, &named)?;
            let seq = sql
                .prepare_cached("SELECT seq FROM pools WHERE id = ?1")?
                .query_row([id], |row| row.get(0))?;
            let begin = sql
                .prepare_cached(
                    "SELECT seq FROM events WHERE pool_id = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2",
                )?
                .query_row(rusqlite::params![id, LAST], |row| row.get(0))
                .optional()?;
            Ok((id, seq, begin.unwrap_or_default()))
        })
        .await?;
    let wants_stream = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if !wants_stream {
        // Nobody can have seen what is still to come.
        let since = since.unwrap_or(begin).min(last);
        let (events, more) = page(&api, id, since).await?;
        let next = events.last().map_or(since, |event| event.seq);
        return Ok(Json(Events { events, next, more }).into_response());
    }
    // A browser that reconnects names what it saw last in the header.
    let seen = match headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default().parse()) {
        None => None,
        Some(Ok(seq)) => Some(seq),
        Some(Err(_)) => return Err(malformed("Last-Event-ID is no number of an event".to_owned())),
    };
    let Some(place) = api.0.streams.place(id) else {
        return Err(Refusal::new(Code::Quota, "too many event streams are open")
            .retry_after_ms(10_000)
            .into());
    };
    let (send, receive) = mpsc::channel(QUEUE);
    let follower = Follower { commits, id, caller, seen: seen.or(since).unwrap_or(last).min(last), send };
    tokio::spawn(follower.run(api, place));
    Ok(Sse::new(stream(receive)).keep_alive(KeepAlive::default()).into_response())
}

/// A page of the feed, and whether there is more of it.
async fn page(api: &Api, pool: PoolId, since: u64) -> Result<(Vec<EventRow>, bool), Refusal> {
    api.0
        .ledger
        .read(move |sql| {
            let page = feed::after(sql, pool, since, PAGE)?;
            let rows = page.events.into_iter().map(|event| Ok(serde_json::from_value(event.body)?));
            Ok((rows.collect::<crate::ledger::Result<_>>()?, page.more))
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
    caller: Caller,
    seen: u64,
    send: mpsc::Sender<EventRow>,
}

impl Follower {
    async fn run(mut self, api: Api, _place: Place) {
        // Subscribed before the first read, so nothing falls in between.
        if !self.caller.is_still_good(&api).await {
            return;
        }
        loop {
            let read = tokio::time::Instant::now();
            let Ok((events, more)) = page(&api, self.id, self.seen).await else { return };
            for event in events {
                self.seen = event.seq;
                if self.send.send(event).await.is_err() {
                    return;
                }
            }
            if !more && !self.wait(&api, read + GAP).await {
                return;
            }
        }
    }

    /// Waits for something to tell, until `soon` at least; false: there is nobody to tell it to any more.
    async fn wait(&mut self, api: &Api, soon: tokio::time::Instant) -> bool {
        let mut look: Option<tokio::time::Instant> = None;
        loop {
            let due = async {
                match look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What is committed already is in the next page: its notices come first.
                biased;
                () = api.0.shutdown.cancelled() => return false,
                () = self.send.closed() => return false,
                commit = self.commits.recv() => {
                    let (concerns_caller, change) = match &commit {
                        Ok(commit) => (self.caller.is_among(&commit.ended), commit.pools.get(&self.id)),
                        // Something was missed: look at everything.
                        Err(RecvError::Lagged(_)) => {
                            look = Some(soon);
                            (true, None)
                        }
                        Err(RecvError::Closed) => return false,
                    };
                    match change {
                        Some(change) if change.events => look = Some(soon),
                        Some(change) if change.uploads => {
                            look.get_or_insert_with(|| tokio::time::Instant::now() + SUM);
                        }
                        _ => {}
                    }
                    if concerns_caller && !self.caller.is_still_good(api).await {
                        return false;
                    }
                }
                () = due => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::FromRequestParts as _;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::http::tests::Server;
    use crate::ledger::PoolChange;

    /// A follower of pool `p` with notices of the test's own, and its client.
    async fn follower(
        server: &Server,
        token: &str,
        notices: usize,
    ) -> (broadcast::Sender<Arc<Commit>>, Follower, mpsc::Receiver<EventRow>) {
        let request = axum::http::Request::get("/").header("authorization", format!("Bearer {token}"));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let caller = Caller::from_request_parts(&mut parts, &server.api).await.unwrap();
        let id = server.ledger.read(|sql| manage::find_pool(sql, &"p".parse()?)).await.unwrap();
        let (tell, commits) = broadcast::channel(notices);
        let (send, receive) = mpsc::channel(QUEUE);
        (tell, Follower { commits, id, caller, seen: 0, send }, receive)
    }

    #[tokio::test]
    async fn who_was_revoked_while_its_stream_fell_behind_reads_no_further() {
        let server = Server::start().await;
        let tokens = server.pool("p", &[("op", "operator")]).await;
        let (tell, mut lagging, mut client) = follower(&server, &tokens[0], 1).await;
        let fall_behind = || (0..3).for_each(|_| assert_eq!(tell.send(Arc::default()).unwrap(), 1));
        fall_behind();
        assert!(lagging.wait(&server.api, Instant::now()).await, "it looks, and goes on");

        let gone: serde_json::Value =
            server.admin(reqwest::Method::DELETE, "/v1/pools/p/members/op", serde_json::Value::Null).await;
        assert!(gone.is_object());
        fall_behind();
        assert!(!lagging.wait(&server.api, Instant::now()).await);

        // The same if it was revoked just before its stream began.
        let place = server.api.0.streams.place(lagging.id).unwrap();
        lagging.run(server.api.clone(), place).await;
        assert!(client.recv().await.is_none(), "nothing was told");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_burst_of_commits_is_one_look_at_the_ledger() {
        let server = Server::start().await;
        let tokens = server.pool("p", &[("op", "operator")]).await;
        let (tell, mut follower, _client) = follower(&server, &tokens[0], 1_000).await;
        let mut commit = Commit::default();
        let mut change = PoolChange::of("p".parse().unwrap());
        change.events = true;
        commit.pools.insert(follower.id, change);
        let commit = Arc::new(commit);
        (0..500).for_each(|_| assert_eq!(tell.send(commit.clone()).unwrap(), 1));
        assert!(follower.wait(&server.api, Instant::now()).await);
        let again = follower.wait(&server.api, Instant::now());
        assert!(timeout(Duration::from_millis(100), again).await.is_err(), "there is nothing new");
        server.stop().await;
    }
}
