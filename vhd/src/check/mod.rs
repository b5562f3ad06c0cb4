//! Looking at images that may be damaged, and saying everything that is wrong with them.
//!
//! Opening an image stops at the first fault; this goes on as far as what was read allows. Nothing
//! is changed. Each finding has a [`Code`] that does not change, for programs; the text is for
//! people. `docs/vhd.md` lists the codes.

mod anatomy;
pub(crate) mod bitmaps;
mod code;

use std::fmt;
use std::path::{Path, PathBuf};

pub use anatomy::{Anatomy, BatmapState, Place, Slot};
pub use code::Code;

use crate::bat::{self, ABSENT, Area};
use crate::chain::{Chain, Layer};
use crate::error::{Error, Fault, Result};
use crate::footer::{self, DiskType, Footer};
use crate::header::{Header, MAX_TABLE};
use crate::image::{Image, Mode, areas};
use crate::locator::Hint;
use crate::store::Blob;
use crate::{BLOCK, SECTOR, bits, sys};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Works here, may not elsewhere, or can be repaired.
    Warning,
    /// The disk cannot be used as it is.
    Error,
}

impl Severity {
    /// `note`, `warning` or `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What it is, for programs.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, one sentence without the file's name.
    pub text: String,
}

impl Finding {
    /// A finding of the severity that its code has.
    pub fn new(path: &Path, code: Code, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), code, severity: code.severity(), text: text.into() }
    }

    /// What stops a reader, as a finding.
    pub fn of(path: &Path, error: &Error) -> Self {
        match error {
            Error::Format { fault, .. } => Self::new(path, Code::of(fault), fault.to_string()),
            Error::Io { source, .. } if source.raw_os_error() == Some(LOOP) => {
                Self::new(path, Code::NotAFile, "is a symbolic link, which is not followed")
            }
            Error::ParentLarger { .. } => Self::new(path, Code::ParentLarger, error.reason()),
            Error::Cycle { .. } => Self::new(path, Code::ParentCycle, error.reason()),
            Error::ChainIncomplete { .. } | Error::ParentMismatch { .. } => {
                Self::new(path, Code::ParentMissing, error.reason())
            }
            _ => Self::new(path, Code::Unreadable, error.reason()),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.severity, self.path.display(), self.text)
    }
}

const LOOP: i32 = rustix::io::Errno::LOOP.raw_os_error();

/// Faults of one kind reported before the rest is only counted.
const MAX_FAULTS: usize = 20;

/// Faults of one kind counted before the rest is not looked at.
const MAX_COUNTED: usize = 10_000;

/// How the space of a file is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Blocks of the disk.
    pub blocks: u64,
    /// Blocks that the file holds itself.
    pub allocated: u64,
    /// Bytes between the structures that nothing refers to.
    pub dead: u64,
}

/// What an examination brought.
#[derive(Clone, Debug)]
pub struct Examination {
    /// All that is worth saying, in the order of the file.
    pub findings: Vec<Finding>,
    /// What stands in the file; none when it could not be read at all.
    pub anatomy: Option<Anatomy>,
    /// How its space is used; as far as the block table could be read.
    pub space: Space,
}

impl Examination {
    /// The worst severity.
    pub fn worst(&self) -> Option<Severity> {
        worst(&self.findings)
    }
}

/// The worst severity among findings.
pub fn worst(findings: &[Finding]) -> Option<Severity> {
    findings.iter().map(|finding| finding.severity).max()
}

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// All but the bitmaps.
    Tables,
    /// The bitmaps too, where the batmap says something about them.
    Bitmaps,
}

/// Checks one image's structure: footers, header, locators, block table, bitmaps against batmap.
/// Space that nobody refers to, which every crash may leave, is not mentioned.
pub fn check_image(path: &Path) -> Vec<Finding> {
    without_dead_space(examine(path, Depth::Bitmaps))
}

/// As [`check_image`], of what is already open; `path` is for messages.
pub fn check_blob(blob: &dyn Blob, path: &Path) -> Vec<Finding> {
    without_dead_space(examine_blob(blob, path, Depth::Bitmaps))
}

fn without_dead_space(examination: Examination) -> Vec<Finding> {
    let mut findings = examination.findings;
    findings.retain(|finding| finding.code != Code::DeadSpace);
    findings
}

/// Checks each image of a chain, the leaf first, and the links between them.
pub fn check_chain(layers: &[Layer<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for layer in layers {
        if let Layer::Vhd(path) = layer {
            findings.extend(check_image(path));
        }
    }
    if findings.iter().all(|finding| finding.severity != Severity::Error)
        && let Err(error) = Chain::open(layers, Mode::Read)
    {
        let path = match layers.first() {
            Some(Layer::Vhd(path) | Layer::Raw(path)) => *path,
            None => Path::new(""),
        };
        findings.push(Finding { text: error.reason(), ..Finding::of(path, &error) });
    }
    findings
}

/// Looks at a file of which nothing is known. Symbolic links, FIFOs and sockets are not opened.
pub fn examine(path: &Path, depth: Depth) -> Examination {
    match open(path) {
        Ok(file) => {
            let mut found = examine_blob(&file, path, depth);
            // Whatever this has overlooked: what the reader refuses is never called sound.
            if found.worst() < Some(Severity::Error)
                && let Err(error) = Image::from_blob(Box::new(file), path, Mode::Read)
            {
                found.findings.push(Finding::of(path, &error));
            }
            found
        }
        Err(error) => {
            let findings = vec![Finding::of(path, &error)];
            Examination { findings, anatomy: None, space: Space::default() }
        }
    }
}

/// Opens for reading what is a regular file or a block device; anything else is not opened at all,
/// since opening some devices and FIFOs already does something.
pub(crate) fn open(path: &Path) -> Result<std::fs::File> {
    let kind = std::fs::symlink_metadata(path).map_err(Error::io(path, "stat"))?.file_type();
    let block = std::os::unix::fs::FileTypeExt::is_block_device(&kind);
    if !kind.is_file() && !kind.is_symlink() && !block {
        return Err(Error::format(path)(Fault::NotAFile));
    }
    // A symbolic link is refused by this, with the reason.
    sys::open(path, false)
}

/// As [`examine`], of what is already open.
pub fn examine_blob(blob: &dyn Blob, path: &Path, depth: Depth) -> Examination {
    let mut report = Report { path, findings: Vec::new(), space: Space::default() };
    let anatomy = match Anatomy::read(blob, path) {
        Ok(anatomy) => {
            if let Err(error) = report.all(blob, &anatomy, depth) {
                report.findings.push(Finding::of(path, &error));
            }
            Some(anatomy)
        }
        Err(error) => {
            report.findings.push(Finding::of(path, &error));
            None
        }
    };
    Examination { findings: report.findings, anatomy, space: report.space }
}

/// Findings about one file.
struct Report<'a> {
    path: &'a Path,
    findings: Vec<Finding>,
    space: Space,
}

impl Report<'_> {
    fn add(&mut self, code: Code, text: impl Into<String>) {
        self.findings.push(Finding::new(self.path, code, text));
    }

    fn fault(&mut self, fault: &Fault) {
        self.add(Code::of(fault), fault.to_string());
    }

    fn all(&mut self, blob: &dyn Blob, anatomy: &Anatomy, depth: Depth) -> Result<()> {
        if let Some(fault) = &anatomy.footer_fault {
            self.fault(fault);
        }
        let Some(footer) = &anatomy.footer else { return Ok(()) };
        self.footers(anatomy, footer);
        if anatomy.is_fixed() {
            let tail = anatomy.data_end.saturating_sub(footer.current_size);
            if tail > 0 && !anatomy.stat.fixed_length {
                let text = format!("{tail} bytes between the end of the disk and the footer");
                self.add(Code::FixedTail, text);
            }
            return Ok(());
        }
        if let Some(fault) = &anatomy.header_fault {
            self.fault(fault);
        }
        let Some(header) = &anatomy.header else { return Ok(()) };
        self.header(anatomy, footer, header);
        if anatomy.header_fault.is_some() {
            return Ok(());
        }
        self.batmap(anatomy);
        let batmap = match &anatomy.batmap {
            BatmapState::Good(batmap) => Some(batmap),
            _ => None,
        };
        // A locator that cannot be is not compared with anything.
        let mut placed = header.clone();
        for slot in anatomy.slots.iter().filter(|slot| slot.name.is_err()) {
            if let Some(locator) = placed.locators.get_mut(slot.index) {
                locator.length = 0;
            }
        }
        let areas = match areas(footer, &placed, batmap) {
            Ok(areas) => areas,
            Err(fault) => {
                self.fault(&fault);
                return Ok(());
            }
        };
        let sound = self.blocks(anatomy, header, &areas);
        self.table_tail(blob, header, anatomy.table.len() as u64)?;
        if sound
            && depth == Depth::Bitmaps
            && let Some(batmap) = batmap
        {
            self.bitmaps(blob, header, &anatomy.table, &batmap.map)?;
        }
        Ok(())
    }

    fn footers(&mut self, anatomy: &Anatomy, footer: &Footer) {
        let poisoned = matches!(anatomy.footer_fault, Some(Fault::Poisoned));
        let missing = |place: &Place| match &place.parsed {
            Ok(_) | Err(Fault::NoFooter { .. }) => String::new(),
            Err(fault) => format!(" ({fault})"),
        };
        if !poisoned && anatomy.end.footer().is_none() {
            let why = missing(&anatomy.end);
            let text = format!("the footer at the end is missing{why}; the copy is used");
            self.add(Code::FooterEndMissing, text);
        }
        if !poisoned && !anatomy.is_fixed() && anatomy.copy.footer().is_none() {
            let why = missing(&anatomy.copy);
            let text = format!("the footer copy at offset 0 is missing{why}; the end is used");
            self.add(Code::FooterCopyMissing, text);
        }
        if anatomy.footers_differ()
            && let (Some(end), Some(copy)) = (anatomy.end.footer(), anatomy.copy.footer())
        {
            let what = differences(end, copy);
            let text = format!("the footers differ in {what}; the one at the end counts");
            self.add(Code::FootersDiffer, text);
        }
        if anatomy.has_short_footer() {
            self.add(
                Code::FooterShort,
                "the footer has 511 bytes, as old Virtual PC wrote it; libvhdi refuses that",
            );
        }
        if let Some(chs) = footer.smaller_chs_size() {
            let text = format!(
                "creator {} may mean {chs} bytes (by geometry); served are {} (current size)",
                footer.creator_text(),
                footer.current_size
            );
            self.add(Code::ChsSmaller, text);
        }
        if footer.features != 2 {
            let bits = footer.features;
            self.add(Code::FeatureBits, format!("feature bits are {bits:#x}, usual is 0x2"));
        }
        if u64::from(footer.timestamp) > u64::from(footer::now()) + 1800 {
            self.add(
                Code::TimestampFuture,
                "created in the future by this clock; vhd-util refuses the image until then",
            );
        }
        if footer.saved != 0 {
            self.add(Code::SavedState, "Virtual PC's saved-state flag is set");
        }
        if footer.uuid.is_nil() {
            self.add(Code::UuidNull, "the image's UUID is null: no child can name it as parent");
        }
    }

    fn header(&mut self, anatomy: &Anatomy, footer: &Footer, header: &Header) {
        if u64::from(header.block_size) != BLOCK {
            let size = header.block_size;
            let text = format!("blocks of {size} bytes; XenServer's tools want 2 MiB");
            self.add(Code::BlockSizeUnusual, text);
        }
        if anatomy.next_record != u64::MAX {
            let text =
                format!("next record is {:#x}, usual are 64 bits of ones", { anatomy.next_record });
            self.add(Code::NextRecordShort, text);
        }
        if footer.disk_type != DiskType::Differencing {
            return;
        }
        if header.parent_uuid == footer.uuid && !footer.uuid.is_nil() {
            self.fault(&Fault::OwnParent);
        }
        let mut siblings: Vec<&str> = Vec::new();
        let mut outside: Option<&str> = None;
        for slot in &anatomy.slots {
            let code = footer::printable(&slot.locator.code);
            if !slot.locator.is_known() {
                self.add(
                    Code::LocatorUnknown,
                    format!("parent locator {code:?} is of a platform that is not looked at"),
                );
                continue;
            }
            match &slot.name {
                Err(fault) => self.fault(fault),
                Ok(Some(Hint::Sibling(name))) if !siblings.contains(&name.as_str()) => {
                    siblings.push(name);
                }
                Ok(Some(Hint::Elsewhere(path))) => outside = Some(outside.unwrap_or(path)),
                Ok(_) => {}
            }
            if slot.name.is_ok() && u64::from(slot.locator.length) > slot.locator.space_bytes() {
                let (length, room) = (slot.locator.length, slot.locator.space_bytes());
                let text = format!("parent locator {code:?}: {length} bytes in room for {room}");
                self.add(Code::LocatorLength, text);
            }
        }
        if siblings.len() > 1 {
            let names = siblings.join("\", \"");
            self.add(Code::LocatorsDisagree, format!("parent locators name \"{names}\""));
        }
        if let (Some(path), true) = (outside, siblings.is_empty()) {
            let text = format!("its parent locators lead out of its directory: {path:?}");
            self.add(Code::LocatorOutside, text);
        }
    }

    fn batmap(&mut self, anatomy: &Anatomy) {
        match &anatomy.batmap {
            BatmapState::Missing => self.add(
                Code::BatmapMissing,
                "there is no batmap where the creator promises one; XenServer's tools refuse it",
            ),
            BatmapState::WrongChecksum(_) => {
                self.add(Code::BatmapChecksum, "the batmap's checksum is wrong; it is ignored");
            }
            BatmapState::NotPromised | BatmapState::Good(_) => {}
        }
    }

    /// Answers whether all blocks are where they may be.
    fn blocks(&mut self, anatomy: &Anatomy, header: &Header, areas: &[Area]) -> bool {
        let (table, stride) = (&anatomy.table, header.stride());
        let mut count = 0;
        bat::inspect(table, stride, anatomy.data_end, areas, &mut |fault| {
            count += 1;
            if count <= MAX_FAULTS {
                self.fault(&fault);
            }
            count < MAX_COUNTED
        });
        if count > MAX_FAULTS {
            let more = count - MAX_FAULTS;
            let least = if count >= MAX_COUNTED { "at least " } else { "" };
            let code = self.findings.last().map_or(Code::BlockOutside, |finding| finding.code);
            self.add(code, format!("{least}{more} more faults of the block table"));
        }
        self.space.blocks = table.len() as u64;
        self.space.allocated = table.iter().filter(|sector| **sector != ABSENT).count() as u64;
        if count == 0 && !anatomy.stat.fixed_length {
            self.space.dead = dead_space(table, stride, areas, anatomy.data_end);
            if self.space.dead >= stride {
                let dead = self.space.dead;
                self.add(Code::DeadSpace, format!("{dead} bytes that nothing refers to"));
            }
        }
        count == 0
    }

    /// Entries beyond the disk's end become blocks when it grows.
    fn table_tail(&mut self, blob: &dyn Blob, header: &Header, used: u64) -> Result<()> {
        let end = (u64::from(header.table_entries) * 4).min(MAX_TABLE);
        let mut at = used * 4;
        let mut buf = vec![0; 1 << 20];
        while at < end {
            let length = (end - at).min(buf.len() as u64) as usize;
            sys::read_at(blob, self.path, &mut buf[..length], header.table_offset + at)?;
            if let Some(found) = bat::parse(&buf[..length]).iter().position(|s| *s != ABSENT) {
                let block = at / 4 + found as u64;
                self.add(
                    Code::TableTail,
                    format!("block table entry {block}, beyond the end of the disk, is in use"),
                );
                return Ok(());
            }
            at += length as u64;
        }
        Ok(())
    }

    /// A batmap bit without a full bitmap makes readers that trust it see stale sectors.
    fn bitmaps(
        &mut self,
        blob: &dyn Blob,
        header: &Header,
        table: &[u32],
        full: &[u8],
    ) -> Result<()> {
        let sectors = u64::from(header.block_size) / SECTOR;
        let mut claimed = Vec::new();
        let mut count = 0;
        let wrong = |report: &mut Self, block: u32, count: &mut usize| {
            *count += 1;
            if *count <= MAX_FAULTS {
                let text =
                    format!("the batmap says that block {block} is full, its bitmap has holes");
                report.add(Code::BatmapWrong, text);
            }
        };
        for (sector, block) in table.iter().zip(0_u32..) {
            match bits::get(full, u64::from(block)) {
                true if *sector == ABSENT => wrong(self, block, &mut count),
                true => claimed.push((*sector, block)),
                false => {}
            }
        }
        bitmaps::read(blob, self.path, header, claimed, &mut |block, map| {
            if !bits::all(map, sectors) {
                wrong(self, block, &mut count);
            }
            true
        })?;
        if count > MAX_FAULTS {
            let more = count - MAX_FAULTS;
            self.add(Code::BatmapWrong, format!("{more} more blocks that the batmap calls full"));
        }
        Ok(())
    }
}

/// The fields in which two footers differ, for people.
fn differences(end: &Footer, copy: &Footer) -> String {
    let fields = [
        ("the size", end.current_size != copy.current_size),
        ("the original size", end.original_size != copy.original_size),
        ("the hidden flag", end.hidden != copy.hidden),
        ("the geometry", end.geometry != copy.geometry),
        ("the timestamp", end.timestamp != copy.timestamp),
        ("the header's place", end.data_offset != copy.data_offset),
        (
            "the creator",
            (end.creator, end.creator_version, end.creator_os)
                != (copy.creator, copy.creator_version, copy.creator_os),
        ),
        ("the flags", (end.features, end.saved) != (copy.features, copy.saved)),
    ];
    let names: Vec<&str> = fields.iter().filter(|(_, differ)| *differ).map(|(n, _)| *n).collect();
    if names.is_empty() { "reserved bytes".to_owned() } else { names.join(", ") }
}

/// Bytes below `end` that belong to nothing; less than 4 KiB before a block is its alignment.
fn dead_space(table: &[u32], stride: u64, areas: &[Area], end: u64) -> u64 {
    let mut used: Vec<(u64, u64)> = table
        .iter()
        .filter(|sector| **sector != ABSENT)
        .map(|sector| u64::from(*sector) * SECTOR)
        .map(|start| (start, start + stride))
        .chain(areas.iter().map(|area| (area.start, area.end)))
        .collect();
    used.sort_unstable();
    let (mut dead, mut at) = (0, 0);
    for (start, stop) in used.into_iter().chain([(end, end)]) {
        let gap = start.saturating_sub(at);
        if gap >= 4096 {
            dead += gap;
        }
        at = at.max(stop);
    }
    dead
}
