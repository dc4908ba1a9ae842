//! How parts become an object: the rules of CompleteMultipartUpload, without files, rows or clock.

use data_encoding::HEXLOWER;
use millpond_protocol::Sha256;
use s3s::dto::ETag;
use sha2::Digest as _;

use super::catalog::Part;
use super::checksum::{Algorithm, Checksum, Plan};

/// The entity tag of a part. It ends like that of an object in parts: clients take other tags for an MD5.
pub(super) fn part_tag(sha256: Sha256) -> ETag {
    ETag::Strong(format!("{sha256}-1"))
}

fn tagged(tag: &ETag) -> Option<Sha256> {
    let hex = tag.value().strip_suffix("-1")?;
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok().map(Sha256)
}

/// One part as a client lists it.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub(super) n: u32,
    /// From its entity tag; `None` if that is none of ours.
    sha256: Option<Sha256>,
    checksums: Vec<(Algorithm, Vec<u8>)>,
}

impl Listed {
    pub(super) fn new(n: u32, tag: Option<&ETag>, checksums: Vec<(Algorithm, Vec<u8>)>) -> Self {
        Self { n, sha256: tag.and_then(tagged), checksums }
    }
}

/// What a client wants to be made of an upload.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) parts: Vec<Listed>,
    /// Bytes of all, if the client says so.
    pub(super) size: Option<u64>,
    /// The object's checksum, if the client says so.
    pub(super) checksum: Option<Checksum>,
    /// Bytes that every part but the last has at least.
    pub(super) min_part: u64,
}

/// The object that comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) parts: u32,
    pub(super) size: u64,
    pub(super) sha256: Sha256,
    pub(super) checksum: Option<Checksum>,
    /// Parts that were stored and are not listed.
    pub(super) unused: Vec<Part>,
}

/// Why parts do not make the object that a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    /// Their numbers do not ascend.
    Order,
    /// This one is not there, or is another than the client says. 0: the upload has become an object of other parts.
    Part(u32),
    /// This one is too small, and not the last.
    TooSmall { n: u32, size: u64, min: u64 },
    /// They have so many bytes.
    Size(u64),
    /// The checksum is another.
    Checksum(Checksum),
    /// The upload was begun without a checksum of that algorithm.
    Unplanned(Algorithm),
}

impl Wish {
    /// Makes the object of the parts that are stored, in order of their numbers.
    pub(super) fn assemble(&self, stored: &[Part], plan: Option<Plan>) -> Result<Whole, Unfit> {
        if !self.parts.is_sorted_by(|a, b| a.n < b.n) {
            return Err(Unfit::Order);
        }
        let (mut used, mut unused) = (Vec::with_capacity(self.parts.len()), Vec::new());
        let mut left = stored.iter();
        for listed in &self.parts {
            let part = loop {
                match left.next() {
                    Some(part) if part.n == listed.n => break part,
                    Some(part) if part.n < listed.n => unused.push(part.clone()),
                    _ => return Err(Unfit::Part(listed.n)),
                }
            };
            same(listed, part, plan)?;
            used.push(part);
        }
        unused.extend(left.cloned());
        if let Some((_, all_but_last)) = used.split_last()
            && let Some(part) = all_but_last.iter().find(|part| part.size < self.min_part)
        {
            return Err(Unfit::TooSmall { n: part.n, size: part.size, min: self.min_part });
        }
        let size = used.iter().map(|part| part.size).sum();
        if self.size.is_some_and(|wanted| wanted != size) {
            return Err(Unfit::Size(size));
        }
        let checksum = plan.map(|plan| {
            plan.of_parts(used.iter().map(|part| (part.checksum.as_deref().unwrap_or_default(), part.size)))
        });
        match (&self.checksum, &checksum) {
            (Some(wanted), Some(got)) if wanted.algorithm == got.algorithm => {
                // The number of parts behind a composite one may be left out.
                let value = got.value.split('-').next();
                if wanted.value != got.value && Some(wanted.value.as_str()) != value {
                    return Err(Unfit::Checksum(got.clone()));
                }
            }
            (Some(wanted), _) => return Err(Unfit::Unplanned(wanted.algorithm)),
            (None, _) => {}
        }
        let sha256 = digest(used.iter().map(|part| part.sha256));
        Ok(Whole { parts: count(used.len()), size, sha256, checksum, unused })
    }

    /// Whether this is the wish that an object of so many parts with this digest was made of.
    pub(super) fn made(&self, parts: u32, sha256: Sha256) -> bool {
        let listed: Option<Vec<Sha256>> = self.parts.iter().map(|part| part.sha256).collect();
        count(self.parts.len()) == parts && listed.is_some_and(|listed| digest(listed.into_iter()) == sha256)
    }
}

fn count(parts: usize) -> u32 {
    u32::try_from(parts).unwrap_or(u32::MAX)
}

fn same(listed: &Listed, part: &Part, plan: Option<Plan>) -> Result<(), Unfit> {
    let other = Err(Unfit::Part(part.n));
    if listed.sha256 != Some(part.sha256) {
        return other;
    }
    for (algorithm, wanted) in &listed.checksums {
        let got = match (algorithm, plan) {
            (Algorithm::Sha256, _) => part.sha256.0.as_slice(),
            (_, Some(plan)) if plan.algorithm == *algorithm => part.checksum.as_deref().unwrap_or_default(),
            _ => return Err(Unfit::Unplanned(*algorithm)),
        };
        if wanted != got {
            return other;
        }
    }
    Ok(())
}

/// The SHA-256 of the parts' SHA-256s, one after the other.
fn digest(parts: impl Iterator<Item = Sha256>) -> Sha256 {
    let mut hasher = sha2::Sha256::new();
    for part in parts {
        hasher.update(part.0);
    }
    Sha256(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::super::blobs::BlobId;
    use super::*;

    fn part(n: u32, size: u64) -> Part {
        let sha256 = Sha256::of(&n.to_be_bytes());
        let file = BlobId([n as u8; 16]);
        Part { n, file, size, sha256, checksum: Some(sha256.0.to_vec()), modified_ms: 0 }
    }

    fn listed(n: u32) -> Listed {
        Listed::new(n, Some(&part_tag(Sha256::of(&n.to_be_bytes()))), Vec::new())
    }

    fn wish(parts: &[u32]) -> Wish {
        Wish { parts: parts.iter().map(|n| listed(*n)).collect(), min_part: 5, ..Wish::default() }
    }

    const PLAN: Option<Plan> =
        Some(Plan { algorithm: Algorithm::Sha256, cover: super::super::checksum::Cover::Composite });

    #[test]
    fn listed_parts_make_the_object_and_others_are_left() {
        let stored = [part(1, 5), part(3, 9), part(4, 7), part(9, 2)];
        let whole = wish(&[1, 3, 9]).assemble(&stored, PLAN).unwrap();
        assert_eq!((whole.parts, whole.size, whole.unused), (3, 16, vec![part(4, 7)]));
        let digest = digest([1u32, 3, 9].iter().map(|n| Sha256::of(&n.to_be_bytes())));
        assert_eq!(whole.sha256, digest);
        assert!(whole.checksum.unwrap().value.ends_with("-3"));
        assert!(wish(&[1, 3, 9]).made(3, digest));
        assert!(!wish(&[1, 3]).made(3, digest) && !wish(&[1, 4, 9]).made(3, digest));
    }

    #[test]
    fn parts_that_do_not_fit_are_told_apart() {
        let stored = [part(1, 5), part(2, 4), part(3, 7)];
        let unfit = |wish: Wish| wish.assemble(&stored, PLAN).unwrap_err();
        assert_eq!(unfit(wish(&[3, 1])), Unfit::Order);
        assert_eq!(unfit(wish(&[1, 1])), Unfit::Order);
        assert_eq!(unfit(wish(&[1, 4])), Unfit::Part(4));
        assert_eq!(unfit(wish(&[1, 2, 3])), Unfit::TooSmall { n: 2, size: 4, min: 5 });
        assert_eq!(unfit(Wish { size: Some(11), ..wish(&[1, 3]) }), Unfit::Size(12));
        let crc = Checksum { algorithm: Algorithm::Crc32, value: "AAAAAA==".into() };
        assert_eq!(unfit(Wish { checksum: Some(crc), ..wish(&[1, 3]) }), Unfit::Unplanned(Algorithm::Crc32));
        let sha = Checksum { algorithm: Algorithm::Sha256, value: "AAAA-2".into() };
        assert!(matches!(unfit(Wish { checksum: Some(sha), ..wish(&[1, 3]) }), Unfit::Checksum(_)));

        let mut other = wish(&[1, 3]);
        other.parts[1] = Listed::new(3, Some(&part_tag(Sha256::of(b"other"))), Vec::new());
        assert_eq!(unfit(other.clone()), Unfit::Part(3));
        other.parts[1] = Listed::new(3, None, Vec::new());
        assert_eq!(unfit(other.clone()), Unfit::Part(3));
        other.parts[1] = listed(3);
        other.parts[1].checksums = vec![(Algorithm::Sha256, vec![0; 32])];
        assert_eq!(unfit(other), Unfit::Part(3));
    }

    #[test]
    fn the_last_part_may_be_small_and_one_part_is_the_last() {
        let stored = [part(1, 5), part(2, 0)];
        assert_eq!(wish(&[1, 2]).assemble(&stored, None).unwrap().size, 5);
        assert_eq!(wish(&[2]).assemble(&stored, None).unwrap().size, 0);
        let mut whole = wish(&[1, 2]);
        whole.checksum = PLAN.map(|plan| {
            plan.of_parts(stored.iter().map(|part| (part.checksum.as_deref().unwrap(), part.size)))
        });
        assert!(whole.assemble(&stored, PLAN).is_ok());
        whole.checksum.as_mut().unwrap().value = whole.checksum.as_ref().unwrap().value.replace("-2", "");
        assert!(whole.assemble(&stored, PLAN).is_ok());
    }
}
