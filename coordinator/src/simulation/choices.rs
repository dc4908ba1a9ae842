//! Where every decision of a schedule comes from: a string of bytes. The same string is the same schedule; a shorter one, or
//! one with smaller bytes, is a simpler schedule, for 0 is always the choice that disturbs nobody.

/// Decisions that are still to be taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices {
    bytes: Vec<u8>,
    at: usize,
}

impl Choices {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0 }
    }

    /// The string that a seed stands for.
    pub(super) fn of_seed(seed: u64) -> Vec<u8> {
        // splitmix64
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        // Most are short: ten of 40 show more of the simple faults than one of 400, and are as quick.
        let length = match next() % 8 {
            0..=4 => 16 + next() % 64,
            5 | 6 => 40 + next() % 160,
            _ => 40 + next() % 360,
        };
        (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect()
    }

    /// A number below `end`; 0 when all is decided.
    pub(super) fn below(&mut self, end: usize) -> usize {
        if end <= 1 {
            return 0;
        }
        usize::from(self.byte()) % end
    }

    /// True about `in_256` times of 256.
    pub(super) fn chance(&mut self, in_256: u8) -> bool {
        u16::from(self.byte()) + u16::from(in_256) > 255
    }

    pub(super) fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        byte
    }

    /// All is decided: what is left happens by itself.
    pub(super) fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }
}
