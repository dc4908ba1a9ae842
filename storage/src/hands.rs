//! Calls that somebody takes in the network's place: a simulation, which says what becomes of each and when.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::http;
use reqwest::Response;

use crate::error::{Error, Fault};

/// Takes calls of S3.
pub trait Hands: Send + Sync {
    /// What comes back; nothing if no answer came, whatever storage has done.
    fn take(&self, call: Call) -> BoxFuture<'static, Option<Answer>>;
}

/// One attempt of a call.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: &'static str,
    /// Of the object.
    pub key: String,
    /// With lower-case names.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// What storage says.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// Passes a call on, and its answer back as if it came by the network.
pub(crate) async fn send(hands: &dyn Hands, call: Call) -> Result<Response, Error> {
    let answer = hands.take(call).await.ok_or_else(|| Error::Unavailable("no answer".into()))?;
    let response = http::Response::builder().status(answer.status);
    let response =
        answer.headers.into_iter().fold(response, |response, (name, value)| response.header(name, value));
    let response = response.body(answer.body);
    response.map(Response::from).map_err(|error| Error::refused(Fault::Endpoint, error.to_string()))
}
