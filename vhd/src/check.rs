//! Looking at images that may be damaged, and saying everything that is wrong with them.
//!
//! Opening an image stops at the first fault; this goes on as far as what was read allows. Nothing
//! is changed.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::bat::{self, ABSENT};
use crate::batmap::{self, BatmapHeader};
use crate::chain::{Chain, Layer};
use crate::error::{Error, Result};
use crate::footer::{DiskType, Footer};
use crate::header::Header;
use crate::image::{Info, Mode, areas, probe_blob, read_batmap};
use crate::store::Blob;
use crate::{SECTOR, bits, sys};

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

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, one sentence without the file's name.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}: {}", self.path.display(), self.text)
    }
}

/// Faults of one kind reported before the rest is only counted.
const MAX_FAULTS: usize = 20;

/// Findings about one file.
struct Report<'a> {
    path: &'a Path,
    findings: Vec<Finding>,
}

impl Report<'_> {
    fn add(&mut self, severity: Severity, text: impl Into<String>) {
        let (path, text) = (self.path.to_owned(), text.into());
        self.findings.push(Finding { path, severity, text });
    }

    fn fail(&mut self, error: &Error) {
        let text = match error {
            Error::Format { fault, .. } => fault.to_string(),
            other => other.reason(),
        };
        self.add(Severity::Error, text);
    }
}

/// Checks one image's structure: footers, header, locators, block table, bitmaps against batmap.
pub fn check_image(path: &Path) -> Vec<Finding> {
    let mut report = Report { path, findings: Vec::new() };
    if let Err(error) = sys::open(path, false).and_then(|file| check_file(&file, path, &mut report))
    {
        report.fail(&error);
    }
    report.findings
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
            Some(Layer::Vhd(path) | Layer::Raw(path)) => (*path).to_owned(),
            None => PathBuf::new(),
        };
        findings.push(Finding { path, severity: Severity::Error, text: error.reason() });
    }
    findings
}

fn check_file(file: &dyn Blob, path: &Path, report: &mut Report<'_>) -> Result<()> {
    let info = probe_blob(file, path)?;
    check_footers(file, path, &info, report)?;
    if info.disk_type == DiskType::Fixed {
        return Ok(());
    }
    // The probe accepted them; they are read again for what it does not keep.
    let mut raw = [0; 512];
    let at = if info.copy_footer { 0 } else { info.file_size - SECTOR };
    sys::read_at(file, path, &mut raw, at)?;
    let footer = Footer::parse(&raw).map_err(Error::format(path))?;
    let mut raw = [0; 1024];
    sys::read_at(file, path, &mut raw, footer.data_offset)?;
    let header = Header::parse(&raw).map_err(Error::format(path))?;
    if u64::from(header.block_size) != crate::BLOCK {
        let text = format!("blocks of {} bytes; XenServer's tools want 2 MiB", header.block_size);
        report.add(Severity::Note, text);
    }
    if info.parent.as_ref().is_some_and(|parent| parent.elsewhere().is_some()) {
        report.add(Severity::Warning, "its parent locators lead out of its directory");
    }

    let blocks = info.size.div_ceil(u64::from(header.block_size));
    let mut raw = vec![0; (blocks * 4) as usize];
    sys::read_at(file, path, &mut raw, header.table_offset)?;
    let table = bat::parse(&raw);
    let batmap = read_batmap(file, path, &footer, &header, info.file_size)?;
    if footer.is_tap_from(0x0001_0002) && batmap.is_none() {
        report.add(Severity::Warning, batmap_fault(file, path, &header, info.file_size)?);
    }
    let areas = match areas(&footer, &header, batmap.as_ref()) {
        Ok(areas) => areas,
        Err(fault) => {
            report.add(Severity::Error, fault.to_string());
            Vec::new()
        }
    };
    let end = if info.end_footer {
        info.file_size.saturating_sub(1) / SECTOR * SECTOR
    } else {
        info.file_size
    };
    let mut faults = 0;
    bat::inspect(&table, header.stride(), end, &areas, &mut |fault| {
        faults += 1;
        if faults <= MAX_FAULTS {
            report.add(Severity::Error, fault.to_string());
        }
        true
    });
    if faults > MAX_FAULTS {
        report.add(
            Severity::Error,
            format!("{} more faults of the block table", faults - MAX_FAULTS),
        );
    }
    if faults == 0
        && let Some(batmap) = &batmap
    {
        check_bitmaps(file, path, &header, &table, &batmap.map, report)?;
    }
    Ok(())
}

fn check_footers(file: &dyn Blob, path: &Path, info: &Info, report: &mut Report<'_>) -> Result<()> {
    if !info.end_footer {
        report.add(Severity::Warning, "the footer at the end is missing; a repair restores it");
    }
    if !info.copy_footer {
        report
            .add(Severity::Warning, "the footer copy at offset 0 is missing; a repair restores it");
    }
    if info.file_size % SECTOR == SECTOR - 1 {
        report.add(Severity::Note, "the footer has 511 bytes, as old Virtual PC wrote it");
    }
    if let Some(chs) = info.chs_size {
        let text = format!(
            "creator {} may mean {chs} bytes (by geometry); served are {} (current size)",
            info.creator, info.size
        );
        report.add(Severity::Note, text);
    }
    if info.end_footer && info.copy_footer && info.disk_type != DiskType::Fixed {
        let (mut end, mut copy) = ([0; 512], [0; 512]);
        let at = info.file_size.saturating_sub(1) / SECTOR * SECTOR;
        sys::read_upto(file, path, &mut end, at)?;
        sys::read_at(file, path, &mut copy, 0)?;
        if end[..511] != copy[..511] {
            report.add(Severity::Warning, "the footers differ; the one at the end counts");
        }
        let features = crate::footer::be32(&end, 8);
        if features & !3 != 0 || features & 2 == 0 {
            report.add(Severity::Note, format!("feature bits are {features:#x}, usual is 0x2"));
        }
    }
    Ok(())
}

fn batmap_fault(
    file: &dyn Blob,
    path: &Path,
    header: &Header,
    length: u64,
) -> Result<&'static str> {
    let mut raw = [0; batmap::HEADER as usize];
    sys::read_upto(file, path, &mut raw, header.table_end())?;
    Ok(match BatmapHeader::parse(&raw, header.table_entries, length) {
        Some(_) => "the batmap's checksum is wrong; it is ignored",
        None => "there is no batmap where the creator promises one; XenServer's tools refuse it",
    })
}

/// A batmap bit without a full bitmap makes readers that trust it see stale sectors.
fn check_bitmaps(
    file: &dyn Blob,
    path: &Path,
    header: &Header,
    table: &[u32],
    full: &[u8],
    report: &mut Report<'_>,
) -> Result<()> {
    let sectors = u64::from(header.block_size) / SECTOR;
    let mut map = vec![0; header.bitmap_bytes() as usize];
    let mut faults = 0;
    for (block, sector) in table.iter().enumerate() {
        if !bits::get(full, block as u64) {
            continue;
        }
        if *sector != ABSENT {
            sys::read_at(file, path, &mut map, u64::from(*sector) * SECTOR)?;
            if bits::all(&map, sectors) {
                continue;
            }
        }
        faults += 1;
        if faults <= MAX_FAULTS {
            let text = format!("the batmap says that block {block} is full, its bitmap has holes");
            report.add(Severity::Error, text);
        }
    }
    Ok(())
}
