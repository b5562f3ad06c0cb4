//! One bit for each [`REGION`] bytes of a disk.

use std::ops::Range;

use super::{Changed, REGION};

/// Which regions of a disk changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    size: u64,
    /// Least significant bit first, as in the file.
    bytes: Vec<u8>,
}

/// Bytes of the map of a disk of `size` bytes.
pub fn length(size: u64) -> u64 {
    size.div_ceil(REGION).div_ceil(8)
}

impl Map {
    /// Nothing has changed.
    pub fn empty(size: u64) -> Self {
        Self { size, bytes: vec![0; length(size) as usize] }
    }

    /// Everything may have.
    pub fn full(size: u64) -> Self {
        let mut map = Self::empty(size);
        map.set(&(0..size));
        map
    }

    /// Of bytes as they are in a file; bits beyond the end of the disk are dropped.
    pub fn of(size: u64, mut bytes: Vec<u8>) -> Self {
        bytes.resize(length(size) as usize, 0);
        let used = size.div_ceil(REGION) % 8;
        if used > 0
            && let Some(last) = bytes.last_mut()
        {
            *last &= (1 << used) - 1;
        }
        Self { size, bytes }
    }

    /// Of bytes as XenServer's API has them: most significant bit first.
    pub fn of_msb_first(size: u64, bytes: &[u8]) -> Self {
        Self::of(size, bytes.iter().map(|byte| byte.reverse_bits()).collect())
    }

    /// As XenServer's API has them: most significant bit first.
    pub fn to_msb_first(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.reverse_bits()).collect()
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// As they are in a file: least significant bit first.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A range changed, bytes.
    pub fn set(&mut self, range: &Range<u64>) {
        if range.start >= self.size {
            return;
        }
        let end = range.end.min(self.size).div_ceil(REGION);
        for region in range.start / REGION..end {
            if let Some(byte) = self.bytes.get_mut((region / 8) as usize) {
                *byte |= 1 << (region % 8);
            }
        }
    }

    /// Whether a region changed.
    pub fn get(&self, region: u64) -> bool {
        self.bytes.get((region / 8) as usize).is_some_and(|byte| byte & (1 << (region % 8)) != 0)
    }

    /// Adds what another one has, of a disk of any size; what is beyond this one's end is left out.
    pub fn add(&mut self, other: &Self) {
        let ours = Self::of(self.size, other.bytes.clone());
        for (byte, more) in self.bytes.iter_mut().zip(&ours.bytes) {
            *byte |= more;
        }
    }

    /// As long as a disk that has grown: what is new counts as changed.
    pub fn grow(&mut self, size: u64) {
        if size > self.size {
            let before = self.size;
            self.size = size;
            self.bytes.resize(length(size) as usize, 0);
            // A region that began before the old end has a new part, too.
            self.set(&(before..size));
        }
    }

    /// Number of regions that changed.
    pub fn count(&self) -> u64 {
        self.bytes.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Appends what changed of a range: in order, neighbours different, at most `limit` and at
    /// least one.
    pub fn runs(&self, offset: u64, length: u64, limit: usize, into: &mut Vec<Changed>) {
        runs(&|region| self.get(region), offset, length, limit, into);
    }
}

/// As [`Map::runs`], of anything that knows regions.
pub fn runs(
    get: &dyn Fn(u64) -> bool,
    offset: u64,
    length: u64,
    limit: usize,
    into: &mut Vec<Changed>,
) {
    let (mut at, end) = (offset, offset.saturating_add(length));
    for _ in 0..limit.max(1) {
        if at >= end {
            return;
        }
        let dirty = get(at / REGION);
        let mut next = (at / REGION + 1) * REGION;
        while next < end && get(next / REGION) == dirty {
            next += REGION;
        }
        let next = next.min(end);
        into.push(Changed { length: next - at, dirty });
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Map, REGION};

    proptest! {
           #[test]
           fn runs_say_what_the_bits_say(
               size in 1_u64..40 * REGION,
               ranges in prop::collection::vec((0_u64..41 * REGION, 1_u64..3 * REGION), 0..6),
               ask in (0_u64..40 * REGION, 1_u64..40 * REGION),
               grown in 0_u64..9 * REGION,
           ) {
               let mut map = Map::empty(size);
               let ranges: Vec<_> = ranges.iter().map(|(at, length)| *at..at + length).collect();
               for range in &ranges {
    map.set(range);
    }
               let written = |region: u64| {
                   let inside = region * REGION..((region + 1) * REGION).min(size);
                   ranges.iter().any(|range| range.start < inside.end && inside.start < range.end)
               };
               for region in 0..size.div_ceil(REGION) {
                   prop_assert_eq!(map.get(region), written(region));
               }
               let (offset, length) = (ask.0.min(size - 1), ask.1.min(size - ask.0.min(size - 1)));
               let mut runs = Vec::new();
               map.runs(offset, length, usize::MAX, &mut runs);
               prop_assert_eq!(runs.iter().map(|run| run.length).sum::<u64>(), length);
               prop_assert!(runs.windows(2).all(|pair| pair[0].dirty != pair[1].dirty));
               let mut at = offset;
               for run in &runs {
                   for region in at / REGION..(at + run.length).div_ceil(REGION) {
                       prop_assert_eq!(map.get(region), run.dirty);
                   }
                   at += run.length;
               }
               let mut first = Vec::new();
               map.runs(offset, length, 1, &mut first);
               prop_assert_eq!(&first[..], &runs[..1]);

               let again = Map::of(size, map.bytes().to_vec());
               prop_assert_eq!(&again, &map);
               let mut wider = map.clone();
               wider.grow(size + grown);
               for region in 0..(size + grown).div_ceil(REGION) {
                   let new = grown > 0 && (region + 1) * REGION > size;
                   prop_assert_eq!(wider.get(region), map.get(region) || new);
               }
               let mut sum = Map::empty(size);
               sum.add(&wider);
               prop_assert_eq!(sum.size(), size);
               let full = Map::full(size);
               prop_assert_eq!(full.count(), size.div_ceil(REGION));
               sum.add(&full);
               prop_assert_eq!(sum, full);
           }
       }
}
