//! Parts, and uploads in parts, that are refused.

use millpond_protocol::Sha256;
use reqwest::Method;

use super::{Place, fresh, outcome};
use crate::common::bytes;
use crate::common::parts::{Upload, base64};
use crate::common::tags;

/// The least that S3 takes as a part that is not the last.
const PART: usize = 5 << 20;

pub async fn parts_that_do_not_fit_are_refused_and_the_old_object_stays(place: &Place) {
    let key = fresh("unfit");
    place.put(&key, b"old").await;
    let begin = async || Upload::begin(&place.signer(), key.as_str()).await.unwrap();
    // Each in an upload of its own, which a server that takes it would end.
    for (claim, s3) in [
        ("to complete no parts", "400 MalformedXML"),
        ("parts in another order", "400 InvalidPartOrder"),
        ("a part twice", "400 InvalidPartOrder"),
        ("a part that is not there", "400 InvalidPart"),
        ("a part with the tag of another", "400 InvalidPart"),
        ("a part with a tag that is none", "400 InvalidPart"),
    ] {
        let upload = begin().await;
        let first = upload.put(1, &bytes(20)).await.unwrap();
        let last = upload.put(3, &bytes(15)).await.unwrap();
        let parts: &[(u32, &str)] = match claim {
            "to complete no parts" => &[],
            "parts in another order" => &[(3, last.as_str()), (1, &first)],
            "a part twice" => &[(1, &first), (1, &first)],
            "a part that is not there" => &[(4, &last)],
            "a part with the tag of another" => &[(3, &first)],
            _ => &[(1, "\"none of ours\"")],
        };
        said(place, claim, &upload, outcome(upload.complete(parts).await.unwrap()).await, s3).await;
    }
    let upload = begin().await;
    let big = upload.put(1, &bytes(PART)).await.unwrap();
    let small = upload.put(2, &bytes(10)).await.unwrap();
    let last = upload.put(3, &bytes(1500)).await.unwrap();
    let parts = [(1, big.as_str()), (2, &small), (3, &last)];
    let answer = outcome(upload.complete(&parts).await.unwrap()).await;
    said(place, "a part that is too small", &upload, answer, "400 EntityTooSmall").await;

    let other = base64(&Sha256::of(b"other").0);
    let of_part = format!("<ChecksumSHA256>{other}</ChecksumSHA256>");
    for (claim, of_part, header, s3) in [
        ("another checksum of a part", of_part.as_str(), None, "400 InvalidPart"),
        (
            "another checksum of the parts",
            "",
            Some(("x-amz-checksum-sha256", format!("{other}-1"))),
            "400 BadDigest",
        ),
        (
            "a checksum of another kind",
            "",
            Some(("x-amz-checksum-crc32", "AAAAAA==".into())),
            "400 InvalidRequest",
        ),
        (
            "another size of the object",
            "",
            Some(("x-amz-mp-object-size", "2001".into())),
            "400 InvalidRequest",
        ),
        ("to be the first", "", Some(("if-none-match", "*".into())), "412 PreconditionFailed"),
    ] {
        let upload = begin().await;
        let tag = upload.put(1, &bytes(20)).await.unwrap();
        let headers: Vec<_> = header.into_iter().collect();
        let answer = upload.complete_with(&[(1, tag, of_part.to_owned())], &headers).await.unwrap();
        said(place, claim, &upload, outcome(answer).await, s3).await;
    }

    // All that was refused left the upload as it was; what is not listed goes.
    let upload = begin().await;
    let big = upload.put(1, &bytes(PART)).await.unwrap();
    upload.put(2, &bytes(10)).await.unwrap();
    let last = upload.put(3, &bytes(1500)).await.unwrap();
    let wrong = upload.complete(&[(1, &big), (3, &big)]).await.unwrap();
    assert!(!wrong.status().is_success());
    place.keeps(4).await;
    assert_eq!(outcome(upload.complete(&[(1, &big), (3, &last)]).await.unwrap()).await, "200");
    assert_eq!(place.storage.stat(&key).await.unwrap().unwrap().size, PART as u64 + 1500);
    place.keeps(2).await;

    /// What is refused leaves the old object, and the upload, which is given up.
    async fn said(place: &Place, claim: &str, upload: &Upload, answer: String, s3: &str) {
        let taken = answer == "200";
        place.says(claim, answer, s3);
        let key = upload.key.parse().unwrap();
        if taken {
            return place.put(&key, b"old").await;
        }
        assert_eq!(place.storage.get(&key, 3).await.unwrap(), "old", "{claim}");
        assert_eq!(upload.abort().await.unwrap().status(), 204, "{claim}");
        place.keeps(1).await;
    }
}

pub async fn a_part_is_the_declared_bytes_or_none(place: &Place) {
    let key = fresh("part");
    let upload = Upload::begin(&place.signer(), key.as_str()).await.unwrap();
    let body = bytes(2000);
    let sum = || ("x-amz-checksum-sha256", base64(&Sha256::of(&body).0));
    let length = || ("content-length", "2000".to_owned());
    for (claim, n, headers, s3) in [
        (
            "other bytes as a part",
            1,
            vec![length(), ("x-amz-checksum-sha256", base64(&[0; 32]))],
            "400 BadDigest",
        ),
        ("a part with a wrong CRC", 1, vec![("x-amz-checksum-crc32", "AAAAAA==".into())], "400 BadDigest"),
        ("a part with a wrong MD5", 1, vec![("content-md5", base64(&[0; 16]))], "400 BadDigest"),
        (
            "a part with half a checksum",
            1,
            vec![("x-amz-checksum-sha256", "short".into())],
            "400 InvalidDigest",
        ),
        ("part 0", 0, vec![sum()], "400 InvalidArgument"),
        ("part 10,001", 10_001, vec![sum()], "400 InvalidArgument"),
    ] {
        place.says(claim, outcome(upload.put_with(n, &body, &headers).await.unwrap()).await, s3);
    }
    let n = [("partNumber", "1"), ("uploadId", &upload.id)];
    let stray = place.signed(Method::PUT, key.as_str(), &n, &[]).header(sum().0, sum().1).body(body.clone());
    place.says(
        "a part with a header that is not signed",
        outcome(stray.send().await.unwrap()).await,
        "403 AccessDenied",
    );
    let kept = tags(&upload.list(&[]).await.unwrap().text().await.unwrap(), "PartNumber");
    place.says("parts that are kept of those", kept.join(" "), "");
    place.keeps(0).await;

    let first = upload.put(1, &bytes(1200)).await.unwrap();
    let second = upload.put(1, &body).await.unwrap();
    place.keeps(1).await;
    let replaced = outcome(upload.complete(&[(1, &first)]).await.unwrap()).await;
    let taken = replaced == "200";
    place.says("the tag of a part that was replaced", replaced, "400 InvalidPart");
    if taken {
        return;
    }
    assert_eq!(upload.complete(&[(1, &second)]).await.unwrap().status(), 200);
    assert!(place.storage.get(&key, 2000).await.unwrap() == body);
}

pub async fn an_upload_that_is_gone_is_not_found_by_any_request(place: &Place) {
    let begin = async |name: &str| Upload::begin(&place.signer(), fresh(name).as_str()).await.unwrap();
    let upload = begin("gone").await;
    let tag = upload.put(1, &bytes(2000)).await.unwrap();
    assert_eq!(upload.abort().await.unwrap().status(), 204);
    place.keeps(0).await;
    let done = begin("done").await;
    let last = done.put(1, b"x").await.unwrap();
    assert_eq!(done.complete(&[(1, &last)]).await.unwrap().status(), 200);
    let of_other_key = begin("other").await;
    for (what, upload) in [
        ("an upload that was aborted", upload.clone()),
        ("an upload that never was", upload.with_id("no-id")),
        ("an upload that was completed", done.clone()),
        ("an upload of another key", upload.with_id(&of_other_key.id)),
    ] {
        let gone = "404 NoSuchUpload";
        let put = outcome(upload.put_with(1, b"x", &[]).await.unwrap()).await;
        place.says(&format!("a part of {what}"), put, gone);
        place.says(&format!("the parts of {what}"), outcome(upload.list(&[]).await.unwrap()).await, gone);
        if upload.key != done.key {
            let completed = outcome(upload.complete(&[(1, &tag)]).await.unwrap()).await;
            place.says(&format!("to complete {what}"), completed, gone);
        }
        place.says(&format!("to abort {what}"), outcome(upload.abort().await.unwrap()).await, gone);
    }
    place.keeps(1).await;
}
