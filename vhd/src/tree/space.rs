//! Space that holds nothing: how much there is, and giving it back.

use std::ops::Range;
use std::time::Instant;

use uuid::Uuid;

use super::maintain::Watch;
use super::{Format, Pace, Tree};
use crate::Raw;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::Mode;
use crate::merge;

/// What [`Tree::reclaim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes looked at.
    pub scanned: u64,
    /// Bytes that the file takes less now.
    pub freed: u64,
}

/// Bytes looked at under the lock at a time.
const TURN: u64 = 32 << 20;

impl Tree {
    /// Bytes that merging the images of a disk's chain, and giving back what its own image no
    /// longer refers to, would free: from the tables, without reading data. Zeros that take space
    /// are found by [`Tree::reclaim`] only.
    pub fn reclaimable(&self, uuid: Uuid) -> Result<u64> {
        let scan = self.settled(|| self.scan())?;
        let Some(index) = scan.index.get(&uuid).copied() else {
            return Err(Error::NotFound { uuid, dir: self.path() });
        };
        let (candidates, _) = self.candidates_beside(&scan, super::readers::Beside::default())?;
        let mut bytes = 0;
        for entry in scan.ancestry(index).take(super::MAX_DEPTH * 2) {
            let Some(merge) = candidates.iter().find(|merge| merge.node == entry.uuid) else {
                continue;
            };
            let open = |uuid| self.open_image(&Self::image_at(uuid, Format::Vhd), Mode::Read);
            bytes += merge::covered_bytes(&open(merge.node)?, &open(merge.into)?)?;
        }
        let entry = scan.entries.get(index);
        if entry.is_some_and(|entry| entry.format == Format::Vhd && entry.depth > 0) {
            let image = self.open_image(&Self::image_at(uuid, Format::Vhd), Mode::Read)?;
            for gap in image.gaps() {
                bytes += image.allocated_in(gap)?;
            }
        }
        Ok(bytes)
    }

    /// Gives back the space of zeros, and of what the image does not refer to, in a disk that
    /// nobody has open. Reading it gives the same as before; a cut leaves less done.
    ///
    /// The lock is held for 32 MiB at a time, and it is looked again whether somebody has
    /// opened the disk.
    pub fn reclaim(&self, deadline: Instant, uuid: Uuid, progress: Watch<'_>) -> Result<Reclaimed> {
        let mut done = Reclaimed::default();
        let mut before = None;
        let mut at = 0;
        let mut size = u64::MAX;
        while at < size {
            let guard = self.lock(deadline)?;
            self.ready_to_change(&guard, &[uuid])?;
            let node = self.sound_leaf(uuid)?;
            if let Some(holder) = self.claims(uuid)?.into_iter().next() {
                return Err(Error::InUse { uuid, holder });
            }
            size = node.virtual_size;
            let file = Self::image_at(uuid, node.format);
            let taken = self.stat(&file)?.allocated;
            let first = *before.get_or_insert(taken);
            let end = size.min(at + TURN);
            match node.format {
                Format::Vhd => {
                    let image = self.open_image(&file, Mode::Write)?;
                    if at == 0 {
                        for gap in image.gaps() {
                            image.release(gap)?;
                            sm_step::step!("vdi_reclaim.gap_released");
                        }
                    }
                    done.scanned += image.release_zeros(at..end)?;
                }
                Format::Raw => {
                    let blob = self.store.open(&file, true)?;
                    let raw = Raw::from_blob(blob, &self.store.path_of(&file), Mode::Write)?;
                    done.scanned += release_raw(&raw, at..end)?;
                }
            }
            sm_step::step!("vdi_reclaim.turn_done");
            done.freed = first.saturating_sub(self.stat(&file)?.allocated);
            drop(guard);
            at = end;
            let pace = Pace { bytes_done: at, bytes_total: size, ..Pace::default() };
            if progress(pace).is_break() {
                return Err(Error::Stopped { done: at });
            }
        }
        Ok(done)
    }
}

fn release_raw(raw: &Raw, range: Range<u64>) -> Result<u64> {
    let mut scanned = 0;
    let mut buf = vec![0; 1 << 20];
    for extent in raw.extents(range.start, range.end - range.start)? {
        if extent.kind == crate::ExtentKind::Zero {
            continue;
        }
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        while at < end {
            let part = &mut buf[..(end - at).min(1 << 20) as usize];
            raw.read_at(at, part)?;
            scanned += part.len() as u64;
            for zeros in crate::image::zero_pieces(at, part) {
                raw.write_zeros(zeros.start, zeros.end - zeros.start)?;
            }
            at += part.len() as u64;
        }
    }
    Ok(scanned)
}
