//! What happens when the spool is full. Pure.

use super::Entry;

/// How much a spool may hold, in entries that wait to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
    pub when_full: WhenFull,
}

/// Which files a full spool does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Those that come.
    RefuseNew,
    /// Those whose time is longest ago. What is dropped is told to whoever added, and logged.
    DropOldest,
}

impl Default for Limits {
    /// 100,000 files, 10 GiB, and nothing is dropped.
    fn default() -> Self {
        Self { files: 100_000, bytes: 10 << 30, when_full: WhenFull::RefuseNew }
    }
}

/// There is no room, and none can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Which entries must go so that `new` bytes in `count` files fit. `held` are those there are and that can go, oldest first.
pub(super) fn make<'a>(
    limits: &Limits,
    held: impl Iterator<Item = &'a Entry>,
    (held_files, held_bytes): (u64, u64),
    (new_files, new_bytes): (u64, u64),
) -> Result<Vec<Entry>, Full> {
    let (mut files, mut bytes) = (held_files.saturating_add(new_files), held_bytes.saturating_add(new_bytes));
    let fits = |files, bytes| files <= limits.files && bytes <= limits.bytes;
    if fits(files, bytes) {
        return Ok(Vec::new());
    }
    // What could not even be held alone drives nothing out.
    if limits.when_full == WhenFull::RefuseNew || !fits(new_files, new_bytes) {
        return Err(Full);
    }
    let mut out = Vec::new();
    for entry in held {
        if fits(files, bytes) {
            break;
        }
        files -= 1;
        bytes = bytes.saturating_sub(entry.size);
        out.push(entry.clone());
    }
    if fits(files, bytes) { Ok(out) } else { Err(Full) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(sizes: &[u64]) -> Vec<Entry> {
        let entry = |(n, size): (usize, &u64)| Entry {
            key: n as u64,
            size: *size,
            upload: format!("u{n}").parse().unwrap(),
        };
        sizes.iter().enumerate().map(entry).collect()
    }

    fn make_room(limits: &Limits, held: &[Entry], new: (u64, u64)) -> Result<Vec<Entry>, Full> {
        let sum = (held.len() as u64, held.iter().map(|entry| entry.size).sum());
        make(limits, held.iter(), sum, new)
    }

    #[test]
    fn a_full_spool_refuses_or_drops_the_oldest_as_it_was_told() {
        let held = held(&[10, 10, 10]);
        let refuse = Limits { files: 3, bytes: 1_000, when_full: WhenFull::RefuseNew };
        assert_eq!(make_room(&refuse, &held, (1, 1)), Err(Full));
        let drop = Limits { when_full: WhenFull::DropOldest, ..refuse };
        assert_eq!(make_room(&drop, &held, (2, 2)), Ok(held[..2].to_vec()));
        let bytes = Limits { files: 100, bytes: 35, when_full: WhenFull::DropOldest };
        assert_eq!(make_room(&bytes, &held, (1, 16)), Ok(held[..2].to_vec()));
        assert_eq!(make_room(&bytes, &held, (1, 36)), Err(Full));
        // One of them stays whatever is decided.
        let all = (3, 30);
        assert_eq!(make(&bytes, held[1..].iter(), all, (1, 16)), Ok(held[1..].to_vec()));
        assert_eq!(make(&bytes, held[1..].iter(), all, (1, 26)), Err(Full), "and so none of the others goes");
    }

    proptest! {
        #[test]
        fn afterwards_everything_fits_and_nothing_went_in_vain(
            sizes in proptest::collection::vec(0..100_u64, 0..20), files in 0..20_u64, bytes in 0..1_000_u64,
            new in (0..5_u64, 0..300_u64),
        ) {
            let held = held(&sizes);
            let limits = Limits { files, bytes, when_full: WhenFull::DropOldest };
            let Ok(out) = make_room(&limits, &held, new) else {
                prop_assert!(new.0 > files || new.1 > bytes);
                return Ok(());
            };
            let fits = |gone: usize| {
                let left: u64 = sizes[gone..].iter().sum();
                (sizes.len() - gone) as u64 + new.0 <= files && left + new.1 <= bytes
            };
            prop_assert!(fits(out.len()));
            prop_assert!(out.is_empty() || !fits(out.len() - 1));
            prop_assert_eq!(&out[..], &held[..out.len()]);
        }
    }
}
