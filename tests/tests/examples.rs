//! The Python examples under docs/ do the main job together.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Command, Output};

use millpond_protocol::Role;
use millpond_tests::{Credentials, Process, Server, python, repository};
use serde_json::json;

fn example(name: &str, who: &Credentials) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(repository().join("docs/examples").join(name))
        .args(["--host", &who.mqtt.ip().to_string(), "--port", &who.mqtt.port().to_string()])
        .args(["--user", &format!("{}/{}", who.pool, who.member), "--token", &who.token])
        // No .pyc files among the documents.
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn good(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[tokio::test]
async fn publisher_listener_and_processor_in_python_do_the_main_job() {
    if !python() {
        return;
    }
    let server = Server::start().await;
    server.pool("demo", json!({ "window_s": 86_400 })).await;
    let publisher = server.member("demo", "edge-1", Role::Publisher).await;
    let listener = server.member("demo", "listener", Role::Listener).await;
    let mill = server.member("demo", "mill", Role::Processor).await;

    let directory = server.directory().join("results");
    let listen = |once: &Path| {
        let mut command = example("listener.py", &listener);
        command.arg("--dir").arg(once).arg("--once");
        command
    };
    let mut early = Process::start(listen(&directory.join("early")), server.directory(), "listener");

    let file = |name: &str, len: usize| {
        let path = server.directory().join(name);
        std::fs::write(&path, vec![b'x'; len]).unwrap();
        path
    };
    // By PUBLISH into the ledger and into storage, by one PUT, and in two parts.
    let lengths = [5, 200_000, 2_000_000, 6_000_000];
    let files = [file("a", lengths[0]), file("b", lengths[1]), file("c", lengths[2]), file("d", lengths[3])];
    let mut publish = example("publisher.py", &publisher);
    publish.args(["--part-size", "5242880"]).args(&files);
    let said = good(publish);
    assert_eq!(said.matches("stored in batch 1").count(), 4, "{said}");
    // Twice is once, and a receipt of its own only for what was published.
    let mut again = example("publisher.py", &publisher);
    again.arg(&files[0]);
    assert!(good(again).contains("stored in batch 1"));

    assert_eq!(good(example("processor.py", &mill)), "nothing to do\n");
    let mut work = example("processor.py", &mill);
    work.arg("--trigger");
    assert!(good(work).contains("round 1: 4 files, 8200005 bytes returned"));

    let status = early.wait(std::time::Duration::from_secs(60)).await;
    assert!(status.success());
    let result = std::fs::read(directory.join("early/joined.bin")).unwrap();
    assert_eq!(result.len(), lengths.iter().sum::<usize>());

    // One that comes later has it too.
    good(listen(&directory.join("late")));
    assert_eq!(std::fs::read(directory.join("late/joined.bin")).unwrap(), result);
    let members = server.api().get("/v1/pools/demo/members").await;
    let listener = members["members"].as_array().unwrap().iter().find(|m| m["member"] == "listener").unwrap();
    assert_eq!((&listener["delivery"], &listener["version"]), (&json!("applied"), &json!(1)));
}
