//! Chance that is the same each time it is asked with the same seed.

/// SplitMix64's step: a permutation of the 64-bit numbers that looks like chance. It picks places
/// and sizes, so that neither quality nor secrecy matters; sequences come from proptest.
pub(crate) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The stream of one check in one run.
    pub(crate) fn new(seed: u64, of: &str) -> Self {
        Self(of.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))))
    }

    /// A number below `limit`; 0 for 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = mix(self.0);
        self.0.checked_rem(limit).unwrap_or(0)
    }

    /// Puts a list into some order.
    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
