//! A server in a process of its own, over a directory that was filled beforehand.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use millpond::config::Config;
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::server::{Addresses, run};
use millpond_protocol::{Role, Sha256};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// A running server; dropped, it is killed.
pub struct Server {
    child: Child,
    pub addresses: Addresses,
}

impl Server {
    /// Starts one over `dir` and waits until it serves.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, |_| {}).await
    }

    /// The same, with its command changed.
    pub async fn start_with(dir: &Path, change: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        change(command.arg("serve").arg(dir));
        let ports = dir.join("ports.json");
        // Of one that was killed; there may be none.
        let _ = std::fs::remove_file(&ports);
        let mut child = command.spawn()?;
        for _ in 0..12_000 {
            if let Ok(text) = std::fs::read(&ports)
                && let Ok(addresses) = serde_json::from_slice(&text)
            {
                return Ok(Self { child, addresses });
            }
            if let Some(status) = child.try_wait()? {
                bail!("the server ended: {status}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the server does not start within a minute")
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in MiB: now, and at its peak.
    pub fn memory(&self) -> Result<(f64, f64)> {
        memory(self.id())
    }

    /// Seconds of processor time so far.
    pub fn cpu(&self) -> Result<f64> {
        cpu(self.id())
    }

    /// Lets the peak begin anew.
    pub fn reset_peak(&self) -> Result<()> {
        reset_peak(self.id())
    }
}

/// Resident memory of a process in MiB: now, and at its peak.
pub fn memory(process: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let kib = |key: &str| -> Result<f64> {
        let line = status.lines().find(|line| line.starts_with(key)).context("no such line in /proc")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.0)
    };
    Ok((kib("VmRSS:")?, kib("VmHWM:")?))
}

/// Seconds of processor time of a process so far.
pub fn cpu(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("no name in /proc")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || -> Result<f64> { Ok(fields.next().context("no times")?.parse()?) };
    // Linux counts hundredths there.
    Ok((ticks()? + ticks()?) / 100.0)
}

/// Lets the peak of a process begin anew.
pub fn reset_peak(process: u32) -> Result<()> {
    Ok(std::fs::write(format!("/proc/{process}/clear_refs"), "5")?)
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is our own child, and nothing of it is needed any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side.
pub async fn serve(dir: &Path) -> Result<()> {
    let mut config = Config::default();
    config.server.data_dir = dir.to_owned();
    config.mqtt.app_topics = vec!["app/+/#".into()];
    for listen in [&mut config.mqtt.listen, &mut config.http.listen, &mut config.storage.listen] {
        listen.set_port(0);
    }
    // The benchmarks of TLS have put a certificate there, which only MQTT uses.
    (config.http.tls, config.storage.tls) = (false, false);
    let file = |name: &str| Some(dir.join("tls").join(name)).filter(|path| path.is_file());
    let text = |path: Option<std::path::PathBuf>| path.map(|path| path.display().to_string());
    (config.tls.cert_file, config.tls.key_file) = (text(file("server.crt")), text(file("server.key")));
    config.mqtt.tls_listen = Some(([127, 0, 0, 1], 0).into());
    let clients = dir.join("tls/clients");
    if clients.is_dir() {
        config.tls.clients_dir = text(Some(clients));
        // One certificate stands for a fleet, and its list is looked at as often as may be.
        (config.tls.reload_s, config.limits.connections_per_member) = (1, 10_000);
    }
    let (ready, _addresses) = oneshot::channel();
    run(config, CancellationToken::new(), ready).await
}

/// Makes pool `p` with `publishers` members `pub0` …, `listeners` members `lis0` …, and the processor `proc`. A member's token is its name.
pub async fn prepare(ledger: &Ledger, policy: Policy, publishers: usize, listeners: usize) -> Result<()> {
    ledger
        .write(move |tx| {
            let (pool, _) = tx.apply_pool(&"p".parse()?, &policy)?;
            let mut add = |name: String, role| {
                let token = Sha256::of(name.as_bytes());
                tx.add_member(pool, &name.parse()?, role, &token)
            };
            for n in 0..publishers {
                add(format!("pub{n}"), Role::Publisher)?;
            }
            for n in 0..listeners {
                add(format!("lis{n}"), Role::Listener)?;
            }
            add("proc".into(), Role::Processor)?;
            Ok(())
        })
        .await?;
    Ok(())
}

/// Makes pool `apart` with publishers `apart0` …, whose tokens are their names.
pub async fn prepare_apart(ledger: &Ledger, publishers: usize) -> Result<()> {
    ledger
        .write(move |tx| {
            let (pool, _) = tx.apply_pool(&"apart".parse()?, &Policy::default())?;
            for name in (0..publishers).map(|n| format!("apart{n}")) {
                tx.add_member(pool, &name.parse()?, Role::Publisher, &Sha256::of(name.as_bytes()))?;
            }
            Ok(())
        })
        .await?;
    Ok(())
}
