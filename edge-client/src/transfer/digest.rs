//! SHA-256 of files in one pass and in bounded memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use millpond_protocol::Sha256;
use sha2::Digest as _;

/// Bytes read at once.
const BUFFER: usize = 128 << 10;

/// What a file's bytes are, as a whole and by parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    pub size: u64,
    pub sha256: Sha256,
    /// Of each part of the part size that was asked for; the last one may be shorter. Empty where none was.
    pub parts: Vec<Sha256>,
}

/// SHA-256 that grows.
#[derive(Debug, Clone, Default)]
pub struct Hasher(sha2::Sha256);

impl Hasher {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Sha256 {
        Sha256(self.0.finalize().into())
    }
}

/// Reads the first `size` bytes of a file once and hashes them, with `part_size` (not zero) also by parts. Blocks: call it on a
/// blocking thread.
///
/// # Errors
/// What the system says; `UnexpectedEof` if the file is shorter.
pub fn digest(path: &Path, size: u64, part_size: Option<u64>) -> io::Result<Digests> {
    digest_of(File::open(path)?, size, part_size)
}

/// The same of anything that can be read.
///
/// # Errors
/// As [`digest`].
pub fn digest_of(mut from: impl Read, size: u64, part_size: Option<u64>) -> io::Result<Digests> {
    if part_size == Some(0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a part has no size"));
    }
    let mut buffer = vec![0; BUFFER];
    let (mut whole, mut part) = (Hasher::default(), Hasher::default());
    let mut parts = Vec::new();
    let (mut left, mut left_of_part) = (size, part_size.unwrap_or(u64::MAX));
    while left > 0 {
        let want = usize::try_from(left.min(left_of_part)).unwrap_or(BUFFER).min(BUFFER);
        let n = match from.read(&mut buffer[..want]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        whole.add(&buffer[..n]);
        left -= n as u64;
        if let Some(part_size) = part_size {
            part.add(&buffer[..n]);
            left_of_part -= n as u64;
            if left_of_part == 0 || left == 0 {
                parts.push(std::mem::take(&mut part).finish());
                left_of_part = part_size;
            }
        }
    }
    Ok(Digests { size, sha256: whole.finish(), parts })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_hashed_in_the_same_pass_and_the_last_may_be_shorter() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let got = digest_of(bytes.as_slice(), 1_000_000, Some(300_000)).unwrap();
        assert_eq!(got.sha256, Sha256::of(&bytes));
        assert_eq!(got.parts, bytes.chunks(300_000).map(Sha256::of).collect::<Vec<_>>());
        let even = digest_of(bytes.as_slice(), 1_000_000, Some(500_000)).unwrap();
        assert_eq!(even.parts.len(), 2);
        assert_eq!(digest_of(bytes.as_slice(), 1_000_000, None).unwrap().parts, []);
    }

    #[test]
    fn only_the_bytes_that_count_are_hashed_and_all_of_them_must_be_there() {
        assert_eq!(digest_of(b"abcdef".as_slice(), 3, None).unwrap().sha256, Sha256::of(b"abc"));
        assert_eq!(digest_of(b"".as_slice(), 0, Some(5)).unwrap().parts, []);
        let short = digest_of(b"abc".as_slice(), 4, None).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert!(digest_of(b"abc".as_slice(), 3, Some(0)).is_err());
    }
}
