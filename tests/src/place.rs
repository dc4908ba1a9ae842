//! Where the files of a server go: what must hold whatever the storage is, is tried on each.

use std::net::SocketAddr;

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
        let mut all = Vec::new();
        if let Self::SeaweedFs(storage) = self {
            all.extend(storage.settings());
        }
        // What a test sets holds.
        all.extend_from_slice(settings);
        let server = Server::with(&all).await;
        server.pool("demo", json!({ "window_s": 3_600 })).await;
        server
    }

    /// Where the storage of that server listens.
    pub fn address(&self, server: &Server) -> SocketAddr {
        match self {
            Self::Here => server.ports().storage.unwrap(),
            Self::SeaweedFs(storage) => address(&storage.endpoint),
        }
    }

    /// The storage of that server, as the server itself sees it.
    pub fn storage(&self, server: &Server) -> Storage {
        let config = match self {
            Self::Here => {
                let endpoint = format!("http://{}", self.address(server));
                let secret = std::fs::read_to_string(server.data().join("storage.secret")).unwrap();
                let secret = Secret::new(secret.trim());
                StorageConfig::new(endpoint.parse().unwrap(), "millpond", "millpond", secret)
            }
            Self::SeaweedFs(storage) => {
                let (endpoint, keys) = (storage.endpoint.parse().unwrap(), &storage.keys);
                let secret = Secret::new(&keys.secret);
                let mut config = StorageConfig::new(endpoint, SeaweedFs::BUCKET, &keys.access, secret);
                config.session_token = Some(&keys.token).filter(|token| !token.is_empty()).map(Secret::new);
                config
            }
        };
        Storage::new(&config).unwrap()
    }
}

/// A storage apart from the server that uses it, so that it can be away for a while.
pub enum Apart<'a> {
    /// The embedded one of another server.
    Millpond(Box<Server>, String),
    SeaweedFs(&'a SeaweedFs),
}

impl Place {
    /// The same kind of storage, where it can be away.
    pub async fn apart(&self) -> Apart<'_> {
        let Self::SeaweedFs(storage) = self else {
            // On a port that it keeps over a restart.
            let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = taken.local_addr().unwrap();
            drop(taken);
            let [key, secret] = KEYS;
            let listen = ("MILLPOND__STORAGE__LISTEN", &*address.to_string());
            let server = Box::new(Server::with(&[listen, key, secret]).await);
            return Apart::Millpond(server, format!("http://{address}"));
        };
        Apart::SeaweedFs(storage)
    }
}

const KEYS: [(&str, &str); 2] =
    [("MILLPOND__STORAGE__ACCESS_KEY", "key"), ("MILLPOND__STORAGE__SECRET_KEY", "secret-of-the-test")];

impl Apart<'_> {
    /// What a server of its kind of place needs beside to use it.
    pub fn settings(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Millpond(_, endpoint) => {
                let [key, secret] = KEYS;
                let (mode, at) = ("MILLPOND__STORAGE__MODE", "MILLPOND__STORAGE__ENDPOINT");
                vec![(mode, "external"), (at, endpoint), key, secret]
            }
            Self::SeaweedFs(_) => Vec::new(),
        }
    }

    pub fn endpoint(&self) -> &str {
        match self {
            Self::Millpond(_, endpoint) => endpoint,
            Self::SeaweedFs(storage) => &storage.endpoint,
        }
    }

    pub fn address(&self) -> SocketAddr {
        address(self.endpoint())
    }

    /// From now on it answers nobody.
    pub fn leave(&mut self) {
        match self {
            Self::Millpond(server, _) => server.kill(),
            Self::SeaweedFs(storage) => storage.hang(),
        }
    }

    pub async fn come_back(&mut self) {
        match self {
            Self::Millpond(server, _) => server.launch().await,
            Self::SeaweedFs(storage) => storage.go_on(),
        }
    }
}

fn address(endpoint: &str) -> SocketAddr {
    endpoint.strip_prefix("http://").unwrap().parse().unwrap()
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
