//! Several files as one disk: a leaf, its parent, and so on to the root.
//!
//! Which files those are was decided by whoever keeps the directory; here each link is verified
//! by UUID, and no name found inside a file is followed.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::disk::{Disk, Extent, ExtentKind, by_sectors, push};
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::image::{Image, Info, Mode};
use crate::raw::Raw;

/// One file of a chain and how to read it. The format is stated, never guessed from the content:
/// a guest can write a VHD header into its raw disk.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'a> {
    /// A VHD file.
    Vhd(&'a Path),
    /// A raw file; only as the last of a chain.
    Raw(&'a Path),
}

/// An open file of a chain.
pub enum Level {
    /// A VHD.
    Vhd(Box<Image>),
    /// A raw disk.
    Raw(Raw),
}

impl Level {
    fn size(&self) -> u64 {
        match self {
            Self::Vhd(image) => image.size(),
            Self::Raw(raw) => raw.size(),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Vhd(image) => image.path(),
            Self::Raw(raw) => raw.path(),
        }
    }

    fn member(&self) -> Member<'_> {
        match self {
            Self::Vhd(image) => Member::of(image),
            Self::Raw(raw) => {
                Member { path: raw.path(), size: raw.size(), id: raw.file_id(), info: None }
            }
        }
    }
}

/// What is to be known of a file to tell whether it belongs into a chain.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The file.
    pub path: &'a Path,
    /// Virtual size, bytes.
    pub size: u64,
    /// Device and inode number.
    pub id: (u64, u64),
    /// What a VHD says of itself; none for a raw file.
    pub info: Option<&'a Info>,
}

impl<'a> Member<'a> {
    /// An open image.
    pub fn of(image: &'a Image) -> Self {
        let info = image.info();
        Self { path: image.path(), size: image.size(), id: info.file_id, info: Some(info) }
    }
}

/// Whether files are a chain: the leaf first, each the parent of the one before, none twice, and
/// the last without a parent.
pub fn verify(members: &[Member<'_>]) -> Result<()> {
    for (index, member) in members.iter().enumerate() {
        let (above, _) = members.split_at(index);
        verify_next(above.iter().copied(), member)?;
    }
    verify_end(members.last())
}

/// Whether a file belongs below those that are there.
fn verify_next<'a>(
    above: impl DoubleEndedIterator<Item = Member<'a>> + Clone,
    member: &Member<'_>,
) -> Result<()> {
    if above.clone().any(|above| above.id == member.id) {
        return Err(Error::Cycle { path: member.path.to_owned() });
    }
    match above.into_iter().next_back() {
        Some(child) => verify_link(&child, member),
        None => Ok(()),
    }
}

/// Whether a chain may end there.
fn verify_end(last: Option<&Member<'_>>) -> Result<()> {
    let Some(last) = last else {
        return Err(Error::Store {
            path: std::path::PathBuf::new(),
            what: "a chain needs at least one file".to_owned(),
        });
    };
    match last.info.and_then(|info| info.parent.as_ref()) {
        Some(parent) => {
            Err(Error::ChainIncomplete { path: last.path.to_owned(), parent: parent.uuid })
        }
        None => Ok(()),
    }
}

/// A disk made of a leaf and its ancestors.
pub struct Chain {
    levels: Vec<Level>,
    /// Serialises writes of parts of sectors, which read the rest first.
    partial: Mutex<()>,
}

impl Chain {
    /// Opens a chain, the leaf first. Only the leaf is opened for writing, and only by
    /// [`Mode::Write`].
    pub fn open(layers: &[Layer<'_>], mode: Mode) -> Result<Self> {
        let open = |(index, layer): (usize, &Layer<'_>)| {
            let mode = if index == 0 { mode } else { Mode::Read };
            Ok(match layer {
                Layer::Vhd(path) => Level::Vhd(Box::new(Image::open(path, mode)?)),
                Layer::Raw(path) => Level::Raw(Raw::open(path, mode)?),
            })
        };
        Self::of(layers.iter().enumerate().map(open))
    }

    /// Makes a chain of files as they are opened, the leaf first; stops at the first that does not
    /// belong to it.
    pub fn of(opened: impl IntoIterator<Item = Result<Level>>) -> Result<Self> {
        let mut levels: Vec<Level> = Vec::new();
        for level in opened {
            let level = level?;
            verify_next(levels.iter().map(Level::member), &level.member())?;
            levels.push(level);
        }
        verify_end(levels.last().map(Level::member).as_ref())?;
        Ok(Self { levels, partial: Mutex::new(()) })
    }

    /// Opens an image that has no parent, or a raw file.
    pub fn single(layer: Layer<'_>, mode: Mode) -> Result<Self> {
        Self::open(&[layer], mode)
    }

    /// What each VHD file of the chain says of itself, the leaf first; a raw file at the end has
    /// nothing to say.
    pub fn info(&self) -> Vec<&Info> {
        self.levels
            .iter()
            .filter_map(|level| match level {
                Level::Vhd(image) => Some(image.info()),
                Level::Raw(_) => None,
            })
            .collect()
    }

    /// Number of files.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The leaf, when it is a VHD.
    pub fn leaf(&self) -> Option<&Image> {
        match self.levels.first() {
            Some(Level::Vhd(image)) => Some(image),
            _ => None,
        }
    }

    /// Reads a range at `level` and below. Beyond the end of a smaller parent reads zero.
    fn read_from(&self, level: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        // A list of what is still missing, instead of recursion: chains come from files.
        let mut missing = vec![(offset, buf.len() as u64)];
        for level in self.levels.iter().skip(level) {
            if missing.is_empty() {
                break;
            }
            let size = level.size();
            let mut below = Vec::new();
            for (at, length) in missing {
                let start = (at - offset) as usize;
                let inside = size.saturating_sub(at).min(length);
                buf[start + inside as usize..start + length as usize].fill(0);
                if inside == 0 {
                    continue;
                }
                let part = &mut buf[start..start + inside as usize];
                match level {
                    Level::Raw(raw) => raw.read_at(at, part)?,
                    Level::Vhd(image) => {
                        let absent = image.read_present(at, part)?;
                        below.extend(absent.iter().map(|run| (run.offset, run.length)));
                    }
                }
            }
            missing = below;
        }
        for (at, length) in missing {
            let start = (at - offset) as usize;
            buf[start..start + length as usize].fill(0);
        }
        Ok(())
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.size();
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let path = self.levels.first().map(|level| level.path().to_owned()).unwrap_or_default();
        Err(Error::OutOfRange { path, offset, length, size })
    }
}

impl Disk for Chain {
    fn size(&self) -> u64 {
        self.levels.first().map_or(0, Level::size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        self.read_from(0, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        match self.levels.first() {
            Some(Level::Raw(raw)) => raw.write_at(offset, buf),
            Some(Level::Vhd(image)) => {
                let sector = crate::SECTOR;
                let whole =
                    offset.is_multiple_of(sector) && (buf.len() as u64).is_multiple_of(sector);
                if whole {
                    return if buf.is_empty() { Ok(()) } else { image.write_sectors(offset, buf) };
                }
                let _one = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
                by_sectors(
                    offset,
                    buf,
                    &mut |offset, sector| self.read_from(0, offset, sector),
                    &mut |offset, part| image.write_sectors(offset, part),
                )
            }
            None => Ok(()),
        }
    }

    fn flush(&self) -> Result<()> {
        match self.levels.first() {
            Some(Level::Vhd(image)) => image.flush(),
            Some(Level::Raw(raw)) => raw.flush(),
            None => Ok(()),
        }
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        let mut known = Vec::new();
        let mut missing = vec![(offset, length)];
        for level in &self.levels {
            let size = level.size();
            let mut below = Vec::new();
            for (at, length) in missing {
                // Beyond the end of a smaller parent reads zero.
                let inside = size.saturating_sub(at).min(length);
                if inside == 0 {
                    continue;
                }
                match level {
                    Level::Raw(raw) => known.extend(raw.extents(at, inside)?),
                    Level::Vhd(image) => {
                        let mut end = at;
                        image.each_present(at, inside, &mut |offset, length, data| {
                            let kind = if data { ExtentKind::Data } else { ExtentKind::Zero };
                            known.push(Extent { offset, length, kind });
                            if offset > end {
                                below.push((end, offset - end));
                            }
                            end = offset + length;
                        })?;
                        if end < at + inside {
                            below.push((end, at + inside - end));
                        }
                    }
                }
            }
            missing = below;
        }
        known.retain(|extent| extent.kind == ExtentKind::Data);
        known.sort_unstable_by_key(|extent| extent.offset);
        Ok(with_zeros(known, offset, length))
    }
}

/// Completes what holds data, in order, with the zeros between.
fn with_zeros(data: Vec<Extent>, offset: u64, length: u64) -> Vec<Extent> {
    let mut extents = Vec::with_capacity(data.len() * 2 + 1);
    let mut at = offset;
    for extent in data {
        let gap = extent.offset - at;
        push(&mut extents, Extent { offset: at, length: gap, kind: ExtentKind::Zero });
        at = extent.offset + extent.length;
        push(&mut extents, extent);
    }
    let rest = offset + length - at;
    push(&mut extents, Extent { offset: at, length: rest, kind: ExtentKind::Zero });
    extents
}

fn verify_link(child: &Member<'_>, parent: &Member<'_>) -> Result<()> {
    let mismatch = |expected, found| Error::ParentMismatch {
        child: child.path.to_owned(),
        parent: parent.path.to_owned(),
        expected,
        found,
    };
    let Some(info) = child.info else {
        return Err(Error::WrongType {
            path: child.path.to_owned(),
            what: "a raw file cannot have a parent",
        });
    };
    let Some(link) = &info.parent else {
        let what = match info.disk_type {
            DiskType::Fixed => "a fixed image cannot have a parent",
            _ => "a dynamic image cannot have a parent",
        };
        return Err(Error::WrongType { path: child.path.to_owned(), what });
    };
    match parent.info {
        None if link.uuid.is_nil() => {}
        None => return Err(mismatch(link.uuid, "a raw file".to_owned())),
        Some(parent) if parent.uuid == link.uuid => {}
        Some(parent) => return Err(mismatch(link.uuid, parent.uuid.to_string())),
    }
    if child.size < parent.size {
        return Err(Error::ParentLarger {
            child: child.path.to_owned(),
            child_size: child.size,
            parent_size: parent.size,
        });
    }
    Ok(())
}

impl Disk for Image {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Self::read_at(self, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        Self::write_at(self, offset, buf)
    }

    fn flush(&self) -> Result<()> {
        Self::flush(self)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let mut data = Vec::new();
        self.each_present(offset, length, &mut |offset, length, held| {
            if held {
                data.push(Extent { offset, length, kind: ExtentKind::Data });
            }
        })?;
        Ok(with_zeros(data, offset, length))
    }
}
