//! The files of a disk as one: a leaf that is written, and what it is based on.
//!
//! A request for parts of sectors, or of pages where data goes past the page cache, reads the rest
//! first; it is alone with its neighbours while it writes. All others run at once.

mod notes;
mod transfers;

use std::io::IoSliceMut;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhd::image::{Live, Place};
use vhd::store::{Blob, Stat};
use vhd::{Image, SECTOR};

use super::drive::Options;
use super::gate::{Gate, NotClosed};
use super::level::{Level, stat_of};
use super::owners::{Owners, Piece, push};
use super::plan::Plan;
use crate::error::{Errno, Error, Result};
use crate::export::Extent;
use notes::{boot, notes_path, open_notes};
pub(super) use transfers::Way;

/// Pieces of a file that are this near to each other are read with one call, bytes.
const GAP: u64 = 8 << 10;

/// Buffers in one call, at most; the system's limit is 1024.
const SLICES: usize = 512;

/// Long ranges are gone through in steps of this many bytes.
const WINDOW: u64 = 64 << 20;

/// Pieces shorter than this are not looked at for holes, bytes.
const LOOK: u64 = 64 << 10;

/// How long a request waits for those beside it. They are single transfers, so this is a failure
/// of the storage.
const PATIENCE: Duration = Duration::from_secs(600);

/// The files of a disk, open.
pub(super) struct Chain {
    plan: Plan,
    /// The leaf first.
    levels: Vec<Arc<Level>>,
    owners: Owners,
    /// Passed by requests for whole units; closed by one for parts of them.
    neighbours: Gate,
    notes: Mutex<Option<PathBuf>>,
}

impl Chain {
    /// Opens the files of a plan. Those of `old` are taken where nobody can have written to them.
    pub(super) fn open(plan: &Plan, options: &Options, old: Option<&Self>) -> Result<Self> {
        let mut levels: Vec<Arc<Level>> = Vec::new();
        // By what they are, not by their names: a snapshot may give a file's name to another.
        let stats: Vec<Stat> = match old {
            Some(_) => plan.layers().map(|layer| stat_of(&layer.path)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        for (index, layer) in plan.layers().enumerate() {
            let write = index == 0 && !plan.read_only;
            let known = old.and_then(|old| old.unchanged(&stats, index, write));
            levels.push(match known.filter(|level| level.is_a(layer.format)) {
                Some(level) => level,
                None => Arc::new(Level::open(layer, write, options.direct)?),
            });
        }
        let infos: Vec<_> = levels.iter().map(|level| level.info()).collect::<Result<_>>()?;
        let members: Vec<_> =
            levels.iter().zip(&infos).map(|(level, info)| level.member(info.as_ref())).collect();
        vhd::chain::verify(&members)?;
        let share = if levels.len() > 1 { options.memory / 3 } else { options.memory };
        for (index, level) in levels.iter().enumerate() {
            if let Some(image) = level.image() {
                // What lies below is asked once for each page of the index.
                let in_use =
                    old.and_then(|old| old.levels.first()).is_some_and(|l| Arc::ptr_eq(l, level));
                if !in_use {
                    image.set_memory(if index == 0 { share } else { 32 << 10 });
                }
            }
        }
        let owners =
            Owners::new(levels.get(1..).unwrap_or_default().to_vec(), options.memory - share);
        let chain = Self {
            plan: plan.clone(),
            levels,
            owners,
            neighbours: Gate::new(),
            notes: Mutex::new(None),
        };
        if !plan.read_only {
            chain.check_notes_below(options)?;
        }
        Ok(chain)
    }

    /// The file with an index in a new plan, if it is in use here and can be taken as it is.
    fn unchanged(&self, stats: &[Stat], index: usize, write: bool) -> Option<Arc<Level>> {
        let found = stats.get(index)?;
        let here = self.levels.iter().position(|level| level.stat.id == found.id)?;
        let level = self.levels.get(here)?;
        if here == 0 && !self.plan.read_only {
            // The leaf that is being written goes on as it is, also as a parent: what it holds that
            // is not in the file yet is known to nobody else.
            return (write || index > 0).then(|| level.clone());
        }
        // Whoever takes out an image changes those beside it.
        let old_id = |index: usize| self.levels.get(index).map(|level| level.stat.id);
        let new_id = |index: usize| stats.get(index).map(|stat| stat.id);
        let above = here.checked_sub(1).and_then(old_id) == index.checked_sub(1).and_then(new_id);
        let beside = index > 0 && above && old_id(here + 1) == new_id(index + 1);
        (beside && level.is_still(found, false)).then(|| level.clone())
    }

    /// Begins to write: what a process that died has noted is put into the leaf.
    pub(super) fn begin(&self, options: &Options) -> Result<()> {
        let leaf = self.leaf()?;
        let Some(image) = leaf.image().filter(|_| !self.plan.read_only) else { return Ok(()) };
        let path = notes_path(options, leaf);
        if image.is_live() {
            *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = path;
            return Ok(());
        }
        let notes = path.as_deref().map(open_notes).transpose()?;
        image.go_live(Live {
            notes: notes.map(|file| Box::new(file) as Box<dyn Blob>),
            notes_path: path.clone().unwrap_or_default(),
            boot: boot()?,
        })?;
        *self.notes.lock().unwrap_or_else(PoisonError::into_inner) = path;
        Ok(())
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the leaf, all of it published, is in its file as it is known here.
    pub(super) fn is_as_stored(&self) -> Result<bool> {
        self.leaf()?.is_as_stored()
    }

    fn leaf(&self) -> Result<&Arc<Level>> {
        self.levels.first().ok_or_else(|| Error::new(Errno::Io, "a disk without files"))
    }

    pub(super) fn leaf_id(&self) -> (u64, u64) {
        self.levels.first().map_or((0, 0), |leaf| leaf.stat.id)
    }

    pub(super) fn is_direct(&self) -> bool {
        self.levels.first().is_some_and(|leaf| leaf.storage.direct.is_some())
    }

    pub(super) fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaf| leaf.size())
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        let size = self.size();
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        let what = format!("{length} bytes at {offset} are outside of a disk of {size} bytes");
        Err(Error::new(Errno::Invalid, what))
    }

    /// Where a range is when one answer does for all of it.
    fn locate(&self, offset: u64, length: u64) -> Result<Option<Piece>> {
        let leaf = self.leaf()?;
        let Some(image) = leaf.image() else {
            return Ok(Some(Piece { length, place: Some((0, offset)) }));
        };
        match image.locate(offset, length)? {
            Place::At(at) => Ok(Some(Piece { length, place: Some((0, at)) })),
            Place::Absent => self.owners.locate(offset, length),
            Place::Mixed => Ok(None),
        }
    }

    /// Where a range is: pieces in order.
    fn resolve(&self, offset: u64, length: u64) -> Result<Vec<Piece>> {
        let mut runs = Vec::new();
        self.leaf()?.map(offset, length, &mut runs)?;
        let mut pieces = Vec::with_capacity(runs.len());
        for run in &runs {
            match run.at {
                Some(at) => push(&mut pieces, Piece { length: run.length, place: Some((0, at)) }),
                None => self.owners.resolve(run.offset, run.length, &mut pieces)?,
            }
        }
        Ok(pieces)
    }

    fn level(&self, index: usize) -> Result<&Arc<Level>> {
        self.levels.get(index).ok_or_else(|| Error::new(Errno::Io, "a file that is not there"))
    }

    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        match self.locate(offset, buf.len() as u64)? {
            Some(Piece { place: Some((level, at)), .. }) => self.level(level)?.read(buf, at),
            Some(Piece { place: None, .. }) => {
                buf.fill(0);
                Ok(())
            }
            None => self.gather(&self.resolve(offset, buf.len() as u64)?, buf),
        }
    }

    /// Reads pieces into a buffer, those of a file that are near to each other with one call.
    fn gather(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        let mut parts: Vec<Vec<(u64, &mut [u8])>> = Vec::new();
        let mut rest = buf;
        for piece in pieces {
            let (part, tail) = rest.split_at_mut(piece.length as usize);
            rest = tail;
            match piece.place {
                None => part.fill(0),
                Some((level, at)) => {
                    if parts.len() <= level {
                        parts.resize_with(level + 1, Vec::new);
                    }
                    if let Some(of) = parts.get_mut(level) {
                        of.push((at, part));
                    }
                }
            }
        }
        for (index, parts) in parts.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let level = self.level(index)?;
            let mut group: Vec<(u64, &mut [u8])> = Vec::new();
            for (at, part) in parts {
                let near = group.last().is_some_and(|(last, bytes)| {
                    let end = last + bytes.len() as u64;
                    at >= end && at - end <= GAP
                });
                if !near || group.len() * 2 >= SLICES {
                    read_group(level, std::mem::take(&mut group))?;
                }
                group.push((at, part));
            }
            read_group(level, group)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        if buf.is_empty() {
            return Ok(());
        }
        let leaf = self.leaf()?;
        if is_whole(leaf.unit(), offset, buf.len() as u64) {
            let _pass = self.beside()?;
            return leaf.write(offset, buf);
        }
        self.alone(|| self.write_parts(leaf, offset, buf))
    }

    /// Writes anything, with nobody beside it.
    fn write_parts(&self, leaf: &Level, offset: u64, buf: &[u8]) -> Result<()> {
        if leaf.image().is_none() || is_whole(SECTOR, offset, buf.len() as u64) {
            return leaf.write(offset, buf);
        }
        let end = offset + buf.len() as u64;
        let first = offset / SECTOR * SECTOR;
        // A disk ends with a whole sector: only raw files do not, and they are not written here.
        let mut whole = vec![0; (end.next_multiple_of(SECTOR) - first) as usize];
        let sector = SECTOR as usize;
        let last = whole.len() - sector;
        if first < offset {
            self.read(first, &mut whole[..sector])?;
        }
        if !end.is_multiple_of(SECTOR) && (last > 0 || first == offset) {
            self.read(first + last as u64, &mut whole[last..])?;
        }
        let start = (offset - first) as usize;
        whole[start..start + buf.len()].copy_from_slice(buf);
        leaf.write(first, &whole)
    }

    /// Beside others that write whole units.
    fn beside(&self) -> Result<super::gate::Pass<'_>> {
        self.neighbours.enter().map_err(|_| Error::new(Errno::Shutdown, "the disk is closed"))
    }

    /// With nobody else writing.
    fn alone<T>(&self, run: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.neighbours.close(Instant::now() + PATIENCE) {
            Ok(()) => {}
            Err(NotClosed::Busy(_) | NotClosed::Taken | NotClosed::Shut) => {
                return Err(Error::new(Errno::Io, "writes beside this one do not end"));
            }
        }
        let _open = Opens(&self.neighbours);
        run()
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&self, offset: u64, length: u64, keep_space: bool) -> Result<()> {
        self.check(offset, length)?;
        let end = offset + length;
        let (first, last) = (offset.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
        if self.leaf()?.image().is_none() {
            return self.zero_whole(offset, length, keep_space);
        }
        if first >= last {
            return self.write(offset, &vec![0; length as usize]);
        }
        self.write(offset, &vec![0; (first - offset) as usize])?;
        self.write(last, &vec![0; (end - last) as usize])?;
        self.zero_whole(first, last - first, keep_space)
    }

    /// As [`Chain::zero`], of whole sectors.
    fn zero_whole(&self, offset: u64, length: u64, keep_space: bool) -> Result<()> {
        if keep_space {
            let zeros = vec![0; length.min(1 << 20) as usize];
            let mut done = 0;
            while done < length {
                let count = (length - done).min(zeros.len() as u64);
                self.write(offset + done, zeros.get(..count as usize).unwrap_or(&zeros))?;
                done += count;
            }
            return Ok(());
        }
        let leaf = self.leaf()?;
        let mut at = offset;
        while at < offset + length {
            let count = (offset + length - at).min(WINDOW);
            for (start, bytes) in self.not_zero(at, count)? {
                if is_whole(leaf.unit(), start, bytes) {
                    let _pass = self.beside()?;
                    leaf.zero(start, bytes)?;
                } else {
                    self.alone(|| leaf.zero(start, bytes))?;
                }
            }
            at += count;
        }
        Ok(())
    }

    /// The parts of a range that must be touched for it to read as zeros.
    fn not_zero(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64)>> {
        if self.owners.is_empty() {
            return Ok(vec![(offset, length)]);
        }
        let mut parts: Vec<(u64, u64)> = Vec::new();
        let mut at = offset;
        for piece in self.resolve(offset, length)? {
            if piece.place.is_some() {
                match parts.last_mut() {
                    Some(last) if last.0 + last.1 == at => last.1 += piece.length,
                    _ => parts.push((at, piece.length)),
                }
            }
            at += piece.length;
        }
        Ok(parts)
    }

    pub(super) fn zeroes_are_fast(&self) -> bool {
        self.levels.first().is_some_and(|leaf| leaf.punches)
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.leaf()?.flush()
    }

    /// Puts new metadata into the leaf, if there is any.
    pub(super) fn publish(&self) -> Result<()> {
        let waiting =
            self.leaf()?.image().is_some_and(|image| image.is_live() && image.has_unpublished());
        if waiting { self.flush() } else { Ok(()) }
    }

    pub(super) fn wants_publishing(&self) -> bool {
        let image = self.levels.first().and_then(|leaf| leaf.image());
        image.is_some_and(Image::wants_publishing)
    }

    /// The leaf is not written any more; all of it is published. `new` has its place.
    pub(super) fn retire(&self, new: &Self) {
        let Some(leaf) = self.levels.first() else { return };
        if new.levels.first().is_some_and(|other| Arc::ptr_eq(leaf, other)) {
            return;
        }
        leaf.seal();
        if let Some(image) = leaf.image() {
            image.set_memory(32 << 10);
        }
        self.drop_notes();
    }

    /// What the notes say is in the image.
    fn drop_notes(&self) {
        let path = self.notes.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(path) = path {
            // What stays of them says nothing new.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Lets go of the leaf as it is.
    pub(super) fn leave(&self) {
        if let Ok(leaf) = self.leaf() {
            leaf.seal();
        }
        self.drop_notes();
    }

    pub(super) fn close(&self) -> Result<()> {
        self.leaf()?.close()?;
        self.drop_notes();
        Ok(())
    }

    pub(super) fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        self.check(offset, length)?;
        let mut found = Limited { into, first: None, limit };
        let mut at = offset;
        // Some clients want the first extent only, and ask again behind it.
        let mut window = vhd::BLOCK;
        while at < offset + length {
            let count = (offset + length - at).min(window);
            for piece in self.resolve(at, count)? {
                if !self.holes(piece, &mut found)? {
                    return Ok(());
                }
            }
            at += count;
            window = (window * 2).min(WINDOW);
        }
        Ok(())
    }

    /// What of a range the leaf itself has, for somebody who brings that elsewhere: lengths in order
    /// that cover the range, and whether the leaf has it or leaves it to the files below.
    pub(super) fn held_by_leaf(&self, offset: u64, length: u64) -> Result<Vec<(u64, bool)>> {
        self.check(offset, length)?;
        let mut runs = Vec::new();
        self.leaf()?.map(offset, length, &mut runs)?;
        Ok(runs.iter().map(|run| (run.length, run.at.is_some())).collect())
    }

    /// Hands on a piece, and the holes that its file has there. Answers whether more is wanted.
    fn holes(&self, piece: Piece, found: &mut Limited<'_>) -> Result<bool> {
        let Some((index, at)) = piece.place else { return Ok(found.add(piece.length, true)) };
        if piece.length < LOOK {
            return Ok(found.add(piece.length, false));
        }
        let level = self.level(index)?;
        let (mut at, end) = (at, at + piece.length);
        while at < end {
            let data = level.storage.next_data(at).map_err(|error| {
                Error::io(format_args!("{}: seek", level.path.display()), &error)
            })?;
            let data = data.unwrap_or(end..end);
            // Holes by sector: beyond it may be another piece's.
            let start = (data.start / SECTOR * SECTOR).clamp(at, end);
            let stop = data.end.checked_next_multiple_of(SECTOR).unwrap_or(end).clamp(start, end);
            if !found.add(start - at, true) || !found.add(stop - start, false) {
                return Ok(false);
            }
            at = stop;
        }
        Ok(true)
    }
}

/// Opens a gate again.
struct Opens<'a>(&'a Gate);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Extents, as many as are wanted.
struct Limited<'a> {
    into: &'a mut Vec<Extent>,
    /// Where ours begin.
    first: Option<usize>,
    limit: usize,
}

impl Limited<'_> {
    /// Adds bytes that are zeros without space, or data. Answers whether more is wanted.
    fn add(&mut self, length: u64, zero: bool) -> bool {
        let first = *self.first.get_or_insert(self.into.len());
        if length == 0 {
            return true;
        }
        let count = self.into.len() - first;
        match self.into.last_mut() {
            Some(last) if count > 0 && last.zero == zero => last.length += length,
            _ if count >= self.limit.max(1) => return false,
            _ => self.into.push(Extent { length, hole: zero, zero }),
        }
        true
    }
}

fn is_whole(unit: u64, offset: u64, length: u64) -> bool {
    offset.is_multiple_of(unit) && length.is_multiple_of(unit)
}

/// Reads parts of a file that are near to each other, in order.
fn read_group(level: &Level, mut group: Vec<(u64, &mut [u8])>) -> Result<()> {
    let (Some(start), Some(end)) =
        (group.first().map(|(at, _)| *at), group.last().map(|(at, part)| at + part.len() as u64))
    else {
        return Ok(());
    };
    if let [(at, part)] = &mut group[..] {
        return level.read(part, *at);
    }
    let mut skipped: Vec<Vec<u8>> = Vec::with_capacity(group.len());
    let mut next = start;
    for (at, part) in &group {
        skipped.push(vec![0; (at - next) as usize]);
        next = at + part.len() as u64;
    }
    let mut slices: Vec<IoSliceMut<'_>> = Vec::with_capacity(group.len() * 2);
    for ((_, part), skipped) in group.iter_mut().zip(&mut skipped) {
        if !skipped.is_empty() {
            slices.push(IoSliceMut::new(skipped));
        }
        slices.push(IoSliceMut::new(part));
    }
    let got = rustix::io::preadv(&*level.storage.cached, &mut slices, start);
    if got.is_ok_and(|got| got as u64 == end - start) {
        return Ok(());
    }
    // Short where a file ends, or interrupted: one by one tells.
    group.into_iter().try_for_each(|(at, part)| level.read(part, at))
}
