//! URLs for others.

use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_storage::PresignedPut;

use super::{Place, fresh};
use crate::common::{MINUTE, bytes, now};

async fn send(place: &Place, put: &PresignedPut, body: &[u8]) -> u16 {
    put.headers
        .iter()
        .fold(place.http.put(&put.url), |request, (name, value)| request.header(*name, value))
        .body(body.to_vec())
        .send()
        .await
        .unwrap()
        .status()
        .as_u16()
}

async fn get(place: &Place, url: &str) -> u16 {
    place.http.get(url).send().await.unwrap().status().as_u16()
}

pub async fn a_url_reads_its_object(place: &Place) {
    let (key, body) = (fresh("read"), Bytes::from(bytes(700_000)));
    place.storage.put(&key, body.clone(), Sha256::of(&body)).await.unwrap();
    let url = place.storage.presign_get(&key, MINUTE, now()).url;
    let whole = place.http.get(&url).send().await.unwrap();
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.headers()["content-type"], "application/octet-stream");
    assert_eq!(whole.headers()["content-disposition"], "attachment");
    assert!(whole.bytes().await.unwrap() == body);
    let some = place.http.get(&url).header("range", "bytes=5-9").send().await.unwrap();
    assert_eq!(some.status(), 206);
    assert!(some.bytes().await.unwrap() == body[5..10]);
    assert_eq!(get(place, &place.storage.presign_get(&fresh("none"), MINUTE, now()).url).await, 404);
}

pub async fn a_url_for_writing_takes_the_declared_bytes_and_no_others(place: &Place) {
    let (key, declared) = (fresh("write"), bytes(300_000));
    let mut other = declared.clone();
    other[299_999] ^= 1;
    let put = place.storage.presign_put(&key, 300_000, Sha256::of(&declared), MINUTE, now());
    assert_eq!(send(place, &put, &other).await, 400);
    assert_eq!(place.storage.stat(&key).await, Ok(None));
    for _ in 0..2 {
        assert_eq!(send(place, &put, &declared).await, 200);
        assert!(place.storage.get(&key, 300_000).await.unwrap() == declared);
    }
}

pub async fn a_url_for_a_part_takes_the_declared_bytes_and_no_others(place: &Place) {
    let (key, declared) = (fresh("write-part"), bytes(300_000));
    let mut other = declared.clone();
    other[299_999] ^= 1;
    let upload = place.storage.create_multipart(&key).await.unwrap();
    let put = place.storage.presign_part(&key, &upload, 1, 300_000, Sha256::of(&declared), MINUTE, now());
    assert_eq!(send(place, &put, &other).await, 400);
    assert_eq!(place.storage.list_parts(&key, &upload).await, Ok(Vec::new()));
    let second = PresignedPut { url: put.url.replace("partNumber=1", "partNumber=2"), ..put.clone() };
    assert_eq!(send(place, &second, &declared).await, 403);
    assert_eq!(send(place, &put, &declared).await, 200);
    place.storage.abort_multipart(&key, &upload).await.unwrap();
}

pub async fn changed_headers_or_urls_are_refused(place: &Place) {
    let (key, body) = (fresh("changed"), bytes(1000));
    let signed = |at| place.storage.presign_put(&key, 1000, Sha256::of(&body), MINUTE, at);

    let mut shorter = signed(now());
    shorter.headers[0].1 = "999".into();
    assert_eq!(send(place, &shorter, &body[..999]).await, 403);

    let mut other = signed(now());
    other.headers = place.storage.presign_put(&key, 1000, Sha256::of(b"x"), MINUTE, now()).headers;
    assert_eq!(send(place, &other, &body).await, 403);

    let mut without = signed(now());
    without.headers.truncate(1);
    assert_eq!(send(place, &without, &body).await, 403);

    let mut more = signed(now());
    more.headers.push(("x-amz-copy-source", "/millpond/j".into()));
    assert_eq!(send(place, &more, &body).await, 403);

    let mut elsewhere = signed(now());
    elsewhere.url = elsewhere.url.replace(key.as_str(), fresh("elsewhere").as_str());
    assert_eq!(send(place, &elsewhere, &body).await, 403);

    let hour_ago = now().before(MINUTE * 60);
    assert_eq!(send(place, &signed(hour_ago), &body).await, 403);
    assert_eq!(get(place, &place.storage.presign_get(&key, MINUTE, hour_ago).url).await, 403);

    let url = place.storage.presign_get(&key, MINUTE, now()).url;
    assert_eq!(place.http.delete(&url).send().await.unwrap().status(), 403);
    assert_eq!(get(place, url.split('?').next().unwrap()).await, 403);
    assert_eq!(place.storage.stat(&key).await, Ok(None));
}
