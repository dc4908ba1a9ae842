//! Who takes results: a plain MQTT client, and `millpond-edge` in its three roles; and the operator who clears up.

use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use millpond_protocol::Sha256;
use millpond_protocol::message::Pointer;
use millpond_tests::{Credentials, Edge, Plain, Process};
use reqwest::Method;
use rumqttc::QoS;
use serde_json::{Value, json};

use super::book::Book;
use super::home::{Client, Here, Home, Wrong};
use super::publishers::content;

/// Proves what a listener was given, and says so.
const PROVE: &str = r#"test "$(sha256sum < "$MILLPOND_FILE" | cut -c1-64)" = "$MILLPOND_SHA256""#;
/// Everything of the round in one file.
const GRIND: &str = r#"cat "$MILLPOND_INPUT"/*/* > "$MILLPOND_OUTPUT""#;
/// Between two requests of the operator.
const PAUSE: Duration = Duration::from_millis(150);
/// A program that waits for a server that was gone is begun anew then.
const A_WHILE: Duration = Duration::from_secs(4);

/// Listens with an MQTT 3.1.1 client that is not ours.
pub struct Listener {
    pub who: Credentials,
    /// The newest version that it was shown.
    pub version: u64,
}

impl Listener {
    /// The newest result by what the server shows whoever connects, proven.
    pub async fn look(&mut self, plain: &mut Plain, here: &Here) -> anyhow::Result<Pointer> {
        let topic = format!("mp/{}/result", self.who.pool);
        let message = plain.next_on(&topic).await?;
        let pointer: Pointer = serde_json::from_slice(&message)?;
        if pointer.version < self.version {
            return Err(Wrong(format!("version {} after {}", pointer.version, self.version)).into());
        }
        self.version = pointer.version;
        let bytes = here.api.try_fetch(&pointer.url).await?;
        if Sha256::of(&bytes) != pointer.sha256 {
            return Err(Wrong(format!("version {} is not what the pointer says", pointer.version)).into());
        }
        Ok(pointer)
    }
}

impl Client for Listener {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        let mut plain = Plain::connect(here.of(&self.who)).await?;
        let (pool, member) = (self.who.pool.clone(), self.who.member.clone());
        ensure!(plain.subscribe(&format!("mp/{pool}/result")).await?, "not subscribed");
        loop {
            tokio::select! {
                pointer = self.look(&mut plain, &here) => {
                    let pointer = pointer?;
                    let said = json!({ "state": "verified", "sha256": pointer.sha256 }).to_string();
                    let topic = format!("mp/{pool}/c/{member}/delivery/{}", pointer.version);
                    plain.send(&topic, said, QoS::AtLeastOnce, false).await?;
                }
                () = home.until_last() => return Ok(()),
            }
        }
    }
}

/// Runs retention now and then.
pub struct Operator;

impl Client for Operator {
    async fn work(&mut self, here: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let (status, said) = here.api.try_send(Method::POST, "/v1/gc", Some(&json!({}))).await?;
            if status != 200 && status != 503 {
                return Err(Wrong(format!("gc: {status} {said}")).into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// How the program ended, unless the server that is gone explains it.
fn ended(what: &str, output: &Output) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(()),
        Some(75) => Err(anyhow::anyhow!("{what}: {said}")),
        other => Err(Wrong(format!("{what} ended with {other:?}: {said}")).into()),
    }
}

/// `millpond-edge push`, of a few files at a time.
pub struct Pusher {
    pub edge: Arc<Edge>,
    pub who: Credentials,
    pub book: Book,
    pub next: usize,
}

impl Client for Pusher {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        loop {
            let n = self.next;
            // Two small ones, and one that goes by URL.
            let mut args = vec!["push", "--json", "--patience", "2"];
            let names: Vec<String> = (0..3).map(|file| format!("p{n}-{file}")).collect();
            for (name, size) in names.iter().zip([150 + n % 300, 400, 1_100_000]) {
                let bytes = content(&format!("{}/{name}", self.who.member), size);
                self.edge.file(name, &bytes);
            }
            args.extend(names.iter().map(String::as_str));
            let output = self.edge.run(&args).await;
            names.iter().for_each(|name| std::fs::remove_file(self.edge.directory().join(name)).unwrap());
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let line: Value = serde_json::from_str(line)?;
                let (upload, file) = (line["upload"].as_str().unwrap(), line["file"].as_str().unwrap());
                let size = [150 + n % 300, 400, 1_100_000][file[file.len() - 1..].parse::<usize>()?];
                let key = format!("{}/{}/{upload}", self.who.pool, self.who.member);
                self.book.sends(&key, &content(&format!("{}/{file}", self.who.member), size));
                if line["state"] == "stored" {
                    self.book.has(&key);
                } else if line["state"] != "spooled" {
                    return Err(Wrong(line.to_string()).into());
                }
            }
            // What waits in the spool was promised as well, and goes with the next push.
            self.next += 1;
            ended("push", &output)?;
            if home.is_last() {
                return ended("flush", &self.edge.run(&["spool", "flush", "--patience", "2"]).await);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Runs a program of the edge client until it ends, or for a while: after some lives of the server it waits long before it
/// connects again, as it should.
async fn a_while(mut process: Process, home: &Home) -> anyhow::Result<()> {
    let ended = tokio::select! {
        status = process.wait(Duration::from_secs(600)) => Some(status),
        () = tokio::time::sleep(A_WHILE) => None,
        () = home.until_last() => None,
    };
    match ended.map(|status: std::process::ExitStatus| status.code()) {
        None => {
            process.signal("TERM");
            process.wait(Duration::from_secs(60)).await;
        }
        Some(Some(0 | 75)) => {}
        Some(code) => return Err(Wrong(format!("it ended with {code:?}: {}", process.stderr())).into()),
    }
    Ok(())
}

/// `millpond-edge listen`, each time until it has the newest.
pub struct Keeper {
    pub edge: Arc<Edge>,
}

impl Client for Keeper {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let listen = self.edge.start("listen", &["listen", "--once", "--exec", PROVE]);
            a_while(listen, home).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

/// `millpond-edge process`, which works on what is offered, a round each time.
pub struct Miller {
    pub edge: Arc<Edge>,
}

impl Client for Miller {
    async fn work(&mut self, _: Here, home: &Home) -> anyhow::Result<()> {
        while !home.is_last() {
            let process = ["process", "--once", "--grace", "10s", "--exec", GRIND];
            a_while(self.edge.start("process", &process), home).await?;
        }
        Ok(())
    }
}
