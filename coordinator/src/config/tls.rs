//! `[tls]`: the server's certificate, and which listeners use it.

use std::net::SocketAddr;

use millpond_net::tls::{Files, Part};
use serde::{Deserialize, Serialize};

use super::load::Problem;
use super::{Config, StorageMode, optional};

/// The certificate of all listeners. With one, every listener that has not `tls = false` speaks TLS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The server's certificate in PEM, then those that lead to its authority.
    #[serde(with = "optional")]
    pub cert_file: Option<String>,
    /// Its key in PEM, without a password, closed to others.
    #[serde(with = "optional")]
    pub key_file: Option<String>,
    /// The authority's certificate in PEM, which `member add` hands out. Empty: clients trust it already.
    #[serde(with = "optional")]
    pub ca_file: Option<String>,
    /// The directory of authorities that speak for members, `{pool}.crt`, and of what they revoked, `{pool}.crl`. Empty:
    /// no member signs in with a certificate.
    #[serde(with = "optional")]
    pub clients_dir: Option<String>,
    /// Seconds between looks at all of these files. Raising it takes renewed ones up later.
    pub reload_s: u64,
}

impl Default for Tls {
    fn default() -> Self {
        Self { cert_file: None, key_file: None, ca_file: None, clients_dir: None, reload_s: 10 }
    }
}

impl Tls {
    /// Where certificate and key are, if there are any.
    pub fn files(&self) -> Option<Files> {
        let (cert, key) = (self.cert_file.as_ref()?, self.key_file.as_ref()?);
        Some(Files { cert: cert.into(), key: key.into(), clients: self.clients_dir.as_ref().map(Into::into) })
    }
}

/// An address to listen on.
pub(super) struct Listens {
    /// Its key.
    pub(super) key: &'static str,
    pub(super) at: SocketAddr,
    /// Whether what passes it is encrypted.
    pub(super) tls: bool,
}

impl Config {
    /// Where MQTT over TLS is spoken, if it is.
    pub fn mqtt_tls(&self) -> Option<SocketAddr> {
        self.tls.files().and(self.mqtt.tls_listen)
    }

    /// Whether the HTTP API is `https://`.
    pub fn http_tls(&self) -> bool {
        self.http.tls && self.tls.files().is_some()
    }

    /// Whether the embedded storage is `https://`.
    pub fn storage_tls(&self) -> bool {
        self.storage.tls && self.tls.files().is_some() && self.storage.mode == StorageMode::Embedded
    }

    /// All addresses that others may reach.
    pub(super) fn listens(&self) -> Vec<Listens> {
        let mqtt = Listens { key: "mqtt.listen", at: self.mqtt.listen, tls: false };
        let http = Listens { key: "http.listen", at: self.http.listen, tls: self.http_tls() };
        let mqtts = self.mqtt_tls().map(|at| Listens { key: "mqtt.tls_listen", at, tls: true });
        let storage = (self.storage.mode == StorageMode::Embedded).then(|| Listens {
            key: "storage.listen",
            at: self.storage.listen,
            tls: self.storage_tls(),
        });
        [Some(mqtt), mqtts, Some(http), storage].into_iter().flatten().collect()
    }

    /// Appends what is wrong with `[tls]`, its files included.
    pub(super) fn check_tls(&self, problems: &mut Vec<Problem>) {
        let tls = &self.tls;
        let mut wrong = |key: &str, message: String| problems.push(Problem::new(key, message));
        if !(1..=86_400).contains(&tls.reload_s) {
            wrong("tls.reload_s", format!("{} is not within 1 and 86400 seconds", tls.reload_s));
        }
        match (&tls.cert_file, &tls.key_file) {
            (None, Some(_)) => wrong("tls.cert_file", "is needed beside tls.key_file".into()),
            (Some(_), None) => wrong("tls.key_file", "is needed beside tls.cert_file".into()),
            (None, None) if tls.ca_file.is_some() => {
                wrong("tls.ca_file", "belongs to a server with tls.cert_file and tls.key_file".into());
            }
            (None, None) if tls.clients_dir.is_some() => {
                wrong("tls.clients_dir", "belongs to a server with tls.cert_file and tls.key_file".into());
            }
            _ => {}
        }
        if let Some(Err(found)) = tls.files().map(millpond_net::Tls::load) {
            for file in found {
                let key = match file.part {
                    Part::Cert => "tls.cert_file",
                    Part::Key => "tls.key_file",
                    Part::Clients => "tls.clients_dir",
                };
                wrong(key, file.message);
            }
        }
        if let Some(path) = &tls.ca_file
            && let Err(message) = millpond_net::tls::authority(path.as_ref())
        {
            wrong("tls.ca_file", message);
        }
        if self.storage_tls() && self.storage.public_url.as_ref().is_some_and(|url| url.scheme() == "http") {
            wrong(
                "storage.public_url",
                "begins with http:// and storage.listen speaks TLS: write https://, or set storage.tls = false".into(),
            );
        }
    }
}
