//! The loss of power: nothing is promised before the system was told to put it on the disk. Here by the order of the system
//! calls; the crash harness takes the power away.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use millpond_protocol::Role;
use millpond_tests::{Edge, Link, Mill, Server, Trace, may_trace};
use serde_json::json;

/// What it wrote last to a file, before it was synced.
fn written(trace: &Trace, path: &Path) -> usize {
    trace.last(&["write(", &format!("<{}>", path.display())])
}

#[tokio::test]
async fn a_push_says_nothing_before_every_file_and_directory_of_it_is_synced() {
    if !may_trace() {
        return;
    }
    let server = Server::start().await;
    server.pool("demo", json!({})).await;
    let edge = Edge::new(&server, server.member("demo", "edge-1", Role::Publisher).await).await;
    let names: Vec<String> = (0..20).map(|n| format!("file-{n}")).collect();
    for name in &names {
        edge.file(name, name.as_bytes());
    }
    let mut push = vec!["push", "--offline", "--complete-through", "now"];
    push.extend(names.iter().map(String::as_str));
    let output = Trace::command(&edge.command(&push), edge.directory()).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let trace = Trace::read(edge.directory());
    let said = trace.first(&["write(1<"]);
    let ready = edge.spool().join("ready");
    let renames = trace.renames();
    let shown: Vec<_> = renames.iter().filter(|(_, to, _)| to.starts_with(&ready)).collect();
    assert_eq!(shown.len(), names.len());
    for (from, to, at) in shown {
        assert!(
            trace.synced(from, written(&trace, from), *at),
            "{} is shown before its bytes were synced",
            to.display()
        );
        let is_there = trace.synced(&ready, *at, said);
        assert!(is_there, "{} is promised before its directory was synced", to.display());
    }
    for name in ["version", "complete"] {
        let file = edge.spool().join(name);
        let (new, _, at) = renames.iter().find(|(_, to, _)| *to == file).unwrap();
        let is_whole = trace.synced(new, written(&trace, new), *at);
        assert!(is_whole, "the spool's file {name} has its name before its bytes were synced");
        let is_there = trace.synced(&edge.spool(), *at, said);
        assert!(is_there, "something is promised before the name of the spool's file {name} was synced");
    }
    // What is reserved is of no use to anybody once the power has failed.
    let made = trace.made().into_iter().filter(|(path, _)| !path.ends_with("reserved"));
    for (path, at) in made {
        let is_there = trace.synced(path.parent().unwrap(), at, said);
        assert!(
            is_there,
            "something is promised before the directory that {} is in was synced",
            path.display()
        );
    }
}

#[tokio::test]
async fn a_listener_syncs_a_result_and_its_place_before_current_names_it() {
    if !may_trace() {
        return;
    }
    let server = Server::start().await;
    server.pool("demo", json!({ "grouping": "count", "count": 1_000, "spread_s": 0 })).await;
    let edge = Edge::new(&server, server.member("demo", "listener", Role::Listener).await).await;
    let mill = Mill::join(server.member("demo", "mill", Role::Processor).await, server.api()).await;
    let link = Link::open(server.member("demo", "edge-1", Role::Publisher).await).await.unwrap();
    // The first comes over MQTT, the second by URL.
    for (version, size) in [(1, 1_000), (2, 300_000)] {
        let topic = format!("mp/demo/c/edge-1/up/u{version}");
        link.publish(&topic, vec![1], Default::default()).await.unwrap();
        let lease = mill.trigger(&json!({ "which": "oldest" })).await.unwrap();
        mill.answer(&lease, vec![7; size]).await.unwrap();
        let listen = edge.command(&["listen", "--once"]);
        let mut listen = Trace::command(&listen, edge.directory());
        let output = tokio::task::spawn_blocking(move || listen.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{output:?}");

        // It names its files as it was told to, relative to where it runs.
        let trace = Trace::read(edge.directory());
        let own = Path::new("results/.millpond");
        let absolute = |path: &Path| match path.as_os_str().is_empty() {
            true => edge.directory().to_owned(),
            false => edge.directory().join(path),
        };
        let renames = trace.renames();
        let moved = |to: &Path| renames.iter().find(|(_, other, _)| other == to).unwrap();
        let (_, current, shown) = moved(Path::new("results/current"));
        let place = format!("results/{version}");
        let (partial, file, placed) = renames.iter().find(|(_, to, _)| to.starts_with(&place)).unwrap();
        assert!(placed < shown && partial.starts_with(own), "{}", file.display());
        let partial = absolute(partial);
        let is_whole = trace.synced(&partial, written(&trace, &partial), *placed);
        assert!(is_whole, "version {version} has its place before its bytes were synced");
        let is_there = trace.synced(&absolute(Path::new(&place)), *placed, *shown);
        assert!(is_there, "version {version} is shown before the directory that it is in was synced");
        let (new, _, noted) = moved(&own.join("state"));
        // It is written again once the server was told.
        let is_whole = !trace.commits(&absolute(new), 0, *noted).is_empty();
        assert!(is_whole, "the state has its name before its bytes were synced");
        let is_there = trace.synced(&absolute(own), *noted, *shown);
        assert!(is_there, "version {version} is shown before the name of its state was synced");
        let said = trace.first(&["write(1<"]);
        let is_there = trace.synced(&absolute(Path::new("results")), *shown, said);
        assert!(is_there, "something is said before the name {} was synced", current.display());
        for (path, at) in trace.made() {
            let parent = absolute(path.parent().unwrap());
            let is_there = trace.synced(&parent, at, *shown);
            assert!(
                is_there,
                "version {version} is shown before the directory that {} is in was synced",
                path.display()
            );
        }
    }
}
