//! One call of S3 over HTTP, one attempt: what goes out is signed, and what comes back is understood.
//!
//! Calls of one's own are signed as URLs for others are, in their query: every server that Millpond can use knows that,
//! and there is one signer. What a call says in headers is signed with it, the checksum of a body among them.

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::{Certificate, Proxy, Response, StatusCode};
use rusty_s3::signing::sign;
use rusty_s3::{Bucket, Credentials, Method, UrlStyle};
use url::Url;

use crate::config::{BadConfig, StorageConfig};
use crate::error::{Error, Fault};
use crate::limits;
use crate::xml;

/// What sends signed requests to one bucket.
pub(crate) struct Http {
    inner: reqwest::Client,
    /// Who takes calls in the network's place.
    #[cfg(feature = "simulated")]
    pub(crate) hands: Option<std::sync::Arc<dyn crate::hands::Hands>>,
    bucket: Bucket,
    credentials: Credentials,
    /// The clock, so that tests can have a wrong one.
    pub(crate) now: fn() -> Timestamp,
}

/// A request as an operation describes it.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) key: &'a str,
    pub(crate) query: &'a [(&'a str, &'a str)],
    /// With lower-case names; all are signed.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl<'a> Request<'a> {
    /// Without query, headers and body.
    pub(crate) fn new(method: Method, key: &'a str) -> Self {
        Self { method, key, query: &[], headers: Vec::new(), body: Bytes::new() }
    }
}

/// The bucket as it is reached at `base`.
pub(crate) fn bucket(config: &StorageConfig, name: &str, base: &Url) -> Result<Bucket, BadConfig> {
    let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
    Bucket::new(base.clone(), style, config.bucket.clone(), config.region.clone())
        .map_err(|error| BadConfig(vec![format!("{name} cannot carry the bucket in its host: {error}")]))
}

/// Whose signatures.
pub(crate) fn credentials(config: &StorageConfig) -> Credentials {
    let (key, secret) = (config.access_key.clone(), config.secret_key.expose());
    match &config.session_token {
        Some(token) => Credentials::new_with_token(key, secret, token.expose()),
        None => Credentials::new(key, secret),
    }
}

/// A client that trusts whom the configuration trusts and uses no proxy but the one it names: calls that went through
/// a proxy of the environment, to a storage on this very machine, would be a riddle to everybody.
pub(crate) fn builder(config: &StorageConfig) -> Result<reqwest::ClientBuilder, BadConfig> {
    let bad = |what: &str, error: reqwest::Error| BadConfig(vec![format!("{what}: {}", chain(&error))]);
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(limits::CONNECT)
        .pool_idle_timeout(limits::POOL_IDLE)
        .tcp_keepalive(Duration::from_secs(60))
        .user_agent(concat!("millpond/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = &config.proxy {
        builder = builder.proxy(Proxy::all(proxy.as_str()).map_err(|error| bad("proxy", error))?);
    }
    if let Some(pem) = &config.ca {
        let certificates = Certificate::from_pem_bundle(pem).map_err(|error| bad("ca", error))?;
        if certificates.is_empty() {
            return Err(BadConfig(vec!["ca holds no certificate in PEM".into()]));
        }
        builder = certificates.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    }
    Ok(builder)
}

impl Http {
    pub(crate) fn new(config: &StorageConfig) -> Result<Self, BadConfig> {
        Ok(Self {
            inner: builder(config)?.build().map_err(|error| BadConfig(vec![chain(&error)]))?,
            #[cfg(feature = "simulated")]
            hands: None,
            bucket: bucket(config, "endpoint", &config.endpoint)?,
            credentials: credentials(config),
            now: Timestamp::now,
        })
    }

    /// Sends `request`; what is not a success is an error.
    pub(crate) async fn send(&self, request: Request<'_>) -> Result<Response, Error> {
        let Request { method, key, query, mut headers, body } = request;
        let mut query = query.to_vec();
        // What is signed is signed in this order.
        query.sort_unstable();
        headers.sort_unstable();
        let now = (self.now)();
        let url = sign(
            &now,
            method,
            self.bucket.object_url(key),
            self.credentials.key(),
            self.credentials.secret(),
            self.credentials.token(),
            self.bucket.region(),
            limits::OWN_URL.as_secs(),
            query.into_iter(),
            headers.iter().map(|(name, value)| (*name, &**value)),
        );
        let head = method == Method::Head;
        // Of an empty body nothing is said unless one says it, and storage insists.
        if method != Method::Get && !head {
            headers.push(("content-length", body.len().to_string()));
        }
        let answer = self.carry(method, key, url, headers, body).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        match refused(answer, head, now).await {
            // Not every storage has a code for it.
            Error::Refused { fault: Fault::Credentials, detail } if self.credentials.token().is_some() => {
                Err(Error::refused(Fault::Credentials, format!("{detail}; the session token may have ended")))
            }
            error => Err(error),
        }
    }

    /// Sends what is signed.
    async fn carry(
        &self,
        method: Method,
        #[cfg_attr(not(feature = "simulated"), allow(unused_variables))] key: &str,
        url: Url,
        headers: Vec<(&'static str, String)>,
        body: Bytes,
    ) -> Result<Response, Error> {
        #[cfg(feature = "simulated")]
        if let Some(hands) = &self.hands {
            let call = crate::hands::Call { method: method.to_str(), key: key.to_owned(), headers, body };
            return crate::hands::send(&**hands, call).await;
        }
        let method = match method {
            Method::Head => reqwest::Method::HEAD,
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Delete => reqwest::Method::DELETE,
        };
        let send = headers
            .into_iter()
            .fold(self.inner.request(method, url), |send, (name, value)| send.header(name, value));
        send.body(body).send().await.map_err(|error| unsent(&error))
    }
}

/// The whole text of a short answer.
pub(crate) async fn text(mut answer: Response) -> Result<String, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unsent(&error))? {
        if bytes.len() + chunk.len() > limits::ANSWER_MAX {
            return Err(Error::refused(Fault::Endpoint, "an answer is far longer than S3 answers are"));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Error::refused(Fault::Endpoint, "an answer is not text"))
}

/// What an answer without success comes to, to a request that was signed at `now`.
pub(crate) async fn refused(answer: Response, head: bool, now: Timestamp) -> Error {
    let status = answer.status();
    let skew = skew(&answer, now);
    let region = answer.headers().get("x-amz-bucket-region").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = if head { String::new() } else { text(answer).await.unwrap_or_default() };
    let said = xml::refusal(&body).unwrap_or_default();
    let elsewhere = region.or(said.region).map(|region| format!("; the bucket's region is {region}"));
    let elsewhere = elsewhere.or(said.endpoint.map(|host| format!("; the bucket is at {host}")));
    let detail = match (&*said.code, &*said.message) {
        ("", _) => format!("HTTP {status}"),
        (code, "") => code.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    let wrong_place = status.is_redirection()
        || matches!(&*said.code, "AuthorizationQueryParametersError" | "IllegalLocationConstraintException");
    let detail = match elsewhere {
        Some(elsewhere) if wrong_place => detail + &elsewhere,
        _ => detail,
    };
    let error = if said.code.is_empty() { by_status(status, detail) } else { by_code(&said.code, detail) };
    match (error, skew) {
        // Whatever storage calls it: with clocks so far apart no signature can hold.
        (Error::Refused { fault: Fault::Credentials | Fault::Clock | Fault::Denied, detail }, Some(skew)) => {
            Error::refused(Fault::Clock, format!("{skew}; {detail}"))
        }
        (error, _) => error,
    }
}

/// How far the clock of storage is from ours, if it is too far for signatures.
fn skew(answer: &Response, now: Timestamp) -> Option<String> {
    let date = answer.headers().get("date")?.to_str().ok()?;
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    let seconds = theirs.as_second() - now.as_second();
    (seconds.unsigned_abs() > limits::SKEW.as_secs()).then(|| {
        let side = if seconds > 0 { "ahead of" } else { "behind" };
        format!("storage's clock is {} s {side} the one of this machine", seconds.abs())
    })
}

/// Why a request came to no answer.
pub(crate) fn unsent(error: &reqwest::Error) -> Error {
    let text = chain(error);
    // rustls says so in its text alone, several crates down.
    if text.contains("invalid peer certificate") {
        return Error::refused(Fault::Tls, text);
    }
    Error::Unavailable(text)
}

/// By the error code of S3, in any case. A code that nobody here knows is rather a passing trouble than a wrong setting.
pub(crate) fn by_code(code: &str, detail: String) -> Error {
    match code.to_ascii_lowercase().as_str() {
        "nosuchkey" | "resourcenotfound" => Error::NotFound,
        "nosuchupload" => Error::NoUpload,
        "nosuchbucket" | "invalidbucketname" => Error::refused(Fault::Bucket, detail),
        "requesttimetooskewed" => Error::refused(Fault::Clock, detail),
        "accessdenied" | "allaccessdisabled" => Error::refused(Fault::Denied, detail),
        "authorizationheadermalformed"
        | "authorizationqueryparameterserror"
        | "expiredtoken"
        | "invalidaccesskeyid"
        | "invalidtoken"
        | "notsignedup"
        | "signaturedoesnotmatch"
        | "tokenrefreshrequired" => Error::refused(Fault::Credentials, detail),
        "baddigest"
        | "entitytoolarge"
        | "entitytoosmall"
        | "incompletebody"
        | "invaliddigest"
        | "invalidpart"
        | "invalidpartorder"
        | "invalidrange"
        | "preconditionfailed"
        | "xamzcontentsha256mismatch"
        | "xamzcontentchecksummismatch" => Error::Mismatch(detail),
        "badrequest"
        | "illegallocationconstraintexception"
        | "invalidargument"
        | "invalidrequest"
        | "malformedxml"
        | "methodnotallowed"
        | "notimplemented"
        | "notsupported"
        | "permanentredirect"
        | "redirect"
        | "temporaryredirect" => Error::refused(Fault::Endpoint, detail),
        _ => Error::Unavailable(detail),
    }
}

fn by_status(status: StatusCode, detail: String) -> Error {
    match status.as_u16() {
        404 => Error::NotFound,
        401 => Error::refused(Fault::Credentials, detail),
        403 => Error::refused(Fault::Denied, detail),
        // What is not offered now will not be later.
        501 | 505 => Error::refused(Fault::Endpoint, detail),
        408 | 429 | 500.. => Error::Unavailable(detail),
        _ => Error::refused(Fault::Endpoint, detail),
    }
}

/// An error with all its causes; the outermost alone says little more than "error sending request". The URL is left
/// out: it may hold a signature.
fn chain(error: &reqwest::Error) -> String {
    let mut text = match error.url() {
        Some(url) => error.to_string().replace(&format!(" for url ({url})"), ""),
        None => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_can_tell_a_passing_trouble_from_a_wrong_setting() {
        let code = |code: &str| by_code(code, String::new());
        assert_eq!(code("NoSuchKey"), Error::NotFound);
        assert_eq!(code("NoSuchUpload"), Error::NoUpload);
        assert!(code("SlowDown").is_temporary() && code("InsufficientStorage").is_temporary());
        assert!(code("SomethingNew").is_temporary());
        assert!(matches!(code("NoSuchBucket"), Error::Refused { fault: Fault::Bucket, .. }));
        assert!(matches!(code("RequestTimeTooSkewed"), Error::Refused { fault: Fault::Clock, .. }));
        assert!(matches!(code("SignatureDoesNotMatch"), Error::Refused { fault: Fault::Credentials, .. }));
        assert!(matches!(code("AccessDenied"), Error::Refused { fault: Fault::Denied, .. }));
        assert!(matches!(code("BadDigest"), Error::Mismatch(_)));
        let status = |status| by_status(StatusCode::from_u16(status).unwrap(), String::new());
        assert!(status(503).is_temporary() && status(429).is_temporary());
        for wrong in [301, 405, 501] {
            assert!(matches!(status(wrong), Error::Refused { fault: Fault::Endpoint, .. }), "{wrong}");
        }
    }
}
