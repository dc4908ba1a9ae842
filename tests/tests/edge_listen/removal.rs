//! Versions whose directory cannot be removed as it is: the listener goes on, and what became of the new one is told.

use std::process::Command;

use millpond_tests::{Process, skip, until};

use crate::cast::{Cast, PATIENCE};

/// Whether the server counts the newest version as applied.
async fn is_applied(cast: &Cast, version: u32) -> bool {
    let results = cast.server.api().get("/v1/pools/demo/results").await;
    results["results"][0]["version"] == version && results["results"][0]["applied"] == 1
}

#[tokio::test]
async fn a_version_that_its_command_made_read_only_is_removed_like_any_other() {
    let cast = Cast::new().await;
    let exec = r#"chmod -R a-w "$(dirname "$MILLPOND_FILE")""#;
    let listen = ["listen", "--keep", "1", "--exec", exec];
    let Some(mut listener) = cast.edge.start_as_nobody("listen", &listen) else { return };
    for version in 1..=3 {
        cast.result(version, format!("version {version}").as_bytes()).await;
        cast.said(&mut listener, &format!("version {version} applied")).await;
    }
    let results = cast.edge.directory().join("results");
    until("old versions are gone", async || !results.join("1").exists() && !results.join("2").exists()).await;
    until("the server knows", async || is_applied(&cast, 3).await).await;
    listener.signal("TERM");
    assert!(listener.wait(PATIENCE).await.success(), "{}", listener.stderr());
    assert_eq!(std::fs::read(cast.current()).unwrap(), b"version 3");
    assert_eq!(listener.stderr(), "");
}

/// Starts a listener that may mount something where nobody else sees it, if that may be done here.
fn in_its_own_mounts(cast: &Cast, arguments: &[&str]) -> Option<Process> {
    let may = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|done| done.status.success());
    if !may {
        skip("unshare -m needs root");
        return None;
    }
    let plain = cast.edge.command(arguments);
    let mut unshare = Command::new("unshare");
    unshare.arg("-m").arg(plain.get_program()).args(plain.get_args()).current_dir(cast.edge.directory());
    unshare.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Some(Process::start(unshare, cast.edge.directory(), "listen"))
}

#[tokio::test]
async fn a_version_that_cannot_be_removed_is_said_by_its_path_and_tried_again_after_the_new_one_is_told() {
    let cast = Cast::new().await;
    let exec = r#"directory="$(dirname "$MILLPOND_FILE")"
        case "$MILLPOND_VERSION" in 1) mount --bind "$directory" "$directory";; 3) umount "$directory/../1";; esac"#;
    let listen = ["listen", "--keep", "1", "--exec", exec];
    let Some(mut listener) = in_its_own_mounts(&cast, &listen) else { return };
    for version in 1..=2 {
        cast.result(version, format!("version {version}").as_bytes()).await;
        cast.said(&mut listener, &format!("version {version} applied")).await;
    }
    until("the server knows", async || is_applied(&cast, 2).await).await;
    until("a word of it", async || listener.stderr().contains("results/1: ")).await;
    assert!(listener.status().is_none(), "{}", listener.stderr());
    let results = cast.edge.directory().join("results");
    let own = || std::fs::read_to_string(results.join(".millpond/versions")).unwrap();
    assert_eq!(own(), "1\n2\n");
    cast.result(3, b"version 3").await;
    cast.said(&mut listener, "version 3 applied").await;
    until("old versions are gone", async || own() == "3\n").await;
    assert!(!results.join("1").exists() && !results.join("2").exists());
    listener.signal("TERM");
    assert!(listener.wait(PATIENCE).await.success(), "{}", listener.stderr());
}
