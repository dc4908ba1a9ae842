//! The contract, against SeaweedFS.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a test that cannot go on fails")]

mod common;
mod contract;
#[path = "../../tests/src/seaweedfs.rs"]
mod seaweedfs;
#[path = "../../tests/src/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use contract::{Place, differs};
use millpond_storage::{Error, Fault, Findings, Secret, Storage, StorageConfig};
use seaweedfs::SeaweedFs;

fn config(server: &SeaweedFs, endpoint: &str) -> StorageConfig {
    let secret = Secret::new(&server.keys.secret);
    let mut config =
        StorageConfig::new(endpoint.parse().unwrap(), SeaweedFs::BUCKET, &server.keys.access, secret);
    config.attempts = 1;
    config.ca = Some(server.ca.clone().into_bytes());
    config
}

/// Waits until it can do what it is for.
async fn started() -> Option<SeaweedFs> {
    let server = SeaweedFs::start()?;
    let storage = Storage::new(&config(&server, &server.endpoint)).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = storage.probe().await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Some(server)
}

/// One test, for one copy of it runs at a time, and starting it takes seconds.
#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_keeps_the_contract_and_says_what_is_wrong() {
    let Some(server) = started().await else { return };
    let (mut broken, mut met) = (Vec::new(), BTreeSet::new());
    for (form, config) in [
        ("in the path", config(&server, &server.endpoint)),
        ("in the host name", in_the_host_name(&server)),
        ("with credentials that end", issued(&server, Some(3_600))),
    ] {
        macro_rules! run {
            ($($case:ident,)*) => {$(
                let place = Place::seaweedfs(config.clone());
                let case = async move {
                    contract::$case(&place).await;
                    place.end()
                };
                match tokio::spawn(case).await {
                    Ok(differs) => met.extend(differs),
                    Err(_) => broken.push((form, stringify!($case))),
                }
            )*};
        }
        object_cases!(run);
        url_cases!(run);
        part_cases!(run);
    }
    assert_eq!(broken, Vec::<(&str, &str)>::new());
    let idle: Vec<_> = differs::SEAWEEDFS.iter().filter(|differs| !met.contains(differs.claim)).collect();
    assert!(idle.is_empty(), "no case meets {idle:?}");

    faults(&server).await;
    credentials_that_ended(&server).await;
    certificate(&server).await;
    bucket_in_the_host_name(&server).await;
}

async fn faults(server: &SeaweedFs) {
    let fault = async |change: fn(&mut StorageConfig)| {
        let mut config = config(server, &server.endpoint);
        change(&mut config);
        match Storage::new(&config).unwrap().probe().await {
            Err(Error::Refused { fault, .. }) => fault,
            other => panic!("{other:?} with {config:?}"),
        }
    };
    assert_eq!(fault(|config| config.secret_key = Secret::new("wrong")).await, Fault::Credentials);
    assert_eq!(fault(|config| config.access_key = "nobody".into()).await, Fault::Credentials);
    assert_eq!(fault(|config| config.access_key = SeaweedFs::READER.into()).await, Fault::Denied);
    assert_eq!(fault(|config| config.bucket = "another-bucket".into()).await, Fault::Bucket);
}

/// What it needs of credentials that end.
fn issued(server: &SeaweedFs, seconds: Option<u32>) -> StorageConfig {
    let keys = server.issue(seconds);
    let mut config = config(server, &server.endpoint);
    (config.access_key, config.secret_key) = (keys.access, Secret::new(&keys.secret));
    config.session_token = Some(Secret::new(&keys.token));
    config
}

async fn credentials_that_ended(server: &SeaweedFs) {
    let storage = Storage::new(&issued(server, None)).unwrap();
    storage.probe().await.unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        match storage.probe().await {
            Ok(()) => assert!(Instant::now() < until, "they do not end"),
            Err(ended) => break ended,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(matches!(ended, Error::Refused { fault: Fault::Credentials, .. }), "{ended:?}");
    assert!(ended.to_string().contains("the session token may have ended"), "{ended}");
}

async fn certificate(server: &SeaweedFs) {
    let mut config = config(server, &server.tls_endpoint);
    let found = Storage::new(&config).unwrap().check().await;
    assert_eq!(found, Findings::default());
    config.ca = None;
    match Storage::new(&config).unwrap().probe().await {
        Err(Error::Refused { fault: Fault::Tls, detail }) => {
            assert!(detail.contains("UnknownIssuer"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
    // What is only known to be wrong with the URLs for others.
    let mut config = self::config(server, &server.endpoint);
    (config.public_url, config.ca) = (server.tls_endpoint.parse().unwrap(), None);
    let found = Storage::new(&config).unwrap().check().await;
    assert!(found.problems.is_empty() && found.warnings[0].contains("does not trust"), "{found:?}");
}

/// Nobody resolves the name: the server plays the proxy that knows the way, so that is tried as well.
fn in_the_host_name(server: &SeaweedFs) -> StorageConfig {
    let mut config = config(server, &format!("http://{}", SeaweedFs::DOMAIN));
    config.path_style = false;
    config.proxy = Some(server.endpoint.parse().unwrap());
    config
}

async fn bucket_in_the_host_name(server: &SeaweedFs) {
    let storage = Storage::new(&in_the_host_name(server)).unwrap();
    assert_eq!(storage.check().await, Findings::default());
    let url = storage.presign_get(&common::object("k"), common::MINUTE, common::now()).url;
    assert!(url.starts_with("http://millpond.s3.test/k?"), "{url}");
}
