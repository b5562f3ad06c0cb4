//! The footer: 512 bytes at the end of every image, with a copy at offset 0 of all but fixed ones.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::Fault;
use crate::geometry::Geometry;
use crate::{MAX_SIZE, SECTOR};

/// Bytes of a footer.
pub const SIZE: usize = 512;

/// The cookie every footer starts with.
pub const COOKIE: &[u8; 8] = b"conectix";

/// The cookie blktap puts there while it moves blocks; the image is unusable until it is done.
pub const POISON: &[u8; 8] = b"v_poison";

/// Seconds from the Unix epoch to the format's own, 2000-01-01 UTC.
const EPOCH: u64 = 946_684_800;

/// How an image stores its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Type 2: the disk's bytes, then a footer.
    Fixed,
    /// Type 3: blocks are allocated when written.
    Dynamic,
    /// Type 4: as dynamic, and what is absent is in the parent.
    Differencing,
}

impl DiskType {
    /// The number the format uses.
    pub fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

/// A decoded footer. What the format reserves is written as zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Bit 1 is always set by writers, bit 0 means temporary; the rest has no meaning.
    pub features: u32,
    /// Where the dynamic header is, in bytes; all ones for fixed images.
    pub data_offset: u64,
    /// Seconds since 2000-01-01 UTC. Not compared with the clock: hosts' clocks differ.
    pub timestamp: u32,
    /// Who wrote the image: `tap\0`, `win `, `vpc `, `qemu`, ...
    pub creator: [u8; 4],
    /// Major version in the upper half, minor in the lower.
    pub creator_version: u32,
    /// `Wi2k`, `Mac ` or zeros.
    pub creator_os: [u8; 4],
    /// Size at creation, bytes.
    pub original_size: u64,
    /// The virtual size, bytes.
    pub current_size: u64,
    /// The size as old tools count it; not used by us.
    pub geometry: Geometry,
    /// How the data is stored.
    pub disk_type: DiskType,
    /// Identity of the image; a child names its parent by this.
    pub uuid: Uuid,
    /// Saved-state flag of Virtual PC.
    pub saved: u8,
    /// blktap's extension at byte 85: 1 marks an inner node of a tree or a deleted leaf.
    pub hidden: bool,
}

impl Footer {
    /// A footer as XenServer's own tools write it: creator `tap` 1.3, which promises a batmap.
    pub fn new(disk_type: DiskType, size: u64, uuid: Uuid) -> Self {
        Self {
            features: 2,
            data_offset: if disk_type == DiskType::Fixed { u64::MAX } else { SIZE as u64 },
            timestamp: now(),
            creator: *b"tap\0",
            creator_version: 0x0001_0003,
            creator_os: [0; 4],
            original_size: size,
            current_size: size,
            geometry: Geometry::for_size(size),
            disk_type,
            uuid,
            saved: 0,
            hidden: false,
        }
    }

    /// Decodes and verifies 512 bytes (511 of them, for Virtual PC's short footers).
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut raw = [0_u8; SIZE];
        let length = bytes.len().min(SIZE);
        raw[..length].copy_from_slice(&bytes[..length]);
        if raw.starts_with(POISON) {
            return Err(Fault::Poisoned);
        }
        if !raw.starts_with(COOKIE) {
            return Err(Fault::NoFooter { end: printable(&raw[..8]), start: String::new() });
        }
        let stored = be32(&raw, 64);
        let mut computed = checksum(&raw, 64);
        let version = be32(&raw, 32);
        if stored != computed && is_tap(&raw) && matches!(version, 0x0000_0001 | 0x0001_0001) {
            // Early td-util set the hidden byte without redoing the checksum.
            let mut plain = raw;
            plain[85] = 0;
            computed = checksum(&plain, 64);
        }
        if stored != computed {
            return Err(Fault::FooterChecksum { stored, computed: checksum(&raw, 64) });
        }
        if be32(&raw, 12) != 0x0001_0000 {
            return Err(Fault::FooterVersion(be32(&raw, 12)));
        }
        let disk_type = match be32(&raw, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(Fault::DiskType(other)),
        };
        let current_size = be64(&raw, 48);
        match current_size {
            0 => return Err(Fault::SizeZero),
            size if size > MAX_SIZE => return Err(Fault::SizeTooLarge(size)),
            size if !size.is_multiple_of(SECTOR) => return Err(Fault::SizeNotSectors(size)),
            _ => {}
        }
        Ok(Self {
            features: be32(&raw, 8),
            data_offset: be64(&raw, 16),
            timestamp: be32(&raw, 24),
            creator: array(&raw, 28),
            creator_version: version,
            creator_os: array(&raw, 36),
            original_size: be64(&raw, 40),
            current_size,
            geometry: Geometry {
                cylinders: u16::from_be_bytes(array(&raw, 56)),
                heads: raw[58],
                sectors: raw[59],
            },
            disk_type,
            uuid: Uuid::from_bytes(array(&raw, 68)),
            saved: raw[84],
            hidden: raw[85] != 0,
        })
    }

    /// The 512 bytes, with a fresh checksum.
    pub fn to_bytes(&self) -> [u8; SIZE] {
        let mut raw = [0_u8; SIZE];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &self.features.to_be_bytes());
        put(&mut raw, 12, &0x0001_0000_u32.to_be_bytes());
        put(&mut raw, 16, &self.data_offset.to_be_bytes());
        put(&mut raw, 24, &self.timestamp.to_be_bytes());
        put(&mut raw, 28, &self.creator);
        put(&mut raw, 32, &self.creator_version.to_be_bytes());
        put(&mut raw, 36, &self.creator_os);
        put(&mut raw, 40, &self.original_size.to_be_bytes());
        put(&mut raw, 48, &self.current_size.to_be_bytes());
        put(&mut raw, 56, &self.geometry.cylinders.to_be_bytes());
        raw[58] = self.geometry.heads;
        raw[59] = self.geometry.sectors;
        put(&mut raw, 60, &self.disk_type.code().to_be_bytes());
        put(&mut raw, 68, self.uuid.as_bytes());
        raw[84] = self.saved;
        raw[85] = u8::from(self.hidden);
        let sum = checksum(&raw, 64);
        put(&mut raw, 64, &sum.to_be_bytes());
        raw
    }

    /// Whether the creator is XenServer's blktap with at least this version.
    pub fn is_tap_from(&self, version: u32) -> bool {
        &self.creator == b"tap\0" && self.creator_version >= version
    }

    /// blktap 0.1 wrote its bitmaps least significant bit first.
    pub fn has_reversed_bits(&self) -> bool {
        &self.creator == b"tap\0" && self.creator_version == 0x0000_0001
    }

    /// Versions 0.1 and 1.1 of blktap changed the hidden byte of the copy at offset 0 only.
    pub fn hides_in_copy(&self) -> bool {
        &self.creator == b"tap\0" && matches!(self.creator_version, 0x0000_0001 | 0x0001_0001)
    }

    /// The smaller size that the geometry stands for, when the creator (Virtual PC, qemu) meant
    /// that one. We serve the current size of every image: it never cuts data off.
    pub fn smaller_chs_size(&self) -> Option<u64> {
        let size = self.geometry.size();
        (matches!(&self.creator, b"vpc " | b"qemu") && size < self.current_size).then_some(size)
    }

    /// The creator as text, e.g. `tap 1.3`.
    pub fn creator_text(&self) -> String {
        let name = String::from_utf8_lossy(&self.creator);
        let name = name.trim_end_matches(['\0', ' ']).to_owned();
        let version = self.creator_version;
        format!("{name} {}.{}", version >> 16, version & 0xffff)
    }
}

fn is_tap(raw: &[u8; SIZE]) -> bool {
    raw[28..32] == *b"tap\0"
}

/// Seconds since 2000-01-01 UTC; 0 when the clock is before that.
pub(crate) fn now() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

/// Ones' complement of the byte sum, the four bytes at `skip` counted as zero.
pub(crate) fn checksum(bytes: &[u8], skip: usize) -> u32 {
    let sum = bytes
        .iter()
        .enumerate()
        .filter(|(index, _)| !(skip..skip + 4).contains(index))
        .fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    !sum
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(source) = bytes.get(at..at + N) {
        out.copy_from_slice(source);
    }
    out
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(target) = bytes.get_mut(at..at + value.len()) {
        target.copy_from_slice(value);
    }
}

/// Bytes for an error message.
pub(crate) fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::{DiskType, Footer};
    use crate::error::Fault;
    use uuid::Uuid;

    #[test]
    fn a_footer_survives_the_round_trip_and_any_flipped_bit_is_seen() {
        let mut footer = Footer::new(DiskType::Differencing, 64 << 20, Uuid::from_u128(7));
        footer.hidden = true;
        let bytes = footer.to_bytes();
        assert_eq!(Footer::parse(&bytes).unwrap(), footer);
        assert_eq!(footer.creator_text(), "tap 1.3");
        for index in 0..512 {
            let mut bad = bytes;
            bad[index] ^= 0x10;
            assert!(Footer::parse(&bad).is_err(), "byte {index}");
        }
    }

    #[test]
    fn a_hidden_byte_set_without_the_checksum_is_accepted_of_old_blktap_only() {
        let mut footer = Footer::new(DiskType::Dynamic, 64 << 20, Uuid::from_u128(7));
        let mut bytes = footer.to_bytes();
        bytes[85] = 1;
        assert!(matches!(Footer::parse(&bytes), Err(Fault::FooterChecksum { .. })));
        footer.creator_version = 0x0001_0001;
        let mut bytes = footer.to_bytes();
        bytes[85] = 1;
        assert!(Footer::parse(&bytes).unwrap().hidden);
    }
}
