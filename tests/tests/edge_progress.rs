//! Progress: bars on a terminal, and nothing in the way of what else is written.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use millpond_protocol::Role;
use millpond_tests::{Edge, Server, tool};
use serde_json::{Value, json};

/// What the command writes to a terminal.
fn on_a_terminal(edge: &Edge, arguments: &str) -> String {
    let command = edge.command(&[]);
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("'{}' {arguments}", command.get_program().display()), "/dev/null"]);
    script.current_dir(edge.directory()).env("TERM", "xterm");
    for (key, value) in command.get_envs() {
        script.env(key, value.unwrap());
    }
    let output = script.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_bars_a_pipe_does_not_and_json_is_json() {
    if !tool("script") {
        return;
    }
    let server = Server::start().await;
    server.pool("demo", json!({})).await;
    let edge = Edge::new(&server, server.member("demo", "edge-1", Role::Publisher).await).await;
    for name in ["one", "two", "three"] {
        edge.file(name, name.as_bytes());
    }
    edge.file("large", &vec![7; 3_000_000]);
    let pushed = tokio::task::block_in_place(|| on_a_terminal(&edge, "push one two large"));
    for shown in ["spooling", "3/3", "sending", "large", "MiB/", "stored  one-", "stored  large-"] {
        assert!(pushed.contains(shown), "{shown}: {pushed}");
    }
    edge.done(&["push", "--offline", "three"]).await;
    let json = tokio::task::block_in_place(|| on_a_terminal(&edge, "--json spool flush"));
    assert_eq!(serde_json::from_str::<Value>(json.trim()).unwrap()["stored"], 1, "{json}");
    let piped = edge.run(&["push", "--again", "one"]).await;
    assert!(piped.status.success() && piped.stderr.is_empty(), "{piped:?}");
}
