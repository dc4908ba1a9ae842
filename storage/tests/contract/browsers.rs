//! What pages of other origins may do with the URLs that they were given.

use reqwest::{Method, RequestBuilder, Response};

use super::{PAGE, Place, fresh, outcome};

fn asks(place: &Place, url: &str, origin: &str, method: &str) -> RequestBuilder {
    place
        .http
        .request(Method::OPTIONS, url)
        .header("origin", origin)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "x-amz-checksum-sha256")
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map_or("nothing", |value| value.to_str().unwrap())
}

pub async fn a_page_that_is_listed_may_ask_send_and_read(place: &Place) {
    let key = fresh("page");
    let url = place.get_url(&key);
    for method in ["GET", "PUT", "HEAD"] {
        let answer = asks(place, &url, PAGE, method).send().await.unwrap();
        assert!(answer.status().is_success(), "{method}: {}", answer.status());
        place.says("the page that may", header(&answer, "access-control-allow-origin"), PAGE);
        let may = header(&answer, "access-control-allow-methods").contains(method);
        place.says(&format!("whether a page may {method}"), may, true);
        let may = header(&answer, "access-control-allow-headers");
        place.says("the headers that a page may send", may, "x-amz-checksum-sha256");
        place.says("what an answer to a page varies by", header(&answer, "vary"), "Origin");
    }
    let put = place.put_request(&key, b"abc", "abc").header("origin", PAGE).send().await.unwrap();
    assert_eq!((put.status().as_u16(), header(&put, "access-control-allow-origin")), (200, PAGE));
    let get = place.http.get(&url).header("origin", PAGE).send().await.unwrap();
    assert_eq!(header(&get, "access-control-allow-origin"), PAGE);
    let exposed = header(&get, "access-control-expose-headers");
    place.says("whether a page may read the tag", exposed.contains("ETag") || exposed == "*", true);
    // Also the reason of a refusal can be read.
    let missing = place.http.get(place.get_url(&fresh("none"))).header("origin", PAGE).send().await.unwrap();
    assert_eq!(header(&missing, "access-control-allow-origin"), PAGE);
}

pub async fn another_page_is_told_nothing_and_needs_a_signature_like_all(place: &Place) {
    let key = fresh("another-page");
    place.put(&key, b"abc").await;
    let url = place.get_url(&key);
    for (origin, method) in [("https://evil.example", "GET"), ("null", "PUT"), (PAGE, "PATCH")] {
        let answer = asks(place, &url, origin, method).send().await.unwrap();
        assert!(origin == PAGE || header(&answer, "access-control-allow-origin") == "nothing", "{origin}");
        place.says(&format!("{origin} that asks to {method}"), outcome(answer).await, "403 AccessDenied");
    }
    let get = place.http.get(&url).header("origin", "https://evil.example").send().await.unwrap();
    assert_eq!(header(&get, "access-control-allow-origin"), "nothing");
    // A cache must not hand this answer, or that to a program, to the page that may.
    let plain = place.http.get(&url).send().await.unwrap();
    for answer in [&get, &plain] {
        place.says("what an answer to nobody varies by", header(answer, "vary"), "Origin");
    }
    let bare = url.split_once('?').unwrap().0;
    let unsigned = place.http.get(bare).header("origin", PAGE).send().await.unwrap();
    place.says("a page without a signature", outcome(unsigned).await, "403 AccessDenied");
}
