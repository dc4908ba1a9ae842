//! Inputs from inputs.

use crate::Target;

/// Numbers at which something changes.
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    4,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    1 << 20,
    1 << 31,
    u32::MAX as u64,
    1 << 40,
    u64::MAX,
];
/// The same as text.
const DIGITS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1",
    b"255",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"true",
    b"\"\"",
    b"{}",
    b"[]",
];

/// Makes mutants. The same number makes the same ones.
pub(crate) struct Mutator {
    words: &'static [&'static [u8]],
    max: usize,
    state: u64,
}

impl Mutator {
    pub(crate) fn new(target: &Target, random: u64) -> Self {
        Self { words: target.words, max: target.max, state: random }
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to one less than `end`; 0 if there is nothing between.
    fn below(&mut self, end: usize) -> usize {
        let random = self.next() % (end.max(1) as u64);
        usize::try_from(random).unwrap_or(0)
    }

    pub(crate) fn one_of<'a, T>(&mut self, all: &'a mut [T]) -> &'a mut T {
        let at = self.below(all.len());
        &mut all[at]
    }

    /// One of the inputs, changed in a few places.
    pub(crate) fn mutant(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let at = self.below(pool.len());
        let mut bytes = pool[at].clone();
        // Mostly few changes: what is far from everything that means something is refused at the door.
        let most = 1 << self.below(4);
        for _ in 0..=self.below(most) {
            self.change(&mut bytes, pool);
        }
        bytes.truncate(self.max);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = at + self.below((bytes.len() - at).min(64) + 1);
        match self.below(12) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.next() as u8,
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(self.below(7) as u8).wrapping_sub(3),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            5 => {
                let piece = bytes[at..end].to_vec();
                let most = 1 << self.below(6);
                let times = 1 + self.below(most);
                bytes.splice(at..at, piece.repeat(times));
            }
            6 => {
                let other = self.below(pool.len());
                let from = self.below(pool[other].len() + 1);
                let until = from + self.below(pool[other].len() - from + 1);
                let replaced = if self.below(2) == 0 { at } else { end };
                bytes.splice(at..replaced, pool[other][from..until].iter().copied());
            }
            7 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let width = 1 << self.below(4);
                let number =
                    if self.below(2) == 0 { number.to_le_bytes() } else { number.swap_bytes().to_le_bytes() };
                let number = if self.below(2) == 0 { &number[..width] } else { &number[8 - width..] };
                let until = if self.below(2) == 0 { at } else { bytes.len().min(at + width) };
                bytes.splice(at..until, number.iter().copied());
            }
            8 => {
                // A number in text.
                let digits =
                    bytes.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at);
                let digits: Vec<usize> = digits.collect();
                if let Some(begin) = digits.get(self.below(digits.len())).copied() {
                    let length = bytes[begin..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    bytes.splice(begin..begin + length, DIGITS[self.below(DIGITS.len())].iter().copied());
                }
            }
            9 => {
                let piece = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            _ if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())];
                let until = if self.below(2) == 0 { at } else { end };
                bytes.splice(at..until, word.iter().copied());
            }
            _ => bytes.insert(at, self.next() as u8),
        }
    }
}
