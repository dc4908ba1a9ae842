//! Disks that are full, and what a command leaves that cannot be removed at once: the processor goes on.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use millpond_tests::{NOBODY, Process, edge_binary, is_root, skip};
use serde_json::json;

use crate::cast::{CONCATENATE, Cast, PATIENCE, until};

/// Starts a processor whose work directory is a file system of 4 MiB, if that may be mounted; and where this process sees it.
async fn on_a_small_disk(cast: &Cast, exec: &str) -> Option<(Process, PathBuf)> {
    let may = Command::new("unshare").args(["-m", "true"]).output().is_ok_and(|done| done.status.success());
    if !may {
        skip("unshare -m needs root");
        return None;
    }
    let work = cast.file("work");
    std::fs::create_dir(&work).unwrap();
    let script = r#"mount -t tmpfs -o size=4m,mode=0700 none "$1" && touch "$1/mounted" && exec "$2" process --dir "$1" --exec "$3""#;
    let mut unshare = Command::new("unshare");
    unshare.args(["-m", "sh", "-c", script, "sh"]).arg(&work).arg(edge_binary()).arg(exec);
    unshare.current_dir(cast.edge.directory());
    let command = cast.edge.command(&[]);
    unshare.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut process = Process::start(unshare, cast.edge.directory(), "process");
    let inside = PathBuf::from(format!("/proc/{}/root{}", process.id(), work.display()));
    until("its disk", &mut process, async || inside.join("mounted").exists()).await;
    Some((process, inside))
}

/// Takes all of the room but so many bytes.
fn fill(inside: &Path, but: usize) -> PathBuf {
    let ballast = inside.join("ballast");
    let fill = r#"cat /dev/zero > "$1" 2> /dev/null; truncate -s "-$2" "$1""#;
    Command::new("sh").args(["-c", fill, "sh"]).arg(&ballast).arg(but.to_string()).status().unwrap();
    ballast
}

#[tokio::test]
async fn a_processor_whose_disk_is_full_takes_no_round_and_one_when_there_is_room() {
    // Somebody else's file, which goes; and what an attempt left whose processor died.
    for is_left_over in [false, true] {
        let cast = Cast::new(json!({})).await;
        let Some((mut process, inside)) = on_a_small_disk(&cast, CONCATENATE).await else { return };
        let ballast = fill(&inside, 0);
        cast.three().await;
        let told = async || says(&cast, "process.err", "No space left on device");
        until("a word of it", &mut process, told).await;
        assert!(process.status().is_none(), "it ended: {}", process.stderr());
        assert!(cast.round(1).await["attempts"].as_array().is_none_or(Vec::is_empty), "an attempt was lost");
        if is_left_over {
            std::fs::create_dir(inside.join("attempt-dead")).unwrap();
            std::fs::rename(ballast, inside.join("attempt-dead/output")).unwrap();
        } else {
            std::fs::remove_file(ballast).unwrap();
        }
        let committed = async || cast.round(1).await.to_string().contains("committed");
        until("the result", &mut process, committed).await;
        assert!(cast.result().await == b"1\n2\n3\n");
        process.signal("TERM");
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
        assert_eq!(process.stdout(), "round 1 leased\nround 1 done\n");
    }
}

/// Whether what it wrote so far has that in it.
fn says(cast: &Cast, file: &str, what: &str) -> bool {
    std::fs::read_to_string(cast.file(file)).is_ok_and(|text| text.contains(what))
}

#[tokio::test]
async fn a_round_whose_inputs_or_result_do_not_fit_on_the_disk_is_given_back_and_done_when_there_is_room() {
    for (bytes, left, told) in
        [(100_000, 200_000, "No space left"), (20_000, 200_000, "and the disk is full")]
    {
        let cast = Cast::new(json!({})).await;
        let exec = format!(
            r#"head -c 300000 /dev/zero > "$MILLPOND_OUTPUT.new" && rm "$MILLPOND_OUTPUT.new" && {CONCATENATE}"#
        );
        let Some((mut process, inside)) = on_a_small_disk(&cast, &exec).await else { return };
        let ballast = fill(&inside, left);
        let files = ["a", "b", "c"].map(|id| (id, id.bytes().cycle().take(bytes).collect::<Vec<_>>()));
        cast.publish(&files).await;
        until("the end of the attempt", &mut process, async || says(&cast, "process.out", told)).await;
        assert!(process.status().is_none(), "it ended: {}", process.stderr());
        std::fs::remove_file(ballast).unwrap();
        let committed = async || cast.round(1).await.to_string().contains("committed");
        until("the result", &mut process, committed).await;
        assert!(cast.result().await == files.map(|(_, bytes)| bytes).concat());
        process.signal("TERM");
        assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    }
}

#[tokio::test]
async fn what_a_command_left_read_only_is_removed_and_what_cannot_be_is_said_and_in_nobodys_way() {
    let cast = Cast::new(json!({})).await;
    let theirs = cast.file("work/attempt-before/theirs");
    std::fs::create_dir_all(&theirs).unwrap();
    if is_root() {
        // A container of the command's may have left such.
        std::fs::write(theirs.join("file"), "").unwrap();
        std::fs::set_permissions(&theirs, Permissions::from_mode(0o700)).unwrap();
        for path in ["work", "work/attempt-before"] {
            chown(cast.file(path), Some(NOBODY), Some(NOBODY)).unwrap();
            std::fs::set_permissions(cast.file(path), Permissions::from_mode(0o700)).unwrap();
        }
    }
    let exec = format!(
        "{CONCATENATE}; mkdir -p deep/deeper; touch deep/deeper/file; ln -s /etc deep/link
        chmod 0 deep/deeper; chmod a-w deep ."
    );
    let process = cast.edge.start_as_nobody("process", &["process", "--exec", &exec]);
    let Some(mut process) = process else { return };
    for round in 1..=2_u32 {
        let ids = [1, 2, 3].map(|n| format!("{round}-{n}"));
        let files = [1_u8, 2, 3].map(|n| (ids[usize::from(n) - 1].as_str(), vec![n]));
        cast.publish(&files).await;
        let committed = async || cast.round(round).await.to_string().contains("committed");
        until("the round", &mut process, committed).await;
        assert!(process.status().is_none(), "it ended: {}", process.stderr());
    }
    process.signal("TERM");
    assert!(process.wait(PATIENCE).await.success(), "{}", process.stderr());
    let left = std::fs::read_dir(cast.file("work")).unwrap();
    let mut left: Vec<_> = left.map(|item| item.unwrap().file_name()).collect();
    left.sort();
    if is_root() {
        assert_eq!(left, ["attempt-before", "lock"]);
        assert!(process.stderr().contains("attempt-before: Permission denied"), "{}", process.stderr());
    } else {
        assert_eq!(left, ["lock"]);
    }
}
