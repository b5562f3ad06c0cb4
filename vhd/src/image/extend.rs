//! Adding many blocks to an image at once, in an order that any power cut survives.
//!
//! 1. [`Image::reserve`]: a footer behind all the new blocks, durable before anything is written
//!    below it. So there is a footer at the end at every moment, and what lies before it belongs
//!    to nobody.
//! 2. The caller writes data, and bitmaps by [`Image::mark`], and makes them durable.
//! 3. [`Image::publish_reserved`]: the block table's entries, durable with the next flush.
//!
//! Nobody else may add blocks to the same image between 1 and 3; readers may read.

use super::cache::Bits;
use super::publish::write_bitmap;
use super::write::place;
use super::{Image, State};
use crate::bat::{ABSENT, LAST_SECTOR};
use crate::error::{Error, Result};
use crate::header::Header;
use crate::store::Blob;
use crate::{SECTOR, sys};

/// Entries of the block table between two new ones that are written again rather than left out.
const NEAR: u32 = 128;

/// How an image lays out its blocks, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Data of a block.
    pub(crate) block: u64,
    /// The bitmap before it.
    pub(crate) bitmap: u64,
}

/// A block that an image holds.
pub(crate) struct Held {
    /// Where its data is in the file.
    pub(crate) data: u64,
    /// Its sector bits; none when all are set.
    pub(crate) map: Option<Box<[u8]>>,
}

/// Places for new blocks, which the block table does not name yet.
pub(crate) struct Reserved {
    /// Block and where its bitmap will be, ascending.
    places: Vec<(u32, u64)>,
    /// What reads as zeros unless it is written: a file's new part, not a volume's.
    pub(crate) zeroed: bool,
    before: (u64, u64),
    end: u64,
}

impl Reserved {
    /// Where a block's bitmap will be.
    pub(crate) fn start(&self, block: u32) -> Option<u64> {
        let index = self.places.binary_search_by_key(&block, |place| place.0).ok()?;
        self.places.get(index).map(|place| place.1)
    }
}

impl Image {
    /// What the image lies in.
    pub(crate) fn blob(&self) -> &dyn Blob {
        &*self.file
    }

    /// How the blocks are laid out; none for a fixed image.
    pub(crate) fn shape(&self) -> Option<Shape> {
        let state = self.state();
        let header = state.header.as_ref()?;
        Some(Shape { block: u64::from(header.block_size), bitmap: header.bitmap_bytes() })
    }

    /// A block, if the image holds it.
    pub(crate) fn held(&self, block: u32) -> Result<Option<Held>> {
        let mut state = self.state();
        let (Some(&sector), Some(bitmap)) = (
            state.table.get(block as usize).filter(|sector| **sector != ABSENT),
            state.header.as_ref().map(Header::bitmap_bytes),
        ) else {
            return Ok(None);
        };
        let map = match self.bitmap(&mut state, block, sector)? {
            Bits::Full => None,
            Bits::Map(map) => Some(map.clone()),
        };
        Ok(Some(Held { data: u64::from(sector) * SECTOR + bitmap, map }))
    }

    /// Where a block's bitmap is, if the image has the block.
    pub(crate) fn start(&self, block: u32) -> Option<u64> {
        let sector = self.state().table.get(block as usize).copied()?;
        (sector != ABSENT).then(|| u64::from(sector) * SECTOR)
    }

    /// Where a block's bitmap is or will be, and whether it is a new one of `reserved`.
    pub(crate) fn place_of(&self, block: u32, reserved: Option<&Reserved>) -> Result<(u64, bool)> {
        match reserved.and_then(|reserved| reserved.start(block)) {
            Some(start) => Ok((start, true)),
            None => self.start(block).map(|start| (start, false)).ok_or_else(|| self.taken()),
        }
    }

    /// Whether that many more blocks find room, on a volume or below the format's limit.
    pub(crate) fn room_for(&self, count: u64) -> Result<()> {
        let state = self.state();
        let Some(header) = &state.header else { return Ok(()) };
        let mut end = state.end;
        if count > 0 {
            let first = place(end, header.bitmap_bytes());
            let step = header.stride().next_multiple_of(4096);
            let last = (count - 1).saturating_mul(step).saturating_add(first);
            if last / SECTOR > LAST_SECTOR {
                return Err(Error::FileFull { path: self.path.clone() });
            }
            end = last + header.stride();
        }
        self.fits(&state, end)
    }

    fn fits(&self, state: &State, end: u64) -> Result<()> {
        if state.volume && end > state.footer_at {
            let needed = end + SECTOR;
            return Err(Error::VolumeFull { path: self.path.clone(), needed });
        }
        Ok(())
    }

    /// Makes room for blocks, ascending, that the image does not have.
    pub(crate) fn reserve(&self, blocks: &[u32]) -> Result<Reserved> {
        self.check_plain()?;
        let mut state = self.state();
        let Some(header) = state.header.clone() else {
            return Err(self.wrong_type("a fixed image has no blocks to add"));
        };
        let before = (state.end, state.footer_at);
        let mut end = state.end;
        if !state.volume {
            // A write that failed, and could not be taken back, may have left something there.
            let length = sys::stat(self.blob(), &self.path)?.length;
            end = end.max(length.saturating_sub(SECTOR).next_multiple_of(SECTOR));
        }
        let mut places = Vec::with_capacity(blocks.len());
        for block in blocks {
            if state.table.get(*block as usize) != Some(&ABSENT) {
                return Err(self.taken());
            }
            let start = place(end, header.bitmap_bytes());
            if start / SECTOR > LAST_SECTOR {
                return Err(Error::FileFull { path: self.path.clone() });
            }
            places.push((*block, start));
            end = start + header.stride();
        }
        self.fits(&state, end)?;
        let mut reserved = Reserved { places, zeroed: !state.volume, before, end: before.0 };
        if !state.volume && end > before.0 {
            let footer = state.footer.to_bytes();
            let written = sys::write_at(self.blob(), &self.path, &footer, end);
            if let Err(error) = written.and_then(|()| self.sync()) {
                self.take_back(&mut state, &reserved);
                return Err(error);
            }
        }
        state.move_end(end);
        reserved.end = end;
        Ok(reserved)
    }

    /// Sets bits of a block whose data has been written. The block is the image's own, or one of
    /// `reserved`, whose bitmap is as yet nobody's.
    pub(crate) fn mark(&self, block: u32, map: &[u8], reserved: Option<&Reserved>) -> Result<()> {
        let mut state = self.state();
        let reversed = state.footer.has_reversed_bits();
        if let Some(start) = reserved.and_then(|reserved| reserved.start(block)) {
            return write_bitmap(self.blob(), &self.path, map, start, reversed);
        }
        let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
        if sector == ABSENT {
            return Err(self.taken());
        }
        let Bits::Map(old) = self.bitmap(&mut state, block, sector)? else { return Ok(()) };
        let new: Box<[u8]> = old.iter().zip(map).map(|(old, new)| old | new).collect();
        if new == *old {
            return Ok(());
        }
        let at = u64::from(sector) * SECTOR;
        write_bitmap(self.blob(), &self.path, &new, at, reversed)?;
        // Read again by whoever needs it, so that only one place decides what is full.
        state.bitmaps.forget(block);
        state.changes += 1;
        Ok(())
    }

    /// Enters blocks, whose data and bitmaps are durable, into the block table.
    pub(crate) fn publish_reserved(&self, reserved: &Reserved) -> Result<()> {
        let mut state = self.state();
        let Some(at) = state.header.as_ref().map(|header| header.table_offset) else {
            return Err(self.taken());
        };
        let absent = |block: u32| state.table.get(block as usize) == Some(&ABSENT);
        if !reserved.places.iter().all(|place| absent(place.0)) {
            return Err(self.taken());
        }
        let mut rest = &reserved.places[..];
        while let Some(&(first, _)) = rest.first() {
            let near = rest.windows(2).take_while(|pair| pair[1].0 - pair[0].0 <= NEAR).count();
            let (run, tail) = rest.split_at(near + 1);
            let last = run.last().map_or(first, |place| place.0);
            // What is between is written as it is.
            let mut entries: Vec<u32> =
                state.table.get(first as usize..=last as usize).unwrap_or_default().to_vec();
            for (block, start) in run {
                if let Some(entry) = entries.get_mut((block - first) as usize) {
                    *entry = (start / SECTOR) as u32;
                }
            }
            let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            sys::write_at(self.blob(), &self.path, &bytes, at + u64::from(first) * 4)?;
            for (block, start) in run {
                state.bitmaps.forget(*block);
                if let Some(entry) = state.table.get_mut(*block as usize) {
                    *entry = (start / SECTOR) as u32;
                }
            }
            rest = tail;
        }
        state.changes += 1;
        Ok(())
    }

    /// Gives up places that were not published. Best effort: the image is sound either way, only
    /// longer.
    pub(crate) fn give_back(&self, reserved: &Reserved) {
        let mut state = self.state();
        if state.end == reserved.end {
            self.take_back(&mut state, reserved);
        }
    }

    fn take_back(&self, state: &mut State, reserved: &Reserved) {
        let (end, footer_at) = reserved.before;
        if !state.volume {
            // The shorter file has its footer before it is made shorter.
            let footer = state.footer.to_bytes();
            let cut = sys::write_at(self.blob(), &self.path, &footer, footer_at)
                .and_then(|()| self.sync())
                .and_then(|()| sys::set_len(self.blob(), &self.path, footer_at + SECTOR));
            if cut.is_err() {
                // What was written stays where it is, and nothing is put over it.
                return;
            }
            state.footer_at = footer_at;
        }
        state.end = end;
    }

    fn taken(&self) -> Error {
        Error::io(&self.path, "add a block")(std::io::ErrorKind::AlreadyExists.into())
    }
}
