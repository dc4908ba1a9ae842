//! App topics over the real server, with the clients that people use.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use millpond_protocol::Role;
use millpond_tests::{Credentials, Server, python, repository, tool};
use serde_json::json;

async fn stage() -> (Server, Credentials) {
    let server = Server::with(&[("MILLPOND__MQTT__APP_TOPICS", r#"["app/+/#"]"#)]).await;
    server.pool("demo", json!({ "window_s": 3_600 })).await;
    let edge = server.member("demo", "edge", Role::Publisher).await;
    (server, edge)
}

fn good(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}\n{}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

fn mosquitto(name: &str, who: &Credentials, args: &[&str]) -> Command {
    let mut command = Command::new(name);
    command
        .args(["-h", &who.mqtt.ip().to_string(), "-p", &who.mqtt.port().to_string()])
        .args(["-u", &format!("{}/{}", who.pool, who.member), "-P", &who.token])
        .args(args);
    command
}

#[tokio::test]
async fn who_subscribed_gets_what_was_published_after_the_server_was_killed_and_started_again() {
    if !tool("mosquitto_sub") || !tool("mosquitto_pub") {
        return;
    }
    let (mut server, edge) = stage().await;
    for version in ["mqttv311", "mqttv5"] {
        let topic = format!("app/demo/{version}");
        // -c: not a clean session, or a start that is not clean and an expiry that is as late as may be.
        let session = ["-V", version, "-i", version, "-c", "-q", "1", "-t", &topic];
        let here = server.here(&edge);
        good(mosquitto("mosquitto_sub", &here, &[&session[..], &["-E"]].concat()));
        server.kill();
        server.launch().await;
        let here = server.here(&edge);
        good(mosquitto(
            "mosquitto_pub",
            &here,
            &["-V", version, "-q", "1", "-t", &topic, "-m", "while you were away"],
        ));
        let got = good(mosquitto("mosquitto_sub", &here, &[&session[..], &["-C", "1", "-W", "60"]].concat()));
        assert_eq!(got.trim(), "while you were away");
    }
}

#[tokio::test]
async fn paho_has_qos_retained_sessions_wills_properties_and_shares_on_both_versions() {
    if !python() {
        return;
    }
    let (_server, edge) = stage().await;
    let mut command = Command::new("python3");
    command
        .arg(repository().join("tests/interop/clients.py"))
        .args(["--host", &edge.mqtt.ip().to_string(), "--port", &edge.mqtt.port().to_string()])
        .args(["--pool", edge.pool.as_str(), "--user", &format!("{}/{}", edge.pool, edge.member)])
        .args(["--token", &edge.token]);
    assert!(good(command).contains("all of it holds"));
}

#[tokio::test]
async fn paho_c_publishes_a_file_and_gets_what_others_say_on_both_versions() {
    if !tool("paho_c_pub") || !tool("paho_c_sub") {
        return;
    }
    let (server, edge) = stage().await;
    let file = server.directory().join("file");
    // More than a socket's buffer takes at once, and no byte at which the program cuts its input.
    std::fs::write(&file, vec![b'x'; 700_000]).unwrap();
    let paho = |name: &str, version: &str, topic: &str| {
        let mut command = Command::new("timeout");
        command
            .args(["60", name, "-V", version, "-i", name, "-q", "1", "-t", topic])
            .args(["-h", &edge.mqtt.ip().to_string(), "-p", &edge.mqtt.port().to_string()])
            .args(["-u", &format!("{}/{}", edge.pool, edge.member), "-P", &edge.token]);
        command
    };
    for (version, id) in [("311", "old"), ("5", "new")] {
        let mut upload = paho("paho_c_pub", version, &format!("mp/demo/c/edge/up/{id}"));
        upload.arg("-f").arg(&file);
        good(upload);
        let topic = format!("app/demo/{id}");
        let mut say = paho("paho_c_pub", version, &topic);
        say.args(["-r", "-m", "over to you"]);
        good(say);
        let mut listen = paho("paho_c_sub", version, &topic).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(listen.stdout.take().unwrap()).read_line(&mut said).unwrap();
        // It goes on until it is ended, and what watches over it passes that on.
        good({
            let mut end = Command::new("kill");
            end.arg(listen.id().to_string());
            end
        });
        listen.wait().unwrap();
        assert_eq!(said.trim(), "over to you");
    }
    let sizes: Vec<_> = server.uploads("demo").await.iter().map(|upload| upload["size"].clone()).collect();
    assert_eq!(sizes, [700_000, 700_000]);
}
