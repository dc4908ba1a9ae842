//! Where clients find a server that comes and goes.

use std::net::SocketAddr;
use std::time::Duration;

use millpond_protocol::Refusal;
use millpond_tests::{Api, Credentials};
use tokio::sync::watch;

/// The server as long as it lives.
#[derive(Clone)]
pub struct Here {
    pub mqtt: SocketAddr,
    pub api: Api,
}

impl Here {
    /// The credentials at this address.
    pub fn of(&self, who: &Credentials) -> Credentials {
        Credentials { mqtt: self.mqtt, ..who.clone() }
    }
}

/// What the clients are told.
#[derive(Clone, Default)]
pub struct Now {
    pub server: Option<Here>,
    /// Nothing new is begun; what was begun comes to its end.
    pub last: bool,
}

/// A client's view of it.
#[derive(Clone)]
pub struct Home(watch::Receiver<Now>);

impl Home {
    pub fn new(now: watch::Receiver<Now>) -> Self {
        Self(now)
    }

    /// Whether to begin nothing new.
    pub fn is_last(&self) -> bool {
        self.0.borrow().last
    }

    /// Waits until nothing new is to be begun.
    pub async fn until_last(&self) {
        wait(&mut self.0.clone(), |now| now.last).await;
    }

    /// Waits for a server.
    async fn server(&mut self) -> Here {
        wait(&mut self.0, |now| now.server.is_some()).await.server.unwrap()
    }
}

/// Waits for it; for ever if the test has failed.
async fn wait(now: &mut watch::Receiver<Now>, holds: impl FnMut(&Now) -> bool + Send) -> Now {
    let found = now.wait_for(holds).await.ok().map(|now| now.clone());
    match found {
        Some(found) => found,
        None => std::future::pending().await,
    }
}

/// A client that does its work whatever becomes of the server.
pub trait Client: Send + Sized + 'static {
    /// Works until it is told to begin nothing new and has nothing left, or the server is gone: then it is called again, and goes
    /// on. What no crash explains is a panic.
    fn work(&mut self, here: Here, home: &Home) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Runs a client to its end; it may be given more to do after that.
pub async fn live<C: Client>(mut client: C, mut home: Home) -> C {
    loop {
        let here = home.server().await;
        match client.work(here, &home).await {
            Ok(()) => return client,
            Err(error) => explained(&error),
        }
        // The server may take a moment to be really gone.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a server that dies may be the cause of that.
fn explained(error: &anyhow::Error) {
    let refusal = error.downcast_ref::<Refusal>();
    assert!(refusal.is_none_or(|refusal| refusal.code.is_temporary()), "{error:#}");
    let wrong = error.downcast_ref::<Wrong>();
    assert!(wrong.is_none(), "{error:#}");
}

/// What no crash explains.
#[derive(Debug)]
pub struct Wrong(pub String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}
