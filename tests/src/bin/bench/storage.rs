//! The embedded storage, beside a plain file and nginx on the same disk in the same run.
//!
//! The load is bytes over bare sockets, so that it costs little beside the server.

pub mod beside;
mod load;
mod memory;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use millpond_protocol::Sha256;
use millpond_storage::{ObjectKey, PresignedPut, Secret, Storage, StorageConfig};
use millpond_tests::tool;
use sha2::Digest as _;

use self::load::{Connection, fill};
use super::server::Server;
use super::{aims, median};

const GIB: u64 = 1 << 30;
const RUNS: usize = 5;
const HOUR: Duration = Duration::from_secs(3600);

pub async fn run() -> Result<()> {
    println!("embedded storage, beside the same disk");
    {
        let dir = tempfile::tempdir()?;
        let bench = Bench::over(dir.path()).await?;
        bench.large().await?;
        tokio::task::block_in_place(|| bench.many(50, 10_000_000, 1))?;
        tokio::task::block_in_place(|| bench.many(32, 16 << 10, 250))?;
    }
    memory::run().await
}

/// One large object each way, beside a plain file and nginx.
pub async fn large() -> Result<()> {
    let dir = tempfile::tempdir()?;
    Bench::over(dir.path()).await?.large().await
}

struct Bench {
    storage: Storage,
    server: Server,
    dir: PathBuf,
}

impl Bench {
    /// A server over that directory.
    async fn over(dir: &Path) -> Result<Self> {
        let server = Server::start(dir).await?;
        let address = server.addresses.storage.context("the server has no storage of its own")?;
        let secret = std::fs::read_to_string(dir.join("storage.secret"))?;
        let url = format!("http://{address}").parse()?;
        let config = StorageConfig::new(url, "millpond", "millpond", Secret::new(secret.trim()));
        Ok(Self { storage: Storage::new(&config)?, server, dir: dir.to_owned() })
    }

    fn put_url(&self, key: &ObjectKey, size: u64, sha256: Sha256) -> PresignedPut {
        self.storage.presign_put(key, size, sha256, HOUR, millpond::ledger::now())
    }

    fn get_url(&self, key: &ObjectKey) -> String {
        self.storage.presign_get(key, HOUR, millpond::ledger::now()).url
    }

    /// One large object each way. Each figure is the middle of five, taken in turns with its references.
    async fn large(&self) -> Result<()> {
        let started = Instant::now();
        let sha256 = hash(GIB);
        let hashing = started.elapsed();
        let key: ObjectKey = "bench/large".parse()?;
        let (mut dd, mut put, mut get, mut nginx) = (vec![], vec![], vec![], vec![]);
        let file = self.dir.join("plain");
        let other = Nginx::start(&self.dir)?;
        for _ in 0..RUNS {
            dd.push(timed(|| plain(&file, GIB))?);
            put.push(timed(|| Connection::once_put(&self.put_url(&key, GIB, sha256), GIB))?);
            get.push(timed(|| Connection::once_get(&self.get_url(&key), GIB))?);
            if let Some(other) = &other {
                let url = format!("http://127.0.0.1:{}/plain", other.port);
                nginx.push(timed(|| Connection::once_get(&url, GIB))?);
            }
        }
        let (dd, put, get) = (median(dd), median(put), median(get));
        println!(
            "  PUT 1 GiB   {put:.2} s   plain file + fdatasync {dd:.2} s: {:.2} ×   (SHA-256 alone {:.2} s; aim 2.5 ×)",
            put / dd,
            hashing.as_secs_f64()
        );
        aims::at_most("PUT of 1 GiB, beside a plain file", put / dd, 2.5, "×");
        if nginx.is_empty() {
            println!("  GET 1 GiB   {get:.2} s   (nginx is not installed)");
        } else {
            let nginx = median(nginx);
            println!(
                "  GET 1 GiB   {get:.2} s   nginx sendfile {nginx:.2} s: {:.2} ×   (aim 1.2 ×)",
                get / nginx
            );
            aims::at_most("GET of 1 GiB, beside nginx", get / nginx, 1.2, "×");
        }
        std::fs::remove_file(&file)?;
        Ok(self.storage.delete(&key).await?)
    }

    /// Objects over so many connections at once, each with a number of them, beside as many plain files.
    fn many(&self, connections: usize, size: u64, each: usize) -> Result<()> {
        let total = (connections * each) as f64;
        let plain = together(connections, |n| {
            (0..each).try_for_each(|m| plain_durable(&self.dir.join(format!("plain-{n}-{m}")), size))
        })?;
        let objects =
            Objects { storage: &self.storage, name: &format!("bench/{size}"), connections, each, size };
        let cpu = self.cpu()?;
        let put = objects.put()?;
        let put_cpu = self.cpu()? - cpu;
        let get = objects.get()?;
        let get_cpu = self.cpu()? - put_cpu - cpu;
        let (bytes, gigabytes) = (total * size as f64, total * size as f64 / 1e9);
        let what = format!("{connections} × {each} × {size} B");
        println!(
            "  PUT {what}   {:.0} MB/s, {:.0}/s, {:.2} CPU s/GB   plain files, each synced, {:.0} MB/s, {:.0}/s: {:.2} ×",
            bytes / put / 1e6,
            total / put,
            put_cpu / gigabytes,
            bytes / plain / 1e6,
            total / plain,
            put / plain
        );
        println!(
            "  GET {what}   {:.0} MB/s, {:.0}/s, {:.2} CPU s/GB",
            bytes / get / 1e6,
            total / get,
            get_cpu / gigabytes
        );
        Ok(())
    }

    /// CPU seconds that the server has used.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.server.id()))?;
        let fields = stat.rsplit_once(") ").context("an odd /proc/PID/stat")?.1;
        let ticks = |n: usize| fields.split(' ').nth(n).and_then(|ticks| ticks.parse::<f64>().ok());
        Ok((ticks(11).context("no utime")? + ticks(12).context("no stime")?) / 100.0)
    }
}

/// Objects that are sent and fetched over so many connections at once, a number over each. Blocks.
struct Objects<'a> {
    storage: &'a Storage,
    /// What their keys begin with.
    name: &'a str,
    connections: usize,
    each: usize,
    size: u64,
}

impl Objects<'_> {
    fn key(&self, n: usize, m: usize) -> Result<ObjectKey> {
        Ok(format!("{}/{n}/{m}", self.name).parse()?)
    }

    fn url(&self, n: usize, m: usize) -> Result<String> {
        Ok(self.storage.presign_get(&self.key(n, m)?, HOUR, millpond::ledger::now()).url)
    }

    /// Seconds that it takes to send all.
    fn put(&self) -> Result<f64> {
        let sha256 = hash(self.size);
        together(self.connections, |n| {
            let mut connection = Connection::open(&self.url(n, 0)?)?;
            (0..self.each).try_for_each(|m| {
                let now = millpond::ledger::now();
                let to = self.storage.presign_put(&self.key(n, m)?, self.size, sha256, HOUR, now);
                connection.put(&to, self.size)
            })
        })
    }

    /// Seconds that it takes to fetch all.
    fn get(&self) -> Result<f64> {
        together(self.connections, |n| {
            let mut connection = Connection::open(&self.url(n, 0)?)?;
            (0..self.each).try_for_each(|m| connection.get(&self.url(n, m)?, self.size))
        })
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    tokio::task::block_in_place(work)?;
    Ok(started.elapsed().as_secs_f64())
}

/// Runs work on so many threads at once; returns seconds.
fn together(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<f64> {
    let (started, failed) = (Instant::now(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for n in 0..threads {
            let (work, failed) = (&work, &failed);
            scope.spawn(move || {
                if let Err(error) = work(n) {
                    eprintln!("{error:#}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    ensure!(failed.into_inner() == 0, "some requests failed");
    Ok(started.elapsed().as_secs_f64())
}

/// The SHA-256 of so many bytes of the load.
fn hash(size: u64) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    let done = fill(size, |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    debug_assert!(done.is_ok());
    Sha256(hasher.finalize().into())
}

/// The reference: what `dd conv=fdatasync` does with bytes from memory.
fn plain(path: &Path, size: u64) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    fill(size, |bytes| Ok(std::io::Write::write_all(&mut file, bytes)?))?;
    Ok(file.sync_data()?)
}

/// And with its name made durable too, as a server must.
fn plain_durable(path: &Path, size: u64) -> Result<()> {
    plain(path, size)?;
    Ok(std::fs::File::open(path.parent().context("no directory")?)?.sync_all()?)
}

/// nginx with sendfile over a directory; `None` where it is not installed, which with `CI=true` is a failure.
pub struct Nginx {
    child: Child,
    pub port: u16,
}

impl Nginx {
    pub fn start(dir: &Path) -> Result<Option<Self>> {
        if !tool("nginx") {
            return Ok(None);
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (at, config) = (dir.display(), dir.join("nginx.conf"));
        std::fs::write(
            &config,
            format!(
                "daemon off; user root; worker_processes auto; pid {at}/nginx.pid; error_log {at}/nginx.log;
                 events {{ worker_connections 4096; }} http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {at}/n1;
                 proxy_temp_path {at}/n2; fastcgi_temp_path {at}/n3; uwsgi_temp_path {at}/n4; scgi_temp_path {at}/n5;
                 server {{ listen 127.0.0.1:{port}; root {at}; }} }}"
            ),
        )?;
        let mut nginx = Command::new("nginx");
        nginx.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let this = Self { child: nginx.spawn()?, port };
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(Some(this));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("nginx does not listen within 5 s")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master, which takes its workers along.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
