//! Networks that are not there: the processor says so and goes on, also with what a processor before it has left.

use serde_json::json;

use crate::cast::{CONCATENATE, Cast, PATIENCE, until, written};

#[tokio::test]
async fn a_processor_that_was_killed_and_starts_without_a_network_gives_the_round_back_when_there_is_one() {
    let cast = Cast::new(json!({})).await;
    cast.three().await;
    let mut process = cast.process(&["--exec", "echo $$ > ../../running; exec sleep 1000"]);
    until("the command runs", &mut process, async || written(&cast.file("running"))).await;
    process.kill();
    cast.edge.relay.cut();
    let mut process = cast.process(&["--once", "--exec", CONCATENATE]);
    let said = cast.file("process.err");
    let complains = async || std::fs::read_to_string(&said).unwrap().contains("no connection to the server");
    until("a word of it", &mut process, complains).await;
    assert!(cast.file("work/lease").exists() && process.status().is_none());
    cast.edge.relay.mend(cast.server.mqtt());
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    assert!(cast.result().await == b"1\n2\n3\n");
    assert!(cast.round(1).await.to_string().contains("died while it worked"));
    assert!(!cast.file("work/lease").exists());
}
