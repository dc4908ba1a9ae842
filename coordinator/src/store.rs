//! Storage as it is configured: the embedded server, started, or another one, and a handle that was tried.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use millpond_net::Listener;
use millpond_storage::embedded::{self, Embedded, Holders};
use millpond_storage::{Storage, StorageConfig};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config::{Config, StorageMode};
use crate::doors::Doors;
use crate::ledger::Ledger;
use crate::ledger::tokens::holds;
use crate::secrets;

/// How long storage may take to answer at the start.
const START: Duration = Duration::from_secs(30);

/// Storage as the rest of the server sees it.
pub(crate) struct Opened {
    pub handle: Storage,
    pub public_url: Url,
    /// Host and port of the URLs that clients get.
    pub host: String,
}

/// What the server itself reaches storage by.
struct Own {
    endpoint: Url,
    access_key: String,
    secret: String,
    /// The embedded server, which serves nobody else yet.
    embedded: Option<Embedded>,
}

type Tasks = JoinSet<anyhow::Result<()>>;

/// Opens storage for a server and its clients, starting the embedded server where it is configured, and asks it to keep
/// a test object.
pub(crate) async fn open(
    config: &Config,
    doors: &Doors,
    ledger: &Ledger,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<(Opened, Option<SocketAddr>)> {
    let settings = &config.storage;
    let own = own(config, Some(ledger), tasks, stop).await?;
    let public = match own.embedded {
        Some(_) => Some(listen("storage.listen", settings.listen)?),
        None => None,
    };
    let address = public.as_ref().map(TcpListener::local_addr).transpose()?;
    let public_url = match (&settings.public_url, address) {
        (Some(url), _) => url.clone(),
        (None, Some(address)) => url_of(if config.storage_tls() { "https" } else { "http" }, address)?,
        (None, None) => own.endpoint.clone(),
    };
    let mut client = settings.client(own.endpoint, public_url.clone(), &own.access_key, &own.secret)?;
    if let Some(authority) = doors.authority().filter(|_| config.storage_tls()) {
        // For the look at what clients reach.
        client.ca = Some(authority.pem.clone().into_bytes());
    }
    client.confirm = own.embedded.is_none();
    client.names_holders = own.embedded.is_some();
    let handle = tried(&client).await?;
    if own.embedded.is_some() {
        // Nobody else tries it now. Where others may, what a probe left is for `check` to name.
        handle.forget_probes().await.context("embedded storage")?;
    }
    if let Some((server, public)) = own.embedded.zip(public) {
        let (stop, public) = (stop.clone(), Listener::new(public, doors.storage()));
        tasks.spawn(async move { server.serve(public, stop).await.context("embedded storage") });
    }
    let host = host_of(&public_url, &client.bucket, client.path_style);
    Ok((Opened { handle, public_url, host }, address))
}

/// Looks each time: a URL ends with the right of whom it was made for, whatever was restarted meanwhile.
fn holders(ledger: Ledger) -> Holders {
    Arc::new(move |holder| {
        let ledger = ledger.clone();
        Box::pin(async move { ledger.look(move |sql| holds(sql, &holder)).await.ok() })
    })
}

/// Opens storage for this process alone: no client reaches the embedded server.
pub(crate) async fn open_alone(
    config: &Config,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Storage> {
    let own = own(config, None, tasks, stop).await?;
    tried(&config.storage.client(own.endpoint.clone(), own.endpoint, &own.access_key, &own.secret)?).await
}

async fn own(
    config: &Config,
    ledger: Option<&Ledger>,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Own> {
    let settings = &config.storage;
    let mut secret = settings.secret_key.expose().to_owned();
    let mut access_key = settings.access_key.clone();
    let (endpoint, embedded) = match settings.mode {
        StorageMode::Embedded => {
            if secret.is_empty() {
                secret = secrets::load_or_create(&config.server.data_dir.join("storage.secret"), "")?;
            }
            if access_key.is_empty() {
                "millpond".clone_into(&mut access_key);
            }
            let mut server = settings.embedded(&access_key, &secret);
            server.grace = Duration::from_secs(config.server.shutdown_grace_s);
            let dir = config.server.data_dir.join("objects");
            let opened = tokio::task::spawn_blocking(move || embedded::open(&dir, server)).await??;
            // The server's own calls have a listener to themselves: clients cannot use up its connections.
            let own = listen("a port of 127.0.0.1", (Ipv4Addr::LOCALHOST, 0).into())?;
            let endpoint = url_of("http", own.local_addr()?)?;
            // Whoever finds that port has no more right there than at the public one.
            let opened = match ledger {
                Some(ledger) => opened.asking(holders(ledger.clone())),
                None => opened,
            };
            let (server, stop) = (opened.clone(), stop.clone());
            tasks.spawn(async move { server.serve(own, stop).await.context("embedded storage") });
            (endpoint, Some(opened))
        }
        StorageMode::External => (settings.endpoint.clone().context("storage.endpoint is missing")?, None),
    };
    Ok(Own { endpoint, access_key, secret, embedded })
}

async fn tried(client: &StorageConfig) -> anyhow::Result<Storage> {
    let handle = Storage::new(client)?;
    tokio::time::timeout(START, handle.probe())
        .await
        .context("storage does not answer: check storage.endpoint")?
        .context("storage at storage.endpoint does not keep a test object: `millpond serve --check-config` says more")?;
    Ok(handle)
}

/// Connections that the kernel has made and the server not yet accepted, as far as `net.core.somaxconn` lets it: what comes beyond
/// is dropped without a word, and a client of a fleet that comes back tries again after seconds.
const BACKLOG: u32 = 16 << 10;

pub(crate) fn listen(key: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As the library's own listeners do: a server that starts again finds its port free.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().with_context(|| format!("cannot listen on {address}: change {key}, or stop what uses that port"))
}

/// Where URLs point: with the bucket in front, unless it stands in the path.
fn host_of(public_url: &Url, bucket: &str, path_style: bool) -> String {
    let text = public_url.as_str();
    let host = text.split("://").nth(1).unwrap_or(text).trim_end_matches('/');
    if path_style { host.to_owned() } else { format!("{bucket}.{host}") }
}

/// How programs on this machine reach an address that listens.
fn url_of(scheme: &str, mut address: SocketAddr) -> anyhow::Result<Url> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    Ok(Url::parse(&format!("{scheme}://{address}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_names_the_host_that_urls_have() {
        let url = "https://s3.example.org:8333/".parse().unwrap();
        assert_eq!(host_of(&url, "mill", true), "s3.example.org:8333");
        assert_eq!(host_of(&url, "mill", false), "mill.s3.example.org:8333");
    }
}
