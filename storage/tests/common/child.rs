//! An embedded server as a process of its own: the test's binary, run again.

use std::path::Path;

use millpond_storage::embedded::EmbeddedConfig;
use millpond_storage::{Storage, StorageConfig, embedded};
use url::Url;

use super::{BUCKET, Signer, secret, settles};

/// Serves for ever, and writes where into `dir`.
pub async fn serve(dir: &Path, config: EmbeddedConfig) {
    let embedded = embedded::open(&dir.join("s3"), config).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    std::fs::write(dir.join("address.new"), listener.local_addr().unwrap().to_string()).unwrap();
    std::fs::rename(dir.join("address.new"), dir.join("address")).unwrap();
    embedded.serve(listener, Default::default()).await.unwrap();
}

/// Waits until it serves, and reaches it.
pub async fn reach(dir: &Path) -> (Storage, Signer) {
    settles(|| dir.join("address").exists(), || "the server does not start".into()).await;
    let address = std::fs::read_to_string(dir.join("address")).unwrap();
    let endpoint = Url::parse(&format!("http://{address}")).unwrap();
    let mut config = StorageConfig::new(endpoint.clone(), BUCKET, "access", secret());
    config.attempts = 1;
    (Storage::new(&config).unwrap(), Signer::new(&endpoint))
}
