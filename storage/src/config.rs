//! Where storage is and how to speak to it.

use std::time::Duration;

use url::Url;

use crate::limits;
pub use crate::secret::Secret;

/// Where storage is and how to speak to it.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// What the server calls: scheme, host and port.
    pub endpoint: Url,
    /// What URLs for clients are signed for: scheme, host and port. A signature holds for this host alone.
    pub public_url: Url,
    /// The region that signatures name; servers other than AWS mostly accept one of their own.
    pub region: String,
    /// The bucket that holds every object. It must exist.
    pub bucket: String,
    /// The public half of the credentials.
    pub access_key: String,
    /// The secret half of the credentials.
    pub secret_key: Secret,
    /// The token that belongs to temporary credentials.
    pub session_token: Option<Secret>,
    /// Certificates in PEM of the authorities that are trusted beside the public ones.
    pub ca: Option<Vec<u8>>,
    /// The proxy that the server's calls go through. Those of the environment are not used.
    pub proxy: Option<Url>,
    /// Whether the bucket stands in the path (`host/bucket/key`) rather than in the host (`bucket.host/key`).
    pub path_style: bool,
    /// How long one call may take, retries included. Raising it keeps callers waiting longer when storage is away.
    pub call_timeout: Duration,
    /// How often a call is tried in all, at least 1.
    pub attempts: u32,
    /// Whether storage is asked after a write whether the object is there. Only a storage that is known to answer after it
    /// has synced is taken at its word: the embedded one.
    pub confirm: bool,
    /// Whether URLs say whom they were made for: the embedded server asks whether that one may still use them.
    pub names_holders: bool,
}

/// Everything that is wrong with a [`StorageConfig`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BadConfig(pub Vec<String>);

impl StorageConfig {
    /// A configuration with the defaults: URLs for the endpoint itself, region `us-east-1`, path style, 30 s a call.
    pub fn new(endpoint: Url, bucket: &str, access_key: &str, secret_key: Secret) -> Self {
        Self {
            public_url: endpoint.clone(),
            endpoint,
            region: "us-east-1".into(),
            bucket: bucket.into(),
            access_key: access_key.into(),
            secret_key,
            session_token: None,
            ca: None,
            proxy: None,
            path_style: true,
            call_timeout: limits::CALL,
            attempts: limits::ATTEMPTS,
            confirm: true,
            names_holders: false,
        }
    }

    /// Finds everything that is wrong, without speaking to anybody.
    pub fn validate(&self) -> Result<(), BadConfig> {
        let mut wrong = Vec::new();
        let urls = [
            ("endpoint", Some(&self.endpoint)),
            ("public_url", Some(&self.public_url)),
            ("proxy", self.proxy.as_ref()),
        ];
        for (name, url) in urls.into_iter().filter_map(|(name, url)| Some((name, url?))) {
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                wrong.push(format!("{name} is an http:// or https:// URL with a host"));
            } else if url.path() != "/"
                || url.query().is_some()
                || url.fragment().is_some()
                || !url.username().is_empty()
                || url.password().is_some()
            {
                wrong.push(format!("{name} has a scheme, a host and a port and nothing else"));
            }
        }
        if !bucket_rule(&self.bucket) {
            wrong.push(
                "bucket is 3–63 of a–z, 0–9, - and ., and starts and ends with a letter or digit".into(),
            );
        }
        let filled = [
            ("region", &*self.region),
            ("access_key", &self.access_key),
            ("secret_key", self.secret_key.expose()),
        ];
        for (name, text) in filled {
            if text.is_empty() || text.len() > 256 || !text.bytes().all(|b| b.is_ascii_graphic()) {
                wrong.push(format!("{name} is 1–256 visible ASCII characters"));
            }
        }
        if let Some(token) = &self.session_token
            && (token.expose().is_empty() || !token.expose().bytes().all(|b| b.is_ascii_graphic()))
        {
            wrong.push("session_token is visible ASCII characters".into());
        }
        for (name, text) in [("region", &self.region), ("access_key", &self.access_key)] {
            if text.contains('/') {
                wrong.push(format!("{name} has no /"));
            }
        }
        if self.call_timeout.is_zero() {
            wrong.push("call_timeout is more than zero".into());
        }
        if self.attempts == 0 {
            wrong.push("attempts is at least 1".into());
        }
        if wrong.is_empty() { Ok(()) } else { Err(BadConfig(wrong)) }
    }
}

/// The naming rule of S3 buckets, as far as every server agrees on it.
pub(crate) fn bucket_rule(name: &str) -> bool {
    let end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (3..=63).contains(&name.len())
        && name.bytes().all(good)
        && end(name.bytes().next())
        && end(name.bytes().last())
        && !["..", ".-", "-."].iter().any(|pair| name.contains(pair))
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> StorageConfig {
        let endpoint = Url::parse("http://127.0.0.1:9000").unwrap();
        StorageConfig::new(endpoint, "millpond", "key", Secret::new("hush-hush"))
    }

    #[test]
    fn a_secret_shows_in_no_debug_output() {
        assert!(!format!("{:?}", good()).contains("hush"));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        assert_eq!(good().validate(), Ok(()));
        let mut bad = good();
        bad.endpoint = Url::parse("ftp://host/").unwrap();
        bad.public_url = Url::parse("https://host/prefix").unwrap();
        bad.bucket = "No".into();
        bad.region = String::new();
        bad.secret_key = Secret::new("");
        bad.call_timeout = Duration::ZERO;
        bad.attempts = 0;
        let BadConfig(wrong) = bad.validate().unwrap_err();
        for (name, said) in
            ["endpoint", "public_url", "bucket", "region", "secret_key", "call_timeout", "attempts"]
                .iter()
                .zip(&wrong)
        {
            assert!(said.starts_with(name), "{said}");
        }
        assert_eq!(wrong.len(), 7);
    }

    #[test]
    fn buckets_are_named_as_s3_wants_it() {
        for good in ["abc", "a.b-c9", &"x".repeat(63)] {
            assert!(bucket_rule(good), "{good}");
        }
        for bad in ["", "ab", "-ab", "ab.", "a..b", "a.-b", "A-b", "a_b", "10.0.0.1", &"x".repeat(64)] {
            assert!(!bucket_rule(bad), "{bad}");
        }
    }
}
