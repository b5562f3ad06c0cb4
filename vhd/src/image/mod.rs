//! One VHD file: what it is, and reading and writing it.
//!
//! # Order of writes
//!
//! VHD has no journal, so order is all there is. A write that needs a new block does
//!
//! 1. a footer at the new end of the file, which makes the file longer: from here on the space in
//!    between belongs to nobody, and the copy at offset 0 was valid all along;
//! 2. the data;
//! 3. the bitmaps, only after their data;
//! 4. the block table's entry, which is what makes the block exist;
//! 5. the answer to the caller.
//!
//! A process killed in between leaves old or new sectors, never a third thing; at worst a block
//! of space that nobody refers to. That is all that whoever fills a new image needs, and syncs
//! once at the end. For a power cut the same holds between two [`Image::flush`]es of an image that
//! is [live](Image::go_live): there, steps 3 and 4 are done by the flush, between two syncs.
//!
//! There is one way of doing this for both, in `write.rs` and `publish.rs`; `live.rs` says how they
//! differ. What a merge adds to an image goes a way of its own, in `extend.rs`, many blocks at a
//! time.
//!
//! # Two footers
//!
//! The footer at the end decides; the copy at offset 0 serves when the end is missing, and then
//! the image can only be read. Both valid and of different identity or type is refused, because
//! either could be a guest's own data: except that a fixed image's data may well start with a VHD.

mod cache;
mod create;
mod extend;
mod grow;
mod head;
mod io;
mod live;
mod notes;
mod publish;
mod space;
mod trust;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use cache::Bitmaps;
pub use create::{BlockWriter, NewImage, ParentLink, create, create_fixed, create_in};
pub(crate) use extend::{Held, Reserved, Shape};
use head::{Head, read_head};
pub use head::{Info, Parent, probe, probe_blob};
pub(crate) use head::{Suspect, suspect};
pub use io::{Place, Run};
pub use live::Live;
use notes::Notes;
use publish::Flushes;
pub(crate) use space::zero_pieces;

use crate::bat::{self, Area};
use crate::batmap::{self, Batmap};
use crate::error::{Error, Fault, Result};
use crate::footer::{self, DiskType, Footer};
use crate::header::Header;
use crate::locator::{self, Locator};
use crate::store::Blob;
use crate::{SECTOR, sys};

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only reads; accepts an image that needs a repair.
    Read,
    /// Reads and writes. The caller makes sure that nobody else writes.
    Write,
}

/// What changes while an image is open.
struct State {
    footer: Footer,
    header: Option<Header>,
    table: Vec<u32>,
    batmap: Option<Batmap>,
    bitmaps: Bitmaps,
    /// Blocks that the table in the file does not name yet.
    fresh: BTreeSet<u32>,
    /// Counts changes of the bits, so that a bitmap read without the lock is not taken when it may
    /// be an old one.
    changes: u64,
    /// Where the next block may begin: behind every block, metadata and the old footer's place.
    end: u64,
    /// Where the footer at the end is. On a volume that is its end, whatever lies before it; in a
    /// file the footer moves as blocks are added.
    footer_at: u64,
    /// The length is not changed by writing: a logical volume.
    volume: bool,
}

/// An open VHD file. Shared between threads.
///
/// The locks are taken in this order: `turn` or `publishing`, `notes`, `state`. With `state` held
/// nothing is waited for, except a bitmap that could not be read without it.
pub struct Image {
    file: Box<dyn Blob>,
    path: PathBuf,
    info: Info,
    writable: bool,
    stage: AtomicU8,
    /// A sync of a live image has failed.
    unsynced: AtomicBool,
    /// Much waits for being published.
    crowded: AtomicBool,
    /// Held by whoever adds blocks; of an image that is not live, by whoever changes metadata.
    turn: Mutex<()>,
    /// Held by whoever writes metadata to the file.
    publishing: Mutex<()>,
    flushes: Flushes,
    notes: Mutex<Option<Notes>>,
    state: Mutex<State>,
}

/// How a write publishes its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// At its end.
    Plain = 0,
    /// With the next flush: see [`live`].
    Live = 1,
    /// There are no writes any more.
    Sealed = 2,
}

impl Image {
    /// Opens an image, reads its block table and verifies all of it.
    pub fn open(path: &Path, mode: Mode) -> Result<Self> {
        Self::from_blob(Box::new(sys::open(path, mode == Mode::Write)?), path, mode)
    }

    /// As [`Image::open`], of what is already open; `path` is for messages.
    pub fn from_blob(file: Box<dyn Blob>, path: &Path, mode: Mode) -> Result<Self> {
        let head = read_head(&*file, path)?;
        if mode == Mode::Write
            && let Some(missing) = head.info.missing_footer()
        {
            return Err(Error::NeedsRepair { path: path.to_owned(), missing });
        }
        let mut state = State {
            table: Vec::new(),
            batmap: None,
            bitmaps: Bitmaps::new(),
            fresh: BTreeSet::new(),
            changes: 0,
            end: head.data_end.next_multiple_of(SECTOR),
            footer_at: head.data_end,
            volume: head.volume,
            footer: head.footer,
            header: head.header,
        };
        if let Some(header) = &state.header {
            let size = state.footer.current_size;
            let blocks = size.div_ceil(u64::from(header.block_size));
            // Bounded by `Header::verify`: within the file and at most `header::MAX_TABLE`.
            let mut raw = vec![0; (blocks * 4) as usize];
            sys::read_at(&*file, path, &mut raw, header.table_offset)?;
            state.table = bat::parse(&raw);
            state.batmap = trust::read(&*file, path, &state.footer, header, head.data_end)?;
            let mut areas = areas_of(path, &state, header)?;
            bat::verify(&state.table, header.stride(), head.data_end, &areas)
                .map_err(Error::format(path))?;
            state.batmap = state.batmap.filter(|map| trust::is_plausible(map, &state.table));
            if mode == Mode::Write && state.batmap.is_none() {
                let (footer, table) = (&state.footer, &state.table);
                state.batmap =
                    trust::replace(&*file, path, footer, header, table, &areas, head.data_end)?;
                areas = areas_of(path, &state, header)?;
            }
            let floor = areas.iter().map(|area| area.end).max().unwrap_or(0);
            if state.volume {
                // The footer is far behind the last block.
                let last = state.table.iter().filter(|sector| **sector != bat::ABSENT).max();
                state.end = last.map_or(0, |sector| u64::from(*sector) * SECTOR + header.stride());
            }
            state.end = state.end.max(floor);
            if mode == Mode::Write && head.footers_differ {
                // The end decides; bring the copy in line before anything depends on it.
                sys::write_at(&*file, path, &state.footer.to_bytes(), 0)?;
            }
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            info: head.info,
            writable: mode == Mode::Write,
            stage: AtomicU8::new(Stage::Plain as u8),
            unsynced: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            turn: Mutex::new(()),
            publishing: Mutex::new(()),
            flushes: Flushes::default(),
            notes: Mutex::new(None),
            state: Mutex::new(state),
        })
    }

    /// What was found when the image was opened.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Virtual size, bytes.
    pub fn size(&self) -> u64 {
        self.state().footer.current_size
    }

    /// The footer as it is now.
    pub fn footer(&self) -> Footer {
        self.state().footer.clone()
    }

    /// The dynamic header as it is now; none for a fixed image.
    pub fn header(&self) -> Option<Header> {
        self.state().header.clone()
    }

    /// Number of blocks that this file holds itself. A fixed image has none.
    pub fn allocated_blocks(&self) -> usize {
        self.state().table.iter().filter(|sector| **sector != bat::ABSENT).count()
    }

    /// Whether this file holds no data of its own.
    pub fn is_empty(&self) -> bool {
        self.info.disk_type != DiskType::Fixed && self.allocated_blocks() == 0
    }

    /// Marks or unmarks the image as an inner node of a tree, durably.
    pub fn set_hidden(&self, hidden: bool) -> Result<()> {
        self.check_plain()?;
        let mut state = self.state();
        if state.footer.hidden == hidden {
            // Whoever wrote it may have been stopped before it was durable.
            return self.sync();
        }
        let mut footer = state.footer.clone();
        footer.hidden = hidden;
        self.write_footers(&state, &footer)?;
        self.sync()?;
        state.footer = footer;
        Ok(())
    }

    /// The header that names another parent, in `name`, a file of the same directory. What the new
    /// parent holds must be what the old one held; nothing here can check that.
    pub fn header_for_parent(&self, parent: Uuid, name: &str) -> Result<Header> {
        let state = self.state();
        let Some(mut header) = state.header.clone() else {
            return Err(self.wrong_type("a fixed image has no parent"));
        };
        if state.footer.disk_type != DiskType::Differencing {
            return Err(self.wrong_type("a dynamic image has no parent"));
        }
        for (code, bytes) in locator::encode(name) {
            let slots = &mut header.locators;
            if let Some(slot) = slots.iter_mut().find(|slot| slot.code == code) {
                if bytes.len() as u64 > slot.space_bytes() {
                    return Err(self.wrong_type("the parent's name is too long for its locator"));
                }
                slot.length = bytes.len() as u32;
            }
        }
        // The room that a locator states may be another's.
        let end = state.footer_at;
        let fits = areas(&state.footer, &header, state.batmap.as_ref())
            .and_then(|areas| bat::verify(&state.table, header.stride(), end, &areas));
        let in_file = header.locators.iter().filter(|slot| slot.is_known() && slot.length > 0);
        if fits.is_err() || in_file.into_iter().any(|slot| slot.range(end).is_err()) {
            return Err(self.wrong_type("the parent's name is too long for its locator"));
        }
        header.parent_uuid = parent;
        header.parent_timestamp = footer::now();
        header.parent_name = locator::parent_name(name);
        Ok(header)
    }

    /// Names another parent, durably: [`Image::header_for_parent`], [`write_parent_names`] and
    /// [`write_header`] in one.
    ///
    /// A process killed in between leaves the old parent's UUID with the new name, which a reader
    /// resolves by UUID. After a power cut the header, two sectors, may be torn: whoever cannot
    /// have that keeps the header until this returns, and writes it again.
    pub fn set_parent(&self, parent: Uuid, name: &str) -> Result<()> {
        self.check_plain()?;
        let header = self.header_for_parent(parent, name)?;
        write_parent_names(&*self.file, &self.path, &header, name)?;
        write_header(&*self.file, &self.path, &header)?;
        self.state().header = Some(header);
        Ok(())
    }

    /// Writes both footers, the deciding one first.
    fn write_footers(&self, state: &State, footer: &Footer) -> Result<()> {
        let bytes = footer.to_bytes();
        sys::write_at(&*self.file, &self.path, &bytes, state.footer_at)?;
        if footer.disk_type != DiskType::Fixed {
            sys::write_at(&*self.file, &self.path, &bytes, 0)?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Plain,
            1 => Stage::Live,
            _ => Stage::Sealed,
        }
    }

    /// Makes what is in the file durable. When that fails on a live image nobody knows what of it
    /// is, so nothing more is promised.
    fn sync(&self) -> Result<()> {
        let result = sys::sync(&*self.file, &self.path);
        if result.is_err() && self.stage() != Stage::Plain {
            self.unsynced.store(true, Ordering::Release);
        }
        result
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        if !self.writable || self.stage() == Stage::Sealed {
            return Err(Error::ReadOnly { path: self.path.clone() });
        }
        if self.unsynced.load(Ordering::Acquire) {
            return Err(Error::Unsynced { path: self.path.clone() });
        }
        Ok(())
    }

    /// Refuses what is only for an image that is not being served.
    fn check_plain(&self) -> Result<()> {
        self.check_writable()?;
        if self.stage() == Stage::Plain { Ok(()) } else { Err(self.wrong_type("is in use")) }
    }

    fn wrong_type(&self, what: &'static str) -> Error {
        Error::WrongType { path: self.path.clone(), what }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way through a change, so a poisoned lock is still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the name of the parent into the locators that `header` has for it, durably.
pub fn write_parent_names(file: &dyn Blob, path: &Path, header: &Header, name: &str) -> Result<()> {
    for (code, bytes) in locator::encode(name) {
        if let Some(slot) = header.locators.iter().find(|slot| slot.code == code) {
            sys::write_at(file, path, &bytes, slot.offset)?;
        }
    }
    sys::sync(file, path)
}

/// Writes the dynamic header, durably; the one that is there may be torn.
pub fn write_header(file: &dyn Blob, path: &Path, header: &Header) -> Result<()> {
    let at = head::header_offset(file, path)?;
    sys::write_at(file, path, &header.to_bytes(), at)?;
    sys::sync(file, path)
}

/// Where the footer of an image on a volume of that many bytes is: in its last sector.
pub(crate) fn volume_footer(length: u64) -> u64 {
    (length / SECTOR).saturating_sub(1) * SECTOR
}

/// Restores the footer that an image lacks. Returns whether there was anything to do.
pub fn repair(path: &Path) -> Result<bool> {
    repair_blob(Box::new(sys::open(path, true)?), path)
}

/// As [`repair`], of what is already open for writing; `path` is for messages.
pub fn repair_blob(file: Box<dyn Blob>, path: &Path) -> Result<bool> {
    let head: Head = read_head(&*file, path)?;
    let Some(missing) = head.info.missing_footer() else { return Ok(false) };
    // Everything else must be sound before the image is declared so.
    let image = Image::from_blob(file, path, Mode::Read)?;
    let state = image.state();
    let bytes = state.footer.to_bytes();
    if missing == head::END {
        // Behind every block; data that nobody refers to stays where it is.
        let at = if state.volume { state.footer_at } else { state.end };
        sys::write_at(&*image.file, path, &bytes, at)?;
    } else {
        sys::write_at(&*image.file, path, &bytes, 0)?;
    }
    sys::sync(&*image.file, path)?;
    Ok(true)
}

fn areas_of(path: &Path, state: &State, header: &Header) -> Result<Vec<Area>> {
    areas(&state.footer, header, state.batmap.as_ref()).map_err(Error::format(path))
}

/// The parts of the file that blocks must not touch, sorted.
pub(crate) fn areas(
    footer: &Footer,
    header: &Header,
    batmap: Option<&Batmap>,
) -> Result<Vec<Area>, Fault> {
    let area =
        |start: u64, length: u64, name| Area { start, end: start.saturating_add(length), name };
    let mut areas = vec![
        area(0, SECTOR, "the footer copy"),
        area(footer.data_offset, 1024, "the dynamic header"),
        area(header.table_offset, header.table_bytes(), "the block table"),
    ];
    if let Some(batmap) = batmap {
        areas.push(area(header.table_end(), batmap::HEADER, "the batmap header"));
        areas.push(area(batmap.offset, batmap.map.len() as u64, "the batmap"));
    }
    if footer.disk_type == DiskType::Differencing {
        let used = header.locators.iter().filter(|slot| slot.is_known() && slot.length > 0);
        areas.extend(
            used.map(|slot: &Locator| {
                area(slot.offset, u64::from(slot.length), "a parent locator")
            }),
        );
    }
    bat::verify_areas(&mut areas)?;
    Ok(areas)
}
