//! Which blocks of a VDI changed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::VdiUuid;
use crate::size::Bytes;

/// Begins, or ends, to track which blocks of a VDI change. Refused for what is never written, and
/// where the driver cannot see all that is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiCbt {
    /// Which.
    pub vdi: VdiUuid,
    /// Begin, or end.
    pub enabled: bool,
}

/// Asks which blocks changed from one point in time to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiChanged {
    /// A snapshot.
    pub from: VdiUuid,
    /// A later snapshot of the same disk, or the disk.
    pub to: VdiUuid,
}

/// Bytes of a block whose changes are tracked: those of a bit in [`VdiChanges::bitmap`].
pub const CHANGED_BLOCK: u64 = 64 << 10;

/// Bytes of the longest bitmap: of a disk of 64 TiB.
const LONGEST_BITMAP: u64 = (64 << 40) / CHANGED_BLOCK / 8;

/// Which blocks changed. Never too few: a block that differs is always among them.
///
/// A bitmap, and no list of ranges: its length follows from the size of the disk alone (4 MiB for
/// 2 TiB, 5.6 MB as text), whatever was written, where a list of single blocks would have 16
/// million entries. It is the text that SMAPI's `vdi_list_changed_blocks` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiChanges {
    /// Bytes of the later one; the bitmap is about them.
    pub virtual_size: Bytes,
    /// Whether it is known. If not, everything has to be taken for changed.
    pub known: bool,
    /// Why it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Base64 of one bit for each 64 KiB, the first block in the most significant bit of the
    /// first byte; empty when it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bitmap: String,
}

impl VdiChanges {
    /// A bitmap as [`VdiChanges::bitmap`] has it.
    pub fn encode(bits: &[u8]) -> String {
        BASE64.encode(bits)
    }

    /// The bitmap, the first block in the most significant bit of the first byte. When it is not
    /// known, each block counts as changed. [`Kind::Internal`] for one that cannot be, of a driver
    /// that is wrong.
    pub fn bits(&self) -> Result<Vec<u8>> {
        let blocks = self.virtual_size.0.div_ceil(CHANGED_BLOCK);
        let length = usize::try_from(blocks.div_ceil(8)).unwrap_or(usize::MAX);
        let wrong =
            || Error::new(Kind::Internal, "the driver's bitmap of changed blocks is damaged");
        if length as u64 > LONGEST_BITMAP {
            return Err(wrong());
        }
        let mut bits = if self.known {
            BASE64.decode(&self.bitmap).map_err(|error| wrong().source(&error))?
        } else {
            vec![0xff; length]
        };
        if bits.len() != length {
            return Err(wrong());
        }
        let used = blocks % 8;
        if used > 0
            && let Some(last) = bits.last_mut()
        {
            *last &= 0xff << (8 - used);
        }
        Ok(bits)
    }

    /// Offset and length of each changed range, bytes, in order and apart from each other.
    pub fn ranges(&self) -> Result<Vec<(u64, u64)>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let bits = self.bits()?;
        let blocks =
            bits.iter().zip(0_u64..).filter(|(byte, _)| **byte != 0).flat_map(|(byte, at)| {
                (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| at * 8 + bit)
            });
        for block in blocks {
            let start = block * CHANGED_BLOCK;
            let length = CHANGED_BLOCK.min(self.virtual_size.0 - start);
            match ranges.last_mut() {
                Some((last, so_far)) if *last + *so_far == start => *so_far += length,
                _ => ranges.push((start, length)),
            }
        }
        Ok(ranges)
    }
}
