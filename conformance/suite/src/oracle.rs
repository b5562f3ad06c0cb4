//! Content that says of itself what it is.
//!
//! A disk is filled in blocks of 4 KiB, each of which names its disk, its place, and the
//! generation in which it was written, with a checksum over all of it. So a block that is read
//! tells not only that it is wrong but what it is instead: another disk's, another place's, or the
//! content of an earlier or later time. What was never written is zero.

use std::collections::BTreeMap;
use std::fmt;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;

const MAGIC: &[u8; 8] = b"SMCBLK01";
const CHECKSUM: usize = BLOCK as usize - 4;

/// Who wrote a block, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The number of a disk, within one check.
    pub(crate) disk: u64,
    /// Grows with each round of writing.
    pub(crate) generation: u64,
}

/// What a disk must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) blocks: BTreeMap<u64, Mark>,
}

impl Content {
    /// Notes that a block was written.
    pub(crate) fn set(&mut self, lba: u64, mark: Mark) {
        self.blocks.insert(lba, mark);
    }
}

/// The bytes of a block.
pub(crate) fn block(mark: Mark, lba: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    bytes.extend_from_slice(MAGIC);
    for number in [mark.disk, lba, mark.generation] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    // Different in each block, so that nothing below can share or compress it away.
    let mut state = (mark.disk << 48) ^ (mark.generation << 32) ^ lba ^ 0x9e37_79b9_7f4a_7c15;
    while bytes.len() < CHECKSUM {
        state = crate::dice::mix(state);
        let word = state.to_le_bytes();
        bytes.extend_from_slice(&word[..word.len().min(CHECKSUM - bytes.len())]);
    }
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What a block turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Zeros,
    Written { mark: Mark, lba: u64 },
    Garbage,
}

impl Found {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Zeros;
        }
        let number = |at: usize| -> Option<u64> {
            bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
        };
        let parse = || {
            let (body, checksum) = bytes.split_at_checked(CHECKSUM)?;
            let good = body.starts_with(MAGIC) && crc32fast::hash(body).to_le_bytes() == *checksum;
            let mark = Mark { disk: number(8)?, generation: number(24)? };
            good.then_some(Self::Written { mark, lba: number(16)? })
        };
        parse().unwrap_or(Self::Garbage)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => write!(f, "zeros"),
            Self::Written { mark, lba } => write!(
                f,
                "block {lba} of disk {} as written in generation {}",
                mark.disk, mark.generation
            ),
            Self::Garbage => write!(f, "bytes that nobody wrote"),
        }
    }
}

/// The first few differences between what is in `bytes`, which begin at block `first`, and what
/// must be there.
pub(crate) fn differences(bytes: &[u8], first: u64, content: &Content, into: &mut Vec<String>) {
    for (lba, bytes) in (first..).zip(bytes.chunks(BLOCK as usize)) {
        let wanted = content
            .blocks
            .get(&lba)
            .map_or(Found::Zeros, |mark| Found::Written { mark: *mark, lba });
        let found = Found::of(bytes);
        if found != wanted {
            into.push(format!("block {lba} must be {wanted} and is {found}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { disk: 3, generation: 5 };

    #[test]
    fn a_block_tells_whose_it_is_and_one_flipped_bit_makes_it_nobodys() {
        let bytes = block(MARK, 7);
        assert_eq!(bytes.len() as u64, BLOCK);
        assert_eq!(Found::of(&bytes), Found::Written { mark: MARK, lba: 7 });
        for at in [0, 9, 17, 25, 40, 4090, 4095] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            assert_eq!(Found::of(&bytes), Found::Garbage, "byte {at}");
        }
        assert_eq!(Found::of(&[0; 4096]), Found::Zeros);
    }

    #[test]
    fn what_is_stale_moved_or_absent_is_named() {
        let mut content = Content::default();
        content.set(0, MARK);
        content.set(1, MARK);
        content.set(3, MARK);
        let old = Mark { generation: 4, ..MARK };
        let bytes =
            [block(old, 0), block(MARK, 0), block(MARK, 2), vec![0; BLOCK as usize]].concat();
        let mut found = Vec::new();
        differences(&bytes, 0, &content, &mut found);
        let [stale, moved, extra, lost] = found.as_slice() else { panic!("{found:?}") };
        assert!(stale.ends_with("is block 0 of disk 3 as written in generation 4"), "{stale}");
        assert!(moved.contains("and is block 0 of disk 3"), "{moved}");
        assert!(extra.starts_with("block 2 must be zeros"), "{extra}");
        assert!(lost.ends_with("generation 5 and is zeros"), "{lost}");
    }
}
