//! `millpond-edge process` against the real server: any program is the external processor.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use millpond_protocol::{Role, Sha256};
use millpond_tests::{Api, Credentials, Edge, Link, Mill, Process, Server, repository, tool};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);
/// Everything of the round in one file, in order.
const CONCATENATE: &str = r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#;

struct Cast {
    server: Server,
    /// The machine of the processor.
    edge: Edge,
    mill: Credentials,
    publisher: Credentials,
    listener: Credentials,
}

impl Cast {
    async fn new(policy: Value) -> Self {
        let server = Server::start().await;
        let mut whole = json!({ "grouping": "count", "count": 3 });
        whole.as_object_mut().unwrap().extend(policy.as_object().unwrap().clone());
        server.pool("demo", whole).await;
        let publisher = server.member("demo", "edge-1", Role::Publisher).await;
        let mill = server.member("demo", "mill", Role::Processor).await;
        let edge = Edge::new(&server, mill.clone()).await;
        let listener = server.member("demo", "listener", Role::Listener).await;
        Self { server, edge, mill, publisher, listener }
    }

    fn api(&self) -> Api {
        self.server.api()
    }

    /// Publishes files; the third fills a batch, which becomes a round.
    async fn publish(&self, files: &[(&str, Vec<u8>)]) {
        let link = Link::open(self.publisher.clone()).await.unwrap();
        for (id, bytes) in files {
            link.publish(&format!("mp/demo/c/edge-1/up/{id}"), bytes.clone(), Default::default())
                .await
                .unwrap();
        }
        link.close().await;
    }

    async fn three(&self) {
        self.publish(&[("a", b"1\n".to_vec()), ("b", b"2\n".to_vec()), ("c", b"3\n".to_vec())]).await;
    }

    fn process(&self, arguments: &[&str]) -> Process {
        let mut all = vec!["process"];
        all.extend_from_slice(arguments);
        self.edge.start("process", &all)
    }

    /// The newest result's bytes.
    async fn result(&self) -> Vec<u8> {
        let link = Link::open(self.listener.clone()).await.unwrap();
        let latest: Value = link.ask(millpond_protocol::access::Op::Latest, &json!({})).await.unwrap();
        self.api().fetch(latest["result"]["url"].as_str().unwrap()).await.to_vec()
    }

    async fn round(&self, round: u32) -> Value {
        self.api().get(&format!("/v1/pools/demo/rounds/{round}")).await
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.edge.directory().join(name)
    }
}

async fn until(what: &str, process: &mut Process, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < PATIENCE, "{what}: {}{}", process.stdout(), process.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the line in the file is whole: the shell makes a file before it writes to it.
fn written(file: &std::path::Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|line| line.ends_with('\n'))
}

fn lives(id: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{}/stat", id.trim())).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

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
async fn params_of_a_trigger_reach_the_command_and_batches_are_sealed_by_the_clock() {
    let cast = Cast::new(json!({ "count": 1_000 })).await;
    cast.three().await;
    let exec = r#"echo "$MILLPOND_PARAMS $MILLPOND_REF" > "$MILLPOND_OUTPUT""#;
    let mut process = cast.process(&["--trigger-every", "1h", "--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"null null\n");
    cast.publish(&[("d", vec![4])]).await;
    let mill = Mill::join(cast.server.member("demo", "other", Role::Trigger).await, cast.api()).await;
    let ask = json!({ "id": "t", "params": { "rate": 0.5 }, "ref": "job" });
    let _: Value = mill.link.ask(millpond_protocol::access::Op::Trigger, &ask).await.unwrap();
    let mut process = cast.process(&["--once", "--exec", exec]);
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"{\"rate\":0.5} \"job\"\n");
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

#[tokio::test]
async fn a_round_that_does_not_fit_is_given_back_untouched() {
    let cast = Cast::new(json!({})).await;
    cast.publish(&[("a", vec![1; 50_000]), ("b", vec![2; 50_000]), ("c", vec![3; 50_000])]).await;
    let mut process = cast.process(&["--once", "--disk-max", "100000", "--exec", CONCATENATE]);
    assert_eq!(process.wait(PATIENCE).await.code(), Some(1));
    assert!(process.stdout().contains("150000 bytes"), "{}", process.stdout());
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
