//! Whole objects.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Stat, limits};
use reqwest::Method;

use super::{Place, fresh, outcome};
use crate::common::bytes;
use crate::common::cutter::cutter;
use crate::common::parts::Upload;

pub async fn what_is_put_comes_back_until_it_is_deleted(place: &Place) {
    let storage = &place.storage;
    for (name, size) in [("empty", 0), ("small", 1000), ("large", 3 << 20)] {
        let (key, body) = (fresh(name), Bytes::from(bytes(size)));
        let sha256 = Sha256::of(&body);
        assert_eq!(storage.stat(&key).await, Ok(None));
        storage.put(&key, body.clone(), sha256).await.unwrap();
        let Stat { size: kept, sha256: said } = storage.stat(&key).await.unwrap().unwrap();
        assert_eq!(kept, size as u64);
        // A server may keep none, but never another one.
        assert!(said.is_none_or(|said| said == sha256));
        assert_eq!(storage.get(&key, size).await.unwrap(), body);
        storage.delete(&key).await.unwrap();
        storage.delete(&key).await.unwrap();
        assert_eq!(storage.get(&key, size).await, Err(Error::NotFound));
    }
}

pub async fn a_range_streams_exactly_its_bytes(place: &Place) {
    let (key, body) = (fresh("range"), Bytes::from(bytes(1_000_000)));
    place.storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
    for (start, end) in [(0, 1), (1, 262_145), (262_144, 1_000_000), (999_999, 1_000_000)] {
        let stream = place.storage.get_stream(&key, Some(start..end)).await.unwrap();
        assert_eq!(stream.size, end - start);
        let read: Vec<Bytes> = stream.try_collect().await.unwrap();
        assert!(read.concat() == body[start as usize..end as usize], "{start}..{end}");
    }
    let whole: Vec<Bytes> = place.storage.get_stream(&key, None).await.unwrap().try_collect().await.unwrap();
    assert!(whole.concat() == body);
}

pub async fn an_object_larger_than_expected_is_not_read(place: &Place) {
    let (key, body) = (fresh("larger"), Bytes::from(bytes(10)));
    place.storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
    assert!(matches!(place.storage.get(&key, 9).await, Err(Error::Mismatch(_))));
}

pub async fn other_bytes_than_declared_are_not_stored_and_the_old_ones_stay(place: &Place) {
    let (key, old) = (fresh("other"), Bytes::from_static(b"old"));
    place.storage.put(&key, old.clone(), Sha256::of(&old)).await.unwrap();
    let put = place.storage.put(&key, Bytes::from(bytes(1 << 20)), Sha256::of(b"other")).await;
    assert!(matches!(put, Err(Error::Mismatch(_))), "{put:?}");
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), old);
}

pub async fn an_object_is_hashed_as_it_lies_there(place: &Place) {
    for size in [0, 1, 5_000_000] {
        let (key, body) = (fresh("hash"), Bytes::from(bytes(size)));
        place.storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
        let mut heard = 0;
        let progress = |read| {
            assert!(read > heard);
            heard = read;
        };
        assert_eq!(place.storage.hash(&key, progress).await, Ok((size as u64, Sha256::of(&body))));
        assert_eq!(heard, size as u64);
    }
    assert_eq!(place.storage.hash(&fresh("none"), |_| {}).await, Err(Error::NotFound));
}

pub async fn a_hash_goes_on_where_the_connection_broke(place: &Place) {
    let (key, size) = (fresh("resumed"), 5 << 20);
    let body = Bytes::from(bytes(size));
    place.storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
    let cutter = cutter(&place.config, 1 << 20, false).await;
    let mut heard = 0;
    let progress = |read| {
        assert!(read > heard, "{read} after {heard}");
        heard = read;
    };
    assert_eq!(cutter.storage.hash(&key, progress).await, Ok((size as u64, Sha256::of(&body))));
    assert_eq!(heard, size as u64);
    // Heads of answers are cut off as well, so five times 1 MiB are not enough.
    assert_eq!(cutter.connections.load(Ordering::SeqCst), 6);
}

pub async fn what_comes_after_a_key_is_listed_in_order_with_sizes_page_by_page(place: &Place) {
    const COUNT: usize = 1_003;
    let prefix = fresh("list");
    let key = |n: usize| format!("{prefix}/{n:04}");
    let puts = futures_util::stream::iter((0..COUNT).map(|n| {
        let body = Bytes::from(vec![b'x'; n % 7]);
        let (storage, key, sha256) = (&place.storage, key(n).parse().unwrap(), Sha256::of(&body));
        async move { storage.put(&key, body, sha256).await }
    }));
    puts.buffer_unordered(16).try_collect::<Vec<()>>().await.unwrap();
    // Other cases have keys before these, and some may come behind them.
    let (mut listed, mut after) = (Vec::new(), format!("{prefix}/"));
    loop {
        let page = place.storage.list(&after).await.unwrap();
        let own: Vec<_> = page.into_iter().filter(|object| object.key.starts_with(prefix.as_str())).collect();
        let Some(last) = own.last() else { break };
        after = last.key.clone();
        listed.extend(own.into_iter().map(|object| (object.key, object.size)));
    }
    let there: Vec<_> = (0..COUNT).map(|n| (key(n), n as u64 % 7)).collect();
    assert_eq!(listed, there);
    let behind = place.storage.list(&key(COUNT - 3)).await.unwrap();
    assert_eq!((&behind[0].key, &behind[1].key), (&key(COUNT - 2), &key(COUNT - 1)));
}

pub async fn attempts_that_bring_nothing_end_a_hash(place: &Place) {
    let key = fresh("nothing-comes");
    place.put(&key, &bytes(1 << 20)).await;
    let cutter = cutter(&place.config, 10, false).await;
    let hashed = cutter.storage.hash(&key, |_| panic!("nothing came")).await;
    assert!(hashed.unwrap_err().is_temporary());
    assert_eq!(cutter.connections.load(Ordering::SeqCst), limits::ATTEMPTS as usize);
}

pub async fn an_object_that_is_replaced_meanwhile_is_not_hashed_half_and_half(place: &Place) {
    let key = fresh("replaced");
    place.put(&key, &bytes(2 << 20)).await;
    let cutter = cutter(&place.config, 1 << 20, true).await;
    let (storage, of) = (cutter.storage.clone(), key.clone());
    let (begun, mut first) = tokio::sync::mpsc::unbounded_channel();
    let hashing = tokio::spawn(async move {
        storage
            .hash(&of, |read| {
                let _ = begun.send(read);
            })
            .await
    });
    first.recv().await.unwrap();
    place.put(&key, &vec![7; 2 << 20]).await;
    cutter.hold.notify_one();
    let hashed = hashing.await.unwrap();
    assert!(matches!(&hashed, Err(Error::Mismatch(why)) if why.contains("replaced")), "{hashed:?}");
}

pub async fn concurrent_uploads_to_one_key_leave_one_whole_object(place: &Place) {
    let key = fresh("concurrent");
    let puts = (0..4).map(|n| {
        let (put, body) = (place.storage.clone(), Bytes::from(vec![n; 400_000]));
        let key = key.clone();
        // Who is overtaken finds another object, and is told so.
        tokio::spawn(async move { put.put(&key, body.clone(), Sha256::of(&body)).await })
    });
    let mut stored = 0;
    for put in puts.collect::<Vec<_>>() {
        match put.await.unwrap() {
            Ok(()) => stored += 1,
            Err(error) => assert!(place.config.confirm && error.is_temporary(), "{error}"),
        }
    }
    assert!(stored > 0);
    let read = place.storage.get(&key, 400_000).await.unwrap();
    assert!(read.len() == 400_000 && read.iter().all(|byte| *byte == read[0]));
    place.keeps(1).await;
}

pub async fn an_upload_that_breaks_off_leaves_the_old_object(place: &Place) {
    let key = fresh("breaks-off");
    place.put(&key, b"old").await;
    let declared = bytes(2 << 20);
    let first =
        futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(&declared[..1 << 20]))]);
    let broken = futures_util::stream::iter([Err(std::io::Error::other("the client is gone"))]);
    let body = reqwest::Body::wrap_stream(first.chain(broken));
    let put = place.put_request(&key, &declared, body).send().await;
    assert!(put.is_err(), "{put:?}");
    place.keeps(1).await;
    assert_eq!(place.storage.get(&key, 3).await.unwrap(), "old");
}

pub async fn what_a_client_keeps_with_an_object_comes_back(place: &Place) {
    let meta = ("x-amz-meta-mtime", "1700000000.5".to_owned());
    let (single, parts) = (fresh("meta"), fresh("meta-in-parts"));
    let put = place.signed(Method::PUT, single.as_str(), &[], std::slice::from_ref(&meta)).body("x").send();
    assert_eq!(put.await.unwrap().status(), 200);
    let begun =
        Upload::begin_with(&place.signer(), parts.as_str(), std::slice::from_ref(&meta)).await.unwrap();
    let tag = begun.put(1, b"x").await.unwrap();
    begun.complete(&[(1, &tag)]).await.unwrap();
    for key in [&single, &parts] {
        let head = place.signed(Method::HEAD, key.as_str(), &[], &[]).send().await.unwrap();
        assert_eq!(head.headers()["x-amz-meta-mtime"], "1700000000.5", "{key}");
        let get = place.http.get(place.get_url(key)).send().await.unwrap();
        assert_eq!(get.headers()["x-amz-meta-mtime"], "1700000000.5", "{key}");
    }
    let much = [("x-amz-meta-much", "x".repeat(2049))];
    let put = place.signed(Method::PUT, single.as_str(), &[], &much).body("x").send().await.unwrap();
    place.says("more than 2 KiB beside an object", outcome(put).await, "400 MetadataTooLarge");
}
