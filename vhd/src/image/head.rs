//! What an image says of itself: footers, header, locators. Never the block table.

use std::path::Path;

use uuid::Uuid;

use crate::error::{Error, Fault, Result};
use crate::footer::{self, DiskType, Footer, printable};
use crate::header::{self, Header};
use crate::locator::{self, Hint, MACX, W2KU, W2RU};
use crate::store::Blob;
use crate::{SECTOR, sys};

/// Name of the deciding footer in messages.
pub(super) const END: &str = "the footer at the end";
/// Name of the other footer in messages.
const COPY: &str = "the footer copy at offset 0";

/// Bytes read from the start of a file: holds footer copy, header and, in images of ours, the
/// locators, so that one read tells everything.
const HEAD: usize = 4096;

/// What [`probe`] tells about an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Footer UUID: by this, not by its file name, a child knows its parent.
    pub uuid: Uuid,
    /// How the data is stored.
    pub disk_type: DiskType,
    /// Virtual size, bytes: always the footer's current size.
    pub size: u64,
    /// Length of the file, bytes.
    pub file_size: u64,
    /// Space the file takes on its file system, bytes.
    pub physical_size: u64,
    /// blktap's hidden flag: an inner node of a tree.
    pub hidden: bool,
    /// Bytes per block; 0 for a fixed image.
    pub block_size: u32,
    /// The parent, of a differencing image.
    pub parent: Option<Parent>,
    /// Who wrote it, e.g. `tap 1.3`.
    pub creator: String,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: u32,
    /// The footer at the end is there.
    pub end_footer: bool,
    /// The copy at offset 0 is there, or not needed (fixed images).
    pub copy_footer: bool,
    /// The smaller size that the geometry stands for, where the creator meant that one.
    pub chs_size: Option<u64>,
    /// Device and inode number: two names of the same file have the same.
    pub file_id: (u64, u64),
}

/// Whom a differencing image names as its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Footer UUID; all zero means that the parent is a raw file.
    pub uuid: Uuid,
    /// Name from the header, for people.
    pub name: String,
    /// Names from the locators, most trustworthy kind first, each once.
    pub hints: Vec<Hint>,
}

impl Parent {
    /// The first hint that is a plain name in the child's own directory.
    pub fn sibling(&self) -> Option<&str> {
        self.hints.iter().find_map(|hint| match hint {
            Hint::Sibling(name) => Some(name.as_str()),
            Hint::Elsewhere(_) => None,
        })
    }

    /// A path that leads out of the directory, when no hint stays in it.
    pub fn elsewhere(&self) -> Option<&str> {
        match self.hints.first() {
            Some(Hint::Elsewhere(path)) if self.sibling().is_none() => Some(path),
            _ => None,
        }
    }
}

impl Info {
    /// Whether a footer is missing: then the image can be read but not written.
    pub fn needs_repair(&self) -> bool {
        self.missing_footer().is_some()
    }

    /// Which footer is missing, if one is: the image can be read, and written after a repair.
    pub fn missing_footer(&self) -> Option<&'static str> {
        match (self.end_footer, self.copy_footer) {
            (true, true) => None,
            (false, _) => Some(END),
            (true, false) => Some(COPY),
        }
    }
}

/// Everything read before the block table.
pub(super) struct Head {
    pub(super) info: Info,
    pub(super) footer: Footer,
    pub(super) header: Option<Header>,
    /// First byte that blocks must not reach.
    pub(super) data_end: u64,
    /// Both footers are valid, of the same image, and differ.
    pub(super) footers_differ: bool,
    /// The image lies on a volume.
    pub(super) volume: bool,
}

/// Tells what an image is from its footers, header and locators: one open, one stat, and two
/// reads unless another tool put the locators further away.
pub fn probe(path: &Path) -> Result<Info> {
    probe_blob(&sys::open(path, false)?, path)
}

/// As [`probe`], of what is already open; `path` is for messages.
pub fn probe_blob(file: &dyn Blob, path: &Path) -> Result<Info> {
    read_head(file, path).map(|head| head.info)
}

pub(super) fn read_head(file: &dyn Blob, path: &Path) -> Result<Head> {
    let stat = sys::stat(file, path)?;
    let length = stat.length;
    let bad = Error::format(path);
    let mut head = [0; HEAD];
    let got = sys::read_upto(file, path, &mut head, 0)?;
    let head = &head[..got];
    // Old Virtual PC wrote footers of 511 bytes.
    let tail_length = if length % SECTOR == SECTOR - 1 { SECTOR - 1 } else { SECTOR };
    let Some(tail_at) = length.checked_sub(tail_length).map(|at| at / SECTOR * SECTOR) else {
        return Err(bad(Fault::TooShort(length)));
    };
    let tail = bytes_at(file, path, head, tail_at, tail_length as usize)?;
    let end = Footer::parse(&tail);
    let copy = Footer::parse(head.get(..footer::SIZE).unwrap_or(head));

    let (end_footer, mut copy_footer) = (end.is_ok(), copy.is_ok());
    let mut footers_differ = false;
    let chosen = match (end, copy) {
        (Ok(end), copy) if end.disk_type == DiskType::Fixed && end.current_size == tail_at => {
            // Exactly a fixed image: what is at offset 0 is the guest's.
            drop(copy);
            copy_footer = true;
            end
        }
        (Err(Fault::Poisoned), _) | (_, Err(Fault::Poisoned)) => return Err(bad(Fault::Poisoned)),
        (Ok(end), Ok(copy)) => {
            if end.uuid != copy.uuid || end.disk_type != copy.disk_type {
                let text = |footer: &Footer| format!("{} ({})", footer.uuid, footer.disk_type);
                let fault = Fault::FootersDisagree { end: text(&end), copy: text(&copy) };
                return Err(bad(fault));
            }
            let hidden = if end.hides_in_copy() { copy.hidden } else { end.hidden };
            let chosen = Footer { hidden, ..end };
            footers_differ = chosen != copy;
            chosen
        }
        (Ok(end), Err(_)) => {
            copy_footer = end.disk_type == DiskType::Fixed;
            end
        }
        (Err(_), Ok(copy)) if copy.disk_type != DiskType::Fixed => copy,
        (Err(Fault::NoFooter { end, .. }), Err(Fault::NoFooter { end: start, .. })) => {
            return Err(bad(Fault::NoFooter { end, start }));
        }
        (Err(Fault::NoFooter { end, .. }), Ok(_)) => {
            return Err(bad(Fault::NoFooter { end, start: printable(footer::COOKIE) }));
        }
        (Err(Fault::NoFooter { .. }), Err(fault)) | (Err(fault), _) => return Err(bad(fault)),
    };
    let data_end = match (end_footer, stat.fixed_length) {
        (false, false) => length,
        (_, true) => super::volume_footer(length),
        (true, false) => tail_at,
    };
    let mut parent = None;
    let mut header = None;
    if chosen.disk_type == DiskType::Fixed {
        if chosen.current_size > data_end {
            let fault = Fault::FixedTooShort { stored: data_end, size: chosen.current_size };
            return Err(bad(fault));
        }
    } else {
        let at = chosen.data_offset;
        // Not on the footer at the end, either.
        let fits = at.checked_add(header::SIZE as u64).is_some_and(|end| end <= data_end);
        if !fits || at < SECTOR || !at.is_multiple_of(SECTOR) {
            return Err(bad(Fault::HeaderOffset(at)));
        }
        let found = bytes_at(file, path, head, at, header::SIZE)?;
        let found = Header::parse(&found).map_err(Error::format(path))?;
        found.verify(chosen.current_size, data_end).map_err(Error::format(path))?;
        if chosen.disk_type == DiskType::Differencing {
            // A null UUID names nobody: as a parent it stands for a raw image.
            if found.parent_uuid == chosen.uuid && !chosen.uuid.is_nil() {
                return Err(bad(Fault::OwnParent));
            }
            parent = Some(read_parent(file, path, head, &found, data_end)?);
        }
        header = Some(found);
    }
    let info = Info {
        uuid: chosen.uuid,
        disk_type: chosen.disk_type,
        size: chosen.current_size,
        file_size: length,
        physical_size: stat.allocated,
        hidden: chosen.hidden,
        block_size: header.as_ref().map_or(0, |header| header.block_size),
        parent,
        creator: chosen.creator_text(),
        timestamp: chosen.timestamp,
        end_footer,
        copy_footer,
        chs_size: chosen.smaller_chs_size(),
        file_id: stat.id,
    };
    let volume = stat.fixed_length;
    Ok(Head { info, footer: chosen, header, data_end, footers_differ, volume })
}

/// What an image that cannot be used may still say about its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// It has none: it is not a differencing image.
    NoParent,
    /// There is nothing of an image in it, so none of it can be made good here; somebody may have
    /// another copy of it.
    Rubbish,
    /// The one with this UUID.
    Parent(Uuid),
    /// That cannot be told.
    Anyone,
}

/// Whom a damaged image names as its parent, as far as its bytes tell. Nothing is verified: an
/// answer too many only keeps an image from being merged or deleted.
pub(crate) fn suspect(file: &dyn Blob, path: &Path) -> Suspect {
    let read = || -> Result<Suspect> {
        let length = sys::stat(file, path)?.length;
        let at = header_offset(file, path);
        let mut raw = [0; 56];
        let offset = *at.as_ref().unwrap_or(&SECTOR);
        let got = sys::read_upto(file, path, &mut raw, offset)?;
        let cookie = got == raw.len() && raw.starts_with(header::COOKIE);
        let parent = Uuid::from_slice(&raw[40..]).unwrap_or_default();
        Ok(match (cookie, at) {
            (true, _) if parent.is_nil() => Suspect::NoParent,
            (true, _) => Suspect::Parent(parent),
            // A footer that names a place for the header, and no header there.
            (false, Ok(_)) => Suspect::Anyone,
            (false, Err(Error::Io { .. })) if length >= SECTOR => Suspect::Anyone,
            (false, Err(_)) => Suspect::Rubbish,
        })
    };
    read().unwrap_or(Suspect::Anyone)
}

/// Where the footers say that the header is. An error when neither can be read, or the image is a
/// fixed one.
pub(super) fn header_offset(file: &dyn Blob, path: &Path) -> Result<u64> {
    let length = sys::stat(file, path)?.length;
    let mut fault = Fault::TooShort(length);
    let ends = [length.saturating_sub(SECTOR) / SECTOR * SECTOR, 0];
    for at in ends {
        let mut raw = [0; footer::SIZE];
        let got = sys::read_upto(file, path, &mut raw, at)?;
        match Footer::parse(&raw[..got]) {
            Ok(footer) if footer.disk_type != DiskType::Fixed => return Ok(footer.data_offset),
            Ok(_) => fault = Fault::HeaderOffset(u64::MAX),
            Err(found) => fault = found,
        }
    }
    Err(Error::format(path)(fault))
}

fn read_parent(
    file: &dyn Blob,
    path: &Path,
    head: &[u8],
    header: &Header,
    length: u64,
) -> Result<Parent> {
    let mut hints = Vec::new();
    // The relative Windows path is what every tool gets right; the absolute one comes last.
    for code in [W2RU, MACX, W2KU] {
        for slot in header.locators.iter().filter(|slot| slot.code == code && slot.length > 0) {
            let (at, size) = slot.range(length).map_err(Error::format(path))?;
            let bytes = bytes_at(file, path, head, at, size)?;
            if let Some(hint) = slot.decode(&bytes)
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        }
    }
    let name = locator::parent_name_text(&header.parent_name);
    Ok(Parent { uuid: header.parent_uuid, name, hints })
}

/// Bytes of the file, taken from what was read already when they are there.
fn bytes_at(file: &dyn Blob, path: &Path, head: &[u8], at: u64, size: usize) -> Result<Vec<u8>> {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    if let Some(found) = start.checked_add(size).and_then(|end| head.get(start..end)) {
        return Ok(found.to_vec());
    }
    let mut bytes = vec![0; size];
    sys::read_at(file, path, &mut bytes, at)?;
    Ok(bytes)
}
