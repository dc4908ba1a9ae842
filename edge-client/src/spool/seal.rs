//! The checksum of what the spool notes in lines, as an entry's description has one: the SHA-256 of the text in hex, a blank, the
//! text. A line that is damaged says nothing, and the others say what they said. Pure.

use millpond_protocol::Sha256;

/// What a note says.
#[derive(Debug)]
pub(super) struct Noted<T> {
    pub(super) whole: Vec<T>,
    /// Lines that are not what was written, or that nobody writes who keeps to the format.
    pub(super) damaged: Vec<Vec<u8>>,
}

/// A text without a line's end as a line with its checksum.
pub(super) fn line(text: &str) -> String {
    format!("{} {text}\n", Sha256::of(text.as_bytes()))
}

/// What such a line says, if that is what was written.
pub(super) fn proven(line: &[u8]) -> Option<&str> {
    let (digest, text) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    (Sha256::of(text.as_bytes()).to_string() == digest).then_some(text)
}

/// The lines of a note, without those that are empty.
pub(super) fn lines(note: &[u8]) -> impl Iterator<Item = &[u8]> {
    note.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Reads a note whose texts say what `understand` makes of them.
pub(super) fn read<T>(note: &[u8], understand: impl Fn(&str) -> Option<T>) -> Noted<T> {
    let mut noted = Noted { whole: Vec::new(), damaged: Vec::new() };
    for line in lines(note) {
        match proven(line).and_then(&understand) {
            Some(said) => noted.whole.push(said),
            None => noted.damaged.push(line.to_owned()),
        }
    }
    noted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_flipped_bit_silences_its_line_and_no_other(
            texts in proptest::collection::vec("\\PC{0,40}", 1..5), at in any::<proptest::sample::Index>(), bit in 0..8_u8,
        ) {
            let mut note: Vec<u8> = texts.iter().flat_map(|text| line(text).into_bytes()).collect();
            let all = |note: &[u8]| read(note, |text| Some(text.to_owned())).whole;
            prop_assert_eq!(&all(&note), &texts);
            let at = at.index(note.len());
            note[at] ^= 1 << bit;
            let left = all(&note);
            // A line's end that is none any more takes the next line with it.
            prop_assert!(left.len() < texts.len() && left.len() + 2 >= texts.len(), "{left:?}");
            prop_assert!(left.iter().all(|text| texts.contains(text)));
        }
    }
}
