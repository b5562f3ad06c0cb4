//! What stands in a file, read as far as it can be, without giving up at the first fault.
//!
//! [`crate::image`] decides whether an image may be used and stops at the first reason why not;
//! this keeps both footers, the raw header and each locator, so that a person can be told and a
//! repair can be planned. The rules by which one footer is chosen are the same.

use std::path::Path;

use crate::batmap::{self, Batmap, BatmapHeader};
use crate::error::{Fault, Result};
use crate::footer::{self, DiskType, Footer, be32, be64, checksum, printable, put};
use crate::header::{self, Header, LOCATORS};
use crate::image::volume_footer;
use crate::locator::{Hint, Locator};
use crate::store::{Blob, Stat};
use crate::{SECTOR, sys};

/// One of the two places where a footer may be.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is, bytes.
    pub offset: u64,
    /// What is there: 512 bytes, 511 of a short footer, fewer in a file that is too short.
    pub raw: Vec<u8>,
    /// What it says. Of a footer with the cookie `v_poison`, what it would say with the right one.
    pub parsed: std::result::Result<Footer, Fault>,
    /// The cookie is `v_poison`.
    pub poisoned: bool,
}

impl Place {
    fn read(blob: &dyn Blob, path: &Path, offset: u64, length: usize) -> Result<Self> {
        let mut raw = vec![0; length];
        let got = sys::read_upto(blob, path, &mut raw, offset)?;
        raw.truncate(got);
        let poisoned = raw.starts_with(footer::POISON);
        let parsed = if poisoned && raw.len() >= footer::SIZE - 1 {
            // blktap writes the checksum of the footer with this cookie.
            let (stored, computed) = (be32(&raw, 64), checksum(&raw, 64));
            if stored == computed {
                Footer::parse(&without_poison(&raw))
            } else {
                Err(Fault::FooterChecksum { stored, computed })
            }
        } else {
            Footer::parse(&raw)
        };
        Ok(Self { offset, raw, parsed, poisoned })
    }

    /// The footer, if there is one that says something.
    pub fn footer(&self) -> Option<&Footer> {
        self.parsed.as_ref().ok()
    }

    /// Whether this is a footer that a reader accepts.
    pub fn is_valid(&self) -> bool {
        self.parsed.is_ok() && !self.poisoned
    }

    /// The 512 bytes of a valid footer here, with the right cookie; what the format reserves is
    /// kept.
    pub(crate) fn sound_bytes(&self) -> Vec<u8> {
        if self.poisoned { without_poison(&self.raw) } else { padded(&self.raw) }
    }

    fn fault(&self) -> Fault {
        match &self.parsed {
            _ if self.poisoned => Fault::Poisoned,
            Err(fault) => fault.clone(),
            // Only asked of a place without a valid footer.
            Ok(_) => Fault::NoFooter { end: String::new(), start: String::new() },
        }
    }
}

fn padded(raw: &[u8]) -> Vec<u8> {
    let mut raw = raw.to_vec();
    raw.resize(footer::SIZE, 0);
    raw
}

fn without_poison(raw: &[u8]) -> Vec<u8> {
    let mut raw = padded(raw);
    put(&mut raw, 0, footer::COOKIE);
    let sum = checksum(&raw, 64);
    put(&mut raw, 64, &sum.to_be_bytes());
    raw
}

/// A parent locator that is in use.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its place in the header, from 0.
    pub index: usize,
    /// What the header says.
    pub locator: Locator,
    /// The name it holds; none when it is empty, or of a platform that is not looked at.
    pub name: std::result::Result<Option<Hint>, Fault>,
}

/// What there is of a batmap.
#[derive(Clone, Debug)]
pub enum BatmapState {
    /// The creator promises none.
    NotPromised,
    /// The creator promises one, and there is none.
    Missing,
    /// Its checksum is wrong.
    WrongChecksum(BatmapHeader),
    /// It can be used.
    Good(Batmap),
}

/// What stands in a file.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// Length, space and identity of the file.
    pub stat: Stat,
    /// The footer at the end.
    pub end: Place,
    /// The copy at offset 0. Of a fixed image these bytes are the guest's.
    pub copy: Place,
    /// The footer that counts, if one can be chosen.
    pub footer: Option<Footer>,
    /// Why no footer could be chosen, or why the image may not be used although one was.
    pub footer_fault: Option<Fault>,
    /// First byte that blocks must not reach.
    pub data_end: u64,
    /// The header's next record, as stored.
    pub next_record: u64,
    /// The dynamic header, if there is a valid one.
    pub header: Option<Header>,
    /// Why there is none, or why it does not fit.
    pub header_fault: Option<Fault>,
    /// The parent locators of a differencing image.
    pub slots: Vec<Slot>,
    /// The batmap.
    pub batmap: BatmapState,
    /// The block table, as many entries as the disk has blocks; empty unless the header fits.
    pub table: Vec<u32>,
}

impl Anatomy {
    /// Reads all but the bitmaps. Fails when the operating system does, or when it is not a file.
    pub fn read(blob: &dyn Blob, path: &Path) -> Result<Self> {
        let stat = sys::stat(blob, path)?;
        let length = stat.length;
        let tail = if length % SECTOR == SECTOR - 1 { SECTOR - 1 } else { SECTOR };
        let tail_at = length.saturating_sub(tail) / SECTOR * SECTOR;
        let mut this = Self {
            end: Place::read(blob, path, tail_at, tail as usize)?,
            copy: Place::read(blob, path, 0, footer::SIZE)?,
            stat,
            footer: None,
            footer_fault: None,
            data_end: length,
            next_record: u64::MAX,
            header: None,
            header_fault: None,
            slots: Vec::new(),
            batmap: BatmapState::NotPromised,
            table: Vec::new(),
        };
        if length < tail {
            this.footer_fault = Some(Fault::TooShort(length));
            return Ok(this);
        }
        this.choose();
        let Some(footer) = this.footer.clone() else { return Ok(this) };
        this.data_end = match (this.end.footer().is_some(), stat.fixed_length) {
            (_, true) => volume_footer(length),
            (true, false) => tail_at,
            (false, false) => length,
        };
        if footer.disk_type == DiskType::Fixed {
            if footer.current_size > this.data_end {
                let (stored, size) = (this.data_end, footer.current_size);
                this.footer_fault = Some(Fault::FixedTooShort { stored, size });
            }
            return Ok(this);
        }
        this.read_header(blob, path, &footer)?;
        let Some(header) = this.header.clone() else { return Ok(this) };
        if footer.disk_type == DiskType::Differencing {
            this.read_locators(blob, path, &header)?;
        }
        if this.header_fault.is_some() {
            return Ok(this);
        }
        // What the end of the file cuts in two is complete once it is repaired.
        let end = this.data_end.next_multiple_of(SECTOR);
        this.batmap = read_batmap(blob, path, &footer, &header, end)?;
        // Bounded by `Header::verify`: within the file and at most `header::MAX_TABLE`.
        let blocks = footer.current_size.div_ceil(u64::from(header.block_size));
        let mut raw = vec![0; (blocks * 4) as usize];
        sys::read_at(blob, path, &mut raw, header.table_offset)?;
        this.table = crate::bat::parse(&raw);
        Ok(this)
    }

    /// Whether this is a fixed image, whose first bytes are the guest's.
    pub fn is_fixed(&self) -> bool {
        self.footer.as_ref().is_some_and(|footer| footer.disk_type == DiskType::Fixed)
    }

    /// Whether the two footers are valid, of one image, and say different things.
    pub fn footers_differ(&self) -> bool {
        let differs = |place: &Place| place.footer() != self.footer.as_ref();
        !self.is_fixed()
            && self.footer.is_some()
            && self.end.is_valid()
            && self.copy.is_valid()
            && (differs(&self.copy) || differs(&self.end))
    }

    /// What a file of that length may end with, if it is not a volume: a footer of 511 bytes.
    pub fn has_short_footer(&self) -> bool {
        !self.stat.fixed_length && self.end.raw.len() == footer::SIZE - 1 && self.end.is_valid()
    }

    fn choose(&mut self) {
        let (end, copy) = (self.end.footer().cloned(), self.copy.footer().cloned());
        let is_exact = |footer: &Footer| {
            footer.disk_type == DiskType::Fixed && footer.current_size == self.end.offset
        };
        if self.end.is_valid() && end.as_ref().is_some_and(is_exact) {
            // Whatever is at offset 0 is the guest's, a cookie too.
            self.footer = end;
            return;
        }
        if self.end.poisoned || self.copy.poisoned {
            self.footer_fault = Some(Fault::Poisoned);
            // One that is not poisoned is the better witness.
            self.footer = match (end, copy) {
                (Some(end), _) if self.end.is_valid() => Some(end),
                (_, Some(copy)) if self.copy.is_valid() => Some(copy),
                (Some(end), Some(copy)) if end == copy => Some(end),
                (Some(_), Some(_)) => None,
                (end, copy) => end.or(copy),
            }
            .filter(|footer| footer.disk_type != DiskType::Fixed);
            return;
        }
        self.footer = match (end, copy) {
            (Some(end), Some(copy)) => {
                if end.uuid != copy.uuid || end.disk_type != copy.disk_type {
                    let text = |footer: &Footer| format!("{} ({})", footer.uuid, footer.disk_type);
                    let (end, copy) = (text(&end), text(&copy));
                    self.footer_fault = Some(Fault::FootersDisagree { end, copy });
                    None
                } else {
                    let hidden = if end.hides_in_copy() { copy.hidden } else { end.hidden };
                    Some(Footer { hidden, ..end })
                }
            }
            (Some(end), None) => Some(end),
            (None, Some(copy)) if copy.disk_type != DiskType::Fixed => Some(copy),
            (None, copy) => {
                let start = if copy.is_some() {
                    printable(footer::COOKIE)
                } else {
                    printable(self.copy.raw.get(..8).unwrap_or(&self.copy.raw))
                };
                self.footer_fault = Some(match (self.end.fault(), self.copy.fault()) {
                    (Fault::NoFooter { end, .. }, _) if copy.is_some() => {
                        Fault::NoFooter { end, start }
                    }
                    (Fault::NoFooter { end, .. }, Fault::NoFooter { .. }) => {
                        Fault::NoFooter { end, start }
                    }
                    (Fault::NoFooter { .. }, fault) | (fault, _) => fault,
                });
                None
            }
        };
    }

    fn read_header(&mut self, blob: &dyn Blob, path: &Path, footer: &Footer) -> Result<()> {
        let (at, length) = (footer.data_offset, self.data_end);
        let fits = at.checked_add(header::SIZE as u64).is_some_and(|end| end <= length);
        if !fits || at < SECTOR || !at.is_multiple_of(SECTOR) {
            self.header_fault = Some(Fault::HeaderOffset(at));
            return Ok(());
        }
        let mut raw = [0; header::SIZE];
        sys::read_at(blob, path, &mut raw, at)?;
        self.next_record = be64(&raw, 8);
        match Header::parse(&raw) {
            Ok(header) => {
                self.header_fault = header.verify(footer.current_size, length).err();
                self.header = Some(header);
            }
            Err(fault) => self.header_fault = Some(fault),
        }
        Ok(())
    }

    fn read_locators(&mut self, blob: &dyn Blob, path: &Path, header: &Header) -> Result<()> {
        debug_assert_eq!(header.locators.len(), LOCATORS);
        for (index, locator) in header.locators.iter().enumerate() {
            if locator.length == 0 || locator.code == [0; 4] {
                continue;
            }
            let name = match locator.range(self.data_end) {
                Err(fault) => Err(fault),
                Ok(_) if !locator.is_known() => Ok(None),
                Ok((at, length)) => {
                    let mut name = vec![0; length];
                    sys::read_at(blob, path, &mut name, at)?;
                    Ok(locator.decode(&name))
                }
            };
            self.slots.push(Slot { index, locator: *locator, name });
        }
        Ok(())
    }
}

fn read_batmap(
    blob: &dyn Blob,
    path: &Path,
    footer: &Footer,
    header: &Header,
    length: u64,
) -> Result<BatmapState> {
    if !footer.is_tap_from(0x0001_0001) {
        return Ok(BatmapState::NotPromised);
    }
    // Version 1.1 had one, unless the image came from 0.1.
    let none = if footer.is_tap_from(0x0001_0002) {
        BatmapState::Missing
    } else {
        BatmapState::NotPromised
    };
    let at = header.table_end();
    if at.checked_add(batmap::HEADER).is_none_or(|end| end > length) {
        return Ok(none);
    }
    let mut raw = [0; batmap::HEADER as usize];
    sys::read_upto(blob, path, &mut raw, at)?;
    let Some(found) = BatmapHeader::parse(&raw, header.table_entries, length) else {
        return Ok(none);
    };
    let mut map = vec![0; found.length as usize];
    sys::read_upto(blob, path, &mut map, found.offset)?;
    if found.matches(&map) {
        Ok(BatmapState::Good(Batmap { offset: found.offset, map }))
    } else {
        Ok(BatmapState::WrongChecksum(found))
    }
}
