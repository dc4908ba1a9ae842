//! A spool that is nearly full: what waits there may be pushed again, and what does not fit is not even copied.

#![allow(clippy::unwrap_used, reason = "tests")]

use millpond_tests::Edge;

#[tokio::test]
async fn a_file_that_waits_already_needs_no_room_and_one_that_has_none_takes_none() {
    let (server, edge) = Edge::device().await;
    edge.file("one", &[1; 60_000]);
    edge.file("as-long", &[2; 60_000]);
    edge.file("small", &[3; 30_000]);
    let limit = ["--spool-bytes", "100000", "push", "--offline"];
    let push = |files: &[&'static str]| [&limit[..], files].concat();
    edge.done(&push(&["one"])).await;
    let again = edge.done(&push(&["one", "small", "one"])).await;
    assert_eq!(again.lines().filter(|line| line.starts_with("spooled")).count(), 3, "{again}");
    let full = edge.run(&push(&["as-long", "small"])).await;
    assert_eq!(full.status.code(), Some(75), "{full:?}");
    assert!(String::from_utf8_lossy(&full.stderr).contains("the spool is full"), "{full:?}");
    for directory in ["staging", "reserved"] {
        assert_eq!(std::fs::read_dir(edge.spool().join(directory)).unwrap().count(), 0, "{directory}");
    }
    edge.done(&["spool", "flush"]).await;
    assert_eq!(server.uploads("demo").await.len(), 2);
}
