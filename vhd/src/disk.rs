//! What a raw file, a VHD and a chain have in common, so that any can be copied to any.

use crate::SECTOR;
use crate::error::Result;

/// Whether a range holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// May hold anything, zeros included.
    Data,
    /// Reads as zeros and takes no space.
    Zero,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What it holds.
    pub kind: ExtentKind,
}

/// A disk of a fixed number of bytes, addressed by byte, shared between threads.
///
/// Writes to different bytes may run at the same time, unless they share a sector: then the
/// caller puts one after the other.
pub trait Disk: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`; fails when the range is not within the disk.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` at `offset`; fails when the range is not within the disk.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;

    /// What a range holds: extents in order that cover exactly the range, no two neighbours of the
    /// same kind. Takes memory in proportion to the range's fragments: [`Extents`] walks a whole
    /// disk in windows.
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>>;

    /// Makes a range read as zeros, giving its space back where the disk can.
    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        let zeros = vec![0; length.min(1 << 20) as usize];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(zeros.len() as u64);
            self.write_at(offset + done, &zeros[..count as usize])?;
            done += count;
        }
        Ok(())
    }
}

/// Walks the extents of a whole disk, or of a part of it; neighbours of the same kind are merged.
pub struct Extents<'a> {
    disk: &'a dyn Disk,
    at: u64,
    end: u64,
    window: std::vec::IntoIter<Extent>,
    pending: Option<Extent>,
}

impl<'a> Extents<'a> {
    /// Bytes asked of the disk at a time.
    const WINDOW: u64 = 1 << 30;

    /// Extents of `length` bytes from `offset`, clipped to the disk.
    pub fn new(disk: &'a dyn Disk, offset: u64, length: u64) -> Self {
        let end = offset.saturating_add(length).min(disk.size());
        Self { disk, at: offset.min(end), end, window: Vec::new().into_iter(), pending: None }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(extent) = self.window.next() {
                match &mut self.pending {
                    Some(last) if last.kind == extent.kind => last.length += extent.length,
                    pending => {
                        if let Some(done) = pending.replace(extent) {
                            return Some(Ok(done));
                        }
                    }
                }
                continue;
            }
            if self.at >= self.end {
                return self.pending.take().map(Ok);
            }
            let length = (self.end - self.at).min(Self::WINDOW);
            match self.disk.extents(self.at, length) {
                Ok(extents) => {
                    self.at += length;
                    self.window = extents.into_iter();
                }
                Err(error) => {
                    self.at = self.end;
                    self.pending = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Appends an extent, merging it with the last one where they meet.
pub(crate) fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        _ if extent.length == 0 => {}
        Some(last) if last.kind == extent.kind => last.length += extent.length,
        _ => extents.push(extent),
    }
}

/// Splits a write into whole sectors and, at either end, a part of one, which is completed with
/// what `read` gives for that sector.
pub(crate) fn by_sectors(
    offset: u64,
    buf: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    write: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut offset, mut rest) = (offset, buf);
    while !rest.is_empty() {
        let within = offset % SECTOR;
        let whole = rest.len() as u64 / SECTOR * SECTOR;
        let taken = if within == 0 && whole > 0 {
            write(offset, &rest[..whole as usize])?;
            whole
        } else {
            let taken = (SECTOR - within).min(rest.len() as u64);
            let mut sector = [0; SECTOR as usize];
            read(offset - within, &mut sector)?;
            sector[within as usize..(within + taken) as usize]
                .copy_from_slice(&rest[..taken as usize]);
            write(offset - within, &sector)?;
            taken
        };
        offset += taken;
        rest = &rest[taken as usize..];
    }
    Ok(())
}
