//! The ops of rounds.

use std::collections::BTreeSet;

use millpond_protocol::access::Op;
use millpond_protocol::{Code, Principal, Role, Sha256, limits};
use serde_json::{Value, json};

use crate::world::{World, file, get};

const STORIES: &str = "SELECT count(*) FROM rounds WHERE story_object IS NOT NULL";

/// A pool with one small upload and a processor, dispatching.
async fn world() -> (World, Principal) {
    let mut world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    world.upload(&edge, vec![file("u1", "hello\n")]).await;
    let server = world.member("server", Role::Processor).await;
    world.dispatch();
    (world, server)
}

async fn story(world: &World) -> Value {
    let key = "SELECT o.key FROM rounds r JOIN objects o ON o.id = r.story_object WHERE o.state = 'live'";
    let key: String = world.sql(move |sql| sql.query_row(key, [], |row| row.get(0))).await;
    serde_json::from_slice(&world.object_bytes(&key).await).unwrap()
}

#[tokio::test]
async fn a_trigger_that_waits_answers_a_lease_whose_files_can_be_fetched() {
    let (world, server) = world().await;
    let ask = json!({"id": "t", "take": true, "wait_s": 60, "params": {"lr": 0.5}, "ref": "job-1"});
    let answer = world.ask(&server, Op::Trigger, ask).await.unwrap();
    let lease = &answer["lease"];
    assert_eq!((&answer["round"], &answer["batch"], &answer["id"]), (&json!(1), &json!(1), &json!("t")));
    assert_eq!(
        (&lease["attempt"], &lease["ready"], &lease["term_s"]),
        (&json!(1), &json!(true), &json!(600))
    );
    assert_eq!((&lease["params"], &lease["ref"]), (&json!({"lr": 0.5}), &json!("job-1")));
    let manifest = get(lease["manifest_url"].as_str().unwrap()).await;
    assert_eq!(lease["manifest_sha256"], json!(Sha256::of(&manifest)));
    let pack = get(lease["files"][0]["url"].as_str().unwrap()).await;
    assert_eq!(lease["files"][0]["sha256"], json!(Sha256::of(&pack)));
    assert_eq!(lease["files"][0]["size"], json!(pack.len()));
    assert_eq!(lease.get("cursor"), None);
}

#[tokio::test]
async fn a_repeat_gets_the_first_decision() {
    let (world, server) = world().await;
    let ask = json!({"id": "t", "take": true, "wait_s": 60});
    let first = world.ask(&server, Op::Trigger, ask.clone()).await.unwrap();
    let again = world.ask(&server, Op::Trigger, ask).await.unwrap();
    assert_eq!((&first["round"], &first["lease"]["attempt"]), (&again["round"], &again["lease"]["attempt"]));
    assert_eq!(
        world.ask(&server, Op::Trigger, json!({"id": "t2"})).await,
        Err(Code::NotFound),
        "nothing is open"
    );

    // With nothing on offer that is the decision, whatever is offered later.
    assert_eq!(world.ask(&server, Op::Claim, json!({"id": "c"})).await.unwrap()["round"], Value::Null);
    let edge = world.member("edge-2", Role::Publisher).await;
    world.upload(&edge, vec![file("u2", "later")]).await;
    world.commit(&server, 1, 1, b"result").await;
    world.ask(&server, Op::Trigger, json!({"id": "t3"})).await.unwrap();
    world.until("SELECT count(*) FROM rounds WHERE state = 'offered'", 1).await;
    assert_eq!(world.ask(&server, Op::Claim, json!({"id": "c"})).await.unwrap()["round"], Value::Null);
    let claimed = world.ask(&server, Op::Claim, json!({"id": "c2"})).await.unwrap();
    assert_eq!((&claimed["round"], &claimed["attempt"]), (&json!(2), &json!(1)));
    let again = world.ask(&server, Op::Claim, json!({"id": "c2"})).await.unwrap();
    assert_eq!((&again["round"], &again["attempt"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn a_member_whose_asks_fill_its_memory_is_told_to_wait_and_others_are_not() {
    let (world, server) = world().await;
    let (other, id) = (world.member("other", Role::Publisher).await, server.id);
    let asked = world.ledger.write(move |tx| {
        let filled = tx.sql().execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?2) \
             INSERT INTO asks SELECT ?1, 'complete', 'old-' || n, 0, '{}' FROM n",
            (id, limits::ASKS_REMEMBERED as i64 - 1),
        );
        Ok(filled?)
    });
    asked.await.unwrap();
    let trigger = async |ask: &str| world.ask(&server, Op::Trigger, json!({"id": ask, "take": true})).await;
    let first = trigger("t").await.unwrap();
    let fail = json!({"id": "f", "round": 1, "attempt": 1, "error": "x", "retryable": true});
    assert_eq!(world.ask(&server, Op::Fail, fail).await, Err(Code::Quota));
    assert_eq!(
        world.number("SELECT count(*) FROM rounds WHERE state = 'leased'").await,
        1,
        "nothing was done"
    );
    assert_eq!(trigger("t").await.unwrap()["round"], first["round"], "what it did before is answered");
    let complete = json!({"id": "c", "through": "2026-01-01T00:00:00Z"});
    world.ask(&other, Op::Complete, complete).await.unwrap();
}

#[tokio::test]
async fn the_files_of_a_lease_come_in_pages_that_fit_the_answer() {
    let (world, server) = world().await;
    let edge = world.member("cam", Role::Publisher).await;
    for n in 0..20 {
        world.upload_large(&edge, &format!("film-{n:02}"), vec![n; 130 << 10]).await;
    }
    let ask = json!({"id": "t", "take": true, "wait_s": 60, "max_answer": 4096});
    let answer = world.ask(&server, Op::Trigger, ask).await.unwrap();
    assert!(answer.to_string().len() <= 4096);
    let mut files = answer["lease"]["files"].as_array().unwrap().clone();
    let mut cursor = answer["lease"]["cursor"].clone();
    assert!(!files.is_empty() && cursor.is_string());
    while cursor.is_string() {
        let ask = json!({"round": 1, "attempt": 1, "cursor": cursor, "max_answer": 4096});
        let page = world.ask(&server, Op::Files, ask).await.unwrap();
        assert!(page.to_string().len() <= 4096);
        files.extend(page["files"].as_array().unwrap().clone());
        cursor = page["cursor"].clone();
    }
    let kinds: Vec<_> = files.iter().map(|file| file["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, [&["pack"][..], &["large"; 20]].concat());
    let uploads: Vec<_> = files[1..].iter().map(|file| file["upload"].as_str().unwrap().to_owned()).collect();
    assert_eq!(uploads, (0..20).map(|n| format!("film-{n:02}")).collect::<Vec<_>>());
    assert_eq!(get(files[20]["url"].as_str().unwrap()).await, vec![19; 130 << 10]);
    let bad = world.ask(&server, Op::Files, json!({"round": 1, "attempt": 1, "cursor": "x.1.1"})).await;
    assert_eq!(bad, Err(Code::Malformed));
}

#[tokio::test]
async fn a_lease_that_does_not_fit_the_answer_is_had_by_asking_for_more_room() {
    let (world, server) = world().await;
    let params = "x".repeat(3_000);
    let mut ask = json!({"id": "t", "take": true, "wait_s": 60, "params": params, "max_answer": 2_000});
    assert_eq!(world.ask(&server, Op::Trigger, ask.clone()).await, Err(Code::TooLarge));
    ask["max_answer"] = 8_000.into();
    let answer = world.ask(&server, Op::Trigger, ask).await.unwrap();
    assert_eq!((&answer["round"], &answer["lease"]["attempt"]), (&json!(1), &json!(1)));
    assert_eq!(answer["lease"]["params"], params);
}

#[tokio::test]
async fn an_answer_that_cannot_be_cut_is_refused_where_it_does_not_fit() {
    let (world, server) = world().await;
    let edge = world.member("long", Role::Publisher).await;
    // Twice as long in JSON.
    let name = "\"".repeat(255);
    let mut long = file("u", "x");
    long.name = Some(name.parse().unwrap());
    world.upload(&edge, vec![long]).await;
    let ask = json!({"id": "t", "take": true, "wait_s": 60});
    let lease = world.ask(&server, Op::Trigger, ask).await.unwrap();
    world.commit(&server, lease["round"].as_u64().unwrap(), 1, b"result").await;
    let rename = move |tx: &mut millpond::ledger::Tx<'_>| {
        Ok(tx.sql().execute("UPDATE results SET name = ?1", [name])?)
    };
    assert_eq!(world.ledger.write(rename).await, Ok(1));
    for (who, op, mut ask) in [(&edge, Op::Status, json!({"upload": "u"})), (&server, Op::Latest, json!({}))]
    {
        ask["max_answer"] = 1_024.into();
        assert_eq!(world.ask(who, op, ask.clone()).await, Err(Code::TooLarge), "{op}");
        ask["max_answer"] = 4_096.into();
        assert!(world.ask(who, op, ask).await.unwrap().to_string().len() > 700, "{op}");
    }
}

#[tokio::test]
async fn a_name_that_is_used_again_brings_nothing_of_who_had_it_before() {
    let (world, server) = world().await;
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
    world.commit(&server, 1, 1, b"result").await;
    let (pool, name) = (world.pool, "edge".parse().unwrap());
    world.ledger.write(move |tx| tx.revoke_member(pool, &name)).await.unwrap();
    let edge = world.member("edge", Role::Publisher).await;
    for op in [Op::Get, Op::Status] {
        assert_eq!(world.ask(&edge, op, json!({"upload": "u1"})).await, Err(Code::NotFound), "{op}");
    }
    assert_eq!(world.ask(&edge, Op::History, json!({})).await.unwrap()["uploads"], json!([]));
    // The id is free for it, and its own file is what it gets.
    world.upload(&edge, vec![file("u1", "other")]).await;
    let got = world.ask(&edge, Op::Get, json!({"upload": "u1"})).await.unwrap();
    assert_eq!(got["sha256"], json!(Sha256::of(b"other")));
}

#[tokio::test]
async fn another_round_member_or_attempt_is_refused() {
    let (world, server) = world().await;
    let other = world.member("other", Role::Processor).await;
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
    let asks = [
        (Op::Beat, json!({})),
        (Op::Files, json!({})),
        (Op::Done, json!({})),
        (Op::Fail, json!({"error": "x", "retryable": true})),
    ];
    for (op, mut ask) in asks {
        for (who, round, attempt, refused) in
            [(&server, 9, 1, Code::NotFound), (&server, 1, 2, Code::Stale), (&other, 1, 1, Code::Stale)]
        {
            ask["id"] = format!("{op}-{round}-{attempt}").into();
            ask["round"] = round.into();
            ask["attempt"] = attempt.into();
            assert_eq!(world.ask(who, op, ask.clone()).await, Err(refused), "{op} {round} {attempt}");
        }
    }
    world.ask(&server, Op::Beat, json!({"id": "b", "round": 1, "attempt": 1})).await.unwrap();
}

/// The story of a round with one attempt, as the document's example has it.
fn assert_keys_of_the_document(story: &Value) {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/golden/message/round.json");
    let example: Value = serde_json::from_str(&std::fs::read_to_string(example).unwrap()).unwrap();
    let keys = |of: &Value, place: &str| -> BTreeSet<String> {
        of.pointer(place).unwrap().as_object().unwrap().keys().cloned().collect()
    };
    for (told, documented, left_out) in [
        ("", "", Some("params")),
        ("/attempts/0", "/attempts/1", None),
        ("/log/0", "/log/0", None),
        ("/result", "/result", Some("content_type")),
    ] {
        let mut documented = keys(&example, documented);
        documented.retain(|key| Some(key.as_str()) != left_out);
        assert_eq!(keys(story, told), documented, "{told}");
    }
}

#[tokio::test]
async fn done_closes_the_log_of_a_result_and_the_story_tells_it() {
    let (world, server) = world().await;
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60, "ref": 7})).await.unwrap();
    let beat = json!({"id": "b", "round": 1, "attempt": 1, "log": "half\n", "progress": 0.5});
    world.ask(&server, Op::Beat, beat.clone()).await.unwrap();
    world.ask(&server, Op::Beat, beat).await.unwrap();
    let mut done = json!({"id": "d", "round": 1, "attempt": 1, "log": "whole\n", "warnings": ["w"]});
    assert_eq!(world.ask(&server, Op::Done, done.clone()).await, Err(Code::NotFound));
    world.commit(&server, 1, 1, b"result").await;
    world.until(STORIES, 1).await;
    done["id"] = "d2".into();
    let answer = world.ask(&server, Op::Done, done).await.unwrap();
    assert_eq!(answer["version"], 1);

    world.until("SELECT count(*) FROM objects WHERE key LIKE '%/round/%' AND state = 'live'", 1).await;
    world.until(STORIES, 1).await;
    let story = story(&world).await;
    assert_eq!((&story["outcome"], &story["ref"]), (&json!("committed"), &json!(7)));
    let log: Vec<_> = story["log"].as_array().unwrap().iter().map(|line| line["text"].clone()).collect();
    assert_eq!(log, ["half\n", "whole\n"]);
    assert_eq!(story["attempts"][0]["warnings"], json!(["w"]));
    assert_eq!(story["attempts"][0]["progress"], 0.5);
    assert_eq!(story["result"]["sha256"], json!(Sha256::of(b"result")));
    assert_keys_of_the_document(&story);
    // The lease's files stay open to who held it last.
    world.ask(&server, Op::Files, json!({"round": 1, "attempt": 1})).await.unwrap();
}

#[tokio::test]
async fn what_comes_while_the_story_is_written_is_told_in_the_next_one() {
    let (world, server) = world().await;
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
    world.commit(&server, 1, 1, b"result").await;
    // The ledger stands still until the story was read and waits to be written, and `done` is in line behind it.
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let held = tokio::spawn(world.ledger.write(move |_| {
        let _ = wait.recv();
        Ok(())
    }));
    let in_line = async |jobs: usize| {
        while world.ledger.queued() < jobs && world.number(STORIES).await == 0 {
            tokio::task::yield_now().await;
        }
    };
    in_line(1).await;
    let (asks, done) = (world.asks.clone(), json!({"id": "d", "round": 1, "attempt": 1, "warnings": ["w"]}));
    let done =
        tokio::spawn(
            async move { asks.answer(&server, "test", Op::Done, done.to_string().as_bytes()).await },
        );
    in_line(2).await;
    drop(go_on);
    held.await.unwrap().unwrap();
    done.await.unwrap().unwrap();

    world.until("SELECT count(*) FROM objects WHERE key LIKE '%/round/%' AND state = 'granted'", 0).await;
    world.until(STORIES, 1).await;
    assert_eq!(story(&world).await["attempts"][0]["warnings"], json!(["w"]));
}

#[tokio::test]
async fn a_beat_is_a_sign_of_life_though_it_extends_nothing_and_a_restart_is_none() {
    let mut world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    world.upload(&edge, vec![file("u1", "hello\n")]).await;
    let server = world.member("server", Role::Processor).await;
    // Nobody packs: the lease has no term yet that a beat could extend.
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true})).await.unwrap();
    const BEATEN: &str = "SELECT count(*) FROM attempts WHERE beat IS NOT NULL";
    world = world.restart().await;
    assert_eq!(world.number(BEATEN).await, 0);
    world.ask(&server, Op::Beat, json!({"id": "b", "round": 1, "attempt": 1})).await.unwrap();
    assert_eq!(world.number(BEATEN).await, 1);
}

#[tokio::test]
async fn a_round_that_cannot_be_worked_on_fails_with_its_story() {
    let (world, server) = world().await;
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
    let fail =
        json!({"id": "f", "round": 1, "attempt": 1, "error": "no model", "retryable": false, "log": "oh\n"});
    assert_eq!(world.ask(&server, Op::Fail, fail).await.unwrap()["state"], "failed");
    world.until(STORIES, 1).await;
    let told = story(&world).await;
    assert_eq!((&told["outcome"], &told["failed"]["cause"]), (&json!("failed"), &json!("refused")));
    assert_eq!(told["attempts"][0]["error"], "no model");
    assert_eq!(told["log"][0]["text"], "oh\n");
}

#[tokio::test]
async fn logs_and_parameters_have_limits() {
    let (world, server) = world().await;
    let long = "x".repeat(limits::META_MAX + 1);
    let refused = world.ask(&server, Op::Trigger, json!({"id": "t0", "params": long})).await;
    assert_eq!(refused, Err(Code::TooLarge));
    world.ask(&server, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap();
    let beat = |n: usize, log: usize| json!({"id": format!("b{n}"), "round": 1, "attempt": 1, "log": "y".repeat(log)});
    let refused = world.ask(&server, Op::Beat, beat(0, limits::LOG_MESSAGE_MAX + 1)).await;
    assert_eq!(refused, Err(Code::TooLarge));
    // One message more than the round keeps.
    for n in 1..=limits::LOG_ROUND_MAX / limits::LOG_MESSAGE_MAX + 1 {
        world.ask(&server, Op::Beat, beat(n, limits::LOG_MESSAGE_MAX)).await.unwrap();
    }
    let kept = world.number("SELECT sum(length(text)) FROM round_logs").await;
    assert_eq!(kept, limits::LOG_ROUND_MAX as u64);
    let fail = json!({"id": "f", "round": 1, "attempt": 1, "error": "e", "retryable": false});
    world.ask(&server, Op::Fail, fail).await.unwrap();
    world.until(STORIES, 1).await;
    assert_eq!(story(&world).await["log_bytes_dropped"], limits::LOG_MESSAGE_MAX);
}

#[tokio::test]
async fn a_card_ranks_by_the_changes_of_its_pool_and_not_by_a_clock() {
    let world = World::new(json!({})).await;
    let pool = "p".parse().unwrap();
    let before = world.asks.states.card(&pool).await.unwrap();
    assert_eq!(before.rank, world.number("SELECT seq FROM pools").await);
    let policy = serde_json::from_value(json!({"grouping": "count", "count": 2})).unwrap();
    let name = pool.clone();
    world.ledger.write(move |tx| tx.apply_pool(&name, &policy)).await.unwrap();
    let after = world.asks.states.card(&pool).await.unwrap();
    assert!(after.rank > before.rank);
}
