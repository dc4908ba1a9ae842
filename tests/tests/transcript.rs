//! docs/transcript.md is run exactly as it stands, against `millpond dev --ports auto`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;
use std::time::{Duration, Instant};

use millpond_tests::{Process, binary, repository, tool};

/// The shell blocks of a document, in order.
fn blocks(document: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in document.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(_), "```") => blocks.extend(block.take()),
            (Some(text), line) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, _) => {}
        }
    }
    assert!(block.is_none(), "a block without an end");
    blocks
}

#[test]
fn the_transcript_works_word_for_word() {
    for name in ["mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "curl", "tar", "bash"] {
        if !tool(name) {
            return;
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.args(["dev", "--ports", "auto"]).current_dir(directory.path());
    let mut server = Process::start(command, directory.path(), "dev");
    // `dev` prints its variables when it is ready, and nothing before.
    let begin = Instant::now();
    let variables = loop {
        let printed = server.stdout();
        if printed.contains("MILLPOND_LISTENER_TOKEN=") && printed.ends_with('\n') {
            break printed;
        }
        assert!(server.status().is_none(), "dev ended");
        assert!(begin.elapsed() < Duration::from_secs(60), "dev is not ready");
        std::thread::sleep(Duration::from_millis(10));
    };

    let document = std::fs::read_to_string(repository().join("docs/transcript.md")).unwrap();
    let blocks = blocks(&document);
    assert!(blocks.len() >= 10, "the document has lost its blocks");
    let script = format!("set -euo pipefail\n{variables}\nset -x\n{}", blocks.concat());
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let output = Command::new("bash").arg("-c").arg(script).current_dir(&work).output().unwrap();
    let (said, shown) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}\n---\n{shown}");
    assert_eq!(std::fs::read_to_string(work.join("result.txt")).unwrap(), "21.5 degrees22.0 degrees\n");
    assert!(shown.contains("\"applied\":1"), "{shown}");
}
