//! A set of small numbers, one bit each.

use std::ops::Range;

/// Numbers below a limit, and how many of them are in the set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    length: u64,
    ones: u64,
}

/// The bits of word `word` that belong to a range.
fn mask(word: u64, range: &Range<u64>) -> u64 {
    let (first, last) = (word * 64, word * 64 + 64);
    let from = range.start.max(first) - first;
    let to = range.end.min(last) - first;
    let below = |count: u64| if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    below(to) & !below(from)
}

impl Bits {
    /// None of the numbers below `length`.
    pub fn new(length: u64) -> Self {
        Self { words: vec![0; length.div_ceil(64) as usize], length, ones: 0 }
    }

    /// How many numbers are in it.
    pub fn ones(&self) -> u64 {
        self.ones
    }

    /// The words that a range touches: number of the word, the word, the range's bits in it.
    fn words(&mut self, range: Range<u64>) -> impl Iterator<Item = (&mut u64, u64)> {
        let range = range.start.min(self.length)..range.end.min(self.length);
        let (first, last) = (range.start / 64, range.end.div_ceil(64).max(range.start / 64));
        let words = self.words.get_mut(first as usize..last as usize).unwrap_or_default();
        words.iter_mut().zip(first..).map(move |(word, index)| (word, mask(index, &range)))
    }

    /// Adds a range; answers how many were not in it.
    pub fn set(&mut self, range: Range<u64>) -> u64 {
        let mut added = 0;
        for (word, mask) in self.words(range) {
            added += u64::from((mask & !*word).count_ones());
            *word |= mask;
        }
        self.ones += added;
        added
    }

    /// Takes a range out; answers how many were in it.
    pub fn clear(&mut self, range: Range<u64>) -> u64 {
        let mut removed = 0;
        for (word, mask) in self.words(range) {
            removed += u64::from((mask & *word).count_ones());
            *word &= !mask;
        }
        self.ones -= removed;
        removed
    }

    /// Whether all of a range are in it.
    pub fn all(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.end_of_run(range.start, range.end) == range.end
    }

    /// The first number in the set that is not below `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        if self.ones == 0 || from >= self.length {
            return None;
        }
        let start = from / 64;
        let rest = self.words.get(start as usize..)?;
        for (word, index) in rest.iter().zip(start..) {
            let low = if index == start { u64::MAX << (from % 64) } else { u64::MAX };
            let word = word & low;
            if word != 0 {
                return Some(index * 64 + u64::from(word.trailing_zeros()));
            }
        }
        None
    }

    /// The first number from `from` on, up to `limit`, that is not in the set; `limit` if all are.
    pub fn end_of_run(&self, from: u64, limit: u64) -> u64 {
        let mut at = from;
        while at < limit {
            let Some(word) = self.words.get((at / 64) as usize) else { return at };
            let rest = !(word >> (at % 64));
            let run = u64::from(rest.trailing_zeros()).min(64 - at % 64);
            at += run;
            if !at.is_multiple_of(64) || run == 0 {
                return at.min(limit);
            }
        }
        limit
    }

    /// Adds everything that another set of the same limit has, and empties that one.
    pub fn take_from(&mut self, other: &mut Self) {
        self.ones = 0;
        for (own, theirs) in self.words.iter_mut().zip(&mut other.words) {
            *own |= std::mem::take(theirs);
            self.ones += u64::from(own.count_ones());
        }
        other.ones = 0;
    }

    /// Empties it.
    pub fn empty(&mut self) {
        self.words.fill(0);
        self.ones = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::Bits;

    proptest! {
        #[test]
        fn bits_are_a_set_of_numbers(
            length in 1_u64..300,
            steps in prop::collection::vec((any::<bool>(), 0_u64..320, 0_u64..320), 1..40),
        ) {
            let (mut bits, mut set) = (Bits::new(length), BTreeSet::new());
            for (add, a, b) in steps {
                let range = a.min(b)..a.max(b);
                let inside = range.start.min(length)..range.end.min(length);
                let before = set.len() as u64;
                if add {
                    let added = bits.set(range.clone());
                    set.extend(inside);
                    prop_assert_eq!(added, set.len() as u64 - before);
                } else {
                    let removed = bits.clear(range.clone());
                    set.retain(|number| !inside.contains(number));
                    prop_assert_eq!(removed, before - set.len() as u64);
                }
                prop_assert_eq!(bits.ones(), set.len() as u64);
                for from in 0..length {
                    prop_assert_eq!(bits.next(from), set.range(from..).next().copied());
                    let end = (from..length).find(|n| !set.contains(n)).unwrap_or(length);
                    prop_assert_eq!(bits.end_of_run(from, length), end);
                    prop_assert_eq!(bits.all(from..length), end == length);
                }
            }
            let mut other = Bits::new(length);
            other.set(0..length / 2);
            set.extend(0..length / 2);
            bits.take_from(&mut other);
            prop_assert_eq!((bits.ones(), other.ones()), (set.len() as u64, 0));
        }
    }
}
