//! A client that does nothing but move bytes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use millpond_storage::PresignedPut;

const MIB: usize = 1 << 20;

/// What is sent, over and over.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(MIB).collect()
});

/// Hands on so many bytes, a MiB at most at once.
pub fn fill(mut size: u64, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    while size > 0 {
        let step = size.min(MIB as u64);
        to(&BYTES[..step as usize])?;
        size -= step;
    }
    Ok(())
}

/// A connection that is kept.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens one to the host of a URL.
    pub fn open(url: &str) -> Result<Self> {
        let (host, _) = split(url)?;
        let stream = TcpStream::connect(host)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; MIB] })
    }

    pub fn once_put(signed: &PresignedPut, size: u64) -> Result<()> {
        Self::open(&signed.url)?.put(signed, size)
    }

    pub fn once_get(url: &str, size: u64) -> Result<()> {
        Self::open(url)?.get(url, size)
    }

    pub fn put(&mut self, signed: &PresignedPut, size: u64) -> Result<()> {
        let (host, target) = split(&signed.url)?;
        let mut head = format!("PUT {target} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in &signed.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes())?;
        fill(size, |bytes| Ok(self.stream.write_all(bytes)?))?;
        let (length, got) = self.head()?;
        ensure!(length == got as u64, "an answer with a body of {length}");
        Ok(())
    }

    pub fn get(&mut self, url: &str, size: u64) -> Result<()> {
        let (host, target) = split(url)?;
        self.stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
        let (length, got) = self.head()?;
        ensure!(length == size, "{length} bytes instead of {size}");
        let mut left = length - got as u64;
        while left > 0 {
            let got = self.stream.read(&mut self.buffer)?;
            ensure!(got > 0, "the body ends {left} bytes early");
            left -= got as u64;
        }
        Ok(())
    }

    /// Reads an answer's head: the length of its body, and how much of it has come already.
    fn head(&mut self) -> Result<(u64, usize)> {
        let mut filled = 0;
        loop {
            let got = self.stream.read(&mut self.buffer[filled..])?;
            ensure!(got > 0, "no answer");
            filled += got;
            let end = self.buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n");
            let Some(end) = end else { continue };
            let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
            ensure!(head.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(&self.buffer[..filled]));
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.context("no length")?.trim().parse()?;
            return Ok((length, filled - end - 4));
        }
    }
}

fn split(url: &str) -> Result<(&str, &str)> {
    let rest = url.strip_prefix("http://").context("not http")?;
    let at = rest.find('/').context("no path")?;
    Ok(rest.split_at(at))
}
