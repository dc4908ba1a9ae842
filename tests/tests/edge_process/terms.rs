//! What keeps a lease, what the server sees meanwhile, and what becomes of a round whose files are damaged.

use std::path::{Path, PathBuf};

use millpond_protocol::Role;
use serde_json::{Value, json};

use crate::cast::{CONCATENATE, Cast, PATIENCE, until, written};

/// Milliseconds since 1970.
fn at(time: &Value) -> i64 {
    time.as_str().unwrap().parse::<millpond_protocol::Timestamp>().unwrap().as_millis()
}

#[tokio::test]
async fn beats_keep_the_lease_of_a_command_that_runs_for_several_terms() {
    const TERM_S: i64 = 4;
    let cast = Cast::new(json!({ "lease_term_s": TERM_S })).await;
    cast.three().await;
    let exec =
        format!("echo $$ > ../../running; while ! test -e ../../go; do sleep 0.02; done; {CONCATENATE}");
    let mut process = cast.process(&["--once", "--exec", &exec]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    until("a beat after several terms", &mut process, async || {
        let round = cast.round(1).await;
        assert_eq!(round["state"], "leased", "{round}");
        let attempt = &round["attempts"][0];
        attempt["beat"].is_string() && at(&attempt["beat"]) - at(&attempt["leased"]) > 3 * TERM_S * 1_000
    })
    .await;
    std::fs::write(cast.file("go"), "").unwrap();
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n");
    let round = cast.round(1).await;
    assert_eq!(
        (round["attempts"].as_array().unwrap().len(), &round["state"]),
        (1, &json!("committed")),
        "{round}"
    );
    let events = cast.api().get("/v1/pools/demo/events").await;
    let mut types = events["events"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap());
    assert!(types.all(|event| event != "round-expired"), "{events}");
}

#[tokio::test]
async fn the_progress_that_a_command_states_is_seen_while_it_runs_and_is_no_part_of_the_log() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    // Nothing but that, and the lease has minutes to go.
    let exec = format!(
        "echo progress 0.25; while ! test -e ../../half; do sleep 0.02; done
        echo progress 0.5; while ! test -e ../../go; do sleep 0.02; done; {CONCATENATE}"
    );
    let mut process = cast.process(&["--once", "--exec", &exec]);
    for (progress, then) in [(0.25, "half"), (0.5, "go")] {
        until("the progress", &mut process, async || {
            cast.round(1).await["attempts"][0]["progress"] == json!(progress)
        })
        .await;
        std::fs::write(cast.file(then), "").unwrap();
    }
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let round = cast.round(1).await;
    assert_eq!((&round["attempts"][0]["progress"], &round["log_bytes"]), (&json!(0.5), &json!(0)), "{round}");
}

/// Files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let items = std::fs::read_dir(directory).unwrap().map(|item| item.unwrap().path());
    items.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_round_whose_pack_is_damaged_is_given_back_with_the_reason_and_the_processor_lives_on() {
    let cast = Cast::new(json!({})).await;
    // Something to know the pack by.
    let mark = b"the grain of edge-1".repeat(100);
    cast.publish(&[("a", mark.clone()), ("b", b"2\n".to_vec()), ("c", b"3\n".to_vec())]).await;
    crate::trigger::offered(&cast, 1).await;
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(mark.len()).position(|window| window == mark)
    };
    let packs = files(&cast.server.data().join("objects/blobs"));
    let (pack, place) = packs.iter().find_map(|path| Some((path, holds(path)?))).unwrap();
    let good = std::fs::read(pack).unwrap();
    let mut damaged = good.clone();
    damaged[place + 5] ^= 1;
    std::fs::write(pack, damaged).unwrap();

    let exec = format!("touch ../../ran; {CONCATENATE}");
    let mut process = cast.process(&["--exec", &exec]);
    until("the end of the attempt", &mut process, async || {
        cast.round(1).await["attempts"][0]["ended"].is_string()
    })
    .await;
    let attempt = cast.round(1).await["attempts"][0].clone();
    assert_eq!(attempt["outcome"], "returned", "{attempt}");
    assert!(attempt["error"].as_str().is_some_and(|why| why.contains("SHA-256")), "{attempt}");
    let said = format!("{}/process.out", cast.edge.directory().display());
    until("the word of it", &mut process, async || {
        std::fs::read_to_string(&said).unwrap().contains("SHA-256")
    })
    .await;
    assert!(!cast.file("ran").exists(), "the command got what the server never had");
    assert!(process.status().is_none(), "{}", process.stderr());

    std::fs::write(pack, good).unwrap();
    let other = cast.server.member("demo", "other", Role::Processor).await;
    let arguments = ["process", "--once", "--dir", "other", "--exec", CONCATENATE];
    let mut other = cast.edge.start_as(&other, "other", &arguments);
    assert!(other.wait(PATIENCE).await.success(), "{}", other.stderr());
    assert_eq!(cast.result().await, [&mark[..], b"2\n3\n"].concat());
    process.signal("TERM");
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
}
