//! Where the files of a server go: what must hold whatever the storage is, is tried on each.

use millpond_storage::{Secret, Storage, StorageConfig};
use serde_json::json;

use crate::{SeaweedFs, Server};

/// A storage that a server may have.
pub enum Place {
    /// Its own embedded one.
    Here,
    SeaweedFs(SeaweedFs),
}

impl Place {
    /// Whether storage says of each part that it has which hash it has.
    pub fn lists_hashes_of_parts(&self) -> bool {
        match self {
            Self::Here => true,
            Self::SeaweedFs(_) => false,
        }
    }

    /// A server with the pool `demo`.
    pub async fn server(&self, settings: &[(&str, &str)]) -> Server {
        let mut all: Vec<_> = settings.to_vec();
        if let Self::SeaweedFs(storage) = self {
            all.extend(storage.settings());
        }
        let server = Server::with(&all).await;
        server.pool("demo", json!({ "window_s": 3_600 })).await;
        server
    }

    /// The storage of that server, as the server itself sees it.
    pub fn storage(&self, server: &Server) -> Storage {
        let config = match self {
            Self::Here => {
                let endpoint = format!("http://{}", server.ports().storage.unwrap());
                let secret = std::fs::read_to_string(server.data().join("storage.secret")).unwrap();
                let secret = Secret::new(secret.trim());
                StorageConfig::new(endpoint.parse().unwrap(), "millpond", "millpond", secret)
            }
            Self::SeaweedFs(storage) => {
                let (endpoint, secret) =
                    (storage.endpoint.parse().unwrap(), Secret::new(SeaweedFs::SECRET_KEY));
                StorageConfig::new(endpoint, SeaweedFs::BUCKET, SeaweedFs::ACCESS_KEY, secret)
            }
        };
        Storage::new(&config).unwrap()
    }
}

/// The keys of all objects of a storage.
pub async fn listed(storage: &Storage) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let page = storage.list(all.last().map_or("", String::as_str)).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page.into_iter().map(|object| object.key));
    }
}
