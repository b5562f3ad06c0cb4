//! Writing new images.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::write::place;
use crate::bat::{ABSENT, LAST_SECTOR};
use crate::error::{Error, Result};
use crate::footer::{self, DiskType, Footer};
use crate::header::{self, Header, LOCATORS, roomy_entries, table_bytes};
use crate::locator::{self, Locator};
use crate::store::Blob;
use crate::{BLOCK, MAX_SIZE, SECTOR, batmap, bits, sys};

/// The parent of a new differencing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// Footer UUID of the parent; all zero when the parent is a raw file.
    pub uuid: Uuid,
    /// File name of the parent, in the same directory as the child.
    pub name: String,
}

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Footer UUID.
    pub uuid: Uuid,
    /// Virtual size, bytes; a multiple of 512, at most [`MAX_SIZE`].
    pub size: u64,
    /// The parent, if it is to have one.
    pub parent: Option<ParentLink>,
}

/// Where everything is in a new image.
///
/// Footer copy, header, then the parent locators, so that the first 4096 bytes tell all that a
/// probe needs; then the block table and, where blktap expects it, right behind it the batmap.
struct Layout {
    footer: Footer,
    header: Header,
    names: Vec<Vec<u8>>,
    batmap_at: u64,
    end: u64,
}

impl Layout {
    fn new(new: &NewImage) -> Result<Self> {
        if new.size > MAX_SIZE {
            return Err(Error::TooLarge { requested: new.size, limit: MAX_SIZE });
        }
        let kind = if new.parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let footer = Footer::new(kind, new.size, new.uuid);
        let mut locators = [Locator::default(); LOCATORS];
        let mut names = Vec::new();
        let mut at = (footer::SIZE + header::SIZE) as u64;
        if let Some(parent) = &new.parent {
            for (slot, (code, name)) in locators.iter_mut().zip(locator::encode(&parent.name)) {
                let space = (name.len() as u64).next_multiple_of(SECTOR);
                // In bytes, as blktap and Virtual PC write it; 512 is the smallest we produce, so
                // that a reader never takes it for sectors.
                *slot =
                    Locator { code, space: space as u32, length: name.len() as u32, offset: at };
                at += space;
                names.push(name);
            }
        }
        let parent = new.parent.as_ref();
        let header = Header {
            table_offset: at,
            table_entries: roomy_entries(new.size, BLOCK as u32),
            block_size: BLOCK as u32,
            parent_uuid: parent.map_or(Uuid::nil(), |parent| parent.uuid),
            parent_timestamp: if parent.is_some() { footer::now() } else { 0 },
            parent_name: parent.map_or([0; 512], |parent| locator::parent_name(&parent.name)),
            locators,
        };
        let batmap_at = header.table_end();
        let end = batmap_at + batmap::HEADER + batmap::map_bytes(header.table_entries);
        Ok(Self { footer, header, names, batmap_at, end })
    }

    /// Everything before the first block.
    fn to_bytes(&self, table: &[u32], full: &[u8]) -> Vec<u8> {
        // Bounded: a table has at most as many entries as the largest disk needs.
        let mut raw = vec![0xff; self.end as usize];
        footer::put(&mut raw, 0, &self.footer.to_bytes());
        footer::put(&mut raw, footer::SIZE, &self.header.to_bytes());
        for (slot, name) in self.header.locators.iter().zip(&self.names) {
            let mut field = vec![0; slot.space as usize];
            footer::put(&mut field, 0, name);
            footer::put(&mut raw, slot.offset as usize, &field);
        }
        let table_at = self.header.table_offset as usize;
        for (index, sector) in table.iter().enumerate() {
            footer::put(&mut raw, table_at + index * 4, &sector.to_be_bytes());
        }
        footer::put(&mut raw, self.batmap_at as usize, &batmap::to_bytes(self.batmap_at, full));
        raw
    }

    fn empty_map(&self) -> Vec<u8> {
        vec![0; batmap::map_bytes(self.header.table_entries) as usize]
    }
}

impl NewImage {
    /// Bytes of the image as long as it is empty.
    pub fn room(&self) -> Result<u64> {
        Ok(Layout::new(self)?.end + SECTOR)
    }
}

/// Writes a new, empty dynamic or differencing image and syncs it. Fails when the file exists.
pub fn create(path: &Path, new: &NewImage) -> Result<()> {
    // A size that cannot be is refused before there is a file.
    Layout::new(new)?;
    create_in(&sys::create_new(path)?, path, new)
}

/// As [`create`], into something empty; `path` is for messages. On a volume the footer goes to
/// its end.
pub fn create_in(file: &dyn Blob, path: &Path, new: &NewImage) -> Result<()> {
    let layout = Layout::new(new)?;
    let mut raw = layout.to_bytes(&[], &layout.empty_map());
    let footer = layout.footer.to_bytes();
    let stat = sys::stat(file, path)?;
    if stat.fixed_length {
        let needed = layout.end + SECTOR;
        let footer_at = super::volume_footer(stat.length);
        if footer_at < layout.end {
            return Err(Error::VolumeFull { path: path.to_owned(), needed });
        }
        sys::write_at(file, path, &footer, footer_at)?;
    } else {
        raw.extend_from_slice(&footer);
    }
    sys::write_at(file, path, &raw, 0)?;
    sys::sync(file, path)
}

/// Creates a fixed image that reads as zeros: a sparse file and its footer. Returns the open file,
/// not yet synced. Fails when the file exists.
pub fn create_fixed(path: &Path, uuid: Uuid, size: u64) -> Result<std::fs::File> {
    if size > MAX_SIZE {
        return Err(Error::TooLarge { requested: size, limit: MAX_SIZE });
    }
    let file = sys::create_new(path)?;
    sys::write_at(&file, path, &Footer::new(DiskType::Fixed, size, uuid).to_bytes(), size)?;
    Ok(file)
}

/// Writes a whole dynamic image front to back: each block once, the tables at the end.
///
/// Until [`BlockWriter::finish`] the file is not an image; write to a temporary name.
pub struct BlockWriter {
    file: std::fs::File,
    path: PathBuf,
    layout: Layout,
    table: Vec<u32>,
    full: Vec<u8>,
    end: u64,
}

impl BlockWriter {
    /// Starts a new image without a parent. Fails when the file exists.
    pub fn create(path: &Path, uuid: Uuid, size: u64) -> Result<Self> {
        let layout = Layout::new(&NewImage { uuid, size, parent: None })?;
        let file = sys::create_new(path)?;
        let blocks = size.div_ceil(BLOCK) as usize;
        Ok(Self {
            file,
            path: path.to_owned(),
            table: vec![ABSENT; blocks],
            full: layout.empty_map(),
            end: layout.end,
            layout,
        })
    }

    /// Bytes per block.
    pub fn block_size(&self) -> u64 {
        BLOCK
    }

    /// Writes part of a block, at `offset` within it; what is never written reads as zeros. Within
    /// one block parts may come in any order; a block gets its place with its first part.
    pub fn write(&mut self, block: u64, offset: u64, data: &[u8]) -> Result<()> {
        let outside = || Error::OutOfRange {
            path: self.path.clone(),
            offset: block.saturating_mul(BLOCK).saturating_add(offset),
            length: data.len() as u64,
            size: self.layout.footer.current_size,
        };
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > BLOCK) {
            return Err(outside());
        }
        let Some(entry) = self.table.get_mut(block as usize) else { return Err(outside()) };
        let bitmap_bytes = self.layout.header.bitmap_bytes();
        if *entry == ABSENT {
            let start = place(self.end, bitmap_bytes);
            let Some(sector) = Some(start / SECTOR).filter(|sector| *sector <= LAST_SECTOR) else {
                return Err(Error::FileFull { path: self.path.clone() });
            };
            // The parts that are left out are holes: zeros, as the disk's content is. So every
            // sector counts as present, and readers that ignore bitmaps are right as well.
            let ones = vec![0xff; bitmap_bytes as usize];
            sys::write_at(&self.file, &self.path, &ones, start)?;
            *entry = sector as u32;
            bits::set(&mut self.full, block, 1);
            self.end = start + self.layout.header.stride();
        }
        let at = u64::from(*entry) * SECTOR + bitmap_bytes + offset;
        sys::write_at(&self.file, &self.path, data, at)
    }

    /// Writes the tables and footers and syncs. Returns the length of the file, bytes.
    pub fn finish(self) -> Result<u64> {
        sys::write_at(&self.file, &self.path, &self.layout.footer.to_bytes(), self.end)?;
        let head = self.layout.to_bytes(&self.table, &self.full);
        sys::write_at(&self.file, &self.path, &head, 0)?;
        sys::sync(&self.file, &self.path)?;
        Ok(self.end + footer::SIZE as u64)
    }
}

/// Bytes of everything before the first block when the table has `entries` entries and starts at
/// `table_offset`.
pub(super) fn tables_end(table_offset: u64, entries: u32) -> u64 {
    table_offset + table_bytes(entries) + batmap::HEADER + batmap::map_bytes(entries)
}
