//! Which listener is behind which door: plain, or TLS with the server's one certificate.

use std::time::Duration;

use anyhow::{Context, anyhow};
use millpond_net::tls::Renewal;
use millpond_net::{Door, Tls, tls};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::ledger::Ledger;

/// The doors of all listeners.
pub(crate) struct Doors {
    tls: Option<Tls>,
    authority: Option<Authority>,
    config: Config,
}

/// Who signed the server's certificate, where clients do not trust it already.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Where its certificate is, on the server.
    pub file: String,
    /// The same in PEM.
    pub pem: String,
}

impl Doors {
    /// Reads certificate and key, where TLS is configured.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        let loaded = config.tls.files().map(Tls::load).transpose();
        let tls = loaded.map_err(|wrong| {
            anyhow!(wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")).context("[tls]")
        })?;
        let read = |file: &String| {
            let pem = tls::authority(file.as_ref()).map_err(|what| anyhow!(what)).context("tls.ca_file")?;
            anyhow::Ok(Authority { file: file.clone(), pem })
        };
        let authority = config.tls.ca_file.as_ref().map(read).transpose()?;
        Ok(Self { tls, authority, config: config.clone() })
    }

    /// Of MQTT over TLS, where members may show certificates. A browser would show its own to any page, so on the other
    /// ports nobody is asked.
    pub(crate) fn mqtts(&self) -> Door {
        self.door("mqtt", true, Door::members)
    }

    /// Of the HTTP API.
    pub(crate) fn http(&self) -> Door {
        self.door("http", self.config.http_tls(), Door::tls)
    }

    /// Of the embedded storage.
    pub(crate) fn storage(&self) -> Door {
        self.door("storage", self.config.storage_tls(), Door::tls)
    }

    /// What judges the certificates of members.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Who signed the certificate.
    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// Takes up renewed files until `shutdown`. What became of them is in the audit trail.
    pub(crate) fn watch(
        &self,
        ledger: Ledger,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (tls, every) = (self.tls.clone(), Duration::from_secs(self.config.tls.reload_s));
        async move {
            let tell = |renewal| {
                let ledger = ledger.clone();
                async move {
                    let (action, detail) = match renewal {
                        Renewal::Done { changed } => ("tls-renew", json!({ "changed": changed })),
                        Renewal::Refused { why } => ("tls-refuse", json!({ "reason": why })),
                    };
                    // A trail that cannot be written is in the log at least.
                    let _ = ledger.write(move |tx| tx.audit(None, "server", "local", action, &detail)).await;
                }
            };
            match tls {
                Some(tls) => tls.watch(every, tell, shutdown).await,
                None => shutdown.cancelled().await,
            }
        }
    }

    fn door(&self, of: &'static str, wanted: bool, make: fn(&'static str, Tls, Duration) -> Door) -> Door {
        match &self.tls {
            Some(tls) if wanted => {
                make(of, tls.clone(), Duration::from_secs(self.config.limits.connect_timeout_s))
            }
            _ => Door::plain(),
        }
    }
}
