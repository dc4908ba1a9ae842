//! The HTTP API as a client sees it.

use std::net::IpAddr;

use millpond_protocol::message::answer::PutTo;
use reqwest::Method;
use serde_json::Value;

/// A caller of `/v1` with a token.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Api {
    /// A caller; `base` is `http://host:port`.
    pub fn new(base: impl Into<String>, token: impl Into<String>) -> Self {
        Self::trusting(None, base, token)
    }

    /// A caller from an address of this machine, such as 127.0.0.2.
    pub fn from(source: IpAddr, base: impl Into<String>, token: impl Into<String>) -> Self {
        let http = reqwest::Client::builder().no_proxy().local_address(source);
        Self { http: http.build().unwrap(), base: base.into(), token: token.into() }
    }

    /// A caller that trusts this authority too, in PEM; `base` may be `https://host:port`.
    pub fn trusting(authority: Option<&[u8]>, base: impl Into<String>, token: impl Into<String>) -> Self {
        let mut http = reqwest::Client::builder().no_proxy();
        if let Some(pem) = authority {
            http = http.add_root_certificate(reqwest::Certificate::from_pem(pem).unwrap());
        }
        Self { http: http.build().unwrap(), base: base.into(), token: token.into() }
    }

    /// Status and body of any request; a body that is no JSON becomes a string.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_send(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The status of a GET, if there is an answer.
    pub async fn try_call(&self, path: &str) -> Option<u16> {
        let request = self.http.get(format!("{}{path}", self.base));
        request.send().await.ok().map(|response| response.status().as_u16())
    }

    async fn good(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!((200..300).contains(&status), "{path} answered {status}: {answer}");
        answer
    }

    /// GET that has to succeed; the path begins with `/`.
    pub async fn get(&self, path: &str) -> Value {
        self.good(Method::GET, path, None).await
    }

    /// PUT that has to succeed.
    pub async fn put(&self, path: &str, body: &Value) -> Value {
        self.good(Method::PUT, path, Some(body)).await
    }

    /// POST that has to succeed.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.good(Method::POST, path, Some(body)).await
    }

    /// PATCH that has to succeed.
    pub async fn patch(&self, path: &str, body: &Value) -> Value {
        self.good(Method::PATCH, path, Some(body)).await
    }

    /// DELETE that has to succeed.
    pub async fn delete(&self, path: &str) -> Value {
        self.good(Method::DELETE, path, None).await
    }

    /// PUTs to a presigned URL as anybody would, and answers the status.
    pub async fn send(&self, to: &PutTo, bytes: impl Into<bytes::Bytes>) -> u16 {
        self.try_put(to, bytes).await.unwrap()
    }

    /// The same to a server that may be gone.
    ///
    /// # Errors
    /// It is.
    pub async fn try_put(&self, to: &PutTo, bytes: impl Into<bytes::Bytes>) -> reqwest::Result<u16> {
        let mut request = self.http.put(&to.url).body(bytes.into());
        for (name, value) in &to.headers {
            request = request.header(name, value);
        }
        Ok(request.send().await?.status().as_u16())
    }

    /// The bytes behind a presigned URL, fetched as anybody would.
    pub async fn fetch(&self, url: &str) -> bytes::Bytes {
        self.try_fetch(url).await.unwrap()
    }

    /// The same from a server that may be gone.
    ///
    /// # Errors
    /// It is, or it refuses.
    pub async fn try_fetch(&self, url: &str) -> reqwest::Result<bytes::Bytes> {
        self.http.get(url).send().await?.error_for_status()?.bytes().await
    }

    /// Status and body of a request to a server that may be gone.
    ///
    /// # Errors
    /// It is.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> reqwest::Result<(u16, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }
}
