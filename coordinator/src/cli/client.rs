//! The HTTP client of `/v1`.

use std::path::PathBuf;
use std::time::Duration;

use millpond_protocol::error::ErrorBody;
use reqwest::{Certificate, Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::failure::{FAILED, Failure, RETRY, USAGE};
use crate::config;

/// Longest time for one request; the server's own limit is 30 s by default.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Longest silence of a server: whatever it streams, it sends something every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// The same while it copies its ledger, however large, before it can say anything.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Which server, and who asks.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(super) struct Target {
    /// URL of the server's HTTP API.
    #[arg(
        long,
        global = true,
        env = "MILLPOND_SERVER",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    server: Url,
    /// File with the admin token or an operator's token [else MILLPOND_TOKEN, else admin.token in the data directory].
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates in PEM that the server's may come from, beside the public authorities.
    #[arg(long, global = true, value_name = "FILE", env = "MILLPOND_CA_FILE")]
    ca_file: Option<PathBuf>,
}

impl Target {
    fn token(&self) -> Result<String, Failure> {
        if let Some(path) = &self.token_file {
            return read_token(path).map_err(|message| Failure::new(USAGE, message));
        }
        if let Ok(token) = std::env::var("MILLPOND_TOKEN")
            && !token.trim().is_empty()
        {
            return Ok(token.trim().to_owned());
        }
        let data = std::env::var_os("MILLPOND__SERVER__DATA_DIR")
            .map_or_else(|| config::Server::default().data_dir, PathBuf::from);
        read_token(&data.join("admin.token")).map_err(|message| {
            Failure::new(USAGE, format!("no token: {message}"))
                .hint("name it with --token-file DATA/admin.token or in MILLPOND_TOKEN")
        })
    }
}

fn authorities(path: &std::path::Path) -> Result<Vec<Certificate>, Failure> {
    let wrong = |what: String| Failure::new(USAGE, format!("--ca-file {}: {what}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(found) if found.is_empty() => Err(wrong("holds no certificate in PEM".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn read_token(path: &std::path::Path) -> Result<String, String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Err(format!("{} is empty", path.display())),
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

/// Which part of a list.
#[derive(Debug, clap::Args)]
pub(super) struct Page {
    /// Entries in one page, at most 1000.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    /// Where the last page ended.
    #[arg(long)]
    cursor: Option<String>,
}

impl Page {
    pub(super) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.cursor.clone().map(|cursor| ("cursor", cursor)));
        query
    }
}

/// A client with its credentials.
pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
    token: String,
}

impl Client {
    /// A client for the server that the command line names.
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        Self::of(target, SILENCE)
    }

    /// The same for what takes long to begin.
    pub(super) fn patient(target: &Target) -> Result<Self, Failure> {
        Self::of(target, PATIENCE)
    }

    fn of(target: &Target, silence: Duration) -> Result<Self, Failure> {
        let ca = target.ca_file.as_deref().map(authorities).transpose()?;
        Self::build(target.server.clone(), target.token()?, ca.unwrap_or_default(), silence)
    }

    /// A client for this server, with this token, that trusts these authorities too.
    pub(super) fn with_token(server: Url, token: String, trusted: Vec<Certificate>) -> Result<Self, Failure> {
        Self::build(server, token, trusted, SILENCE)
    }

    fn build(
        server: Url,
        token: String,
        trusted: Vec<Certificate>,
        silence: Duration,
    ) -> Result<Self, Failure> {
        if !matches!(server.scheme(), "http" | "https") || server.cannot_be_a_base() {
            return Err(Failure::new(USAGE, format!("{server} is no http:// or https:// URL")));
        }
        let mut builder =
            reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(silence);
        for authority in trusted {
            builder = builder.add_root_certificate(authority);
        }
        if matches!(server.host_str(), Some("127.0.0.1" | "[::1]" | "localhost")) {
            // A proxy cannot reach this machine's own loopback address.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| Failure::new(FAILED, error.to_string()))?;
        Ok(Self { http, server, token })
    }

    /// GET of a path below `/v1/`; its parts are names and numbers, which need no escaping.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        read(self.send(Method::GET, path, query, None::<&()>, Some(TIMEOUT)).await?).await
    }

    /// A request that changes something.
    pub(super) async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        read(self.send(method, path, query, body, Some(TIMEOUT)).await?).await
    }

    /// GET of an event stream, which has no end.
    pub(super) async fn stream(&self, path: &str, query: &[(&str, String)]) -> Result<Response, Failure> {
        self.send(Method::GET, path, query, None::<&()>, None).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
        timeout: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut url = self.server.clone();
        url.set_path(&format!("{}/v1/{path}", self.server.path().trim_end_matches('/')));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        request = match timeout {
            Some(timeout) => request.timeout(timeout),
            None => request.header("accept", "text/event-stream"),
        };
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        Err(match serde_json::from_str::<ErrorBody>(&text) {
            Ok(body) => body.error.into(),
            Err(_) => Failure::new(
                if status.is_server_error() { RETRY } else { FAILED },
                format!("the server said {status}"),
            )
            .hint(format!("is {} a Millpond server's HTTP address?", self.server)),
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let what = if error.is_timeout() { "did not answer in time" } else { "cannot be reached" };
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Failure::new(RETRY, format!("{} {what}: {cause}", self.server))
            .hint("is the server running? name it with --server or MILLPOND_SERVER; one with TLS is https://, and one with a CA of its own takes --ca-file")
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let bytes = response
        .bytes()
        .await
        .map_err(|error| Failure::new(RETRY, format!("the answer broke off: {error}")))?;
    // 204 has no body, which reads as null.
    let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        Failure::new(FAILED, format!("the server's answer does not read: {error}"))
            .hint("use a millpond of the same version as the server")
    })
}
