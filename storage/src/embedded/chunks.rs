//! Bodies in chunks of S3's own (`aws-chunked`), cut so small that none is held in memory.
//!
//! `s3s` gathers a chunk before it passes it on, and a chunk may announce 4 GiB. A chunk without a signature means nothing, so
//! it is handed on as several, as its bytes come. A signature is over the whole chunk: one that announces more than
//! [`limits::SIGNED_CHUNK`] is refused. What is no such encoding is handed on as it is, for `s3s` to refuse.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::embedded as limits;

/// Bytes of the line before a chunk that are looked at: it has 8 digits and a signature. `s3s` refuses what is longer.
const LINE: usize = 128;

/// A signed chunk announces more than [`limits::SIGNED_CHUNK`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Where in such a body the next byte is.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    ready: VecDeque<Bytes>,
}

#[derive(Debug)]
enum At {
    /// In the line before a chunk.
    Line(Vec<u8>),
    /// In a chunk that is handed on as it is, its end included, with so many bytes left.
    Signed(u64),
    /// In a chunk that is cut.
    Plain(u64),
    /// In the end of a chunk that was cut, which has been written for each of its pieces.
    End(u64),
    /// Behind the last chunk, or in what is no such body.
    Rest,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self { at: At::Line(Vec::new()), ready: VecDeque::new() }
    }

    /// What is to be handed on next.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Bytes came.
    pub(super) fn came(&mut self, mut bytes: Bytes) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            match &mut self.at {
                At::Line(line) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                    line.extend_from_slice(&bytes.split_to(end.unwrap_or(bytes.len())));
                    if end.is_some() || line.len() > LINE {
                        let line = std::mem::take(line);
                        self.at = after(&line)?;
                        // The line of a chunk that is cut is written for each of its pieces.
                        if !matches!(self.at, At::Plain(_)) {
                            self.ready.push_back(line.into());
                        }
                    }
                }
                At::Signed(left) => {
                    let some = take(&mut bytes, left);
                    self.ready.push_back(some);
                    if *left == 0 {
                        self.at = At::Line(Vec::new());
                    }
                }
                At::Plain(left) => {
                    let some = take(&mut bytes, left);
                    let line = format!("{:x}\r\n", some.len());
                    self.ready.extend([line.into(), some, Bytes::from_static(b"\r\n")]);
                    if *left == 0 {
                        self.at = At::End(2);
                    }
                }
                At::End(left) => {
                    if take(&mut bytes, left).iter().any(|byte| !b"\r\n".contains(byte)) {
                        // Something that `s3s` takes for no line.
                        self.ready.push_back(Bytes::from_static(b"\n"));
                        self.at = At::Rest;
                    } else if *left == 0 {
                        self.at = At::Line(Vec::new());
                    }
                }
                At::Rest => self.ready.push_back(std::mem::take(&mut bytes)),
            }
        }
        Ok(())
    }

    /// What the body broke off in, when it is at its end.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        match &mut self.at {
            At::Line(line) if !line.is_empty() => Some(std::mem::take(line).into()),
            _ => None,
        }
    }
}

/// What follows a line.
fn after(line: &[u8]) -> Result<At, TooLong> {
    let (size, signed) = match line.iter().position(|byte| *byte == b';') {
        Some(at) => (&line[..at], true),
        None => (line.strip_suffix(b"\r\n").unwrap_or(line), false),
    };
    let size = std::str::from_utf8(size).ok().and_then(|size| u32::from_str_radix(size, 16).ok());
    Ok(match size.map(u64::from) {
        None | Some(0) => At::Rest,
        Some(size) if !signed => At::Plain(size),
        Some(size) if size > limits::SIGNED_CHUNK => return Err(TooLong),
        Some(size) => At::Signed(size + 2),
    })
}

fn take(bytes: &mut Bytes, left: &mut u64) -> Bytes {
    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= most as u64;
    bytes.split_to(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed on of a body that comes in pieces of so many bytes.
    fn handed_on(body: &[u8], piece: usize) -> Result<Vec<u8>, TooLong> {
        let mut chunks = Chunks::new();
        let mut all = Vec::new();
        for bytes in body.chunks(piece) {
            chunks.came(Bytes::copy_from_slice(bytes))?;
            while let Some(bytes) = chunks.next() {
                all.extend_from_slice(&bytes);
            }
        }
        all.extend(chunks.rest().unwrap_or_default());
        Ok(all)
    }

    #[test]
    fn a_chunk_without_a_signature_is_cut_where_its_bytes_came_apart() {
        let body = b"A\r\n0123456789\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AA==\r\n\r\n";
        assert_eq!(
            handed_on(body, 100).unwrap(),
            b"a\r\n0123456789\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AA==\r\n\r\n"
        );
        let cut = handed_on(body, 8).unwrap();
        assert!(cut.starts_with(b"5\r\n01234\r\n5\r\n56789\r\n"), "{}", String::from_utf8_lossy(&cut));
        assert!(cut.ends_with(b"0\r\nx-amz-checksum-crc32:AA==\r\n\r\n"));
        // What is no such encoding is for `s3s` to refuse.
        for body in [&b"no length\r\nabc"[..], b"3", b"3\r\nabcd"] {
            assert!(!handed_on(body, 2).unwrap().is_empty());
        }
        // The largest there can be is at no time in memory.
        let mut chunks = Chunks::new();
        chunks.came(Bytes::from_static(b"ffffffff\r\n")).unwrap();
        assert!(chunks.next().is_none());
    }

    #[test]
    fn a_signed_chunk_is_handed_on_as_it_is_or_refused_for_its_length() {
        let signature = "0".repeat(64);
        let body = format!("3;chunk-signature={signature}\r\nabc\r\n0;chunk-signature={signature}\r\n\r\n");
        for piece in [1, 7, 1_000] {
            assert_eq!(handed_on(body.as_bytes(), piece).unwrap(), body.as_bytes());
        }
        let long = format!("{:x};chunk-signature={signature}\r\n", limits::SIGNED_CHUNK + 1);
        assert_eq!(handed_on(long.as_bytes(), 10), Err(TooLong));
    }
}
