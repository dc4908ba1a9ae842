//! What a check says of the way that clients go.

use millpond_storage::{Findings, Storage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::Place;
use crate::common::Server;

pub async fn a_check_finds_nothing_wrong(place: &Place) {
    assert_eq!(place.storage.check().await, Findings::default());
    place.keeps(0).await;
}

pub async fn a_check_says_what_is_wrong_with_the_public_url(place: &Place) {
    // With the bucket in the host name all ways are the proxy's.
    if !place.config.path_style {
        return;
    }
    let check = async |url: &Url| {
        let mut config = place.config.clone();
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
    let renamed = renaming_proxy(place.config.endpoint.clone()).await;
    let found = check(&renamed).await;
    assert!(found.problems[0].contains("host header") && found.warnings.is_empty(), "{found:?}");

    // Another storage.
    let other = Server::start_with(|other| {
        other.access_key.clone_from(&place.config.access_key);
        other.secret_key.clone_from(&place.config.secret_key);
    })
    .await;
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
    place.keeps(0).await;
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
