//! Transfers against a peer that cuts, stalls, lies and refuses.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use millpond_edge::backoff::Backoff;
use millpond_edge::transfer::{
    Expected, Meter, Options, Put, Throttle, Transfer, TransferError, digest, place,
};
use millpond_protocol::Sha256;
use support::{Act, Log, peer};
use tempfile::TempDir;

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i % 251) as u8).collect()
}

fn expected(bytes: &[u8]) -> Expected {
    Expected { size: bytes.len() as u64, sha256: Sha256::of(bytes) }
}

fn quick() -> Options {
    Options {
        stall: Duration::from_millis(400),
        slowest: u64::MAX,
        attempts: 3,
        backoff: Backoff::new(Duration::from_millis(1), Duration::from_millis(5)),
        ..Options::default()
    }
}

fn put(base: &str, offset: u64, size: u64) -> Put {
    let headers =
        vec![("content-length".to_owned(), size.to_string()), ("x-signed".to_owned(), "as is".to_owned())];
    Put { url: format!("{base}/object?part={offset}"), headers, offset, size }
}

fn file(directory: &TempDir, content: &[u8]) -> std::path::PathBuf {
    let path = directory.path().join("file");
    std::fs::write(&path, content).unwrap();
    path
}

/// Answers a GET as a server does that honours ranges, but gives only so many bytes of it.
fn rest_of(content: &[u8], head: &str, at_most: usize) -> Act {
    let from = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from: usize = from.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let (rest, size) = (&content[from..], content.len());
    let status = if from == 0 {
        "200 OK".to_owned()
    } else {
        format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{size}", size - 1)
    };
    Act::Give(format!("{status}\r\ncontent-length: {}", rest.len()), rest[..rest.len().min(at_most)].to_vec())
}

#[tokio::test]
async fn an_upload_carries_its_headers_verbatim_and_its_length_not_chunks() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(300_000));
    let (base, log) = peer(|_, _| Act::Take("200 OK")).await;
    let shown = Arc::new(Mutex::new((0, 0)));
    let show = Arc::clone(&shown);
    let meter = Meter::new(300_000, move |done, total| *show.lock().unwrap() = (done, total));
    Transfer::new(quick())
        .send(&file(&directory, &content), &[put(&base, 0, 300_000)], &meter)
        .await
        .unwrap();
    let seen = log.lock().unwrap()[0].clone();
    assert!(seen.body == content);
    assert_eq!((seen.header("content-length"), seen.header("x-signed")), (Some("300000"), Some("as is")));
    assert_eq!(seen.header("transfer-encoding"), None);
    assert_eq!(*shown.lock().unwrap(), (300_000, 300_000));
}

#[tokio::test]
async fn each_part_is_repeated_by_itself_until_it_is_through() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(250_000));
    let troubles = [Act::Cut(1_000), Act::Take("503 Slow Down"), Act::Hang(10_000), Act::Take("500 Oops")];
    let (base, log) = peer(move |n, _| troubles.get(n).cloned().unwrap_or(Act::Take("200 OK"))).await;
    let parts = [put(&base, 0, 100_000), put(&base, 100_000, 100_000), put(&base, 200_000, 50_000)];
    let transfer = Transfer::new(Options { attempts: 6, ..quick() });
    transfer.send(&file(&directory, &content), &parts, &Meter::silent()).await.unwrap();
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 7, "three parts and four troubles");
    for part in &parts {
        let range = part.offset as usize..(part.offset + part.size) as usize;
        assert!(log.iter().any(|seen| seen.body == content[range.clone()]), "part at {}", part.offset);
    }
}

#[tokio::test]
async fn parts_that_were_cut_off_go_one_at_a_time_so_that_a_line_which_ends_early_carries_one_at_least() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(400_000));
    let (seen, together) = (Arc::new(OnceLock::<Log>::new()), Arc::new(AtomicUsize::new(0)));
    let (log, most) = (Arc::clone(&seen), Arc::clone(&together));
    let (base, all) = peer(move |n, _| {
        if n < 4 {
            return Act::Cut(1_000);
        }
        let log = log.get().unwrap().lock().unwrap();
        most.fetch_max(log[..n].iter().filter(|seen| seen.body.is_empty()).count(), Ordering::Relaxed);
        Act::Take("200 OK")
    })
    .await;
    seen.set(Arc::clone(&all)).unwrap();
    let parts: Vec<Put> = (0..8).map(|n| put(&base, n * 50_000, 50_000)).collect();
    let transfer = Transfer::new(Options { parallel: 4, ..quick() });
    transfer.send(&file(&directory, &content), &parts, &Meter::silent()).await.unwrap();
    assert_eq!((all.lock().unwrap().len(), together.load(Ordering::Relaxed)), (12, 0));
}

#[tokio::test]
async fn an_upload_whose_answer_was_lost_is_through() {
    let directory = tempfile::tempdir().unwrap();
    let (base, log) =
        peer(|n, _| if n == 0 { Act::Cut(9) } else { Act::Take("412 Precondition Failed") }).await;
    let put = put(&base, 0, 9);
    Transfer::new(quick()).send(&file(&directory, &bytes(9)), &[put], &Meter::silent()).await.unwrap();
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn refusals_end_an_upload_at_once_and_say_what_storage_said() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(100));
    let path = file(&directory, &content);
    let say = |status: &'static str| {
        move |_: usize, _: &str| {
            Act::Give(format!("{status}\r\ncontent-length: 21"), b"<Code>BadThing</Code>".to_vec())
        }
    };
    let (base, log) = peer(say("400 Bad Request")).await;
    let error =
        Transfer::new(quick()).send(&path, &[put(&base, 0, 100)], &Meter::silent()).await.unwrap_err();
    assert!(matches!(&error, TransferError::Refused { status: 400, .. }), "{error}");
    assert!(error.to_string().contains("BadThing") && !error.is_temporary(), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1);

    let (base, log) = peer(say("403 Forbidden")).await;
    let error =
        Transfer::new(quick()).send(&path, &[put(&base, 0, 100)], &Meter::silent()).await.unwrap_err();
    assert!(matches!(error, TransferError::Expired { status: 403, .. }) && error.is_temporary(), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_storage_without_room_is_not_sent_the_same_bytes_again() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(100));
    let path = file(&directory, &content);
    let (base, log) = peer(|_, _| Act::Take("507 Insufficient Storage")).await;
    let error =
        Transfer::new(quick()).send(&path, &[put(&base, 0, 100)], &Meter::silent()).await.unwrap_err();
    assert!(error.to_string().contains("507") && error.is_temporary(), "{error}");
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_transfer_that_stands_still_ends_and_one_that_advances_does_not() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(40_000));
    let path = file(&directory, &content);
    let (base, _) = peer(|_, _| Act::Hang(0)).await;
    let begin = Instant::now();
    let error =
        Transfer::new(quick()).send(&path, &[put(&base, 0, 40_000)], &Meter::silent()).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Stuck { attempts: 3, last } if last.contains("no byte")),
        "{error}"
    );
    assert!(begin.elapsed() >= Duration::from_millis(1_200));

    // Five times as long as it may stand still, but never still.
    let (base, _) = peer(|_, _| Act::Take("200 OK")).await;
    let slow = Throttle::new(NonZeroU64::new(20_000).unwrap());
    let begin = Instant::now();
    let transfer = Transfer::new(Options { throttle: Arc::new(slow), ..quick() });
    transfer.send(&path, &[put(&base, 0, 40_000)], &Meter::silent()).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(1_700), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_file_that_is_shorter_than_the_grant_is_this_machines_error() {
    let directory = tempfile::tempdir().unwrap();
    let (base, _) = peer(|_, _| Act::Take("200 OK")).await;
    let path = file(&directory, &bytes(100));
    let error =
        Transfer::new(quick()).send(&path, &[put(&base, 0, 101)], &Meter::silent()).await.unwrap_err();
    assert!(matches!(&error, TransferError::Local { path: named, .. } if *named == path), "{error}");
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(200_000));
    let (partial, name) = (directory.path().join("part"), directory.path().join("name"));
    let given = content.clone();
    let (base, log) = peer(move |_, head| rest_of(&given, head, 70_000)).await;
    let meter = Meter::silent();
    Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &meter).await.unwrap();
    assert!(!name.exists());
    place(&partial, &name).unwrap();
    assert!(std::fs::read(&name).unwrap() == content && !partial.exists());
    let ranges: Vec<_> =
        log.lock().unwrap().iter().map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 3);
    assert_eq!(ranges[0], None);
    // Bytes that were on their way at a cut may be lost; what is asked for again is never more than that.
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
    assert_eq!(meter.done(), 200_000);
}

#[tokio::test]
async fn another_process_goes_on_where_one_ended() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(200_000));
    let partial = directory.path().join("part");
    std::fs::write(&partial, &content[..150_000]).unwrap();
    let given = content.clone();
    let (base, log) = peer(move |_, head| rest_of(&given, head, usize::MAX)).await;
    Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await.unwrap();
    let log = log.lock().unwrap();
    assert_eq!((log.len(), log[0].header("range")), (1, Some("bytes=150000-")));
    assert!(std::fs::read(&partial).unwrap() == content);
}

#[tokio::test]
async fn a_partial_file_that_is_not_the_beginning_is_fetched_anew() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(200_000));
    let partial = directory.path().join("part");
    for wrong in [vec![7; 150_000], vec![7; 200_000], vec![7; 300_000]] {
        std::fs::write(&partial, wrong).unwrap();
        let given = content.clone();
        let (base, _) = peer(move |_, head| rest_of(&given, head, usize::MAX)).await;
        Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await.unwrap();
        assert!(std::fs::read(&partial).unwrap() == content);
    }
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(200_000));
    let partial = directory.path().join("part");
    std::fs::write(&partial, &content[..150_000]).unwrap();
    let given = content.clone();
    let (base, _) =
        peer(move |_, _| Act::Give("200 OK\r\ncontent-length: 200000".into(), given.clone())).await;
    Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await.unwrap();
    assert!(std::fs::read(&partial).unwrap() == content);
}

#[tokio::test]
async fn other_bytes_than_promised_are_never_kept() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(5_000));
    let partial = directory.path().join("part");
    let mut wrong = content.clone();
    wrong[4_999] ^= 1;
    let (base, log) = peer(move |_, head| rest_of(&wrong, head, usize::MAX)).await;
    let error = Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await;
    assert!(matches!(error, Err(TransferError::Mismatch { .. })), "{error:?}");
    assert_eq!(std::fs::read(&partial).unwrap(), b"");
    assert_eq!(log.lock().unwrap().len(), 1);

    let longer = bytes(5_001);
    let (base, _) = peer(move |_, head| rest_of(&longer, head, usize::MAX)).await;
    let error = Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await;
    assert!(matches!(error, Err(TransferError::TooLong { expected: 5_000 })), "{error:?}");
}

#[tokio::test]
async fn a_download_that_stands_still_keeps_what_it_has() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(100_000));
    let partial = directory.path().join("part");
    let begin = content[..60_000].to_vec();
    let (base, _) = peer(move |n, _| match n {
        0 => Act::GiveAndHang("200 OK\r\ncontent-length: 100000".into(), begin.clone()),
        _ => Act::Hang(0),
    })
    .await;
    let error = Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await;
    assert!(matches!(error, Err(TransferError::Stuck { .. })), "{error:?}");
    assert!(std::fs::read(&partial).unwrap() == content[..60_000]);
}

#[tokio::test]
async fn what_is_known_by_its_hash_alone_goes_on_where_it_was_cut_and_is_no_more_than_it_may_be() {
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(5_000));
    let (to, given) = (directory.path().join("manifest"), content.clone());
    let (base, log) = peer(move |n, head| match n {
        1 => Act::Take("403 Forbidden"),
        _ => rest_of(&given, head, if n == 0 { 3_000 } else { usize::MAX }),
    })
    .await;
    let transfer = Transfer::new(quick());
    let fetch = || transfer.fetch_whole(&base, &to, Sha256::of(&content), 5_000);
    let expired = fetch().await;
    assert!(matches!(expired, Err(TransferError::Expired { .. })), "{expired:?}");
    fetch().await.unwrap();
    assert!(std::fs::read(&to).unwrap() == content);
    let ranges: Vec<_> =
        log.lock().unwrap().iter().map(|seen| seen.header("range").map(str::to_owned)).collect();
    let on = Some("bytes=3000-".to_owned());
    assert_eq!(ranges, [None, on.clone(), on], "an answer that was cut is not the whole");
    std::fs::write(&to, "what was there before").unwrap();
    fetch().await.unwrap();
    assert!(std::fs::read(&to).unwrap() == content);
    let other = transfer.fetch_whole(&base, &to, Sha256::of(b""), 5_000).await;
    assert!(matches!(other, Err(TransferError::Mismatch { .. })), "{other:?}");
    let long = transfer.fetch_whole(&base, &to, Sha256::of(&content), 4_999).await;
    assert!(matches!(long, Err(TransferError::TooLong { expected: 4_999 })), "{long:?}");
}

#[tokio::test]
async fn nobody_else_can_read_a_download() {
    use std::os::unix::fs::PermissionsExt as _;
    let (directory, content) = (tempfile::tempdir().unwrap(), bytes(10));
    let partial = directory.path().join("part");
    let given = content.clone();
    let (base, _) = peer(move |_, head| rest_of(&given, head, usize::MAX)).await;
    Transfer::new(quick()).fetch(&base, &partial, &expected(&content), &Meter::silent()).await.unwrap();
    assert_eq!(std::fs::metadata(&partial).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(digest(&partial, 10, None).unwrap().sha256, Sha256::of(&content));
}
