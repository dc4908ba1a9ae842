//! Uploads, rounds, events, readiness and metrics.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use millpond_protocol::Code;

use super::*;
use crate::http::auth::{Bearer, Origin};

const ELSEWHERE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9));

#[tokio::test]
async fn an_upload_says_where_it_is_and_why_and_lists_come_in_pages() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher"), ("n", "publisher")]).await;
    for upload in ["u1", "u2", "u3"] {
        server.upload(&tokens[0], upload, b"some bytes").await;
    }
    server.upload(&tokens[1], "u1", b"").await;

    let story: UploadStory = server.get("/v1/pools/p/uploads/m/u1").await;
    assert_eq!(story.info.batch_state.as_deref(), Some("open"));
    let words = story.story.join("\n");
    for part in ["received", "joined batch 1 (window 20", "is open", "in the ledger"] {
        assert!(words.contains(part), "{part} in {words}");
    }
    let rejected: UploadStory = server.get("/v1/pools/p/uploads/n/u1").await;
    assert!(rejected.story.iter().any(|step| step.contains("rule empty_file")), "{:?}", rejected.story);

    let mut seen: Vec<UploadInfo> = Vec::new();
    let mut path = "/v1/pools/p/uploads?limit=3".to_owned();
    loop {
        let page: Uploads = server.get(&path).await;
        assert!(page.uploads.len() <= 3);
        seen.extend(page.uploads);
        let Some(cursor) = page.cursor else { break };
        path = format!("/v1/pools/p/uploads?limit=3&cursor={cursor}");
    }
    let names: Vec<String> =
        seen.iter().map(|upload| format!("{}/{}", upload.member, upload.upload)).collect();
    assert_eq!(names, ["n/u1", "m/u3", "m/u2", "m/u1"]);
    let of_m: Uploads = server.get("/v1/pools/p/uploads?member=m&batch=1").await;
    assert_eq!(of_m.uploads.len(), 3);
    let of_n: Uploads = server.get("/v1/pools/p/uploads?member=n&batch=1").await;
    assert_eq!(of_n.uploads, []);

    let batches: Batches = server.get("/v1/pools/p/batches").await;
    assert_eq!((batches.batches[0].count, batches.batches[0].bytes), (3, 30));
    let batch: BatchInfo = server.get("/v1/pools/p/batches/1").await;
    assert_eq!((batch.state.as_str(), batch.round), ("open", None));
    server.stop().await;
}

#[tokio::test]
async fn members_come_in_pages_by_name() {
    let server = Server::start().await;
    server.pool("p", &[("b", "publisher"), ("a", "listener"), ("d", "listener"), ("c", "listener")]).await;
    let mut seen = Vec::new();
    let mut path = "/v1/pools/p/members?limit=3".to_owned();
    loop {
        let page: Members = server.get(&path).await;
        assert!(page.members.len() <= 3);
        seen.extend(page.members.iter().map(|member| member.member.to_string()));
        let Some(cursor) = page.cursor else { break };
        path = format!("/v1/pools/p/members?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ["a", "b", "c", "d"]);
    let bad = server.refused(ADMIN, Method::GET, "/v1/pools/p/members?cursor=x", Value::Null).await;
    assert_eq!(bad.1, "malformed");
    server.stop().await;
}

#[tokio::test]
async fn asks_have_twins_over_http_for_members_and_not_for_the_admin() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher"), ("proc", "processor")]).await;
    server.upload(&tokens[0], "u1", b"some bytes").await;
    let (status, answer) = server
        .send(&tokens[0], Method::POST, "/v1/pools/p/ask/status", json!({"id": "a1", "upload": "u1"}))
        .await;
    assert_eq!((status, &answer["id"], &answer["outcome"]), (StatusCode::OK, &json!("a1"), &json!("stored")));
    server.trigger("p").await;
    let rounds: Rounds = server.get("/v1/pools/p/rounds").await;
    assert_eq!((rounds.rounds[0].state.as_str(), rounds.rounds[0].attempt), ("sealed", 0));
    let story: RoundStory = server.get("/v1/pools/p/rounds/1").await;
    assert_eq!((story.info.batch, story.attempts), (1, vec![]));
    let upload: UploadStory = server.get("/v1/pools/p/uploads/m/u1").await;
    let words = upload.story.join("\n");
    assert!(
        words.contains("was sealed") && words.contains("by trigger") && words.contains("being packed"),
        "{words}"
    );
    let retry = server.refused(ADMIN, Method::POST, "/v1/pools/p/rounds/1/retry", Value::Null).await;
    assert_eq!(retry, (409, "stale".to_owned()));

    for (token, path, expected) in [
        (ADMIN, "/v1/pools/p/ask/latest", "unauthorized"),
        (&tokens[0], "/v1/pools/p/ask/claim", "unauthorized"),
        (&tokens[0], "/v1/pools/q/ask/latest", "unauthorized"),
        (&tokens[0], "/v1/pools/p/ask/nothing", "malformed"),
    ] {
        let found = server.refused(token, Method::POST, path, json!({"id": "x"})).await;
        assert_eq!(found.1, expected, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_event_stream_goes_on_from_where_a_client_was() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher")]).await;
    server.upload(&tokens[0], "u1", b"one").await;
    let page: Events = server.get("/v1/pools/p/events?since=0").await;
    let kinds: Vec<&str> = page.events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds[..2], ["policy", "member-added"]);
    assert!(kinds.contains(&"uploads") && kinds.contains(&"batch-opened"), "{kinds:?}");
    assert!(page.events.windows(2).all(|pair| pair[0].seq < pair[1].seq));

    let stream = server.http.get(format!("{}/v1/pools/p/events", server.url)).bearer_auth(ADMIN);
    let stream =
        stream.header("accept", "text/event-stream").header("last-event-id", page.events[0].seq.to_string());
    let mut stream = stream.send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let again = server.http.get(format!("{}/v1/pools/p/events", server.url)).bearer_auth(ADMIN);
    let again = again.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(again.status(), StatusCode::TOO_MANY_REQUESTS);

    server.upload(&tokens[0], "u2", b"two").await;
    let mut text = String::new();
    // Ends when the second upload was told; a stream that stays silent fails by the runner's time-out.
    while !text.contains(&format!("\"first_seq\":{}", page.next + 1)) {
        let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let ids: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("id:")?.trim().parse().ok()).collect();
    assert_eq!(ids.first(), Some(&page.events[1].seq));
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");

    server.shutdown.cancel();
    while stream.chunk().await.unwrap().is_some() {}
    server.stop().await;
}

#[tokio::test]
async fn readiness_tells_that_storage_is_away_and_liveness_does_not() {
    let server = Server::start().await;
    let get = async |path: &str| server.http.get(format!("{}{path}", server.url)).send().await.unwrap();
    assert_eq!(get("/readyz").await.status(), StatusCode::OK);
    let status: Status = server.get("/v1/status").await;
    assert!(status.ready && status.problems.is_empty());

    // What was found holds for some seconds, so another server is asked.
    let other = Server::start().await;
    other.storage.cancel();
    let get = async |path: &str| other.http.get(format!("{}{path}", other.url)).send().await.unwrap();
    let away = get("/readyz").await;
    assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(away.text().await.unwrap().contains("storage"));
    assert_eq!(get("/healthz").await.status(), StatusCode::OK);
    other.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn metrics_count_requests_and_show_what_the_ledger_holds() {
    let server = Server::start().await;
    server.pool("p", &[("m", "publisher")]).await;
    let text = server
        .http
        .get(format!("{}/metrics", server.url))
        .bearer_auth("scraper")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    assert!(text.contains("millpond_members{state=\"publisher\"}"), "{text}");
    assert!(text.contains("path=\"/v1/pools/{pool}/members\""), "{text}");
    assert!(text.contains("# TYPE millpond_http_request_seconds histogram"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn status_says_which_pools_packing_does_not_get_on_and_why() {
    let server = Server::start().await;
    for pool in ["calm", "stuck"] {
        server.pool(pool, &[]).await;
    }
    let trouble = || async {
        let status: Status = server.get("/v1/status").await;
        status.pools.into_iter().map(|pool| (pool.pool.to_string(), pool.trouble)).collect::<Vec<_>>()
    };
    let stuck =
        server.ledger.read(|sql| crate::ledger::manage::find_pool(sql, &"stuck".parse()?)).await.unwrap();
    server.troubles.send_modify(|troubles| drop(troubles.insert(stuck, "storage is away".to_owned())));
    assert_eq!(
        trouble().await,
        [("calm".to_owned(), None), ("stuck".to_owned(), Some("storage is away".to_owned()))]
    );
    server.troubles.send_modify(|troubles| troubles.clear());
    assert!(trouble().await.iter().all(|(_, trouble)| trouble.is_none()));
    server.stop().await;
}

#[tokio::test]
async fn metrics_are_for_who_has_their_token_where_there_is_one() {
    let server = Server::start().await;
    server.pool("p", &[]).await;
    let member = &server.pool("q", &[("op", "operator")]).await[0];
    for (token, status) in [("scraper", 200), (ADMIN, 200), (member.as_str(), 403), ("other", 403)] {
        let asked =
            server.http.get(format!("{}/metrics", server.url)).bearer_auth(token).send().await.unwrap();
        assert_eq!(asked.status(), status, "{token}");
    }
    assert!(!server.http.get(format!("{}/metrics", server.url)).send().await.unwrap().status().is_success());
    server.stop().await;
}

#[tokio::test]
async fn strangers_from_elsewhere_learn_whether_the_server_is_ready_and_nothing_else() {
    let mut server = Server::start().await;
    let token = |token: &str| Ok(Bearer { from: ELSEWHERE, token: token.to_owned() });
    let nobody = || Err(Refusal::new(Code::Unauthorized, "no token").into());
    let ready = async |from, bearer| {
        let response = health::ready(State(server.api.clone()), Origin(from), bearer).await?;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Ok::<_, Failed>((parts.status, serde_json::from_slice::<Value>(&body).unwrap()))
    };
    server.storage.cancel();
    let here = "[::ffff:127.0.0.1]:9".parse().unwrap();
    for (from, bearer, says_more) in [
        (here, nobody(), true),
        (ELSEWHERE, nobody(), false),
        (ELSEWHERE, token(ADMIN), true),
        (ELSEWHERE, token("scraper"), true),
    ] {
        let (status, body) = ready(from, bearer).await.unwrap();
        assert_eq!((status, &body["ready"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
        assert_eq!(body["problems"].is_array(), says_more, "{body}");
    }
    assert!(ready(ELSEWHERE, token("guess")).await.is_err());

    Arc::get_mut(&mut server.api.0).unwrap().metrics = None;
    let metrics =
        async |from, bearer| metrics::show(State(server.api.clone()), Origin(from), bearer).await.is_ok();
    assert!(metrics(here, nobody()).await && metrics(ELSEWHERE, token(ADMIN)).await);
    assert!(!metrics(ELSEWHERE, nobody()).await && !metrics(ELSEWHERE, token("scraper")).await);
    server.stop().await;
}
