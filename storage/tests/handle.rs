//! What becomes of calls when storage is away or refuses. What it does when all is well is in `contract`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Server, bytes, object};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Fault, Findings, Secret, Storage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

#[tokio::test]
async fn the_probe_says_what_is_wrong() {
    let server = Server::start().await;
    assert_eq!(server.storage.probe().await, Ok(()));
    server.settles_at(0).await;

    let refused = |storage: Storage| async move {
        match storage.probe().await {
            Err(Error::Refused { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    let mut config = server.config.clone();
    config.secret_key = Secret::new("another-secret-of-the-tests");
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.access_key = "nobody".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.region = "elsewhere".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.bucket = "another-bucket".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Bucket);
}

#[tokio::test]
async fn storage_that_is_away_is_unavailable_within_the_time_of_a_call() {
    // A port that listens and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = url::Url::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let mut config =
        millpond_storage::StorageConfig::new(endpoint, common::BUCKET, "access", common::secret());
    config.call_timeout = Duration::from_millis(300);
    let storage = Storage::new(&config).unwrap();
    let started = std::time::Instant::now();
    assert!(storage.stat(&object("k")).await.unwrap_err().is_temporary());
    assert!(started.elapsed() < Duration::from_secs(5));

    // A port that refuses.
    drop(silent);
    assert!(storage.probe().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn a_call_outlives_a_restart_of_storage() {
    let server = Server::start().await;
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let mut config = server.config.clone();
    config.attempts = 5;
    let storage = Storage::new(&config).unwrap();
    let body = Bytes::from_static(b"abc");
    let dir = server.stop().await;

    let call = tokio::spawn(async move { storage.put(&object("k"), body.clone(), Sha256::of(&body)).await });
    // The first attempt has been refused, or is about to be; a later one finds the server.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let embedded = common::reopen(dir.path()).await;
    let serve = tokio::spawn(async move { embedded.serve(listener, Default::default()).await });
    assert_eq!(call.await.unwrap(), Ok(()));
    serve.abort();
}

#[tokio::test]
async fn a_checksum_behind_the_body_is_compared_too() {
    use minio::s3::types::S3Api as _;
    let server = Server::start().await;
    let body = bytes(700_000);
    let base = server.config.endpoint.as_str().parse().unwrap();
    let keys = minio::s3::creds::StaticProvider::new("access", common::secret().expose(), None);
    let client = minio::s3::MinioClient::new(base, Some(keys), None, None).unwrap();
    for (key, signed) in [("unsigned", false), ("signed", true)] {
        minio::s3::builders::UploadPart::builder()
            .client(client.clone())
            .bucket(minio::s3::types::BucketName::new(common::BUCKET).unwrap())
            .object(minio::s3::types::ObjectKey::new(key).unwrap())
            .data(std::sync::Arc::new(Bytes::from(body.clone()).into()))
            .checksum_algorithm(Some(minio::s3::utils::ChecksumAlgorithm::SHA256))
            .use_trailing_checksum(true)
            .use_signed_streaming(signed)
            .build()
            .send()
            .await
            .unwrap();
        assert!(server.storage.get(&object(key), body.len()).await.unwrap() == body, "{key}");
    }
}

#[tokio::test]
async fn a_check_finds_nothing_wrong_with_the_embedded_server() {
    let server = Server::start().await;
    assert_eq!(server.storage.check().await, Findings::default());
    server.settles_at(0).await;
}

#[tokio::test]
async fn a_check_says_what_is_wrong_with_the_public_url() {
    let server = Server::start().await;
    let check = async |url: &Url| {
        let mut config = server.config.clone();
        config.public_url.clone_from(url);
        Storage::new(&config).unwrap().check().await
    };

    // Nobody there: clients may have another way, so it is a warning.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = Url::parse(&format!("http://{}", gone.local_addr().unwrap())).unwrap();
    drop(gone);
    let found = check(&nobody).await;
    assert!(found.problems.is_empty() && found.warnings[0].contains("does not answer"), "{found:?}");

    // A proxy that calls storage by another name than clients do.
    let renamed = renaming_proxy(server.config.endpoint.clone()).await;
    let found = check(&renamed).await;
    assert!(found.problems[0].contains("host header") && found.warnings.is_empty(), "{found:?}");

    // Another storage.
    let other = Server::start().await;
    let found = check(&other.config.endpoint).await;
    assert!(found.problems[0].contains("not in the bucket"), "{found:?}");

    // No storage at all.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let page = Url::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = silent.accept().await {
            tokio::spawn(async move {
                let mut head = vec![0; 8192];
                let _ = stream.read(&mut head).await;
                let answer = "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let found = check(&page).await;
    assert!(found.problems[0].contains("does not lead to the bucket"), "{found:?}");
    server.settles_at(0).await;
}

/// Hands requests on to `storage` under the name that storage has for itself.
async fn renaming_proxy(storage: Url) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outside = listener.local_addr().unwrap().to_string();
    let url = Url::parse(&format!("http://{outside}")).unwrap();
    let inside = storage.socket_addrs(|| None).unwrap()[0];
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let outside = outside.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(inside).await.unwrap();
                let mut head = vec![0; 8192];
                let read = client.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]).replace(&outside, &inside.to_string());
                server.write_all(head.as_bytes()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    url
}
