//! What holds under load, on a failing disk and against clients that mean no good.

use super::*;

#[tokio::test]
async fn whoever_asks_whether_the_server_is_ready_has_a_row_committed() {
    let server = Server::start().await;
    let at = |sql: &rusqlite::Connection| Ok(sql.query_row("SELECT at FROM proof", [], |row| row.get(0))?);
    assert_eq!(server.ledger.read(at).await, Ok(0_i64));
    let ready = server.http.get(format!("{}/readyz", server.url)).send().await.unwrap();
    assert_eq!(ready.status(), StatusCode::OK);
    assert_ne!(server.ledger.read(at).await, Ok(0_i64), "an empty commit would succeed on a full disk");
    server.stop().await;
}

#[tokio::test]
async fn an_ask_may_wait_longer_than_other_requests() {
    let server = Server::start_with(Duration::from_millis(300)).await;
    let tokens = server.pool("p", &[("m", "publisher"), ("proc", "processor")]).await;
    server.upload(&tokens[0], "u1", b"some bytes").await;
    // Nobody packs here, so the lease is not ready when the time is over.
    let ask = json!({"id": "t", "take": true, "wait_s": 1});
    let (status, answer) = server.send(&tokens[1], Method::POST, "/v1/pools/p/ask/trigger", ask).await;
    assert_eq!((status, &answer["lease"]["ready"]), (StatusCode::OK, &json!(false)), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn methods_that_strangers_make_up_are_one_series() {
    let server = Server::start().await;
    let made_up = Method::from_bytes(b"MADEUP").unwrap();
    server.http.request(made_up, format!("{}/x", server.url)).send().await.unwrap();
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
    assert!(text.contains("method=\"other\"") && !text.contains("MADEUP"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn a_rollback_that_is_repeated_publishes_one_version() {
    let server = Server::start().await;
    let tokens = server.pool("p", &[("m", "publisher"), ("proc", "processor")]).await;
    for round in 1..=2 {
        server.upload(&tokens[0], ["", "u1", "u2"][round as usize], b"some bytes").await;
        server.commit(&tokens[1], round).await;
    }
    let path = "/v1/pools/p/results/1/rollback";
    for _ in 0..2 {
        let done: RolledBack = server.admin(Method::POST, path, Value::Null).await;
        assert_eq!((done.version, done.of), (3, 1));
    }
    let trail: Audit = server.get("/v1/audit?pool=p&limit=1000").await;
    assert_eq!(trail.entries.iter().filter(|entry| entry.action == "result-rollback").count(), 1);
    server.stop().await;
}
