//! Grants and leases: gone with the answer to the request that ended them.

use millpond_protocol::message::answer::PutTo;
use millpond_protocol::{Role, Sha256};
use millpond_tests::{Api, Credentials, Mill, Plain, Server};
use reqwest::Method;
use rusqlite::OpenFlags;
use serde_json::{Value, json};

/// How a member's right ends.
#[derive(Debug, Clone, Copy)]
enum By {
    Revocation,
    Role,
}

impl By {
    async fn end(self, server: &Server, who: &Credentials) {
        let path = format!("/v1/pools/p/members/{}", who.member);
        match self {
            Self::Revocation => {
                server.api().delete(&path).await;
            }
            Self::Role => {
                server.api().patch(&path, &json!({"role": "listener"})).await;
            }
        }
    }

    /// Ends the right of `who`, and gives it to it, or to another of that name, again.
    async fn end_and_restore(self, server: &Server, who: &Credentials, role: Role) -> Api {
        self.end(server, who).await;
        // Nothing is waited for: what is not over by now does not end with the answer.
        assert_eq!(grants(server), 0, "{self:?} leaves a grant");
        match self {
            Self::Revocation => api(server, &server.member("p", who.member.as_str(), role).await),
            Self::Role => {
                let path = format!("/v1/pools/p/members/{}", who.member);
                server.api().patch(&path, &json!({ "role": role })).await;
                api(server, who)
            }
        }
    }
}

pub fn api(server: &Server, who: &Credentials) -> Api {
    Api::new(format!("http://{}", server.ports().http), who.token.clone())
}

fn grants(server: &Server) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let ledger = rusqlite::Connection::open_with_flags(server.data().join("ledger.db"), flags).unwrap();
    ledger.query_row("SELECT count(*) FROM grants", [], |row| row.get(0)).unwrap()
}

pub async fn ask(who: &Api, op: &str, ask: Value) -> Result<Value, String> {
    let (status, answer) = who.call(Method::POST, &format!("/v1/pools/p/ask/{op}"), Some(&ask)).await;
    if status == 200 { Ok(answer) } else { Err(answer["error"]["code"].as_str().unwrap().to_owned()) }
}

#[tokio::test]
async fn a_grant_ends_with_the_right_to_it_and_what_was_sent_to_its_url_counts_for_nobody() {
    for by in [By::Revocation, By::Role] {
        let server = Server::start().await;
        server.pool("p", json!({"grouping": "label"})).await;
        let edge = server.member("p", "edge", Role::Publisher).await;
        let bytes = vec![7; 200_000];
        let put = |id: &str, upload: &str| json!({"id": id, "upload": upload, "size": bytes.len(), "sha256": Sha256::of(&bytes), "label": "l"});
        let device = api(&server, &edge);
        let sent = ask(&device, "put", put("1", "sent")).await.unwrap();
        ask(&device, "put", put("2", "unsent")).await.unwrap();
        let to: PutTo = serde_json::from_value(sent["to"].clone()).unwrap();
        assert_eq!(device.send(&to, bytes.clone()).await, 200);
        assert_eq!(grants(&server), 2);

        let again = by.end_and_restore(&server, &edge, Role::Publisher).await;
        // The bytes are there, whole, and nobody has them: neither the member of that name nor the next round.
        let committed = ask(&again, "commit", json!({"id": "3", "uploads": ["sent"]})).await;
        assert!(is_not_there(&committed), "{by:?}: {committed:?}");
        let status = ask(&again, "status", json!({"upload": "sent"})).await;
        assert_eq!(status, Err("not_found".to_owned()), "{by:?}");
        assert_eq!(server.uploads("p").await, Vec::<Value>::new(), "{by:?}");
        // The id is free: other bytes are no conflict.
        let other =
            json!({"id": "4", "upload": "sent", "size": 200_001, "sha256": Sha256::of(b"x"), "label": "l"});
        ask(&again, "put", other).await.unwrap();
        if matches!(by, By::Revocation) {
            assert_eq!(ask(&device, "put", put("5", "more")).await, Err("unauthorized".to_owned()));
        }
    }
}

fn is_not_there(committed: &Result<Value, String>) -> bool {
    match committed {
        Ok(answer) => answer.to_string().contains("not_found"),
        Err(code) => code == "not_found",
    }
}

#[tokio::test]
async fn a_lease_ends_with_the_right_to_it_and_its_holder_returns_nothing() {
    for by in [By::Revocation, By::Role] {
        let server = Server::start().await;
        server.pool("p", json!({"grouping": "label"})).await;
        let publisher = server.member("p", "edge", Role::Publisher).await;
        let mut edge = Plain::connect(publisher).await.unwrap();
        edge.publish("mp/p/c/edge/up/one/l", "bytes").await.unwrap();
        let who = server.member("p", "mill", Role::Processor).await;
        let mill = Mill::join(who.clone(), server.api()).await;
        let lease = mill.trigger(&json!({"label": "l"})).await.unwrap();
        let held = json!({"round": lease.round, "attempt": lease.attempt});
        let with = |more: Value| {
            let mut ask = held.clone();
            ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ask
        };
        let device = api(&server, &who);
        ask(&device, "beat", with(json!({"id": "b"}))).await.unwrap();
        let result = json!({"id": "r", "name": "r", "size": 3, "sha256": Sha256::of(b"abc")});
        let put = ask(&device, "put", with(result)).await.unwrap();
        let to: PutTo = serde_json::from_value(put["to"].clone()).unwrap();
        assert_eq!(device.send(&to, &b"abc"[..]).await, 200);

        let again = by.end_and_restore(&server, &who, Role::Processor).await;
        let round = server.api().get("/v1/pools/p/rounds/1").await;
        let state = round["state"].as_str().unwrap();
        assert!(["pausing", "offered"].contains(&state), "{by:?}: the round is {state}");
        for (op, more) in [("beat", json!({"id": "c"})), ("done", json!({"id": "d"})), ("files", json!({}))] {
            let refused = ask(&again, op, with(more.clone())).await.unwrap_err();
            // What was put there for it is not there any more either.
            assert!(["stale", "not_found"].contains(&&*refused), "{by:?}: {op} {refused}");
            if matches!(by, By::Revocation) {
                assert_eq!(ask(&device, op, with(more)).await, Err("unauthorized".to_owned()), "{op}");
            }
        }
        assert!(mill.answer(&lease, "result").await.is_err(), "{by:?}");
        assert_eq!(server.api().get("/v1/pools/p/results").await["results"], json!([]), "{by:?}");
    }
}
