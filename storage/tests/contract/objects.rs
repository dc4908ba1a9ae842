//! Whole objects.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Stat};

use super::{Place, fresh};
use crate::common::bytes;
use crate::common::cutter::cutter;

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
