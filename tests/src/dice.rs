//! Chances that can be thrown again: from `MILLPOND_SEED`, or from the clock, and printed.

/// A source of numbers, all of one seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// A new one. Says what to set for the same throws.
    pub fn new(what: &str) -> Self {
        let seed = std::env::var("MILLPOND_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_secs() % 1_000_000
        });
        eprintln!("{what}: MILLPOND_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Another one, for whoever throws at the same time.
    pub fn child(&mut self) -> Self {
        Self(self.0.wrapping_add(self.below(1 << 31)) | 1)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// One of these, of which there is one.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }

    /// In another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for n in (1..items.len()).rev() {
            let other = self.below(n as u64 + 1);
            items.swap(n, usize::try_from(other).unwrap());
        }
    }
}
