//! Objects in parts.

use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_storage::{Error, MultipartId, ObjectKey, Part, limits};

use super::{Place, fresh};
use crate::common::{MINUTE, bytes, now};

/// The least that S3 takes as a part that is not the last.
const PART: usize = 5 << 20;

/// Sends one part the way a client does, by URL.
async fn send(place: &Place, key: &ObjectKey, upload: &MultipartId, n: u16, body: &[u8]) -> u16 {
    let put = place.storage.presign_part(key, upload, n, body.len() as u64, Sha256::of(body), MINUTE, now());
    put.headers
        .iter()
        .fold(place.http.put(put.url), |request, (name, value)| request.header(*name, value))
        .body(body.to_vec())
        .send()
        .await
        .unwrap()
        .status()
        .as_u16()
}

/// What is said of a part whatever server keeps it.
fn outline(parts: &[Part]) -> Vec<(u16, u64)> {
    parts.iter().map(|part| (part.n, part.size)).collect()
}

pub async fn parts_become_one_object_whoever_sent_them(place: &Place) {
    let (key, body) = (fresh("parts"), bytes(PART + 1000));
    let upload = place.storage.create_multipart(&key).await.unwrap();
    assert_eq!(place.storage.list_parts(&key, &upload).await, Ok(Vec::new()));
    assert_eq!(send(place, &key, &upload, 2, &body[PART..]).await, 200);
    assert_eq!(send(place, &key, &upload, 1, &body[..PART]).await, 200);
    let parts = place.storage.list_parts(&key, &upload).await.unwrap();
    assert_eq!(outline(&parts), [(1, PART as u64), (2, 1000)]);
    // A server may say none, but never another one.
    assert!(parts[1].sha256.is_none_or(|sha256| sha256 == Sha256::of(&body[PART..])));
    assert_eq!(place.storage.stat(&key).await, Ok(None));

    place.storage.complete_multipart(&key, &upload, &parts).await.unwrap();
    let stat = place.storage.stat(&key).await.unwrap().unwrap();
    assert_eq!(stat.size, body.len() as u64);
    assert!(stat.sha256.is_none_or(|sha256| sha256 == Sha256::of(&body)));
    assert!(place.storage.get(&key, body.len()).await.unwrap() == body);
    assert_eq!(place.storage.hash(&key, |_| {}).await, Ok((body.len() as u64, Sha256::of(&body))));
    place.storage.delete(&key).await.unwrap();
    assert_eq!(place.storage.stat(&key).await, Ok(None));
}

pub async fn uploads_that_have_not_ended_are_listed_page_by_page(place: &Place) {
    const COUNT: usize = 503;
    let prefix = fresh("begun");
    let begin = |n: usize| {
        let (storage, key) = (&place.storage, format!("{prefix}/{n:04}").parse().unwrap());
        async move { (format!("{key}"), storage.create_multipart(&key).await.unwrap()) }
    };
    let begun =
        futures_util::StreamExt::buffer_unordered(futures_util::stream::iter((0..COUNT).map(begin)), 8);
    let mut begun: Vec<_> = futures_util::StreamExt::collect(begun).await;
    begun.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut listed, mut last, mut pages) = (Vec::new(), None, 0);
    loop {
        let (page, next) = place.storage.list_uploads(last.as_ref()).await.unwrap();
        listed.extend(page.into_iter().filter(|upload| upload.key.starts_with(prefix.as_str())));
        pages += 1;
        last = next;
        if last.is_none() {
            break;
        }
    }
    assert!(pages > 1);
    let there = |(key, id): &(String, MultipartId)| (key.clone(), id.as_str().to_owned());
    // Not every server lists them in order of their keys.
    let mut listed: Vec<_> = listed.into_iter().map(|upload| (upload.key, upload.id)).collect();
    listed.sort();
    assert_eq!(listed, begun.iter().map(there).collect::<Vec<_>>());
    for (key, id) in &begun {
        place.storage.abort_multipart(&key.parse().unwrap(), id).await.unwrap();
    }
}

pub async fn parts_are_listed_page_by_page(place: &Place) {
    let key = fresh("pages");
    let upload = place.storage.create_multipart(&key).await.unwrap();
    // S3 lists at most 1,000 parts in a page.
    let client = &place.http;
    let sent = futures_util::StreamExt::buffer_unordered(
        futures_util::stream::iter((1..=1003_u16).map(|n| {
            let body = n.to_le_bytes();
            let put = place.storage.presign_part(&key, &upload, n, 2, Sha256::of(&body), MINUTE, now());
            put.headers
                .iter()
                .fold(client.put(put.url), |request, (name, value)| request.header(*name, value))
                .body(body.to_vec())
                .send()
        })),
        16,
    );
    let answers: Vec<reqwest::Response> = futures_util::TryStreamExt::try_collect(sent).await.unwrap();
    assert!(answers.iter().all(|answer| answer.status() == 200));
    let parts = place.storage.list_parts(&key, &upload).await.unwrap();
    assert!(outline(&parts).into_iter().eq((1..=1003).map(|n| (n, 2))));
    place.storage.abort_multipart(&key, &upload).await.unwrap();
}

pub async fn a_part_that_comes_again_is_one_part(place: &Place) {
    let (key, body) = (fresh("again"), bytes(1000));
    let upload = place.storage.create_multipart(&key).await.unwrap();
    for _ in 0..3 {
        assert_eq!(send(place, &key, &upload, 1, &body).await, 200);
    }
    let parts = place.storage.list_parts(&key, &upload).await.unwrap();
    assert_eq!(outline(&parts), [(1, 1000)]);
    place.storage.complete_multipart(&key, &upload, &parts).await.unwrap();
    assert!(place.storage.get(&key, 1000).await.unwrap() == body);
}

pub async fn completing_what_is_completed_is_success(place: &Place) {
    let key = fresh("twice");
    let upload = place.storage.create_multipart(&key).await.unwrap();
    assert_eq!(send(place, &key, &upload, 1, b"abc").await, 200);
    let parts = place.storage.list_parts(&key, &upload).await.unwrap();
    for _ in 0..3 {
        assert_eq!(place.storage.complete_multipart(&key, &upload, &parts).await, Ok(()));
    }
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), "abc");
    assert_eq!(place.storage.list_parts(&key, &upload).await, Err(Error::NoUpload));
    // To abort what is completed takes nothing away.
    assert_eq!(place.storage.abort_multipart(&key, &upload).await, Ok(()));
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), "abc");
}

pub async fn an_aborted_upload_is_unknown_and_leaves_nothing(place: &Place) {
    let key = fresh("aborted");
    let upload = place.storage.create_multipart(&key).await.unwrap();
    assert_eq!(send(place, &key, &upload, 1, b"abc").await, 200);
    let parts = place.storage.list_parts(&key, &upload).await.unwrap();
    for _ in 0..2 {
        assert_eq!(place.storage.abort_multipart(&key, &upload).await, Ok(()));
    }
    assert_eq!(place.storage.list_parts(&key, &upload).await, Err(Error::NoUpload));
    assert_eq!(place.storage.complete_multipart(&key, &upload, &parts).await, Err(Error::NoUpload));
    assert_eq!(send(place, &key, &upload, 1, b"abc").await, 404);
    assert_eq!(place.storage.stat(&key).await, Ok(None));
}

pub async fn parts_that_storage_does_not_have_make_no_object(place: &Place) {
    let key = fresh("missing");
    let upload = place.storage.create_multipart(&key).await.unwrap();
    assert_eq!(send(place, &key, &upload, 1, b"abc").await, 200);
    let mut parts = place.storage.list_parts(&key, &upload).await.unwrap();
    parts.push(Part { n: 2, ..parts[0].clone() });
    let completed = place.storage.complete_multipart(&key, &upload, &parts).await;
    assert!(matches!(completed, Err(Error::Mismatch(_))), "{completed:?}");
    assert_eq!(place.storage.stat(&key).await, Ok(None));
    place.storage.complete_multipart(&key, &upload, &parts[..1]).await.unwrap();
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), "abc");
}

pub async fn a_writer_makes_one_object_of_any_size(place: &Place) {
    let part = limits::WRITER_PART;
    for (size, piece) in [(0, 1), (5, 2), (part, 100_000), (part + 1, part + 1), (2 * part + 77, 3_000_001)] {
        let (key, body) = (fresh("writer"), Bytes::from(bytes(size)));
        let mut writer = place.storage.writer(&key);
        for start in (0..size).step_by(piece) {
            writer.write(body.slice(start..size.min(start + piece))).await.unwrap();
        }
        assert_eq!(place.storage.stat(&key).await, Ok(None), "nothing is there before the end");
        assert_eq!(writer.finish().await.unwrap(), (size as u64, Sha256::of(&body)));
        assert!(place.storage.get(&key, size).await.unwrap() == body, "{size}");
    }
}

pub async fn a_writer_that_aborts_leaves_nothing(place: &Place) {
    let key = fresh("given-up");
    let mut writer = place.storage.writer(&key);
    writer.write(bytes(2 * limits::WRITER_PART + 1).into()).await.unwrap();
    writer.abort().await;
    assert_eq!(place.storage.stat(&key).await, Ok(None));
}
