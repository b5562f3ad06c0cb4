//! The block allocation table: for each block of the disk, the sector where its bitmap starts.

use crate::error::Fault;
use crate::{SECTOR, footer::be32};

/// A block that is not in this file.
pub const ABSENT: u32 = u32::MAX;

/// The last sector a block may start at.
pub const LAST_SECTOR: u64 = 0xffff_fffe;

/// A range of the file that blocks must not touch.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// What it is, for messages.
    pub name: &'static str,
}

/// Decodes table entries.
pub fn parse(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|entry| be32(entry, 0)).collect()
}

/// Verifies that no two metadata areas share bytes. Empty ones are ignored.
pub fn verify_areas(areas: &mut Vec<Area>) -> Result<(), Fault> {
    areas.retain(|area| area.start < area.end);
    areas.sort_by_key(|area| area.start);
    for pair in areas.windows(2) {
        if pair[1].start < pair[0].end {
            return Err(Fault::MetadataOverlap { left: pair[0].name, right: pair[1].name });
        }
    }
    Ok(())
}

/// Verifies that every block lies within the data, on no metadata and on no other block.
///
/// `stride` is a block's length in the file, `end` the first byte blocks must not reach, `areas`
/// the sorted result of [`verify_areas`].
pub fn verify(table: &[u32], stride: u64, end: u64, areas: &[Area]) -> Result<(), Fault> {
    let mut fault = None;
    inspect(table, stride, end, areas, &mut |found| {
        fault = Some(found);
        false
    });
    fault.map_or(Ok(()), Err)
}

/// As [`verify`], but reports every fault to `report`, which says whether to go on.
pub fn inspect(
    table: &[u32],
    stride: u64,
    end: u64,
    areas: &[Area],
    report: &mut dyn FnMut(Fault) -> bool,
) {
    // Images written in order are in order; only others pay for a sort.
    let mut used: Vec<(u32, u32)> = table
        .iter()
        .zip(0_u32..)
        .filter(|(sector, _)| **sector != ABSENT)
        .map(|(sector, block)| (*sector, block))
        .collect();
    if !used.is_sorted() {
        used.sort_unstable();
    }
    let mut previous: Option<(u32, u32)> = None;
    let mut next_area = areas.iter().copied().peekable();
    for (sector, block) in used {
        let start = u64::from(sector) * SECTOR;
        let stop = start + stride;
        if let Some((before, index)) = previous
            && u64::from(before) * SECTOR + stride > start
        {
            let fault = Fault::BlocksOverlap {
                first: index,
                first_sector: before,
                second: block,
                second_sector: sector,
            };
            if !report(fault) {
                return;
            }
        }
        previous = Some((sector, block));
        while next_area.next_if(|area| area.end <= start).is_some() {}
        if let Some(area) = next_area.peek()
            && area.start < stop
            && !report(Fault::BlockOnMetadata { block, sector, area: area.name })
        {
            return;
        }
        if stop > end && !report(Fault::BlockOutside { block, sector, end }) {
            return;
        }
    }
}
