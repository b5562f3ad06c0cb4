//! The batmap: blktap's bitmap over blocks, right after the block table. A set bit says that every
//! sector of that block is present, so a reader may skip the block's own bitmap.
//!
//! It is an optimisation only: bits are set when a whole image is written in one go and never
//! otherwise, and a batmap whose checksum is wrong is ignored. A clear bit is always right.

use crate::SECTOR;
use crate::footer::{be32, be64, put};

/// Bytes of the batmap's header.
pub const HEADER: u64 = 512;

/// The cookie of the batmap's header.
pub const COOKIE: &[u8; 8] = b"tdbatmap";

/// Where a batmap lies and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap {
    /// Where the map is, bytes.
    pub offset: u64,
    /// The map as stored.
    pub map: Vec<u8>,
}

/// What the batmap's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatmapHeader {
    /// Where the map is, bytes.
    pub offset: u64,
    /// Bytes of the map.
    pub length: u64,
    /// 0x0001_0001 or 0x0001_0002.
    pub version: u32,
    /// Checksum of the map.
    pub checksum: u32,
}

impl BatmapHeader {
    /// Decodes the header; none when there is no batmap or its place is impossible for a table of
    /// `entries` blocks in a file of `file_length` bytes.
    pub fn parse(raw: &[u8], entries: u32, file_length: u64) -> Option<Self> {
        if !raw.starts_with(COOKIE) {
            return None;
        }
        let header = Self {
            offset: be64(raw, 8),
            length: u64::from(be32(raw, 16)) * SECTOR,
            version: be32(raw, 20),
            checksum: be32(raw, 24),
        };
        // Tools round the map's length differently, but none stores much more than it needs.
        let fits = header.offset.checked_add(header.length)? <= file_length
            && header.offset.is_multiple_of(SECTOR)
            && header.length >= u64::from(entries).div_ceil(8)
            && header.length <= map_bytes(entries) + 8 * SECTOR;
        fits.then_some(header)
    }

    /// Whether the map has this header's checksum. Version 1.1 summed signed bytes.
    pub fn matches(&self, map: &[u8]) -> bool {
        let sum = |value: fn(u8) -> u32| {
            !map.iter().fold(0_u32, |sum, byte| sum.wrapping_add(value(*byte)))
        };
        if self.version == 0x0001_0001 {
            self.checksum == sum(|byte| i32::from(byte.cast_signed()).cast_unsigned())
        } else {
            self.checksum == sum(u32::from)
        }
    }
}

/// Bytes of a map for that many blocks, in whole sectors.
pub fn map_bytes(entries: u32) -> u64 {
    u64::from(entries).div_ceil(8).max(1).next_multiple_of(SECTOR)
}

/// Header and map as stored, for a batmap whose header is at `offset`.
pub fn to_bytes(offset: u64, map: &[u8]) -> Vec<u8> {
    let mut raw = vec![0; HEADER as usize];
    let sum = !map.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    put(&mut raw, 0, COOKIE);
    put(&mut raw, 8, &(offset + HEADER).to_be_bytes());
    put(&mut raw, 16, &((map.len() as u64 / SECTOR) as u32).to_be_bytes());
    put(&mut raw, 20, &0x0001_0002_u32.to_be_bytes());
    put(&mut raw, 24, &sum.to_be_bytes());
    raw.extend_from_slice(map);
    raw
}
