//! How a processor ends: asked to, killed, and what is left of its command then.

use std::path::Path;
use std::time::{Duration, Instant};

use millpond_tests::{Process, tool};
use serde_json::json;

use crate::cast::{CONCATENATE, Cast, PATIENCE, lives, until, written};

#[tokio::test]
async fn a_processor_that_was_killed_gives_its_round_back_when_it_starts_again() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = cast.process(&["--exec", "echo $$ > ../../running; exec sleep 1000"]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    process.kill();
    // The lease has ten minutes to go; the second attempt comes after the pause of five seconds.
    let mut process = cast.process(&["--once", "--exec", CONCATENATE]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"1\n2\n3\n");
    assert!(cast.round(1).await.to_string().contains("died while it worked"));
}

#[tokio::test]
async fn a_client_that_is_killed_takes_its_command_with_it_and_what_that_started() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let exec = "trap '' TERM HUP; sleep 1000 & echo $! > ../../child.new; mv ../../child.new ../../child; echo $$ > ../../running.new; mv ../../running.new ../../running; wait";
    let mut process = cast.process(&["--exec", exec]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    let [command, child] = ["running", "child"].map(|name| std::fs::read_to_string(cast.file(name)).unwrap());
    assert!(lives(&command) && lives(&child));
    process.kill();
    until("their end", &mut process, async || !lives(&command) && !lives(&child)).await;
}

#[tokio::test]
async fn what_escaped_from_a_processor_that_was_killed_cannot_write_into_the_next_attempt() {
    if !tool("setsid") {
        return;
    }
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    // Its variables name places; what it writes there must be nobody else's.
    let orphan = r#"cd ../..; echo $$ > running; while ! test -e go; do sleep 0.02; done
        mkdir -p "$MILLPOND_INPUT/x"; echo orphan > "$MILLPOND_INPUT/x/y"; echo orphan > "$MILLPOND_OUTPUT"; touch wrote"#;
    let mut process = cast.process(&["--exec", &format!("setsid sh -c '{orphan}'; sleep 1000")]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    process.kill();
    let next = format!("{CONCATENATE}; touch ../../go; while ! test -e ../../wrote; do sleep 0.02; done");
    let mut process = cast.process(&["--once", "--exec", &next]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(String::from_utf8(cast.result().await).unwrap(), "1\n2\n3\n");
}

#[tokio::test]
async fn a_processor_that_is_asked_to_end_gives_its_round_back() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = cast.process(&["--exec", "echo $$ > ../../running; sleep 1000"]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    process.signal("TERM");
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(!lives(&std::fs::read_to_string(cast.file("running")).unwrap()));
    assert!(cast.round(1).await.to_string().contains("was stopped"));
}

/// Starts a command that has its output, and lets it end while there is no network: the result is made, and cannot go.
async fn made_without_a_network(cast: &Cast, arguments: &[&str], last: &str) -> Process {
    let exec = format!(
        "{CONCATENATE}; echo $$ > ../../running; while ! test -e ../../go; do sleep 0.02; done; {last}"
    );
    let mut all = vec!["--exec", exec.as_str()];
    all.extend_from_slice(arguments);
    let mut process = cast.process(&all);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    let command = std::fs::read_to_string(cast.file("running")).unwrap();
    cast.edge.relay.cut();
    std::fs::write(cast.file("go"), "").unwrap();
    // It is no zombie either: the client knows that it has ended.
    let ended = format!("/proc/{}", command.trim());
    until("the end of the command", &mut process, async || !Path::new(&ended).exists()).await;
    process
}

/// Whether a process has a handler of SIGTERM, as `/proc/ID/status` tells.
fn hears_term(status: &str) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << 14) != 0
}

#[tokio::test]
async fn a_result_that_is_made_when_the_processor_is_asked_to_end_still_arrives() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = made_without_a_network(&cast, &[], "true").await;
    process.signal("TERM");
    cast.edge.relay.mend(cast.server.mqtt());
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n");
    assert!(cast.result().await == b"1\n2\n3\n");
}

#[tokio::test]
async fn what_a_command_ended_with_is_told_when_the_processor_is_asked_to_end_meanwhile() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = made_without_a_network(&cast, &[], "exit 3").await;
    process.signal("TERM");
    cast.edge.relay.mend(cast.server.mqtt());
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let round = cast.round(1).await.to_string();
    assert!(round.contains("failed") && round.contains("the command ended with"), "{round}");
}

#[tokio::test]
async fn a_processor_that_is_asked_to_end_without_a_network_ends_and_the_next_one_gives_the_round_back() {
    for (last, told) in [("true", "was stopped"), ("exit 3", "the command ended with")] {
        let cast = Cast::new(json!({})).await;
        cast.three().await;
        let mut process = made_without_a_network(&cast, &["--grace", "1s"], last).await;
        let asked = Instant::now();
        process.signal("TERM");
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
        assert!(process.stdout().contains(told), "{}", process.stdout());
        // The answer to an ask would have been waited for twice as long.
        assert!(asked.elapsed() < Duration::from_secs(60), "{:?}", asked.elapsed());
        // One that cannot even say that there was one before it is not held up by that.
        let mut process = cast.process(&["--exec", CONCATENATE]);
        let status = format!("/proc/{}/status", process.id());
        let hears = async || hears_term(&std::fs::read_to_string(&status).unwrap());
        until("its ear for SIGTERM", &mut process, hears).await;
        process.signal("TERM");
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
        cast.edge.relay.mend(cast.server.mqtt());
        let mut process = cast.process(&["--once", "--exec", CONCATENATE]);
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
        assert!(cast.result().await == b"1\n2\n3\n");
    }
}
