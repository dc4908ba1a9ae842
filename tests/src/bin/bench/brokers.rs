//! Other brokers to compare with, each in a directory and on a port of its own; what is not installed is left out.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};
use millpond_tests::Shim;
use tempfile::TempDir;

/// What a sync takes longer on a good disk than on this one.
pub const SLOW_SYNC: Duration = Duration::from_millis(2);

/// A broker that runs; dropped, it is killed.
pub struct Broker {
    pub address: SocketAddr,
    processes: Vec<Child>,
    _directory: TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // Each leads a group, for those that are scripts around the broker.
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
            let _ = process.wait();
        }
    }
}

impl Broker {
    /// Waits until it listens; none if it could not be started because it is not there.
    fn up(directory: TempDir, port: u16, commands: Vec<Command>) -> Result<Option<Self>> {
        let mut broker = Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            processes: Vec::new(),
            _directory: directory,
        };
        for mut command in commands {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            match command.spawn() {
                Ok(process) => broker.processes.push(process),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        for _ in 0..1_200 {
            if TcpStream::connect(broker.address).is_ok() {
                return Ok(Some(broker));
            }
            if let Some(Some(status)) = broker.processes.last_mut().map(Child::try_wait).transpose()? {
                bail!("a broker ended with {status} before it listened");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("a broker does not listen after a minute")
    }
}

fn port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// mosquitto, which keeps what it has in memory.
pub fn mosquitto() -> Result<Option<Broker>> {
    let (directory, port) = (tempfile::tempdir()?, port()?);
    let file = directory.path().join("mosquitto.conf");
    // It drops what does not fit its queue: a run that lost messages would be no reference.
    let settings =
        "allow_anonymous true\nmax_inflight_messages 100\nmax_queued_messages 0\nset_tcp_nodelay true\n";
    std::fs::write(&file, format!("listener {port} 127.0.0.1\n{settings}"))?;
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(file);
    Broker::up(directory, port, vec![command])
}

/// nats-server with JetStream, which acknowledges before what it has is on disk.
pub fn nats() -> Result<Option<Broker>> {
    let (directory, port, own) = (tempfile::tempdir()?, port()?, port()?);
    let file = directory.path().join("nats.conf");
    let store = directory.path().join("store");
    let settings = format!(
        "server_name: bench\nlisten: 127.0.0.1:{own}\njetstream {{ store_dir: {store:?} }}\nmqtt {{ listen: 127.0.0.1:{port} }}\n"
    );
    std::fs::write(&file, settings)?;
    let mut command = Command::new("nats-server");
    command.arg("-c").arg(file);
    Broker::up(directory, port, vec![command])
}

/// RabbitMQ with its MQTT plugin, which acknowledges what its durable queues have on disk; with syncs that take longer if a shim says so.
pub fn rabbitmq(shim: Option<&Shim>) -> Result<Option<Broker>> {
    let server = Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if !server.exists() {
        return Ok(None);
    }
    let (directory, port, distribution, names) = (tempfile::tempdir()?, port()?, port()?, port()?);
    let home = directory.path();
    let settings =
        format!("listeners.tcp = none\nmqtt.listeners.tcp.default = 127.0.0.1:{port}\nlog.console = false\n");
    std::fs::write(home.join("rabbitmq.conf"), settings)?;
    std::fs::write(home.join("plugins"), "[rabbitmq_mqtt].")?;
    let mut epmd = Command::new("epmd");
    epmd.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
    let mut command = Command::new(server);
    command.env("HOME", home).env("RABBITMQ_NODENAME", "bench@localhost");
    for (variable, path) in [
        ("RABBITMQ_MNESIA_BASE", "mnesia"),
        ("RABBITMQ_LOG_BASE", "log"),
        ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "plugins"),
        ("RABBITMQ_PID_FILE", "pid"),
    ] {
        command.env(variable, home.join(path));
    }
    command.env("RABBITMQ_DIST_PORT", distribution.to_string());
    command.env("ERL_EPMD_PORT", names.to_string()).env("ERL_EPMD_ADDRESS", "127.0.0.1");
    if let Some(shim) = shim {
        command.envs(shim.slow(SLOW_SYNC));
    }
    Broker::up(directory, port, vec![epmd, command])
}
