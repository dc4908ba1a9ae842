//! Listings, and what goes in one request.

use reqwest::Method;

use super::{Place, fresh, outcome};
use crate::common::parts::Upload;
use crate::common::tags;

/// The answer to a GET of the bucket itself.
async fn list(place: &Place, query: &[(&str, &str)]) -> String {
    place.signed(Method::GET, "", query, &[]).send().await.unwrap().text().await.unwrap()
}

pub async fn keys_are_in_order_of_their_bytes(place: &Place) {
    let prefix = format!("{}/", fresh("order"));
    // Pools 1 and 10, and a key that goes on where another has a segment.
    let keys = ["1/pack/a", "1/pack/b", "10/pack/a"];
    for (keys, claim) in
        [(&keys[..], "keys of two pools"), (&["p-q", "p/a"], "keys beside a prefix of theirs")]
    {
        for key in keys.iter().rev() {
            place.put(&format!("{prefix}{key}").parse().unwrap(), b"abc").await;
        }
        let page =
            list(place, &[("list-type", "2"), ("prefix", &format!("{prefix}{}", &keys[0][..1]))]).await;
        place.says(claim, behind(tags(&page, "Key"), &prefix).join(" "), keys.join(" "));
        // Whoever lists the whole bucket insists on the order.
        for key in keys {
            place.storage.delete(&format!("{prefix}{key}").parse().unwrap()).await.unwrap();
        }
    }
}

/// What stands behind the prefix of a case.
fn behind(all: Vec<String>, prefix: &str) -> Vec<String> {
    all.iter()
        .filter_map(|key| key.strip_prefix(prefix))
        .map(str::to_owned)
        .filter(|key| !key.is_empty())
        .collect()
}

pub async fn a_listing_is_in_order_in_pages_and_by_prefix(place: &Place) {
    let prefix = format!("{}/", fresh("listing"));
    for key in ["a", "b/1", "b/2", "b/3/x", "c", "d/1"] {
        place.put(&format!("{prefix}{key}").parse().unwrap(), b"abc").await;
    }
    let get = async |more: &[(&str, &str)]| {
        let query: Vec<_> = [("list-type", "2")].iter().chain(more).copied().collect();
        list(place, &query).await
    };
    let keys = |page: &str| behind(tags(page, "Key"), &prefix);
    let prefixes = |page: &str| {
        let common = tags(page, "CommonPrefixes");
        behind(common.iter().flat_map(|inner| tags(inner, "Prefix")).collect(), &prefix)
    };
    let all = get(&[("prefix", &prefix)]).await;
    assert_eq!(keys(&all), ["a", "b/1", "b/2", "b/3/x", "c", "d/1"]);
    assert_eq!(tags(&all, "IsTruncated"), ["false"]);
    let top = get(&[("prefix", &prefix), ("delimiter", "/")]).await;
    assert_eq!((keys(&top).join(" "), prefixes(&top).join(" ")), ("a c".into(), "b/ d/".into()));
    let below = get(&[("delimiter", "/"), ("prefix", &format!("{prefix}b/"))]).await;
    assert_eq!((keys(&below).join(" "), prefixes(&below).join(" ")), ("b/1 b/2".into(), "b/3/".into()));
    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut query = vec![("prefix", prefix.as_str()), ("delimiter", "/"), ("max-keys", "1")];
        query.extend(token.as_deref().map(|token| ("continuation-token", token)));
        let page = get(&query).await;
        assert_eq!(tags(&page, "KeyCount"), ["1"]);
        seen.extend(keys(&page));
        seen.extend(prefixes(&page));
        token = tags(&page, "NextContinuationToken").pop();
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b/", "c", "d/"]);
}

pub async fn both_forms_of_a_listing_page_through_keys_of_any_kind(place: &Place) {
    let prefix = format!("{}/", fresh("any"));
    let keys = ["a b", "a+b", "b/1", "b/2", "c%20d", "e&<f>", "z/\u{e4}", "\u{65e5}\u{672c}"];
    for key in keys {
        let path: String = url::form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let path = format!("{prefix}{}", path.replace('+', "%20").replace("%2F", "/"));
        let put = place.signed(Method::PUT, &path, &[], &[]).body("x").send().await.unwrap();
        assert_eq!(put.status(), 200, "{key}");
    }
    let decode = |text: &str| {
        let pair = format!("k={text}");
        url::form_urlencoded::parse(pair.as_bytes()).next().unwrap().1.into_owned()
    };
    for (v2, next, from) in
        [(true, "NextContinuationToken", "continuation-token"), (false, "NextMarker", "marker")]
    {
        for delimiter in [None, Some("/")] {
            let (mut seen, mut place_of, mut pages) = (Vec::new(), None::<String>, 0);
            loop {
                let mut query =
                    vec![("max-keys", "1"), ("encoding-type", "url"), ("prefix", prefix.as_str())];
                query.extend(v2.then_some(("list-type", "2")));
                query.extend(delimiter.map(|delimiter| ("delimiter", delimiter)));
                query.extend(place_of.as_deref().map(|place| (from, place)));
                let page = list(place, &query).await;
                seen.extend(tags(&page, "Key").iter().map(|key| decode(key)));
                let common = tags(&page, "CommonPrefixes");
                seen.extend(common.iter().map(|inner| decode(&tags(inner, "Prefix")[0])));
                pages += 1;
                // One that turns in a circle would never end.
                let Some(token) = tags(&page, next).pop() else { break };
                if pages > keys.len() {
                    seen.truncate(2);
                    seen.push(format!("{prefix}then in a circle"));
                    break;
                }
                place_of = Some(if v2 { token } else { decode(&token) });
            }
            let folded = ["a b", "a+b", "b/", "c%20d", "e&<f>", "z/", "\u{65e5}\u{672c}"];
            let s3 = if delimiter.is_some() { &folded[..] } else { &keys[..] };
            let form = if v2 { "2" } else { "1" };
            let claim = format!("keys of any kind by form {form}{}", delimiter.map_or("", |_| ", folded"));
            place.says(&claim, behind(seen, &prefix).join(", "), s3.join(", "));
        }
    }
    let bad = [("list-type", "2"), ("continuation-token", "b/1")];
    let bad = place.signed(Method::GET, "", &bad, &[]).send().await.unwrap();
    place.says("a token that no page gave", outcome(bad).await, "400 InvalidArgument");
}

pub async fn many_objects_go_in_one_request(place: &Place) {
    let prefix = format!("{}/", fresh("many"));
    for key in ["a", "b", "c"] {
        place.put(&format!("{prefix}{key}").parse().unwrap(), b"abc").await;
    }
    let delete = async |keys: &[&str]| {
        let objects = keys.iter().map(|key| format!("<Object><Key>{prefix}{key}</Key></Object>"));
        let body = format!("<Delete>{}</Delete>", objects.collect::<String>());
        place.signed(Method::POST, "", &[("delete", "")], &[]).body(body).send().await.unwrap()
    };
    let answer = delete(&["a", "b", "none"]).await;
    assert_eq!(answer.status(), 200);
    let answer = answer.text().await.unwrap();
    let deleted = tags(&answer, "Deleted").len();
    place.says("what is deleted of two that are there and one that is not", deleted, 3);
    assert_eq!(
        behind(tags(&list(place, &[("list-type", "2"), ("prefix", &prefix)]).await, "Key"), &prefix),
        ["c"]
    );
    place.keeps(1).await;
    place.says("1,001 deletes", outcome(delete(&vec!["a"; 1001]).await).await, "400 MalformedXML");
    place.keeps(1).await;
}

pub async fn parts_and_uploads_are_listed_in_pages_of_any_size(place: &Place) {
    let prefix = format!("{}/", fresh("uploads"));
    let begin = async |key: &str| Upload::begin(&place.signer(), &format!("{prefix}{key}")).await.unwrap();
    let upload = begin("a/1").await;
    for n in [7, 2, 5, 9_999] {
        upload.put(n, &crate::common::bytes(n as usize)).await.unwrap();
    }
    let (mut seen, mut marker) = (Vec::new(), "0".to_owned());
    loop {
        let page = upload.list(&[("max-parts", "2"), ("part-number-marker", &marker)]).await.unwrap();
        let page = page.text().await.unwrap();
        seen.extend(tags(&page, "PartNumber"));
        let sums = match tags(&page, "ChecksumSHA256").len() {
            0 => "none",
            some => {
                if some == tags(&page, "PartNumber").len() {
                    "all"
                } else {
                    "some"
                }
            }
        };
        place.says("checksums of parts that are listed", sums, "all");
        if tags(&page, "IsTruncated") == ["false"] {
            break;
        }
        marker = tags(&page, "NextPartNumberMarker").remove(0);
    }
    assert_eq!(seen, ["2", "5", "7", "9999"]);
    let nothing = upload.list(&[("max-parts", "0")]).await.unwrap().text().await.unwrap();
    // There is no marker to go on from.
    place.says("whether more comes after no parts", tags(&nothing, "IsTruncated").join(" "), "false");

    let mut all =
        vec![upload.clone(), begin("a/1").await, begin("a/2").await, begin("b").await, begin("c/1").await];
    let list = async |query: &[(&str, &str)]| {
        let query: Vec<_> = [("uploads", "")].iter().chain(query).copied().collect();
        list(place, &query).await
    };
    let (mut seen, mut key, mut id) = (Vec::new(), String::new(), String::new());
    let by_id = "a key to go on from, among uploads in parts";
    while seen.len() <= all.len() {
        let mut query = vec![("max-uploads", "2"), ("prefix", prefix.as_str())];
        query.extend((!key.is_empty()).then_some(("key-marker", key.as_str())));
        query.extend((!id.is_empty()).then_some(("upload-id-marker", id.as_str())));
        let page = list(&query).await;
        seen.extend(tags(&page, "UploadId"));
        if tags(&page, "IsTruncated") == ["false"] {
            break;
        }
        key = tags(&page, "NextKeyMarker").pop().unwrap_or_default();
        place.says(by_id, if key.is_empty() { "none" } else { "given" }, "given");
        id = tags(&page, "NextUploadIdMarker").remove(0);
    }
    // Those of one key are in order of their ids.
    all[..2].sort_by(|one, two| one.id.cmp(&two.id));
    let mut ids: Vec<_> = all.iter().map(|upload| upload.id.clone()).collect();
    if place.differs(by_id) {
        // Then the order is that of the ids.
        ids.sort();
        seen.sort();
    }
    assert_eq!(seen, ids);
    let folded = list(&[("delimiter", "/"), ("prefix", &prefix)]).await;
    let (found, prefixes) = (behind(tags(&folded, "Key"), &prefix), tags(&folded, "CommonPrefixes"));
    let found = format!("{} {}", found.len(), prefixes.len());
    place.says("uploads in parts, folded: keys and prefixes", found, "1 2");
    let below = list(&[("prefix", &format!("{prefix}a/"))]).await;
    let mut below = behind(tags(&below, "Key"), &prefix);
    below.sort();
    assert_eq!(below, ["a/1", "a/1", "a/2"]);
    for upload in all {
        assert_eq!(upload.abort().await.unwrap().status(), 204);
    }
    place.keeps(0).await;
}
