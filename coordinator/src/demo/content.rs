//! The bytes of a large file: a function of its name and of where they stand in it, so that the file is never anywhere as a
//! whole but in storage, and can be read from any place on.

use std::io::{self, Read};
use std::ops::Range;

use bytes::Bytes;
use millpond_edge::transfer::{Digests, digest_of};
use millpond_protocol::Sha256;

/// Bytes that are made at once.
const PIECE: usize = 64 << 10;

/// A file of that many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content {
    seed: u64,
    size: u64,
}

impl Content {
    /// Different names have different bytes.
    pub(super) fn new(name: &str, size: u64) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = Sha256::of(name.as_bytes()).0;
        Self { seed: u64::from_le_bytes([a, b, c, d, e, f, g, h]), size }
    }

    pub(super) fn size(self) -> u64 {
        self.size
    }

    /// SHA-256 of the whole and of its parts.
    pub(super) async fn digests(self, part_size: Option<u64>) -> anyhow::Result<Digests> {
        let digest = move || digest_of(self.reader(), self.size, part_size);
        Ok(tokio::task::spawn_blocking(digest).await??)
    }

    /// From the first byte to the last.
    pub(super) fn reader(self) -> impl Read {
        Reader { content: self, at: 0 }
    }

    /// The bytes of a range, piece by piece.
    pub(super) fn pieces(self, range: Range<u64>) -> impl Iterator<Item = Bytes> + Send {
        let end = range.end.min(self.size);
        range.step_by(PIECE).map(move |at| {
            let mut piece = vec![0; left(at, end).min(PIECE)];
            self.fill(at, &mut piece);
            piece.into()
        })
    }

    fn fill(self, mut at: u64, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let word = mix(self.seed.wrapping_add(at / 8)).to_le_bytes();
            let word = &word[(at % 8) as usize..];
            let n = word.len().min(buffer.len());
            let (here, rest) = buffer.split_at_mut(n);
            here.copy_from_slice(&word[..n]);
            (buffer, at) = (rest, at + n as u64);
        }
    }
}

struct Reader {
    content: Content,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = left(self.at, self.content.size).min(buffer.len());
        self.content.fill(self.at, &mut buffer[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

fn left(at: u64, end: u64) -> usize {
    usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX)
}

/// The finalizer of SplitMix64: neighbours have nothing in common.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_bytes_wherever_reading_begins_and_another_file_is_others() {
        let content = Content::new("a", 200_003);
        let mut whole = Vec::new();
        content.reader().read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), 200_003);
        for (from, to) in [(0, 200_003), (5, 17), (65_536, 200_003), (199_999, 200_003), (7, 7)] {
            let pieces: Vec<u8> = content.pieces(from..to).flatten().collect();
            assert!(pieces == whole[from as usize..to as usize], "{from}..{to}");
        }
        let mut other = Vec::new();
        Content::new("b", 200_003).reader().read_to_end(&mut other).unwrap();
        assert!(whole.iter().zip(&other).filter(|(a, b)| a == b).count() < 2_000);
    }
}
