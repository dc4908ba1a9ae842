//! The fuzz target of asks: what members of every role say to a pool of their own, in any order.

use millpond::ledger::now;
use millpond::rounds::Policy;
use millpond_fuzz::{Seen, Target, run};
use millpond_protocol::access::Op;
use millpond_protocol::message::ask;
use millpond_protocol::{Code, MemberName, PoolName, Principal, Role, Sha256, limits};
use serde_json::{Value, json};

use crate::world::{World, file};

const WORDS: &[&[u8]] = &[
    b"publisher ", b"listener ", b"processor ", b"trigger ", b"operator ", b"put ", b"commit ", b"abort ", b"status ", b"history ",
    b"get ", b"latest ", b"time ", b"complete ", b"trigger ", b"claim ", b"beat ", b"files ", b"done ", b"fail ", b"\n", b"{}",
    b"\"id\": \"a\"", b"\"max_answer\": 1024", b"\"upload\": \"u1\"", b"\"uploads\": [\"u1\", \"u2\"]", b"\"member\": \"publisher\"",
    b"\"size\": 4", b"\"sha256\": \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"", b"\"part_size\": 5242880",
    b"\"parts\": [{\"n\": 1, \"sha256\": \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}]", b"\"curl\": true",
    b"\"event_time\": 1700000000000", b"\"event_time\": \"2026-01-01T00:00:00Z\"", b"\"label\": \"l\"", b"\"meta\": {\"a\": [1]}",
    b"\"through\": 1700000000000", b"\"window\": 0", b"\"which\": \"open\"", b"\"take\": true", b"\"params\": {\"x\": 1}", b"\"ref\": \"r\"",
    b"\"round\": 1", b"\"attempt\": 1", b"\"progress\": 0.5", b"\"log\": \"line\"", b"\"error\": \"why\"", b"\"retryable\": true",
    b"\"version\": 1", b"\"batch\": 1", b"\"of\": \"results\"", b"\"cursor\": \"1\"", b"\"wait_s\": 1", b"\"warnings\": [\"w\"]", b", ",
    b"9223372036854775807", b"18446744073709551615", b"-1", b"1e999", b"\\u0000", b"null",
];

/// Ops of which a repeat gets the same answer to the letter: those of others hold fresh URLs and times.
const REPEATED: &[Op] = &[Op::Complete, Op::Commit, Op::Abort, Op::Done, Op::Fail];

/// A pool of its own, with a member of each role, named like its role, and two uploads.
async fn pool(world: &World, n: u64) -> Vec<Principal> {
    let name: PoolName = format!("p{n}").parse().unwrap();
    let policy = match n % 3 {
        0 => json!({}),
        1 => json!({ "grouping": "label" }),
        _ => json!({ "grouping": "count", "count": 3, "require_sha256": true }),
    };
    let policy: Policy = serde_json::from_value(policy).unwrap();
    let job = move |tx: &mut millpond::ledger::Tx<'_>| {
        let (pool, _) = tx.apply_pool(&name, &policy)?;
        let mut members = Vec::new();
        for role in Role::ALL {
            let member: MemberName = role.as_str().parse().unwrap();
            let token = Sha256::of(format!("{name}/{member}").as_bytes());
            let id = tx.add_member(pool, &member, role, &token)?;
            members.push(Principal { pool: name.clone(), name: member, role, id });
        }
        for upload in ["u1", "u2"] {
            let mut new = file(upload, upload.to_owned());
            new.label =
                (policy.grouping == millpond::rounds::policy::Grouping::Label).then(|| "l".parse().unwrap());
            tx.store_upload(pool, &members[0], new)?;
        }
        Ok(members)
    };
    world.ledger.write(job).await.unwrap()
}

/// Nobody has time to wait here.
fn at_once(payload: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<Value>(payload) {
        Ok(mut ask) if ask["wait_s"].as_u64().is_some_and(|seconds| seconds > 0) => {
            ask["wait_s"] = 0.into();
            ask.to_string().into_bytes()
        }
        _ => payload.to_vec(),
    }
}

/// One ask, and what always holds of its answer.
async fn ask(world: &World, who: &Principal, op: Op, payload: &[u8], seen: &mut Seen) {
    let payload = at_once(payload);
    let answer = world.asks.answer(who, "fuzz", op, &payload).await;
    let head: Option<ask::Head> = match &payload[..] {
        [] => Some(ask::Head::default()),
        payload => serde_json::from_slice(payload).ok(),
    };
    let id = head.as_ref().and_then(|head| head.id.as_ref()).map(ToString::to_string);
    match &answer {
        Ok(answer) => {
            let head = head.expect("what is answered was read");
            assert!(answer.is_object(), "{answer}");
            assert_eq!(answer.get("id").and_then(Value::as_str), id.as_deref(), "{answer}");
            let room = head.max_answer.unwrap_or(limits::ANSWER_DEFAULT).clamp(1_024, limits::ANSWER_MAX);
            let length = answer.to_string().len();
            assert!(length <= room, "an answer of {length} bytes where {room} fit");
            let mut keys: Vec<_> = answer.as_object().unwrap().keys().collect();
            keys.sort_unstable();
            seen.note((who.role.as_str(), op.as_str(), keys));
        }
        Err(refused) => {
            let error = &refused.error;
            // Ledger and storage are well: what is unavailable is a defect, but for the packs, which nobody writes here.
            let is_unwritten = error.message.contains("are not written yet");
            assert!(error.code != Code::Unavailable || is_unwritten, "{op}: {error}");
            assert!(!error.message.is_empty());
            let length = serde_json::to_string(refused).unwrap().len();
            assert!(length <= limits::ANSWER_DEFAULT, "a refusal of {length} bytes");
            seen.note((
                who.role.as_str(),
                op.as_str(),
                error.code.as_str(),
                error.message.split(['`', '"']).next(),
            ));
        }
    }
    if id.is_some() && op.changes_state() {
        let again = world.asks.answer(who, "fuzz", op, &payload).await;
        assert_eq!(again.is_ok(), answer.is_ok(), "{op}: {answer:?}, and then {again:?}");
        if REPEATED.contains(&op) {
            assert_eq!(again, answer, "{op}");
        }
    }
}

#[test]
fn fuzz_asks() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut world = runtime.block_on(World::new(json!({})));
    let mut pools = 0;
    // Longer than an answer may be, so that what an answer quotes is seen to be cut.
    run(&Target { name: "asks", words: WORDS, max: limits::ANSWER_DEFAULT + 4_096 }, |bytes, seen| {
        runtime.block_on(async {
            pools += 1;
            if pools % 2_000 == 0 {
                world = World::new(json!({})).await;
            }
            // The first byte chooses the policy.
            let (first, script) = bytes.split_first().unwrap_or((&0, &[]));
            let members = pool(&world, pools * 3 + u64::from(first % 3)).await;
            let begun = now();
            for line in script.split(|byte| *byte == b'\n').take(12) {
                let mut words = line.splitn(3, |byte| *byte == b' ');
                let (role, op, payload) = (words.next(), words.next(), words.next().unwrap_or_default());
                let role = members.iter().find(|who| role == Some(who.role.as_str().as_bytes()));
                let op = op.and_then(|op| std::str::from_utf8(op).ok()?.parse::<Op>().ok());
                if let (Some(who), Some(op)) = (role, op) {
                    ask(&world, who, op, payload, seen).await;
                }
            }
            assert!(now().as_millis() - begun.as_millis() < 120_000, "no ask waits");
        });
    });
}
