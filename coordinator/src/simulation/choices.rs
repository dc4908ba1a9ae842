//! Where every decision of a schedule comes from: a string of bytes. The same string is the same schedule; a shorter one, or
//! one with smaller bytes, is a simpler schedule, for 0 is always the choice that disturbs nobody.

/// Schedules in a world.
pub(super) const WORLD: usize = 16;

/// Decisions that are still to be taken.
#[derive(Debug, Clone, Default)]
pub(super) struct Choices {
    bytes: Vec<u8>,
    at: usize,
    /// What decides in place of the string.
    aside: Option<Random>,
}

/// splitmix64
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Choices {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, at: 0, aside: None }
    }

    /// The strings that a seed stands for: those of a world's schedules, one after the other.
    pub(super) fn of_seed(seed: u64) -> Vec<Vec<u8>> {
        let mut random = Random(seed);
        let mut next = || random.next();
        let mut string = || {
            // Most are short: ten of 40 show more of the simple faults than one of 400, and are as quick.
            let length = match next() % 8 {
                0..=4 => 16 + next() % 64,
                5 | 6 => 40 + next() % 160,
                _ => 40 + next() % 360,
            };
            (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect()
        };
        (0..WORLD).map(|_| string()).collect()
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

    /// From now on one number decides, of which 256 are told apart, and no byte is used up; with `None` the string goes on.
    pub(super) fn set_aside(&mut self, by: Option<u8>) {
        self.aside = by.map(|by| Random(by.into()));
    }

    pub(super) fn byte(&mut self) -> u8 {
        if let Some(random) = &mut self.aside {
            return random.next().to_le_bytes()[0];
        }
        let byte = self.bytes.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        byte
    }

    /// All is decided: what is left happens by itself.
    pub(super) fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }
}
