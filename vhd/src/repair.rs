//! Bringing an image's metadata in order.
//!
//! What is repaired is what the file says twice: a footer from its copy, the copy from the footer,
//! the batmap from the bitmaps. Nothing else is: a block that lies on another one belongs to one of
//! them, and the file does not say to which.
//!
//! # What is promised
//!
//! - No byte of a block, of its data or of its bitmap, is written. The plan is compared with the
//!   block table before the first write.
//! - Each write by itself leaves a file that is no worse, and each is durable before the next. A
//!   footer is one sector. A batmap goes before its header, which holds its checksum: in between
//!   it has the wrong checksum, and readers ignore it.
//! - An image whose damage is beyond this is left alone as a whole.
//!
//! # A resize that was cut
//!
//! blktap's resize writes the cookie `v_poison` into the footers, then moves blocks: it copies one,
//! fills its old place with zeros, and writes the block table at the very end. What it zeroed is in
//! its own journal only. So the cookie is put right only while nothing was moved yet: all of the
//! structure is sound, the batmap included, and no block has an empty bitmap.

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::bat::{ABSENT, Area};
use crate::batmap;
use crate::check::{
    Anatomy, BatmapState, Code, Depth, Examination, Finding, Place, Severity, bitmaps,
    examine_blob, worst,
};
use crate::error::{Error, Fault, Result};
use crate::footer::{self, Footer, put};
use crate::header::Header;
use crate::image::areas;
use crate::store::Blob;
use crate::{SECTOR, bits, sys};

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it repairs.
    pub code: Code,
    /// Where, bytes.
    pub offset: u64,
    /// What is written.
    pub bytes: Vec<u8>,
    /// What it is, for people.
    pub text: String,
}

/// What a repair does, or did.
#[derive(Clone, Debug)]
pub struct Repair {
    /// The writes, in their order; none when there is nothing to do, or too much.
    pub steps: Vec<Step>,
    /// What was found before.
    pub before: Vec<Finding>,
    /// What is left afterwards, or would be.
    pub after: Vec<Finding>,
    /// The damage is beyond repair; nothing was changed.
    pub refused: bool,
}

/// Says what [`repair`] would do.
pub fn plan(path: &Path) -> Result<Repair> {
    let file = crate::check::open(path)?;
    lock(&file, path, false)?;
    plan_blob(&file, path)
}

/// Repairs an image. Fails with [`Error::Busy`] when somebody holds a lock on it.
pub fn repair(path: &Path) -> Result<Repair> {
    drop(crate::check::open(path)?);
    let file = sys::open(path, true)?;
    lock(&file, path, true)?;
    repair_blob(&file, path)
}

/// As [`repair`], of what is already open for writing and locked.
pub fn repair_blob(blob: &dyn Blob, path: &Path) -> Result<Repair> {
    let mut repair = plan_blob(blob, path)?;
    for step in &repair.steps {
        sys::write_at(blob, path, &step.bytes, step.offset)?;
        sys::sync(blob, path)?;
    }
    if !repair.steps.is_empty() {
        repair.after = examine_blob(blob, path, Depth::Bitmaps).findings;
    }
    Ok(repair)
}

/// As [`plan`], of what is already open.
pub fn plan_blob(blob: &dyn Blob, path: &Path) -> Result<Repair> {
    let Examination { findings: before, anatomy, .. } = examine_blob(blob, path, Depth::Bitmaps);
    let mut steps = Vec::new();
    let mut refused = false;
    if let Some(anatomy) = &anatomy {
        let beyond = |finding: &Finding| {
            finding.severity == Severity::Error && !finding.code.is_repairable()
        };
        refused = before.iter().any(beyond) || !can_unpoison(blob, path, anatomy, &before)?;
        if !refused {
            steps = all_steps(blob, path, anatomy, &before)?;
            verify(anatomy, &steps, path)?;
        }
    }
    refused |= anatomy.is_none();
    let repaired = |code: Code| steps.iter().any(|step| step.code == code);
    let after = before.iter().filter(|finding| !repaired(finding.code)).cloned().collect();
    let refused = refused || worst(&before) == Some(Severity::Error) && steps.is_empty();
    Ok(Repair { steps, before, after, refused })
}

fn all_steps(
    blob: &dyn Blob,
    path: &Path,
    anatomy: &Anatomy,
    before: &[Finding],
) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let Some(footer) = &anatomy.footer else { return Ok(steps) };
    if let Some(header) = &anatomy.header {
        let wanted = [Code::BatmapMissing, Code::BatmapChecksum, Code::BatmapWrong];
        if let Some(finding) = before.iter().find(|finding| wanted.contains(&finding.code)) {
            steps.extend(batmap_steps(blob, path, anatomy, footer, header, finding.code)?);
        }
    }
    // Last: what makes an image usable again.
    let taken = steps.iter().map(|step| step.offset + step.bytes.len() as u64).max().unwrap_or(0);
    steps.extend(footer_steps(anatomy, footer, taken));
    Ok(steps)
}

/// The footers, the deciding one first; one that is missing goes behind `taken`, too.
fn footer_steps(anatomy: &Anatomy, footer: &Footer, taken: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    let (end, copy) = (&anatomy.end, &anatomy.copy);
    // Byte for byte, with what the format reserves, where one of the two says all of it.
    let bytes = [end, copy]
        .into_iter()
        .find(|place| place.is_valid() && place.footer() == Some(footer))
        .or_else(|| [end, copy].into_iter().find(|place| place.footer() == Some(footer)))
        .map_or_else(|| footer.to_bytes().to_vec(), Place::sound_bytes);
    let mut write = |code, offset, what: &str| {
        let text = format!("{what}, from the other one");
        steps.push(Step { code, offset, bytes: bytes.clone(), text });
    };
    let poisoned = end.poisoned || copy.poisoned;
    let code = if poisoned { Code::InterruptedResize } else { Code::FootersDiffer };
    let at_end = "the footer at the end";
    if end.footer().is_none() {
        write(Code::FooterEndMissing, end_offset(anatomy, footer, taken), at_end);
    } else if end.poisoned || end.footer() != Some(footer) {
        write(code, end.offset, at_end);
    } else if anatomy.has_short_footer() {
        steps.push(Step {
            code: Code::FooterShort,
            offset: anatomy.stat.length,
            bytes: vec![0],
            text: "the last byte of the footer".to_owned(),
        });
    }
    if anatomy.is_fixed() {
        return steps;
    }
    let mut write = |code| {
        let text = "the footer copy, from the one at the end".to_owned();
        steps.push(Step { code, offset: 0, bytes: bytes.clone(), text });
    };
    if copy.footer().is_none() {
        write(Code::FooterCopyMissing);
    } else if copy.poisoned || copy.footer() != Some(footer) {
        write(code);
    }
    steps
}

/// Where a missing footer goes: over its own remains if nothing else is there, else behind all.
fn end_offset(anatomy: &Anatomy, footer: &Footer, taken: u64) -> u64 {
    if anatomy.stat.fixed_length {
        return anatomy.data_end;
    }
    let used = used(anatomy).iter().map(|area| area.end).max().unwrap_or(0).max(taken);
    let tail = &anatomy.end.raw;
    let remains = tail.starts_with(footer::COOKIE)
        || tail.starts_with(footer::POISON)
        || tail.get(68..84) == Some(footer.uuid.as_bytes());
    if remains && anatomy.end.offset >= used {
        anatomy.end.offset
    } else {
        anatomy.stat.length.max(used).next_multiple_of(SECTOR)
    }
}

/// Everything in the file that belongs to somebody, without the footer at the end and without a
/// batmap that is to be rewritten.
fn used(anatomy: &Anatomy) -> Vec<Area> {
    let (Some(footer), Some(header)) = (&anatomy.footer, &anatomy.header) else {
        return Vec::new();
    };
    let mut used = areas(footer, header, None).unwrap_or_default();
    if let BatmapState::Good(batmap) = &anatomy.batmap {
        let end = batmap.offset + batmap.map.len() as u64;
        used.push(Area { start: batmap.offset, end, name: "the batmap" });
    }
    used.extend(blocks(anatomy, header));
    used
}

fn blocks(anatomy: &Anatomy, header: &Header) -> impl Iterator<Item = Area> {
    let stride = header.stride();
    anatomy.table.iter().filter(|sector| **sector != ABSENT).map(move |sector| {
        let start = u64::from(*sector) * SECTOR;
        Area { start, end: start + stride, name: "a block" }
    })
}

fn batmap_steps(
    blob: &dyn Blob,
    path: &Path,
    anatomy: &Anatomy,
    footer: &Footer,
    header: &Header,
    code: Code,
) -> Result<Vec<Step>> {
    let header_at = header.table_end();
    let default = (header_at + batmap::HEADER, batmap::map_bytes(header.table_entries));
    let present = match &anatomy.batmap {
        BatmapState::Good(batmap) => Some((batmap.offset, batmap.map.len() as u64)),
        BatmapState::WrongChecksum(found) => Some((found.offset, found.length)),
        BatmapState::Missing | BatmapState::NotPromised => None,
    };
    // The old batmap is none of these.
    let others: Vec<Area> = areas(footer, header, None)
        .unwrap_or_default()
        .into_iter()
        .chain(blocks(anatomy, header))
        .collect();
    let free = |start: u64, length: u64| {
        // A file that is cut off inside a sector ends with that sector when it is repaired.
        start + length <= anatomy.data_end.next_multiple_of(SECTOR)
            && others.iter().all(|area| area.end <= start || start + length <= area.start)
    };
    let fits = |(at, length): &(u64, u64)| {
        let apart = *at >= header_at + batmap::HEADER || at + length <= header_at;
        apart && free(*at, *length)
    };
    let Some((map_at, length)) = present.into_iter().chain([default]).find(fits) else {
        return Ok(Vec::new());
    };
    if !free(header_at, batmap::HEADER) {
        return Ok(Vec::new());
    }
    let mut map = vec![0; length as usize];
    let sectors = u64::from(header.block_size) / SECTOR;
    each_bitmap(blob, path, anatomy, header, &mut |block, bitmap| {
        if bits::all(bitmap, sectors) {
            bits::set(&mut map, u64::from(block), 1);
        }
        true
    })?;
    let mut head = batmap::to_bytes(header_at, &map);
    head.truncate(batmap::HEADER as usize);
    put(&mut head, 8, &map_at.to_be_bytes());
    let step = |offset, bytes, text: &str| Step { code, offset, bytes, text: text.to_owned() };
    Ok(vec![
        step(map_at, map, "the batmap, from the blocks' bitmaps"),
        step(header_at, head, "the batmap's header"),
    ])
}

fn each_bitmap(
    blob: &dyn Blob,
    path: &Path,
    anatomy: &Anatomy,
    header: &Header,
    each: &mut dyn FnMut(u32, &[u8]) -> bool,
) -> Result<()> {
    let allocated = anatomy.table.iter().zip(0_u32..);
    let allocated = allocated.filter(|(sector, _)| **sector != ABSENT);
    let allocated = allocated.map(|(sector, block)| (*sector, block)).collect();
    bitmaps::read(blob, path, header, allocated, each)
}

/// Whether nothing was moved yet, of an image that a resize has marked; `true` of all others.
fn can_unpoison(
    blob: &dyn Blob,
    path: &Path,
    anatomy: &Anatomy,
    before: &[Finding],
) -> Result<bool> {
    if !matches!(anatomy.footer_fault, Some(Fault::Poisoned)) {
        return Ok(true);
    }
    let Some(header) = &anatomy.header else { return Ok(false) };
    let only_this = |finding: &Finding| {
        finding.code == Code::InterruptedResize || finding.severity == Severity::Note
    };
    let agree = anatomy.end.footer() == anatomy.copy.footer() && anatomy.copy.footer().is_some();
    if !agree || !before.iter().all(only_this) {
        return Ok(false);
    }
    let mut sound = true;
    each_bitmap(blob, path, anatomy, header, &mut |_, bitmap| {
        sound = bitmap.iter().any(|byte| *byte != 0);
        sound
    })?;
    Ok(sound)
}

/// Whatever was planned: nothing of a block, of the header and of the block table is written.
fn verify(anatomy: &Anatomy, steps: &[Step], path: &Path) -> Result<()> {
    let (Some(footer), Some(header)) = (&anatomy.footer, &anatomy.header) else {
        let size = anatomy.footer.as_ref().map_or(0, |footer| footer.current_size);
        return steps.iter().try_for_each(|step| {
            if step.offset >= size { Ok(()) } else { Err(on_data(path, step)) }
        });
    };
    let mut kept: Vec<Area> = areas(footer, header, None)
        .unwrap_or_default()
        .into_iter()
        .filter(|area| area.start != 0)
        .chain(blocks(anatomy, header))
        .collect();
    kept.sort_by_key(|area| area.start);
    for step in steps {
        let end = step.offset + step.bytes.len() as u64;
        // The last one that begins before the write's end: they do not overlap.
        let before = kept.partition_point(|area| area.start < end);
        let hit = before.checked_sub(1).and_then(|index| kept.get(index));
        if hit.is_some_and(|area| area.end > step.offset) {
            return Err(on_data(path, step));
        }
    }
    Ok(())
}

fn on_data(path: &Path, step: &Step) -> Error {
    let what = format!("the repair of {} at {} would touch data", step.code, step.offset);
    Error::Store { path: path.to_owned(), what }
}

/// Takes the lock of the whole file, until it is closed. A writer also asks for the locks of single
/// bytes, which qemu takes. tapdisk locks nothing.
fn lock(file: &File, path: &Path, write: bool) -> Result<()> {
    let mut taken = sys::try_lock(file).and_then(|free| free.then_some(()).ok_or(Errno::AGAIN));
    if write && taken.is_ok() {
        // Where there are no such locks nobody has taken one.
        let bytes = rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive);
        if matches!(bytes, Err(Errno::AGAIN | Errno::ACCESS)) {
            taken = bytes;
        }
    }
    match taken {
        Ok(()) => Ok(()),
        Err(Errno::AGAIN | Errno::ACCESS) => {
            let holder = holder(file).unwrap_or_else(|| "another process".to_owned());
            Err(Error::Busy { path: path.to_owned(), holder, waited_ms: 0 })
        }
        Err(errno) => Err(Error::io(path, "lock")(errno.into())),
    }
}

/// Who has a lock on a file, as far as the kernel tells.
fn holder(file: &File) -> Option<String> {
    let stat = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let wanted = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == wanted)?;
        words.get(at.checked_sub(1)?)?.parse::<u32>().ok().filter(|pid| *pid != std::process::id())
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("process {pid} ({})", name.trim_end()))
}
