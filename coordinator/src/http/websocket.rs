//! `/mqtt`: MQTT over WebSocket. Whoever asks well leaves HTTP here and goes to the gate, which signs it in like all others.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use millpond_net::{Stream, websocket};
use millpond_protocol::{Code, Refusal};

use super::Api;
use super::error::Failed;
use super::serve::Peer;

/// How long a client may take to read the answer that lets it in.
const UPGRADE_TIME: Duration = Duration::from_secs(10);
/// The version of RFC 6455.
const VERSION: &str = "13";

/// Bytes of `Sec-WebSocket-Key`: 16 in base64.
const KEY_LENGTH: usize = 24;

pub(super) async fn enter(State(api): State<Api>, mut request: Request) -> Result<Response, Failed> {
    let accept = accept(request.headers())?;
    let Some(Peer(from)) = request.extensions().get::<Peer>().copied() else {
        return Err(Refusal::unavailable("the connection has no address").into());
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let gate = api.0.gate.clone();
    tokio::spawn(async move {
        // Whoever leaves before it is in needs nothing more.
        if let Ok(Ok(io)) = tokio::time::timeout(UPGRADE_TIME, upgrade).await {
            gate.pass(Stream::over(websocket::WebSocket::new(TokioIo::new(io))), from);
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().extend([
        (CONNECTION, HeaderValue::from_static("upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(websocket::SUBPROTOCOL)),
    ]);
    Ok(response)
}

/// What a good request is answered with.
fn accept(headers: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let wrong = |message: &str| {
        Err(Refusal::new(Code::Malformed, message)
            .hint("this is where MQTT over WebSocket begins: connect to it with an MQTT client"))
    };
    if !says(headers, &CONNECTION, "upgrade") || !says(headers, &UPGRADE, "websocket") {
        return wrong("the request does not ask for a WebSocket");
    }
    if !says(headers, &SEC_WEBSOCKET_VERSION, VERSION) {
        return wrong("only version 13 of WebSocket is spoken");
    }
    if !says(headers, &SEC_WEBSOCKET_PROTOCOL, websocket::SUBPROTOCOL) {
        return wrong("the subprotocol is mqtt");
    }
    match headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes) {
        Some(key) if key.len() == KEY_LENGTH => {
            HeaderValue::try_from(websocket::accept_key(key)).or_else(|_| wrong("the key is none"))
        }
        _ => wrong("Sec-WebSocket-Key is 16 bytes in base64"),
    }
}

/// Whether a header that lists words has this one.
fn says(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|said| said.trim().eq_ignore_ascii_case(word))
}
