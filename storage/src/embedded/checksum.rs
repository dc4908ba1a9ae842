//! Checksums: which there are, and what those of an object in parts are made of.
//!
//! Whatever a client says of a body is compared with what came, in the same pass that hashes it for the catalogue. A
//! whole object keeps its SHA-256. An object in parts keeps the one checksum that its upload was begun with, as S3
//! defines it: *composite*, the checksum of the parts' checksums and their number (`hash-N`), or, for a CRC, that of the
//! *full object*, which follows from those of the parts.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;
use millpond_protocol::Sha256;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1};
use sha2::Digest as _;

/// What a body can be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Sha256,
    Sha1,
    Crc32,
    Crc32c,
    Crc64Nvme,
    /// Compared where a client sends it; no object's checksum.
    Md5,
}

impl Algorithm {
    /// Those that an object can have.
    pub(super) const ALL: [Self; 5] = [Self::Sha256, Self::Sha1, Self::Crc32, Self::Crc32c, Self::Crc64Nvme];

    /// As S3 writes it in XML and headers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA256",
            Self::Sha1 => "SHA1",
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Md5 => "MD5",
        }
    }

    /// The algorithm of a name in any case.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// The algorithm of a header `x-amz-checksum-…`, in lower case.
    pub(super) fn of_header(name: &str) -> Option<Self> {
        Self::named(name.strip_prefix("x-amz-checksum-")?)
    }

    fn width(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha1 => 20,
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Md5 => 16,
        }
    }

    /// The bytes of a value as headers carry it; `None` if it is none of this algorithm.
    pub(super) fn parse(self, value: &str) -> Option<Vec<u8>> {
        STANDARD.decode(value).ok().filter(|bytes| bytes.len() == self.width())
    }

    /// A value as headers carry it.
    pub(super) fn text(self, sum: &[u8]) -> String {
        STANDARD.encode(sum)
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha256 | Self::Sha1 | Self::Md5 => None,
        }
    }

    fn of(self, bytes: &[u8]) -> Vec<u8> {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Whether a checksum covers the bytes of all parts, or their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cover {
    FullObject,
    Composite,
}

/// What an upload in parts was begun with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) algorithm: Algorithm,
    pub(super) cover: Cover,
}

impl Plan {
    /// The plan for an algorithm and, if the client says so, a cover. `None` where S3 knows no such pair.
    pub(super) fn new(algorithm: Algorithm, cover: Option<Cover>) -> Option<Self> {
        let cover = match (algorithm, cover) {
            (Algorithm::Md5, _) => return None,
            (Algorithm::Crc64Nvme, None | Some(Cover::FullObject)) => Cover::FullObject,
            (Algorithm::Sha256 | Algorithm::Sha1, Some(Cover::FullObject))
            | (Algorithm::Crc64Nvme, Some(Cover::Composite)) => return None,
            (_, cover) => cover.unwrap_or(Cover::Composite),
        };
        Some(Self { algorithm, cover })
    }

    /// The checksum of an object made of parts with these checksums and lengths.
    pub(super) fn of_parts<'a>(&self, parts: impl Iterator<Item = (&'a [u8], u64)>) -> Checksum {
        let algorithm = self.algorithm;
        let value = match (self.cover, algorithm.crc()) {
            (Cover::FullObject, Some(crc)) => {
                let whole = parts
                    .fold(0, |sum, (part, size)| crc_fast::checksum_combine(crc, sum, number(part), size));
                STANDARD.encode(&whole.to_be_bytes()[8 - algorithm.width()..])
            }
            (Cover::FullObject | Cover::Composite, _) => {
                let (mut all, mut count) = (Vec::new(), 0);
                for (part, _) in parts {
                    all.extend_from_slice(part);
                    count += 1;
                }
                format!("{}-{count}", STANDARD.encode(algorithm.of(&all)))
            }
        };
        Checksum { algorithm, value }
    }
}

fn number(big_endian: &[u8]) -> u64 {
    big_endian.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The checksum of an object in parts. As text, `ALGORITHM VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) algorithm: Algorithm,
    /// As headers carry it: base64, and `-N` if it is a composite one.
    pub(super) value: String,
}

impl Checksum {
    pub(super) fn cover(&self) -> Cover {
        // Base64 has no hyphen.
        if self.value.contains('-') { Cover::Composite } else { Cover::FullObject }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm.name(), self.value)
    }
}

impl FromStr for Checksum {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, value) = text.split_once(' ').ok_or(())?;
        Ok(Self { algorithm: Algorithm::named(name).ok_or(())?, value: value.into() })
    }
}

/// A running hash of one algorithm.
enum Hasher {
    Sha256(sha2::Sha256),
    Sha1(Sha1),
    Crc32(Crc32),
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Md5(Md5),
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha1 => Self::Sha1(Sha1::new()),
            Algorithm::Crc32 => Self::Crc32(Crc32::new()),
            Algorithm::Crc32c => Self::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Self::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Md5 => Self::Md5(Md5::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Crc32(hasher) => hasher.update(bytes),
            Self::Crc32c(hasher) => hasher.update(bytes),
            Self::Crc64Nvme(hasher) => hasher.update(bytes),
            Self::Md5(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha1(hasher) => AsRef::<[u8]>::as_ref(&hasher.finalize()).to_vec(),
            Self::Crc32(hasher) => hasher.finalize().to_vec(),
            Self::Crc32c(hasher) => hasher.finalize().to_vec(),
            Self::Crc64Nvme(hasher) => hasher.finalize().to_vec(),
            Self::Md5(hasher) => AsRef::<[u8]>::as_ref(&hasher.finalize()).to_vec(),
        }
    }
}

/// Hashes a body as it passes: always by SHA-256, and by what else is asked for.
pub(super) struct Hashing {
    sha256: sha2::Sha256,
    others: Vec<(Algorithm, Hasher)>,
}

impl Hashing {
    pub(super) fn new(algorithms: &[Algorithm]) -> Self {
        let mut others: Vec<(Algorithm, Hasher)> = Vec::new();
        for algorithm in algorithms {
            if *algorithm != Algorithm::Sha256 && others.iter().all(|(known, _)| known != algorithm) {
                others.push((*algorithm, Hasher::new(*algorithm)));
            }
        }
        Self { sha256: sha2::Sha256::new(), others }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        for (_, hasher) in &mut self.others {
            hasher.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Sums {
        Sums {
            sha256: Sha256(self.sha256.finalize().into()),
            others: self.others.into_iter().map(|(algorithm, hasher)| (algorithm, hasher.finish())).collect(),
        }
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    pub(super) sha256: Sha256,
    others: Vec<(Algorithm, Vec<u8>)>,
}

impl Sums {
    /// The bytes of one checksum, if it was asked for.
    pub(super) fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        if algorithm == Algorithm::Sha256 {
            return Some(&self.sha256.0);
        }
        self.others.iter().find(|(known, _)| *known == algorithm).map(|(_, sum)| sum.as_slice())
    }

    /// One checksum as headers carry it, if it was asked for.
    pub(super) fn text(&self, algorithm: Algorithm) -> Option<String> {
        self.get(algorithm).map(|sum| STANDARD.encode(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of "hello", "world" and "helloworld", from Python's zlib and hashlib, and the CRC catalogue's check.
    #[test]
    fn the_checksum_of_parts_is_that_of_the_whole_or_of_their_checksums() {
        for algorithm in Algorithm::ALL {
            let parts = [algorithm.of(b"hello"), algorithm.of(b"world")];
            let with = |cover| {
                let plan = Plan::new(algorithm, Some(cover))?;
                Some(plan.of_parts(parts.iter().map(|part| (part.as_slice(), 5))))
            };
            if let Some(full) = with(Cover::FullObject) {
                assert_eq!(full.value, STANDARD.encode(algorithm.of(b"helloworld")), "{algorithm:?}");
                assert_eq!(full.cover(), Cover::FullObject);
            }
            if let Some(composite) = with(Cover::Composite) {
                let expected = STANDARD.encode(algorithm.of(&parts.concat()));
                assert_eq!(composite.value, format!("{expected}-2"), "{algorithm:?}");
                assert_eq!(composite.to_string().parse(), Ok(composite));
            }
        }
        assert_eq!(STANDARD.encode(Algorithm::Crc32.of(b"123456789")), "y/Q5Jg==");
        assert_eq!(STANDARD.encode(Algorithm::Crc64Nvme.of(b"123456789")), "rosUhgp5mIg=");
    }

    #[test]
    fn s3_knows_no_full_hash_of_parts_and_no_composite_crc64() {
        assert_eq!(Plan::new(Algorithm::Sha256, Some(Cover::FullObject)), None);
        assert_eq!(Plan::new(Algorithm::Crc64Nvme, Some(Cover::Composite)), None);
        assert_eq!(Plan::new(Algorithm::Sha256, None).map(|plan| plan.cover), Some(Cover::Composite));
        assert_eq!(Plan::new(Algorithm::Crc64Nvme, None).map(|plan| plan.cover), Some(Cover::FullObject));
    }

    #[test]
    fn a_value_of_another_length_is_no_checksum() {
        assert!(Algorithm::Crc32.parse("y/Q5Jg==").is_some());
        for bad in ["", "y/Q5", "y/Q5Jg==y/Q5Jg==", "not base64!"] {
            assert_eq!(Algorithm::Crc32.parse(bad), None, "{bad}");
        }
    }
}
