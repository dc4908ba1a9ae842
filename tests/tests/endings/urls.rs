//! URLs of embedded storage: every kind ends with the right of whom it was made for, on every port that storage has.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Credentials, Server};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::held::{api, ask};

/// The shortest part.
const PART: usize = 5 << 20;

/// How a member's right ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Revocation,
    Role,
    Removal,
}

impl By {
    async fn end(self, server: &Server, who: &[&Credentials]) {
        let path = |who: &Credentials| format!("/v1/pools/p/members/{}", who.member);
        match self {
            Self::Removal => drop(server.api().delete("/v1/pools/p?force=true").await),
            Self::Revocation => {
                for who in who {
                    server.api().delete(&path(who)).await;
                }
            }
            Self::Role => {
                for who in who {
                    server.api().patch(&path(who), &json!({"role": "trigger"})).await;
                }
            }
        }
    }
}

/// One use of a URL: what it is for, and what is sent to it.
#[derive(Clone)]
struct Use {
    what: &'static str,
    url: String,
    headers: BTreeMap<String, String>,
    /// None: it is read.
    body: Option<Bytes>,
}

impl Use {
    fn read(what: &'static str, url: &Value) -> Self {
        let url = url.as_str().unwrap_or_else(|| panic!("{what}: no URL")).to_owned();
        Self { what, url, headers: BTreeMap::new(), body: None }
    }

    fn write(what: &'static str, to: &Value, body: &[u8]) -> Self {
        let PutTo { url, headers, .. } =
            serde_json::from_value(to.clone()).unwrap_or_else(|error| panic!("{what}: {error}: {to}"));
        Self { what, url, headers, body: Some(Bytes::copy_from_slice(body)) }
    }

    /// The same, and nobody is named any more.
    fn nameless(&self) -> Self {
        let (from, rest) = self.url.split_once("x-holder=").unwrap();
        let url = from.to_owned() + rest.split_once('&').map_or("", |(_, rest)| rest);
        Self { url, ..self.clone() }
    }

    /// What storage answers at one of its ports to what was signed for its public one.
    async fn at(&self, port: u16) -> StatusCode {
        let mut url: reqwest::Url = self.url.parse().unwrap();
        let host = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        url.set_port(Some(port)).unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = match &self.body {
            Some(body) => http.put(url).body(body.clone()),
            None => http.get(url),
        };
        let with = |request: RequestBuilder, (name, value): (&String, &String)| request.header(name, value);
        self.headers.iter().fold(request, with).header("host", host).send().await.unwrap().status()
    }
}

/// The ports of 127.0.0.1 on which a process listens.
fn ports(process: u32) -> BTreeSet<u16> {
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let links = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    let sockets: BTreeSet<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let table = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap();
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // State 10 is one that listens.
    rows.filter(|row| row[3] == "0A" && sockets.contains(&format!("socket:[{}]", row[9])))
        .map(|row| u16::from_str_radix(row[1].rsplit(':').next().unwrap(), 16).unwrap())
        .collect()
}

/// Of a publisher, a processor and an operator: a URL of every kind that they are given.
async fn all_kinds(server: &Server, [edge, mill, reader]: [&Credentials; 3]) -> Vec<Use> {
    let (edge, mill, reader) = (api(server, edge), api(server, mill), api(server, reader));
    let (small, large, other) = (vec![7; 200_000], vec![8; 2 * PART], vec![9; 210_000]);
    let put = |id: &str, bytes: &[u8]| json!({"id": id, "upload": id, "size": bytes.len(), "sha256": Sha256::of(bytes), "label": "l"});

    let sent = ask(&edge, "put", put("sent", &small)).await.unwrap();
    let whole = Use::write("an upload", &sent["to"], &small);
    let public = server.ports().storage.unwrap().port();
    assert_eq!(whole.at(public).await, 200);
    ask(&edge, "commit", json!({"id": "c", "uploads": ["sent"]})).await.unwrap();
    let unsent = ask(&edge, "put", put("unsent", &other)).await.unwrap();
    let mut in_parts = put("parts", &large);
    let first = json!({"n": 1, "sha256": Sha256::of(&large[..PART])});
    in_parts
        .as_object_mut()
        .unwrap()
        .extend([("part_size".into(), json!(PART)), ("parts".into(), json!([first]))]);
    let parts = ask(&edge, "put", in_parts).await.unwrap();
    let own = ask(&edge, "get", json!({"upload": "sent"})).await.unwrap();

    let trigger = json!({"id": "t", "label": "l", "take": true, "wait_s": 30});
    let lease = ask(&mill, "trigger", trigger).await.unwrap()["lease"].clone();
    let round = |more: Value| {
        let mut ask = json!({"round": lease["round"], "attempt": lease["attempt"]});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ask
    };
    let files = ask(&mill, "files", round(json!({}))).await.unwrap();
    let result = round(json!({"id": "r", "name": "r", "size": other.len(), "sha256": Sha256::of(&other)}));
    let result = ask(&mill, "put", result).await.unwrap();
    let result = Use::write("a result", &result["to"], &other);
    assert_eq!(result.at(public).await, 200);
    ask(&mill, "done", round(json!({"id": "d"}))).await.unwrap();
    let version = ask(&edge, "get", json!({"version": 1})).await.unwrap();
    let read = ask(&reader, "get", json!({"member": "edge", "upload": "sent"})).await.unwrap();
    vec![
        whole,
        Use::write("an upload that did not come yet", &unsent["to"], &other),
        Use::write("a part", &parts["parts"][0]["to"], &large[..PART]),
        Use::read("what a member sent", &own["url"]),
        Use::read("a manifest", &lease["manifest_url"]),
        Use::read("a file of a lease", &lease["files"][0]["url"]),
        Use::read("a file of a page", &files["files"][0]["url"]),
        result,
        Use::read("a result for one member", &version["url"]),
        Use::read("an upload for an operator", &read["url"]),
    ]
}

#[tokio::test]
async fn urls_of_every_kind_end_with_the_right_of_whom_they_were_made_for_on_every_port_and_others_hold() {
    for by in [By::Revocation, By::Role, By::Removal] {
        let mut server = Server::start().await;
        server.pool("p", json!({"grouping": "label"})).await;
        let member = |name: &'static str, role| server.member("p", name, role);
        let (edge, mill, reader, other) = (
            member("edge", Role::Publisher).await,
            member("mill", Role::Processor).await,
            member("reader", Role::Operator).await,
            member("other", Role::Publisher).await,
        );
        let uses = all_kinds(&server, [&edge, &mill, &reader]).await;
        let bytes = vec![1; 200_000];
        let put = json!({"id": "o", "upload": "o", "size": bytes.len(), "sha256": Sha256::of(&bytes), "label": "m"});
        let put = ask(&api(&server, &other), "put", put).await.unwrap();
        let theirs = Use::write("another's upload", &put["to"], &bytes);
        let pointer = ask(&api(&server, &other), "latest", json!({})).await.unwrap();
        let pointer = Use::read("the pointer", &pointer["result"]["url"]);

        let known = server.ports();
        let public = known.storage.unwrap().port();
        let ports = ports(server.process().id());
        let private: Vec<u16> = ports
            .into_iter()
            .filter(|port| ![known.mqtt.port(), known.http.port(), public].contains(port))
            .collect();
        let [private] = private[..] else { panic!("storage has one port for itself: {private:?}") };
        for port in [public, private] {
            for one in uses.iter().chain([&theirs, &pointer]) {
                assert_eq!(one.at(port).await, 200, "{by:?}: {} at {port}", one.what);
            }
        }

        by.end(&server, &[&edge, &mill, &reader]).await;
        for port in [public, private] {
            for one in &uses {
                assert_eq!(one.at(port).await, 403, "{by:?}: {} at {port}", one.what);
                // Whoever takes the name out of it has no signature any more.
                assert_eq!(one.nameless().at(port).await, 403, "{by:?}: {} at {port}, nameless", one.what);
            }
            let holds = if by == By::Removal { 403 } else { 200 };
            assert_eq!(theirs.at(port).await, holds, "{by:?}");
            // It is made for all of the pool, while there is one.
            assert_eq!(pointer.at(port).await, holds, "{by:?}");
            assert_eq!(pointer.nameless().at(port).await, 403, "{by:?}, nameless");
        }
    }
}

#[tokio::test]
async fn a_role_that_is_given_back_has_the_urls_of_that_role_again_and_no_grant() {
    let server = Server::start().await;
    server.pool("p", json!({"grouping": "label"})).await;
    let edge = server.member("p", "edge", Role::Publisher).await;
    let bytes = vec![1; 200_000];
    let put =
        json!({"id": "o", "upload": "o", "size": bytes.len(), "sha256": Sha256::of(&bytes), "label": "m"});
    let device = api(&server, &edge);
    let sent = Use::write("an upload", &ask(&device, "put", put).await.unwrap()["to"], &bytes);
    let port = server.ports().storage.unwrap().port();
    for (role, status) in [("listener", 403), ("publisher", 200)] {
        server.api().patch("/v1/pools/p/members/edge", &json!({ "role": role })).await;
        assert_eq!(sent.at(port).await, status, "{role}");
    }
    // The member is who it was, and could ask for another; what comes by the old one counts for nobody.
    let (status, answer) = device
        .call(Method::POST, "/v1/pools/p/ask/commit", Some(&json!({"id": "c", "uploads": ["o"]})))
        .await;
    assert!(answer.to_string().contains("not_found"), "{status} {answer}");
    assert_eq!(server.uploads("p").await, Vec::<Value>::new());
}
