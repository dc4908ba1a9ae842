//! From the settings of storage to what its client and the embedded server want.

use std::time::Duration;

use millpond_protocol::limits;
use millpond_storage::embedded::EmbeddedConfig;
use millpond_storage::{Secret, StorageConfig};
use url::Url;

use super::Storage;
use super::load::{BadConfig, Problem};

/// How much longer the embedded server keeps parts than any grant holds.
const AFTER_GRANTS: Duration = Duration::from_secs(86_400);

impl Storage {
    /// What calls and URLs need, for an endpoint and credentials that may have been made at the start.
    ///
    /// # Errors
    /// `ca_file` cannot be read.
    pub fn client(
        &self,
        endpoint: Url,
        public_url: Url,
        access_key: &str,
        secret_key: &str,
    ) -> Result<StorageConfig, BadConfig> {
        let mut client = StorageConfig::new(endpoint, &self.bucket, access_key, Secret::new(secret_key));
        client.public_url = public_url;
        client.region.clone_from(&self.region);
        client.path_style = self.path_style;
        client.call_timeout = Duration::from_secs(self.call_timeout_s);
        client.proxy.clone_from(&self.proxy);
        client.session_token =
            Some(self.session_token.expose()).filter(|token| !token.is_empty()).map(Secret::new);
        client.ca = self.ca_file.as_deref().map(std::fs::read).transpose().map_err(|error| {
            let path = self.ca_file.as_deref().unwrap_or_default();
            BadConfig(vec![Problem::new("storage.ca_file", format!("{path} cannot be read: {error}"))])
        })?;
        Ok(client)
    }

    /// The same with everything from the settings; none with the embedded server.
    ///
    /// # Errors
    /// `ca_file` cannot be read.
    pub fn external(&self) -> Result<Option<StorageConfig>, BadConfig> {
        let (Some(endpoint), Some(public_url)) = (self.endpoint.clone(), self.public_url()) else {
            return Ok(None);
        };
        self.client(endpoint, public_url, &self.access_key, self.secret_key.expose()).map(Some)
    }

    /// What the embedded server needs, with credentials that may have been made at the start.
    pub fn embedded(&self, access_key: &str, secret_key: &str) -> EmbeddedConfig {
        let mut server = EmbeddedConfig::new(&self.bucket, access_key, Secret::new(secret_key));
        server.region.clone_from(&self.region);
        server.cors_origins.clone_from(&self.cors_origins);
        server.max_connections = self.connections_max;
        server.max_connections_per_address = self.connections_per_address;
        if self.quota_bytes > 0 {
            server.quota = self.quota_bytes;
        }
        // Whoever holds a grant finds the parts that came, even if none has come since its first day.
        server.abandoned = limits::GRANT_LIFE + AFTER_GRANTS;
        server
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_server_keeps_parts_for_longer_than_any_grant_holds() {
        let server = Storage::default().embedded("access", "a-secret-of-the-tests");
        assert!(server.abandoned > limits::GRANT_LIFE, "{:?}", server.abandoned);
    }
}
