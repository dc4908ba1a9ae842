//! `millpond-edge process` against the real server: any program is the external processor.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cast;
mod manifest;
mod offline;
mod room;
mod stop;
mod terms;
mod trigger;

use std::time::{Duration, Instant};

use millpond_protocol::{Role, Sha256};
use millpond_tests::{Link, Mill, Process, edge_binary, repository, tool};
use serde_json::{Value, json};

use crate::cast::{CONCATENATE, Cast, PATIENCE, lives, until, written};

#[tokio::test]
async fn a_shell_line_makes_the_result_of_packed_and_large_files_and_its_output_is_the_log() {
    let cast = Cast::new(json!({})).await;
    let files = [("a", b"first\n".to_vec()), ("b", vec![b'x'; 400_000]), ("c", b"last\n".to_vec())];
    cast.publish(&files).await;
    let exec = r#"echo "round $MILLPOND_ROUND of $(tail -n +2 "$MILLPOND_MANIFEST" | wc -l) files" >&2
        echo "progress 0.5"; test -z "$MILLPOND_MQTT_TOKEN" || exit 1
        cat "$MILLPOND_INPUT"/edge-1/* > "$MILLPOND_OUTPUT""#;
    let mut process = cast.process(&["--once", "--exec", exec, "--content-type", "text/plain"]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n");
    assert!(cast.result().await == files.map(|(_, bytes)| bytes).concat());
    let round = cast.round(1).await.to_string();
    assert!(round.contains("round 1 of 3 files") && round.contains("committed"), "{round}");
    let left = std::fs::read_dir(cast.file("work")).unwrap().map(|item| item.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["lock"], "inputs and output are gone");
}

#[tokio::test]
async fn a_result_too_large_for_mqtt_goes_by_url() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let exec = r#"head -c 3000000 /dev/zero > "$MILLPOND_OUTPUT""#;
    let mut process = cast.process(&["--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(Sha256::of(&cast.result().await), Sha256::of(&vec![0; 3_000_000]));
    assert!(cast.edge.relay.upward() < 100_000, "the bytes went past MQTT");
}

#[tokio::test]
async fn exit_75_asks_for_another_attempt_and_any_other_fails_the_round() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let exec = format!(r#"test "$MILLPOND_ATTEMPT" = 2 || exit 75; {CONCATENATE}"#);
    let mut process = cast.process(&["--exec", &exec]);
    until("the second attempt", &mut process, async || cast.round(1).await.to_string().contains("committed"))
        .await;
    assert!(cast.result().await == b"1\n2\n3\n");
    process.signal("TERM");
    assert!(process.wait(PATIENCE).await.success());

    cast.publish(&[("d", vec![4]), ("e", vec![5]), ("f", vec![6])]).await;
    for exec in ["exit 3", "true"] {
        let mut process = cast.process(&["--once", "--exec", exec]);
        assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
        assert!(cast.round(2).await.to_string().contains("failed"));
        cast.api().post("/v1/pools/demo/rounds/2/retry", &json!({})).await;
    }
}

#[tokio::test]
async fn when_the_lease_is_lost_the_command_is_killed_with_its_children() {
    let cast = Cast::new(json!({ "lease_term_s": 3 })).await;
    cast.three().await;
    let exec = "sleep 1000 & echo $! > ../../child; wait";
    let mut process = cast.process(&["--exec", exec]);
    until("the command runs", &mut process, async || written(&cast.file("child"))).await;
    let child = std::fs::read_to_string(cast.file("child")).unwrap();
    assert!(lives(&child));
    cast.edge.relay.cut();
    let mill = Mill::join(cast.server.member("demo", "rival", Role::Processor).await, cast.api()).await;
    let mut lease = None;
    until("the rival's lease", &mut process, async || {
        lease = mill.claim().await.unwrap();
        lease.is_some()
    })
    .await;
    cast.edge.relay.mend(cast.server.mqtt());
    until("the child's end", &mut process, async || !lives(&child)).await;
    mill.answer(&lease.unwrap(), &b"the rival's"[..]).await.unwrap();
    until("the word of it", &mut process, async || !lives(&child)).await;
    assert!(process.status().is_none(), "it goes on with the next round");
    assert!(cast.result().await == b"the rival's");
}

#[tokio::test]
async fn what_a_command_says_before_it_fails_is_in_the_log_and_so_is_all_of_a_long_one() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = cast.process(&["--once", "--exec", "echo the reason; exit 3"]);
    assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
    let round = cast.round(1).await.to_string();
    assert!(round.contains("the reason") && round.contains("failed"), "{round}");
    cast.api().post("/v1/pools/demo/rounds/1/retry", &json!({})).await;
    let exec = format!("seq -f 'line %g' 20000; {CONCATENATE}");
    let mut process = cast.process(&["--once", "--exec", &exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let round = cast.round(1).await;
    let log: String =
        round["log"].as_array().unwrap().iter().filter_map(|part| part["text"].as_str()).collect();
    for line in ["line 1\n", "line 10000\n", "line 20000\n"] {
        assert!(log.contains(line), "{line}");
    }
}

#[tokio::test]
async fn a_command_that_writes_much_is_told_as_it_writes_and_nothing_of_it_is_dropped() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    // As much again as may wait, and only once the first part is with the server.
    let exec = format!(
        "seq -f 'line %07g' 75000; while ! test -e ../../go; do sleep 0.02; done; seq -f 'line %07g' 75000; {CONCATENATE}"
    );
    let mut process = cast.process(&["--once", "--exec", &exec]);
    let log = async || cast.round(1).await["log_bytes"].as_u64().unwrap_or(0);
    until("the first part of the log", &mut process, async || log().await > 900_000).await;
    std::fs::write(cast.file("go"), "").unwrap();
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(log().await, 2 * 75_000 * 13);
}

#[tokio::test]
async fn a_result_that_is_committed_is_no_lost_lease() {
    let cast = Cast::new(json!({ "lease_term_s": 3 })).await;
    cast.three().await;
    let exec =
        format!("{CONCATENATE}; echo $$ > ../../running; while ! test -e ../../go; do sleep 0.02; done");
    let mut process = cast.process(&["--once", "--exec", &exec]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    let command = std::fs::read_to_string(cast.file("running")).unwrap();
    cast.edge.relay.cut();
    // As if the result had arrived and its acknowledgement had not: the next beat is refused.
    let link = Link::open(cast.mill.clone()).await.unwrap();
    let result = "mp/demo/c/mill/result/1/1";
    link.publish(result, b"1\n2\n3\n".to_vec(), Default::default()).await.unwrap();
    std::fs::write(cast.file("go"), "").unwrap();
    let ended = format!("/proc/{}", command.trim());
    until("the end of the command", &mut process, async || !std::path::Path::new(&ended).exists()).await;
    // A beat is due by now, and waits for the connection.
    let begun = Instant::now();
    until("a beat", &mut process, async || begun.elapsed() > Duration::from_secs(2)).await;
    cast.edge.relay.mend(cast.server.mqtt());
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n");
}

#[tokio::test]
async fn a_round_that_does_not_fit_is_given_back_untouched() {
    let cast = Cast::new(json!({})).await;
    cast.publish(&[("a", vec![1; 50_000]), ("b", vec![2; 50_000]), ("c", vec![3; 50_000])]).await;
    // The files alone would fit; then not even the manifest.
    for (most, told) in
        [("150000", "150000 bytes and a manifest of"), ("300", "manifest has more than the 300")]
    {
        let mut process = cast.process(&["--once", "--disk-max", most, "--exec", CONCATENATE]);
        assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
        assert!(process.stdout().contains(told), "{}", process.stdout());
    }
    let mut process = cast.process(&["--once", "--disk-max", "152000", "--exec", CONCATENATE]);
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
}

#[tokio::test]
async fn the_example_aggregates_what_publishers_sent() {
    if !tool("python3") {
        return;
    }
    let cast = Cast::new(json!({})).await;
    cast.publish(&[("a", b"1.5\n2\n".to_vec()), ("b", b"not a number\n".to_vec()), ("c", b"4\n".to_vec())])
        .await;
    let example = repository().join("docs/examples/aggregate.py");
    let mut process = cast.process(&["--once", "--exec", &format!("python3 '{}'", example.display())]);
    assert!(process.wait(PATIENCE).await.success(), "{}{}", process.stdout(), process.stderr());
    let result: Value = serde_json::from_slice(&cast.result().await).unwrap();
    assert_eq!(result, json!({ "round": 1, "mean": 2.5, "count": 3 }));
    assert!(cast.round(1).await.to_string().contains("3 numbers and 1 other lines in 3 files"));
}

#[tokio::test]
async fn what_others_sent_is_its_owners_alone_whatever_the_umask() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    // The command runs in the directory of the attempt.
    let exec = format!("stat -c %a .. . ../lock ../lease > ../../modes; {CONCATENATE}");
    let mut process = std::process::Command::new("sh");
    process.args(["-c", r#"umask 000; exec "$0" process --once --exec "$1""#]).arg(edge_binary()).arg(exec);
    process.current_dir(cast.edge.directory());
    let command = cast.edge.command(&[]);
    process.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut process = Process::start(process, cast.edge.directory(), "process");
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let modes = std::fs::read_to_string(cast.file("modes")).unwrap();
    assert_eq!(modes, "700\n700\n600\n600\n");
}
