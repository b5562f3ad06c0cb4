//! The dynamic header: 1024 bytes that say where the block table is and who the parent is.

use uuid::Uuid;

use crate::error::Fault;
use crate::footer::{array, be32, be64, checksum, printable, put};
use crate::locator::Locator;
use crate::{MAX_SIZE, SECTOR};

/// Bytes of a header.
pub const SIZE: usize = 1024;

/// The cookie every header starts with.
pub const COOKIE: &[u8; 8] = b"cxsparse";

/// Largest block size we accept, 256 MiB: a bitmap of 64 KiB. The format sets no limit.
pub const MAX_BLOCK: u32 = 256 << 20;

/// Largest part of a block table that we load, bytes: a full-size disk with blocks of 128 KiB.
pub const MAX_TABLE: u64 = 64 << 20;

/// Locator slots of a header.
pub const LOCATORS: usize = 8;

/// A decoded dynamic header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the block table is, in bytes.
    pub table_offset: u64,
    /// Entries of the block table; at least one per block of the disk, more is room to grow.
    pub table_entries: u32,
    /// Bytes of data per block.
    pub block_size: u32,
    /// Footer UUID of the parent; all zero in a differencing image means a raw file.
    pub parent_uuid: Uuid,
    /// Seconds since 2000-01-01 UTC; Microsoft's tools record the parent's modification time.
    pub parent_timestamp: u32,
    /// The parent's name, UTF-16 big-endian, as stored. May hold unpaired surrogates.
    pub parent_name: [u8; 512],
    /// Where to look for the parent.
    pub locators: [Locator; LOCATORS],
}

impl Header {
    /// Decodes and verifies 1024 bytes; what depends on the file's size is checked elsewhere.
    pub fn parse(raw: &[u8]) -> Result<Self, Fault> {
        if raw.len() < SIZE || !raw.starts_with(COOKIE) {
            return Err(Fault::HeaderCookie(printable(raw.get(..8).unwrap_or(raw))));
        }
        let raw = &raw[..SIZE];
        let (stored, computed) = (be32(raw, 36), checksum(raw, 36));
        if stored != computed {
            return Err(Fault::HeaderChecksum { stored, computed });
        }
        if be32(raw, 24) != 0x0001_0000 {
            return Err(Fault::HeaderVersion(be32(raw, 24)));
        }
        // The specification's text has 32 bits of ones where its tools write 64.
        let next = be64(raw, 8);
        if next != u64::MAX && next != u64::from(u32::MAX) && next != !u64::from(u32::MAX) {
            return Err(Fault::NextRecord(next));
        }
        let block_size = be32(raw, 32);
        if !block_size.is_power_of_two() || !(SECTOR as u32..=MAX_BLOCK).contains(&block_size) {
            return Err(Fault::BlockSize(block_size));
        }
        let mut locators = [Locator::default(); LOCATORS];
        for (index, locator) in locators.iter_mut().enumerate() {
            let at = 576 + index * 24;
            *locator = Locator {
                code: array(raw, at),
                space: be32(raw, at + 4),
                length: be32(raw, at + 8),
                offset: be64(raw, at + 16),
            };
        }
        Ok(Self {
            table_offset: be64(raw, 16),
            table_entries: be32(raw, 28),
            block_size,
            parent_uuid: Uuid::from_bytes(array(raw, 40)),
            parent_timestamp: be32(raw, 56),
            parent_name: array(raw, 64),
            locators,
        })
    }

    /// The 1024 bytes, with a fresh checksum.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut raw = [0_u8; SIZE];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &u64::MAX.to_be_bytes());
        put(&mut raw, 16, &self.table_offset.to_be_bytes());
        put(&mut raw, 24, &0x0001_0000_u32.to_be_bytes());
        put(&mut raw, 28, &self.table_entries.to_be_bytes());
        put(&mut raw, 32, &self.block_size.to_be_bytes());
        put(&mut raw, 40, self.parent_uuid.as_bytes());
        put(&mut raw, 56, &self.parent_timestamp.to_be_bytes());
        put(&mut raw, 64, &self.parent_name);
        for (index, locator) in self.locators.iter().enumerate() {
            let at = 576 + index * 24;
            put(&mut raw, at, &locator.code);
            put(&mut raw, at + 4, &locator.space.to_be_bytes());
            put(&mut raw, at + 8, &locator.length.to_be_bytes());
            put(&mut raw, at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&raw, 36);
        put(&mut raw, 36, &sum.to_be_bytes());
        raw
    }

    /// Checks what depends on the disk's size and the file's length, both in bytes.
    pub fn verify(&self, size: u64, file_length: u64) -> Result<(), Fault> {
        let needed = size.div_ceil(u64::from(self.block_size));
        if u64::from(self.table_entries) < needed {
            return Err(Fault::TableTooSmall { entries: self.table_entries, needed });
        }
        if needed * 4 > MAX_TABLE {
            return Err(Fault::TableTooLarge(needed * 4));
        }
        if !self.table_offset.is_multiple_of(SECTOR) {
            return Err(Fault::TableUnaligned(self.table_offset));
        }
        let end = self.table_offset.checked_add(self.table_bytes());
        if self.table_offset < SECTOR || end.is_none_or(|end| end > file_length) {
            return Err(Fault::TableOutside {
                offset: self.table_offset,
                entries: self.table_entries,
                file: file_length,
            });
        }
        Ok(())
    }

    /// Bytes of the block table as stored: padded to whole sectors.
    pub fn table_bytes(&self) -> u64 {
        table_bytes(self.table_entries)
    }

    /// First byte after the block table; the batmap's header is here.
    pub fn table_end(&self) -> u64 {
        self.table_offset.saturating_add(self.table_bytes())
    }

    /// Bytes of a sector bitmap as stored: one bit per sector, padded to whole sectors.
    pub fn bitmap_bytes(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    /// Bytes a block takes in the file: bitmap and data.
    pub fn stride(&self) -> u64 {
        self.bitmap_bytes() + u64::from(self.block_size)
    }
}

/// Bytes of a block table with that many entries, padded to whole sectors.
pub fn table_bytes(entries: u32) -> u64 {
    (u64::from(entries) * 4).next_multiple_of(SECTOR)
}

/// Table entries for a new disk of `size` bytes: twice what it needs and at least 4096 (8 GiB of
/// blocks of 2 MiB), so that a later grow almost never has to move blocks out of the table's way;
/// never more than the largest disk needs.
pub fn roomy_entries(size: u64, block_size: u32) -> u32 {
    let needed = size.div_ceil(u64::from(block_size));
    let most = MAX_SIZE.div_ceil(u64::from(block_size));
    let entries = needed.saturating_mul(2).max(4096).min(most).max(needed);
    u32::try_from(entries).unwrap_or(u32::MAX)
}
