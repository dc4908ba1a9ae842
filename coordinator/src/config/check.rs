//! What only several settings together can get wrong, and the ranges of single ones.

use std::collections::BTreeSet;

use millpond_protocol::{AppTopics, limits};
use millpond_storage::embedded::EmbeddedConfig;
use millpond_storage::{BadConfig, Secret};
use url::{Host, Url};

use super::load::Problem;
use super::tls::Listens;
use super::{Config, Storage, StorageMode};

impl Config {
    /// Appends every problem of a configuration whose values are well-formed.
    pub(super) fn check(&self, problems: &mut Vec<Problem>) {
        self.check_tls(problems);
        let mut wrong = |key: &str, message: String| problems.push(Problem::new(key, message));
        self.check_listeners(&mut wrong);
        self.check_sizes(&mut wrong);
        self.storage.check(&mut wrong);
        if self.server.data_dir.as_os_str().is_empty() {
            wrong("server.data_dir", "must name a directory".into());
        }
        if let Err(message) = crate::logging::check_filter(&self.log.filter) {
            wrong("log.filter", message);
        }
        for (key, seconds) in [
            ("http.request_timeout_s", self.http.request_timeout_s),
            ("storage.call_timeout_s", self.storage.call_timeout_s),
            ("limits.connect_timeout_s", self.limits.connect_timeout_s),
        ] {
            if !(1..=3_600).contains(&seconds) {
                wrong(key, format!("{seconds} is not within 1 and 3600 seconds"));
            }
        }
        // A grant outlives a restart and the longest call; what is granted for months is forgotten.
        let most = limits::GRANT_LIFE.as_secs();
        if !(1..=most).contains(&self.limits.grant_s) {
            wrong("limits.grant_s", format!("{} is not within 1 and {most} seconds", self.limits.grant_s));
        }
        if self.server.shutdown_grace_s > 3_600 {
            wrong("server.shutdown_grace_s", "is at most 3600 seconds".into());
        }
    }

    fn check_listeners(&self, wrong: &mut impl FnMut(&str, String)) {
        let listens = self.listens();
        for (i, Listens { key, at, tls }) in listens.iter().enumerate() {
            if !at.ip().is_loopback() && !tls && !self.server.allow_plaintext {
                let instead = match *key {
                    "mqtt.listen" => "listen on 127.0.0.1 and let clients use mqtt.tls_listen",
                    _ => "name a certificate in [tls] (`millpond tls init` makes one)",
                };
                wrong(
                    key,
                    format!(
                        "{at} can be reached from other machines and nothing is encrypted: {instead}, or accept that \
                         with server.allow_plaintext = true"
                    ),
                );
            }
            let before = listens[..i].iter().find(|before| before.at == *at && at.port() != 0);
            if let Some(before) = before {
                wrong(key, format!("{at} is {} already", before.key));
            }
        }
        let is_public =
            |listens: &Listens| listens.key.starts_with("mqtt.") && !listens.at.ip().is_loopback();
        if listens.iter().any(is_public) {
            let public = self.storage.public_url();
            if public.as_ref().is_some_and(is_loopback) {
                wrong(
                    "storage.public_url",
                    "is a loopback address, but clients on other machines would get its URLs: set what they can reach"
                        .into(),
                );
            }
        }
        if self.mqtt.public_host.contains(|c: char| c.is_whitespace() || c == '/') {
            wrong("mqtt.public_host", "is a host name or address".into());
        }
    }

    fn check_sizes(&self, wrong: &mut impl FnMut(&str, String)) {
        if let Err(bad) = AppTopics::new(&self.mqtt.app_topics) {
            wrong("mqtt.app_topics", bad.to_string());
        }
        if !(1..=self.mqtt.bundle_max).contains(&self.mqtt.publish_max) {
            wrong("mqtt.publish_max", "is at least 1 byte and at most mqtt.bundle_max".into());
        }
        if self.mqtt.bundle_max > limits::READ_PAST_MAX {
            wrong("mqtt.bundle_max", format!("is at most {} bytes", limits::READ_PAST_MAX));
        }
        for (key, number) in [
            ("http.event_streams_max", self.http.event_streams_max),
            ("limits.connections_per_member", self.limits.connections_per_member),
            ("http.connections_max", self.http.connections_max),
            ("http.connections_per_address", self.http.connections_per_address),
            ("storage.connections_max", self.storage.connections_max),
            ("storage.connections_per_address", self.storage.connections_per_address),
            ("limits.connections_max", self.limits.connections_max),
            ("limits.connections_per_address", self.limits.connections_per_address),
            ("limits.strangers_max", self.limits.strangers_max),
            ("limits.strangers_per_address", self.limits.strangers_per_address),
            ("limits.sign_in_failures_per_name", self.limits.sign_in_failures_per_name as usize),
            ("limits.sign_in_failures_per_address", self.limits.sign_in_failures_per_address as usize),
            ("limits.uncommitted_per_connection", self.limits.uncommitted_per_connection),
        ] {
            if !(1..=1_000_000).contains(&number) {
                wrong(key, format!("{number} is not within 1 and 1000000"));
            }
        }
        let least = 2 * (self.mqtt.bundle_max + limits::PACKET_OVERHEAD);
        if self.limits.uncommitted_bytes_max < least {
            wrong(
                "limits.uncommitted_bytes_max",
                format!("must hold two packets at least: {least} bytes with this mqtt.bundle_max"),
            );
        }
    }
}

impl Storage {
    /// What URLs for clients are signed for: `public_url`, or what follows from the rest; with the embedded server on
    /// port 0 only the bound listener knows. None if an external endpoint is missing.
    pub fn public_url(&self) -> Option<Url> {
        self.public_url.clone().or_else(|| match self.mode {
            StorageMode::Embedded => format!("http://{}", self.listen).parse().ok(),
            StorageMode::External => self.endpoint.clone(),
        })
    }

    fn check(&self, wrong: &mut impl FnMut(&str, String)) {
        for origin in &self.cors_origins {
            if origin != "*"
                && !origin.parse().is_ok_and(|url: Url| url.origin().ascii_serialization() == *origin)
            {
                let rule = "lists origins as browsers send them, such as https://app.example.org, or *";
                wrong("storage.cors_origins", format!("{rule}; not {origin}"));
            }
        }
        let half = self.access_key.is_empty() != self.secret_key.is_empty();
        match self.mode {
            StorageMode::Embedded => {
                if self.endpoint.is_some() {
                    wrong("storage.endpoint", "belongs to mode = \"external\"".into());
                }
                for (key, set) in [
                    ("storage.session_token", !self.session_token.is_empty()),
                    ("storage.ca_file", self.ca_file.is_some()),
                    ("storage.proxy", self.proxy.is_some()),
                ] {
                    if set {
                        wrong(key, "belongs to mode = \"external\"".into());
                    }
                }
                if half {
                    wrong("storage.access_key", "and the secret key are set together, or neither".into());
                }
            }
            StorageMode::External => {
                if self.quota_bytes > 0 || !self.cors_origins.is_empty() {
                    let rule =
                        "and cors_origins belong to mode = \"embedded\": set them at the external storage";
                    wrong("storage.quota_bytes", rule.into());
                }
                if self.endpoint.is_none() {
                    wrong("storage.endpoint", "is needed with mode = \"external\"".into());
                }
                if self.access_key.is_empty() {
                    wrong("storage.access_key", "is needed with mode = \"external\"".into());
                }
                if self.secret_key.is_empty() && self.secret_key_file.is_none() {
                    wrong(
                        "storage.secret_key",
                        "or secret_key_file is needed with mode = \"external\"".into(),
                    );
                }
            }
        }
        // Its range was looked at above.
        let mut told = BTreeSet::from(["call_timeout".to_owned()]);
        for problem in self.refused_by_storage() {
            // Each begins with its key.
            let (key, message) = problem.split_once(' ').unwrap_or((&problem, ""));
            if told.insert(key.to_owned()) {
                wrong(&format!("storage.{key}"), message.to_owned());
            }
        }
    }

    /// What storage itself would refuse at the start. What is missing is taken as good here.
    fn refused_by_storage(&self) -> Vec<String> {
        let or = |text: &str, made: &str| if text.is_empty() { made } else { text }.to_owned();
        let access_key = or(&self.access_key, "millpond");
        let secret = or(self.secret_key.expose(), "what-the-first-start-makes-up");
        let missing = || Url::parse("http://127.0.0.1").ok();
        let (Some(endpoint), Some(public_url)) =
            (self.endpoint.clone().or_else(missing), self.public_url.clone().or_else(missing))
        else {
            return Vec::new();
        };
        let mut found = match self.client(endpoint, public_url, &access_key, &secret).map(|it| it.validate())
        {
            Ok(Ok(())) => Vec::new(),
            Ok(Err(BadConfig(wrong))) => wrong,
            Err(unread) => {
                let place = |problem: &Problem| problem.place.trim_start_matches("storage.").to_owned();
                unread.0.iter().map(|it| format!("{} {}", place(it), it.message)).collect()
            }
        };
        if self.mode == StorageMode::Embedded {
            let mut server = EmbeddedConfig::new(&self.bucket, &access_key, Secret::new(secret));
            server.region.clone_from(&self.region);
            found.extend(server.validate().map_or_else(|BadConfig(wrong)| wrong, |()| Vec::new()));
        }
        found
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Some(Host::Ipv6(ip)) => ip.is_loopback() || ip.is_unspecified(),
        None => false,
    }
}
