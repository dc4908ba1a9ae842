//! Files in parts: interrupted, resumed, verified in the background.

use std::process::Command;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_protocol::{Code, Refusal, Role, Sha256};
use millpond_tests::{Link, Mill, Relay, Shape, tool};
use serde_json::{Value, json};

use crate::client::{Client, Place, bytes, refused};

/// The shortest part that S3 takes.
const PART: usize = 5 << 20;

/// The keys of a `put` that asks for these parts.
fn wanted(file: &[u8], parts: &[usize]) -> Value {
    let part = |n: &usize| {
        let sha256 = Sha256::of(file.chunks(PART).nth(n - 1).unwrap());
        json!({ "n": n, "sha256": sha256 })
    };
    json!({ "part_size": PART, "parts": parts.iter().map(part).collect::<Vec<_>>() })
}

impl Client {
    /// Sends these parts; storage has none of them yet.
    pub async fn send_parts(&self, upload: &str, file: &[u8], parts: &[usize]) {
        let put = self.put_with(upload, file, wanted(file, parts)).await.unwrap();
        self.send_to(&put, file).await;
    }

    async fn send_to(&self, put: &answer::Put, file: &[u8]) {
        assert!(put.parts.iter().all(|part| part.to.is_some()), "{put:?}");
        self.send_missing(put, file).await;
    }

    async fn send_missing(&self, put: &answer::Put, file: &[u8]) {
        for (n, to) in put.parts.iter().filter_map(|part| Some((part.n, part.to.as_ref()?))) {
            let bytes = file.chunks(PART).nth(n as usize - 1).unwrap();
            assert_eq!(self.api.send(to, bytes.to_vec()).await, 200, "part {n}");
        }
    }

    /// Commits without waiting for what has to be read.
    async fn begin_commit(&self, uploads: &[&str]) -> Result<Vec<Outcome>, Refusal> {
        let answer: answer::Commit = self.ask(Op::Commit, json!({ "uploads": uploads })).await?;
        Ok(answer.uploads.iter().map(|receipt| receipt.outcome).collect())
    }
}

pub async fn a_file_in_parts_is_resumed_where_it_was_left_and_counts_once_it_was_read(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, 2 * PART + 1_000_000);
    let put = edge.put_with("film", &file, wanted(&file, &[1, 2, 3])).await.unwrap();
    assert_eq!((put.part_size, put.part_count, put.to.as_ref()), (Some(PART as u64), Some(3), None));
    assert_eq!((put.parts.len(), put.there.len()), (3, 0));
    let to = |n: usize| put.parts[n - 1].to.as_ref().unwrap();
    assert!(edge.api.send(to(2), bytes(9, PART)).await >= 400, "other bytes got through");
    assert_eq!(edge.api.send(to(1), file[..PART].to_vec()).await, 200);
    assert_eq!(edge.api.send(to(3), file[2 * PART..].to_vec()).await, 200);
    let refusal = refused(edge.commit(&["film"]).await, Code::NotFound);
    assert!(refusal.message.contains("of its 3 parts 2 are not there"), "{refusal}");

    let again = edge.put_with("film", &file, wanted(&file, &[1, 2, 3])).await.unwrap();
    assert_eq!(again.there, [(1, 1), (3, 3)]);
    let open: Vec<_> = again.parts.iter().map(|part| (part.n, part.to.is_some())).collect();
    assert_eq!(open, [(1, false), (2, true), (3, false)]);
    // The first URL still holds: a renewal does not take it away.
    assert_eq!(edge.api.send(to(2), file[PART..2 * PART].to_vec()).await, 200);

    let begun = edge.begin_commit(&["film"]).await.unwrap();
    assert!(matches!(begun[0], Outcome::Pending | Outcome::Stored), "{begun:?}");
    let committed = edge.commit(&["film"]).await.unwrap();
    assert_eq!((committed[0].outcome, committed[0].sha256), (Outcome::Stored, Some(Sha256::of(&file))));
    assert_eq!(edge.put("film", &file).await.unwrap().outcome, Outcome::Stored);
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let lease = mill.trigger(&json!({})).await.unwrap();
    assert_eq!(mill.fetch(lease).await.unwrap().files["edge/film"], file);
}

pub async fn parts_of_another_length_than_was_granted_get_no_url_and_the_answer_says_which_was(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, PART + 1_000_000);
    edge.send_parts("film", &file, &[1]).await;
    let part = |n: usize| json!({ "n": n, "sha256": Sha256::of(b"another slice") });
    let other = json!({ "part_size": PART + 1, "parts": [part(1), part(2)] });
    let put = edge.put_with("film", &file, other).await.unwrap();
    assert_eq!((put.part_size, put.part_count, put.parts.len()), (Some(PART as u64), Some(2), 0));
    assert_eq!(put.there, [(1, 1)]);
    edge.send_parts("film", &file, &[2]).await;
    assert_eq!(edge.commit(&["film"]).await.unwrap()[0].outcome, Outcome::Stored);
}

pub async fn parts_that_do_not_make_the_declared_file_never_count_and_free_the_id(on: &Place) {
    let server = on.server(&[]).await;
    let mut edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, PART + 1_000);
    let mut ask = wanted(&file, &[1, 2]);
    ask["sha256"] = json!(Sha256::of(b"something else"));
    let put = edge.put_with("film", &file, ask).await.unwrap();
    edge.send_to(&put, &file).await;
    let refusal = refused(edge.commit(&["film"]).await, Code::Mismatch);
    assert!(refusal.hint.unwrap().contains("ask `put` again"));
    let receipt = edge.receipt("film").await;
    assert_eq!((receipt.outcome, receipt.error.unwrap().code), (Outcome::Refused, Code::Mismatch));
    assert!(server.uploads("demo").await.is_empty());
    edge.send_parts("film", &file, &[1, 2]).await;
    edge.commit(&["film"]).await.unwrap();
}

pub async fn a_part_of_other_bytes_is_found_out_and_the_file_counts_all_the_same(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let (file, other) = (bytes(1, 2 * PART + 1_000), bytes(2, PART));
    // Whoever asks says which bytes a part has: these are of another file.
    let lie = json!({ "part_size": PART, "parts": [{ "n": 1, "sha256": Sha256::of(&other) }] });
    let put = edge.put_with("film", &file, lie).await.unwrap();
    assert_eq!(edge.api.send(put.parts[0].to.as_ref().unwrap(), other).await, 200);
    let resumed = edge.put_with("film", &file, wanted(&file, &[1, 2, 3])).await.unwrap();
    let open: Vec<_> = resumed.parts.iter().map(|part| part.to.is_some()).collect();
    assert_eq!(open, [on.lists_hashes_of_parts(), true, true]);
    edge.send_missing(&resumed, &file).await;
    if !on.lists_hashes_of_parts() {
        refused(edge.commit(&["film"]).await, Code::Mismatch);
        let anew = edge.put_with("film", &file, wanted(&file, &[1, 2, 3])).await.unwrap();
        assert_eq!((anew.there.len(), anew.parts.iter().filter(|part| part.to.is_some()).count()), (0, 3));
        edge.send_missing(&anew, &file).await;
    }
    let committed = edge.commit(&["film"]).await.unwrap();
    assert_eq!((committed[0].outcome, committed[0].sha256), (Outcome::Stored, Some(Sha256::of(&file))));
}

pub async fn what_was_to_count_with_a_file_that_is_another_is_open_again(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let (film, map) = (bytes(1, PART + 1_000), bytes(2, 200_000));
    edge.send("map", &map).await;
    let mut ask = wanted(&film, &[1, 2]);
    ask["sha256"] = json!(Sha256::of(b"something else"));
    let put = edge.put_with("film", &film, ask).await.unwrap();
    edge.send_to(&put, &film).await;
    let refusal = refused(edge.commit(&["map", "film"]).await, Code::Mismatch);
    assert!(refusal.message.contains("map: film was to count with it"), "{refusal}");
    assert!(server.uploads("demo").await.is_empty(), "one counted without the other");
    let status = edge.status("map").await.unwrap();
    assert_eq!(status.outcome, Outcome::Granted);
    assert!(status.problem.unwrap().contains("film"));
    // It has been verified, and takes no other bytes any more.
    let again = edge.put("map", &map).await.unwrap();
    assert_eq!((again.outcome, again.to), (Outcome::Granted, None));
    assert_eq!(edge.commit(&["map"]).await.unwrap()[0].outcome, Outcome::Stored);
}

pub async fn a_verification_goes_on_after_a_kill(on: &Place) {
    let mut server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let who = edge.link.who.clone();
    let file = bytes(1, 8 * PART);
    edge.send_parts("film", &file, &[1, 2, 3, 4, 5, 6, 7, 8]).await;
    edge.begin_commit(&["film"]).await.unwrap();
    server.kill();
    server.launch().await;
    // Nobody commits again: it counts by itself.
    let edge = Client { link: Link::open(server.here(&who)).await.unwrap(), api: server.api() };
    assert_eq!(edge.settled("film").await, Outcome::Stored);
    assert_eq!(server.uploads("demo").await.len(), 1);
}

pub async fn a_grant_in_parts_that_ends_counts_if_all_are_there_and_is_forgotten_if_not(on: &Place) {
    let server = on.server(&[("MILLPOND__LIMITS__GRANT_S", "5")]).await;
    let mut edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, PART + 1_000);
    edge.send_parts("half", &file, &[1]).await;
    edge.send_parts("whole", &file, &[1, 2]).await;
    let receipt = edge.receipt("half").await;
    assert_eq!((receipt.outcome, receipt.error.unwrap().code), (Outcome::Refused, Code::NotFound));
    assert_eq!(edge.settled("whole").await, Outcome::Stored);
}

pub async fn two_connections_that_race_for_one_file_in_parts_send_to_one_object(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let second = edge.second(&server).await;
    let file = bytes(1, PART + 1_000);
    let (first_part, last_part) = (wanted(&file, &[1]), wanted(&file, &[2]));
    let (one, two) =
        tokio::join!(edge.put_with("film", &file, first_part), second.put_with("film", &file, last_part));
    let (one, two) = (one.unwrap(), two.unwrap());
    let id = |put: &answer::Put| {
        let url = &put.parts[0].to.as_ref().unwrap().url;
        url.split('&').find(|pair| pair.starts_with("uploadId=")).unwrap().to_owned()
    };
    assert_eq!(id(&one), id(&two), "two uploads in parts for one file");
    edge.send_to(&one, &file).await;
    second.send_to(&two, &file).await;
    let (one, two) = tokio::join!(edge.commit(&["film"]), second.commit(&["film"]));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(server.uploads("demo").await.len(), 1);
}

pub async fn an_aborted_file_in_parts_takes_no_more_of_them(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, PART + 1_000);
    edge.send_parts("film", &file, &[1]).await;
    edge.ask::<Value>(Op::Abort, json!({ "upload": "film" })).await.unwrap();
    refused(edge.commit(&["film"]).await, Code::NotFound);
    let put = edge.put_with("film", &file, wanted(&file, &[1, 2])).await.unwrap();
    assert!(put.there.is_empty(), "parts of the one that was aborted: {put:?}");
    edge.send_to(&put, &file).await;
    edge.commit(&["film"]).await.unwrap();
}

pub async fn as_many_urls_as_fit_the_answer_come_back(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let part = |n: usize| json!({ "n": n, "sha256": Sha256::of(b"x") });
    let parts: Vec<_> = (1..=150).map(part).collect();
    let ask = json!({ "upload": "film", "size": 1_u64 << 30, "sha256": Sha256::of(b"y"), "part_size": PART, "parts": parts });
    let small: answer::Put = edge.ask(Op::Put, ask.clone()).await.unwrap();
    assert!((5..100).contains(&small.parts.len()), "{} URLs in 16 KiB", small.parts.len());
    assert!(serde_json::to_vec(&small).unwrap().len() <= 16 << 10);
    let mut large = ask.clone();
    large["max_answer"] = json!(262_144);
    let large: answer::Put = edge.ask(Op::Put, large).await.unwrap();
    assert_eq!(large.parts.len(), 100);
    let mut beyond = ask;
    beyond["parts"] = json!([part(206)]);
    refused(edge.ask::<answer::Put>(Op::Put, beyond).await, Code::Malformed);
}

pub async fn the_command_lines_of_parts_work_as_pasted(on: &Place) {
    if !tool("curl") {
        return;
    }
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let file = bytes(1, PART + 1_000);
    std::fs::write(server.directory().join("film.bin"), &file).unwrap();
    let mut ask = wanted(&file, &[1, 2]);
    ask["curl"] = json!(true);
    ask["name"] = json!("film.bin");
    let put = edge.put_with("film", &file, ask).await.unwrap();
    for part in put.parts {
        let line = part.to.unwrap().curl.unwrap();
        let ran = Command::new("sh").args(["-c", &line]).current_dir(server.directory()).status().unwrap();
        assert!(ran.success(), "{line}");
    }
    edge.commit(&["film"]).await.unwrap();
}

pub async fn a_result_in_parts_is_committed_once_it_was_read(on: &Place) {
    let server = on.server(&[]).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    edge.send("a", &bytes(1, 1_000)).await;
    edge.commit(&["a"]).await.unwrap();
    let mut mill = Client::join(&server, "mill", Role::Processor).await;
    mill.ask::<Value>(Op::Trigger, json!({ "take": true, "wait_s": 30 })).await.unwrap();
    let result = bytes(7, PART + 1_000);
    let mut ask = wanted(&result, &[1, 2]);
    let more = json!({ "round": 1, "attempt": 1, "size": result.len(), "sha256": Sha256::of(&result) });
    ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let put: answer::Put = mill.ask(Op::Put, ask).await.unwrap();
    mill.send_to(&put, &result).await;
    let done: Value =
        mill.ask(Op::Done, json!({ "round": 1, "attempt": 1, "log": "written\n" })).await.unwrap();
    assert!(done["outcome"] == "pending" || done["version"] == 1, "{done}");
    let done = json!({ "round": 1, "attempt": 1, "wait_s": 30 });
    let done: Value = mill.ask(Op::Done, done).await.unwrap();
    assert_eq!(done["version"], 1);
    assert_eq!(mill.receipt("result/1/1").await.outcome, Outcome::Stored);
    let latest: Value = edge.ask(Op::Latest, json!({})).await.unwrap();
    assert_eq!(edge.api.fetch(latest["result"]["url"].as_str().unwrap()).await, result);
    let round = server.api().get("/v1/pools/demo/rounds/1").await.to_string();
    assert_eq!(round.matches("written").count(), 1, "{round}");
}

pub async fn a_verification_says_how_far_it_has_come(on: &Place) {
    let storage = on.apart().await;
    // The server reads what clients sent over a line that takes a quarter of a minute for it.
    let line = Relay::to(storage.address()).await;
    let slow = Shape { rate: Some(1 << 20), ..Shape::default() };
    line.shape(slow);
    let endpoint = format!("http://{}", line.address());
    let mut settings = storage.settings();
    settings.push(("MILLPOND__STORAGE__ENDPOINT", &endpoint));
    settings.push(("MILLPOND__STORAGE__PUBLIC_URL", storage.endpoint()));
    let server = on.server(&settings).await;
    let edge = Client::join(&server, "edge", Role::Publisher).await;
    let film = bytes(1, 3 * PART);
    edge.send_parts("film", &film, &[1, 2, 3]).await;
    assert_eq!(edge.begin_commit(&["film"]).await.unwrap(), [Outcome::Pending]);
    let mut heard = Vec::new();
    // More than the room below for what is on its way when the line is cut.
    while heard.len() < 3 || heard.last().is_some_and(|last| *last < 3 << 20) {
        let status = edge.status("film").await.unwrap();
        assert_eq!(status.outcome, Outcome::Pending, "after {heard:?}");
        let verified = status.verified.unwrap();
        assert!(heard.last().is_none_or(|last| *last <= verified), "{verified} after {heard:?}");
        if verified > heard.last().copied().unwrap_or(0) {
            heard.push(verified);
        }
    }
    assert!(heard.iter().all(|heard| *heard < film.len() as u64), "{heard:?}");
    // From where it broke it goes on, on a line that is fast.
    line.cut();
    line.shape(Shape::default());
    line.mend(storage.address());
    assert_eq!(edge.settled("film").await, Outcome::Stored);
    assert!(line.downward() < film.len() as u64 + (1 << 20), "{} bytes were read", line.downward());
}
