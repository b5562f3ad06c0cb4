//! One open file of a disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use vhd::chain::Member;
use vhd::image::{Info, Run};
use vhd::store::{Blob, Stat};
use vhd::{Image, Mode, SECTOR};

use super::plan::{Format, Layer};
use super::storage::{Storage, UNIT};
use crate::error::{Errno, Error, Result};

/// Zeros are written in pieces of this size, bytes.
const ZEROS: u64 = 1 << 20;

/// An open file. Only that of the leaf is written to.
pub(super) struct Level {
    pub(super) path: PathBuf,
    pub(super) storage: Storage,
    pub(super) kind: Kind,
    /// What it was when it was opened.
    pub(super) stat: Stat,
    /// Holes can be punched.
    pub(super) punches: bool,
}

/// How the content of a file is to be understood.
pub(super) enum Kind {
    Vhd(Box<Image>),
    Raw(Raw),
}

/// A raw file has no metadata, so little has to be known of it.
#[derive(Default)]
pub(super) struct Raw {
    /// A sync has failed: nothing more is promised.
    unsynced: AtomicBool,
    /// Nothing is written any more.
    sealed: AtomicBool,
}

impl Level {
    /// Opens a file. For writing, it is locked, and a footer that it lacks is restored.
    pub(super) fn open(layer: &Layer, write: bool, direct: bool) -> Result<Self> {
        let path = &layer.path;
        let storage = Storage::open(path, write, direct)?;
        if write {
            storage.lock(path)?;
        }
        let failed = |error| Error::io(format_args!("{}: stat", path.display()), &error);
        let kind = match layer.format {
            Format::Raw => Kind::Raw(Raw::default()),
            Format::Vhd => {
                if write && vhd::image::probe_blob(&storage, path)?.needs_repair() {
                    tracing::warn!(path = %path.display(), "a footer is missing and is restored");
                    vhd::image::repair_blob(Box::new(storage.clone()), path)?;
                }
                let mode = if write { Mode::Write } else { Mode::Read };
                Kind::Vhd(Box::new(Image::from_blob(Box::new(storage.clone()), path, mode)?))
            }
        };
        let stat = storage.stat().map_err(failed)?;
        // Behind the end of the file, where it changes nothing.
        let behind = stat.length.next_multiple_of(UNIT) + UNIT;
        let punches = write && !stat.fixed_length && storage.punch(behind, UNIT).unwrap_or(false);
        Ok(Self { path: path.clone(), storage, kind, stat, punches })
    }

    pub(super) fn size(&self) -> u64 {
        match &self.kind {
            Kind::Vhd(image) => image.size(),
            Kind::Raw(_) => self.stat.length,
        }
    }

    pub(super) fn is_a(&self, format: Format) -> bool {
        format == if self.image().is_some() { Format::Vhd } else { Format::Raw }
    }

    pub(super) fn image(&self) -> Option<&Image> {
        match &self.kind {
            Kind::Vhd(image) => Some(image),
            Kind::Raw(_) => None,
        }
    }

    /// What a VHD says of itself now: whoever takes an image out of a chain gives the one above it
    /// another parent.
    pub(super) fn info(&self) -> Result<Option<Info>> {
        match &self.kind {
            Kind::Vhd(_) => Ok(Some(vhd::image::probe_blob(&self.storage, &self.path)?)),
            Kind::Raw(_) => Ok(None),
        }
    }

    /// With what [`Level::info`] has answered.
    pub(super) fn member<'a>(&'a self, info: Option<&'a Info>) -> Member<'a> {
        Member { path: &self.path, size: self.size(), id: self.stat.id, info }
    }

    /// Whether the file holds what is known of it, when all of that is published.
    pub(super) fn is_as_stored(&self) -> Result<bool> {
        Ok(self.image().map_or(Ok(true), Image::is_as_stored)?)
    }

    /// Where this file has a range of the disk, into `runs`, which are dropped first.
    pub(super) fn map(&self, offset: u64, length: u64, runs: &mut Vec<Run>) -> Result<()> {
        match &self.kind {
            Kind::Vhd(image) => image.map_to(offset, length, runs)?,
            Kind::Raw(_) => {
                runs.clear();
                runs.push(Run { offset, length, at: Some(offset) });
            }
        }
        Ok(())
    }

    /// Bytes that the file must have of a range. A VHD has all that its tables name; a raw file
    /// what it had when it was opened. One that ends before has lost data, which are not zeros.
    fn must_have(&self, at: u64, length: u64) -> u64 {
        match &self.kind {
            Kind::Vhd(_) => length,
            Kind::Raw(_) => length.min(self.stat.length.saturating_sub(at)),
        }
    }

    /// Whether a range may lie behind the end of the file, where it reads as zeros.
    pub(super) fn may_end_in(&self, at: u64, length: u64) -> bool {
        self.must_have(at, length) < length
    }

    /// Fills a buffer from a position of the file.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let got = self.storage.read_at(buf, at).map_err(|error| self.failed("read", &error))?;
        if (got as u64) < self.must_have(at, buf.len() as u64) {
            return Err(self.failed("read", &std::io::ErrorKind::UnexpectedEof.into()));
        }
        buf.get_mut(got..).unwrap_or_default().fill(0);
        Ok(())
    }

    /// Writes whole sectors of the disk; of a raw file, anything.
    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        match &self.kind {
            Kind::Vhd(image) => Ok(image.write_at(offset, buf)?),
            Kind::Raw(raw) => {
                self.check(raw)?;
                self.storage.write_at(buf, offset).map_err(|error| self.failed("write", &error))
            }
        }
    }

    /// Makes whole sectors of the disk read as zeros; see [`Image::zero`]. Of a raw file, anything.
    pub(super) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let raw = match &self.kind {
            Kind::Vhd(image) => return Ok(image.zero(offset, length)?),
            Kind::Raw(raw) => raw,
        };
        self.check(raw)?;
        let failed = |error| self.failed("clear", &error);
        if length >= UNIT && self.storage.punch(offset, length).map_err(failed)? {
            return Ok(());
        }
        let zeros = vec![0; length.min(ZEROS) as usize];
        let mut done = 0;
        while done < length {
            let part = zeros.get(..(length - done).min(ZEROS) as usize).unwrap_or(&zeros);
            self.storage.write_at(part, offset + done).map_err(failed)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        match &self.kind {
            Kind::Vhd(image) => Ok(image.flush()?),
            Kind::Raw(raw) => {
                if raw.sealed.load(Ordering::Acquire) {
                    return Ok(());
                }
                self.check(raw)?;
                self.storage.sync().map_err(|error| {
                    raw.unsynced.store(true, Ordering::Release);
                    self.failed("sync", &error)
                })
            }
        }
    }

    /// Ends writing, with all of it durable.
    pub(super) fn close(&self) -> Result<()> {
        match &self.kind {
            Kind::Vhd(image) => image.close()?,
            Kind::Raw(_) => self.flush()?,
        }
        self.seal();
        Ok(())
    }

    /// Nothing is written any more; others may.
    pub(super) fn seal(&self) {
        match &self.kind {
            Kind::Vhd(image) => image.seal(),
            Kind::Raw(raw) => raw.sealed.store(true, Ordering::Release),
        }
        self.storage.unlock();
    }

    /// Whether writes are taken.
    pub(super) fn takes_writes(&self) -> bool {
        match &self.kind {
            Kind::Vhd(image) => !image.is_unsynced(),
            Kind::Raw(raw) => self.check(raw).is_ok(),
        }
    }

    fn check(&self, raw: &Raw) -> Result<()> {
        let refuse =
            |errno, what| Err(Error::new(errno, format!("{}: {what}", self.path.display())));
        if raw.sealed.load(Ordering::Acquire) {
            return refuse(Errno::NotPermitted, "is not written any more");
        }
        if raw.unsynced.load(Ordering::Acquire) {
            return refuse(Errno::Io, "an earlier sync failed, it must be opened again");
        }
        Ok(())
    }

    /// Whether the leaf's requests that change parts of such units only must be alone.
    pub(super) fn unit(&self) -> u64 {
        match (&self.storage.direct, &self.kind) {
            (Some(_), _) => UNIT,
            (None, Kind::Vhd(_)) => SECTOR,
            (None, Kind::Raw(_)) => 1,
        }
    }

    fn failed(&self, action: &str, error: &std::io::Error) -> Error {
        Error::io(format_args!("{}: {action}", self.path.display()), error)
    }

    /// Whether a file is this one, and has not been written to since it was opened, except by us.
    pub(super) fn is_still(&self, found: &Stat, written_by_us: bool) -> bool {
        found.id == self.stat.id
            && (written_by_us
                || (found.length == self.stat.length && found.modified == self.stat.modified))
    }
}

/// What the file of a plan is now.
pub(super) fn stat_of(path: &Path) -> Result<Stat> {
    let storage = Storage::open(path, false, false)?;
    storage.stat().map_err(|error| Error::io(format_args!("{}: stat", path.display()), &error))
}
