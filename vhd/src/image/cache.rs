//! Sector bits of an image's blocks, as far as they are in memory.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::bits;

/// Bytes of bitmaps kept in memory unless something else is said.
const BUDGET: usize = 32 << 20;

/// Sector bits of one block.
#[derive(Clone)]
pub(super) enum Bits {
    /// Every sector is present.
    Full,
    /// As stored, but always most significant bit first.
    Map(Box<[u8]>),
}

impl Bits {
    /// The bits of a block with that many sectors.
    pub(super) fn of(map: Vec<u8>, sectors: u64) -> Self {
        if bits::all(&map, sectors) { Self::Full } else { Self::Map(map.into()) }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Full => 0,
            Self::Map(map) => map.len(),
        }
    }

    /// As stored, but always most significant bit first.
    pub(super) fn to_bytes(&self, bitmap_bytes: u64, sectors: u64) -> Vec<u8> {
        match self {
            Self::Map(map) => map.to_vec(),
            Self::Full => {
                let mut map = vec![0; bitmap_bytes as usize];
                bits::set(&mut map, 0, sectors);
                map
            }
        }
    }
}

/// Block numbers spread themselves: one multiplication will do.
#[derive(Clone, Copy, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// The bits that are known. What is not in the file yet is never forgotten; of the rest, only so
/// much is kept.
pub(super) struct Bitmaps {
    known: HashMap<u32, Bits, BuildHasherDefault<Spread>>,
    /// In the order in which they came; may name what is no longer known.
    order: VecDeque<u32>,
    bytes: usize,
    budget: usize,
    /// Blocks whose bits in memory are not those in the file.
    dirty: BTreeSet<u32>,
    /// Blocks whose bits are on their way to the file.
    leaving: BTreeSet<u32>,
}

impl Bitmaps {
    pub(super) fn new() -> Self {
        Self {
            known: HashMap::default(),
            order: VecDeque::new(),
            bytes: 0,
            budget: BUDGET,
            dirty: BTreeSet::new(),
            leaving: BTreeSet::new(),
        }
    }

    pub(super) fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes;
        self.evict(None);
    }

    pub(super) fn get(&self, block: u32) -> Option<&Bits> {
        self.known.get(&block)
    }

    /// Keeps what was read from the file.
    pub(super) fn keep(&mut self, block: u32, bits: Bits) {
        self.put(block, bits);
        self.evict(Some(block));
    }

    /// A new block without a bit set; `stored` says that the file has its bitmap.
    pub(super) fn begin(&mut self, block: u32, bytes: u64, stored: bool) {
        self.put(block, Bits::Map(vec![0; bytes as usize].into()));
        if !stored {
            self.dirty.insert(block);
        }
        self.evict(Some(block));
    }

    /// Whether a block that is known lacks any of those bits.
    pub(super) fn lacks(&self, block: u32, first: u64, count: u64) -> bool {
        match self.known.get(&block) {
            Some(Bits::Map(map)) => bits::run(map, first, first + count) != (true, count),
            Some(Bits::Full) => false,
            None => true,
        }
    }

    /// Sets bits of a block that is known, which has that many sectors, in memory only: it is dirty
    /// until [`Bitmaps::take`].
    pub(super) fn set(&mut self, block: u32, first: u64, count: u64, sectors: u64) {
        let Some(found) = self.known.get_mut(&block) else { return };
        if let Bits::Map(map) = found {
            bits::set(map, first, count);
            if bits::all(map, sectors) {
                self.bytes -= map.len();
                *found = Bits::Full;
            }
            self.dirty.insert(block);
        }
    }

    fn put(&mut self, block: u32, bits: Bits) {
        self.bytes += bits.bytes();
        match self.known.entry(block) {
            Entry::Occupied(mut entry) => self.bytes -= entry.insert(bits).bytes(),
            Entry::Vacant(entry) => {
                entry.insert(bits);
                self.order.push_back(block);
            }
        }
    }

    /// Forgets a block: whoever needs it reads it again.
    pub(super) fn forget(&mut self, block: u32) {
        self.dirty.remove(&block);
        if let Some(bits) = self.known.remove(&block) {
            self.bytes -= bits.bytes();
        }
    }

    /// Forgets the eldest that can be read again, until the rest fits.
    fn evict(&mut self, but: Option<u32>) {
        let mut tries = self.order.len();
        while self.bytes > self.budget && tries > 0 {
            tries -= 1;
            let Some(block) = self.order.pop_front() else { return };
            let Some(bits) = self.known.get(&block) else { continue };
            let kept = bits.bytes() == 0
                || Some(block) == but
                || self.dirty.contains(&block)
                || self.leaving.contains(&block);
            if kept {
                self.order.push_back(block);
            } else if let Some(bits) = self.known.remove(&block) {
                self.bytes -= bits.bytes();
            }
        }
    }

    /// Number of blocks whose bits are not in the file.
    pub(super) fn waiting(&self) -> usize {
        self.dirty.len() + self.leaving.len()
    }

    /// Takes the blocks whose bits are to be written to the file; they stay known until
    /// [`Bitmaps::written`].
    pub(super) fn take(&mut self) -> Vec<(u32, Bits)> {
        let blocks = std::mem::take(&mut self.dirty);
        self.leaving.extend(&blocks);
        blocks
            .into_iter()
            .filter_map(|block| Some((block, self.known.get(&block)?.clone())))
            .collect()
    }

    /// The bits that were taken are in the file, or have to be taken again.
    pub(super) fn written(&mut self, done: bool) {
        let blocks = std::mem::take(&mut self.leaving);
        if !done {
            self.dirty.extend(blocks);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Bitmaps, Bits};

    fn map(byte: u8) -> Bits {
        Bits::Map(vec![byte; 512].into())
    }

    #[test]
    fn what_is_not_in_the_file_is_never_forgotten() {
        let mut bitmaps = Bitmaps::new();
        bitmaps.set_budget(4 * 512);
        for block in 0..10 {
            bitmaps.keep(block, map(0));
            bitmaps.set(block, u64::from(block), 1, 4096);
        }
        for block in 10..100 {
            bitmaps.keep(block, map(1));
            assert!(bitmaps.get(block).is_some(), "the newest is there");
        }
        let taken = bitmaps.take();
        assert_eq!(taken.len(), 10);
        // Changed again on its way, and all others under way.
        bitmaps.set(3, 100, 1, 4096);
        for block in 100..200 {
            bitmaps.keep(block, map(1));
        }
        for block in 0..10 {
            assert!(!bitmaps.lacks(block, u64::from(block), 1), "block {block}");
            assert_eq!(bitmaps.lacks(block, 100, 1), block != 3);
        }
        bitmaps.written(false);
        assert_eq!(bitmaps.waiting(), 10);
        assert_eq!(bitmaps.take().len(), 10, "taken again after a failure");
        bitmaps.written(true);
        assert_eq!(bitmaps.waiting(), 0);
        bitmaps.keep(500, map(1));
        bitmaps.set(501, 0, 4096, 4096);
        assert_eq!(bitmaps.waiting(), 0, "a block that is not known is not invented");
        assert!(bitmaps.bytes <= 4 * 512 && bitmaps.known.len() <= 4);
    }
}
