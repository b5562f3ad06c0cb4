//! Files good and bad, built field by field. Depends on nothing but the standard library, so that
//! the fuzz targets take it in as well.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub const SECTOR: usize = 512;

/// What a file holds, by sector; what is not listed reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub length: u64,
    sectors: BTreeMap<u64, [u8; SECTOR]>,
}

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.put(0, bytes);
        content
    }

    /// Writes, making the file longer where it must.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.length = self.length.max(at + bytes.len() as u64);
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let within = at as usize % SECTOR;
            let (part, tail) = rest.split_at(rest.len().min(SECTOR - within));
            let number = at / SECTOR as u64;
            if part.iter().any(|byte| *byte != 0) || self.sectors.contains_key(&number) {
                let sector = self.sectors.entry(number).or_insert([0; SECTOR]);
                sector[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = tail;
        }
    }

    /// Reads; fewer bytes only at the end.
    pub fn get(&self, at: u64, buf: &mut [u8]) -> usize {
        let count = self.length.saturating_sub(at).min(buf.len() as u64) as usize;
        let buf = &mut buf[..count];
        buf.fill(0);
        if count == 0 {
            return 0;
        }
        let (first, last) = (at / SECTOR as u64, (at + count as u64 - 1) / SECTOR as u64);
        for (number, sector) in self.sectors.range(first..=last) {
            let start = number * SECTOR as u64;
            let (from, to) = (start.max(at), (start + SECTOR as u64).min(at + count as u64));
            buf[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&sector[(from - start) as usize..(to - start) as usize]);
        }
        count
    }

    pub fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.get(at, &mut bytes);
        bytes
    }

    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.sectors.split_off(&length.div_ceil(SECTOR as u64));
            let within = length as usize % SECTOR;
            if let Some(sector) = self.sectors.get_mut(&(length / SECTOR as u64)) {
                sector[within..].fill(0);
            }
        }
        self.length = length;
    }

    /// What is not zero: position and bytes, in whole sectors, at most `most` bytes each.
    pub fn pieces(&self, most: usize) -> Vec<(u64, Vec<u8>)> {
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, sector) in &self.sectors {
            let at = number * SECTOR as u64;
            match pieces.last_mut() {
                Some((start, bytes))
                    if *start + bytes.len() as u64 == at && bytes.len() + SECTOR <= most =>
                {
                    bytes.extend_from_slice(sector);
                }
                _ => pieces.push((at, sector.to_vec())),
            }
        }
        pieces
    }

    /// The first range at or after a position that is not known to be zero.
    pub fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let sector = SECTOR as u64;
        let (first, _) = self.sectors.range(from / sector..).next()?;
        let after = self.sectors.range(first..).zip(*first..).find(|((at, _), want)| *at != want);
        let last = self.sectors.keys().next_back()?;
        let end = after.map_or(last + 1, |(_, want)| want) * sector;
        let range = (first * sector).max(from)..end.min(self.length);
        (range.start < range.end).then_some(range)
    }

    /// Numbers of the sectors in which another content differs.
    pub fn differences(&self, other: &Self) -> Vec<u64> {
        let zeros = [0; SECTOR];
        let of = |content: &Self, number: &u64| *content.sectors.get(number).unwrap_or(&zeros);
        let numbers: BTreeSet<u64> =
            self.sectors.keys().chain(other.sectors.keys()).copied().collect();
        numbers.into_iter().filter(|number| of(self, number) != of(other, number)).collect()
    }

    /// Writes a sparse file.
    pub fn write(&self, path: &Path) -> PathBuf {
        let file = std::fs::File::create(path).unwrap();
        file.set_len(self.length).unwrap();
        for (at, bytes) in self.pieces(1 << 20) {
            let length = self.length.saturating_sub(at).min(bytes.len() as u64) as usize;
            file.write_all_at(&bytes[..length], at).unwrap();
        }
        path.to_owned()
    }
}

/// Code, bytes, and overrides of length and offset.
pub type Locator = ([u8; 4], Vec<u8>, Option<u32>, Option<u64>);

/// A batmap behind the block table.
#[derive(Clone)]
pub struct Batmap {
    pub map: Vec<u8>,
    pub version: u32,
    /// Sums the bytes as signed ones.
    pub signed: bool,
    pub sum_off: u32,
}

impl Batmap {
    /// The map of 512 bytes that calls these blocks full.
    pub fn of(blocks: &[usize]) -> Self {
        let mut map = vec![0; 512];
        for block in blocks {
            map[block / 8] |= 0x80 >> (block % 8);
        }
        Self { map, version: 0x0001_0002, signed: false, sum_off: 0 }
    }
}

/// A file to be built; every field may be wrong on purpose.
#[derive(Clone)]
pub struct Spec {
    pub size: u64,
    pub block: u32,
    pub kind: u32,
    pub creator: [u8; 4],
    pub version: u32,
    pub geometry: [u8; 4],
    pub timestamp: u32,
    pub hidden: u8,
    pub uuid: u128,
    pub footer_cookie: [u8; 8],
    pub footer_sum_off: u32,
    pub header_cookie: [u8; 8],
    pub header_sum_off: u32,
    pub next_record: u64,
    pub features: u32,
    pub entries: u32,
    pub entries_written: u32,
    pub bat_offset: u64,
    pub bat_offset_said: Option<u64>,
    pub batmap: Option<Batmap>,
    /// Block, bitmap, and the byte its data is filled with.
    pub blocks: Vec<(usize, Vec<u8>, u8)>,
    /// Where the first block goes; right behind the metadata if not said.
    pub blocks_at: Option<u64>,
    /// Overrides entries of the table after the blocks were placed.
    pub table: Vec<(usize, u32)>,
    pub parent: u128,
    pub parent_timestamp: u32,
    pub parent_name: String,
    /// Overrides the name, in UTF-16 that may be wrong.
    pub parent_units: Option<Vec<u16>>,
    pub locators: Vec<Locator>,
    /// Room of each locator as the header says it.
    pub space: u32,
    pub copy: bool,
    pub end: bool,
    /// Another footer than this file's own at the end, or at offset 0.
    pub end_footer: Option<Vec<u8>>,
    pub copy_footer: Option<Vec<u8>>,
    pub cut: usize,
    pub truncate: Option<usize>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            size: 64 << 20,
            block: 2 << 20,
            kind: 3,
            creator: *b"win ",
            version: 0x0006_0001,
            geometry: [0x03, 0xc4, 8, 17],
            timestamp: 700_000_000,
            hidden: 0,
            uuid: 0x1111_2222_3333_4444_5555_6666_7777_8888,
            footer_cookie: *b"conectix",
            footer_sum_off: 0,
            header_cookie: *b"cxsparse",
            header_sum_off: 0,
            next_record: u64::MAX,
            features: 2,
            entries: 32,
            entries_written: 32,
            bat_offset: 1536,
            bat_offset_said: None,
            batmap: None,
            blocks: Vec::new(),
            blocks_at: None,
            table: Vec::new(),
            parent: 0,
            parent_timestamp: 0,
            parent_name: String::new(),
            parent_units: None,
            locators: Vec::new(),
            space: 512,
            copy: true,
            end: true,
            end_footer: None,
            copy_footer: None,
            cut: 0,
            truncate: None,
        }
    }
}

pub fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The checksum of the format, its own field being zero.
pub fn sum(bytes: &[u8]) -> u32 {
    !bytes.iter().map(|b| u32::from(*b)).fold(0_u32, u32::wrapping_add)
}

pub fn bitmap_len(block: u32) -> usize {
    (block as usize / 4096).max(1).next_multiple_of(512)
}

impl Spec {
    pub fn entries(mut self, entries: u32) -> Self {
        (self.entries, self.entries_written) = (entries, entries);
        self
    }

    pub fn block(mut self, block: u32) -> Self {
        self.block = block;
        let entries = self.size.div_ceil(u64::from(block)) as u32;
        self.entries(entries)
    }

    /// A block with all bits set and 4 KiB of `fill`.
    pub fn full(mut self, block: usize, fill: u8) -> Self {
        self.blocks.push((block, vec![0xff; bitmap_len(self.block)], fill));
        self
    }

    pub fn child_of(mut self, parent: &Spec, name: &str) -> Self {
        self.kind = 4;
        self.parent = parent.uuid;
        name.clone_into(&mut self.parent_name);
        self.locators = vec![(*b"W2ru", utf16le(&format!(".\\{name}")), None, None)];
        self
    }

    pub fn footer(&self) -> Vec<u8> {
        let mut f = vec![0; 512];
        f[..8].copy_from_slice(&self.footer_cookie);
        f[8..12].copy_from_slice(&self.features.to_be_bytes());
        f[12..16].copy_from_slice(&0x10000_u32.to_be_bytes());
        let data_offset = if self.kind == 2 { u64::MAX } else { 512 };
        f[16..24].copy_from_slice(&data_offset.to_be_bytes());
        f[24..28].copy_from_slice(&self.timestamp.to_be_bytes());
        f[28..32].copy_from_slice(&self.creator);
        f[32..36].copy_from_slice(&self.version.to_be_bytes());
        if &self.creator != b"tap\0" {
            f[36..40].copy_from_slice(b"Wi2k");
        }
        f[40..48].copy_from_slice(&self.size.to_be_bytes());
        f[48..56].copy_from_slice(&self.size.to_be_bytes());
        f[56..60].copy_from_slice(&self.geometry);
        f[60..64].copy_from_slice(&self.kind.to_be_bytes());
        f[68..84].copy_from_slice(&self.uuid.to_be_bytes());
        f[85] = self.hidden;
        let checksum = sum(&f).wrapping_add(self.footer_sum_off);
        f[64..68].copy_from_slice(&checksum.to_be_bytes());
        f
    }

    fn header(&self, locators: &[([u8; 4], u32, u64)]) -> Vec<u8> {
        let mut h = vec![0; 1024];
        h[..8].copy_from_slice(&self.header_cookie);
        h[8..16].copy_from_slice(&self.next_record.to_be_bytes());
        h[16..24].copy_from_slice(&self.bat_offset_said.unwrap_or(self.bat_offset).to_be_bytes());
        h[24..28].copy_from_slice(&0x10000_u32.to_be_bytes());
        h[28..32].copy_from_slice(&self.entries.to_be_bytes());
        h[32..36].copy_from_slice(&self.block.to_be_bytes());
        h[40..56].copy_from_slice(&self.parent.to_be_bytes());
        h[56..60].copy_from_slice(&self.parent_timestamp.to_be_bytes());
        let units = self.parent_units.clone();
        let units = units.unwrap_or_else(|| self.parent_name.encode_utf16().collect());
        for (index, unit) in units.into_iter().take(256).enumerate() {
            h[64 + index * 2..66 + index * 2].copy_from_slice(&unit.to_be_bytes());
        }
        for (index, (code, length, at)) in locators.iter().enumerate() {
            let slot = 576 + index * 24;
            h[slot..slot + 4].copy_from_slice(code);
            h[slot + 4..slot + 8].copy_from_slice(&self.space.to_be_bytes());
            h[slot + 8..slot + 12].copy_from_slice(&length.to_be_bytes());
            h[slot + 16..slot + 24].copy_from_slice(&at.to_be_bytes());
        }
        let checksum = sum(&h).wrapping_add(self.header_sum_off);
        h[36..40].copy_from_slice(&checksum.to_be_bytes());
        h
    }

    /// The file, sparse.
    pub fn content(&self) -> Content {
        let own = self.footer();
        let end_footer = self.end_footer.as_ref().unwrap_or(&own);
        let mut file = Content::default();
        if self.kind == 2 {
            file.set_length(self.size);
            for (_, _, fill) in &self.blocks {
                file.put(0, &[*fill; 4096]);
            }
            file.put(self.size, end_footer);
            return file;
        }
        file.set_length(self.bat_offset);
        if self.copy {
            file.put(0, self.copy_footer.as_ref().unwrap_or(&own));
        }
        let mut bat = vec![0xff_u8; (self.entries_written as usize * 4).next_multiple_of(512)];
        let mut at = self.bat_offset + bat.len() as u64;
        if let Some(batmap) = &self.batmap {
            file.put(at, &batmap_header(batmap, at + 512));
            file.put(at + 512, &batmap.map);
            at = (at + 512 + batmap.map.len() as u64).next_multiple_of(512);
        }
        let mut locators = Vec::new();
        for (code, bytes, length, offset) in &self.locators {
            let said = length.unwrap_or(bytes.len() as u32);
            locators.push((*code, said, offset.unwrap_or(at)));
            file.put(at, bytes);
            at = (at + bytes.len() as u64).next_multiple_of(512);
        }
        if let Some(first) = self.blocks_at {
            at = first;
        }
        for (block, bitmap, fill) in &self.blocks {
            let sector = (at / SECTOR as u64) as u32;
            if let Some(entry) = bat.get_mut(block * 4..block * 4 + 4) {
                entry.copy_from_slice(&sector.to_be_bytes());
            }
            file.put(at, bitmap);
            at += bitmap.len() as u64;
            file.put(at, &vec![*fill; self.block.min(4096) as usize]);
            at += u64::from(self.block);
        }
        for (index, sector) in &self.table {
            bat[index * 4..index * 4 + 4].copy_from_slice(&sector.to_be_bytes());
        }
        file.put(self.bat_offset, &bat);
        file.put(512, &self.header(&locators));
        file.set_length(at);
        if self.end {
            file.put(at, end_footer);
        }
        file.set_length(file.length - self.cut as u64);
        if let Some(length) = self.truncate {
            file.set_length(file.length.min(length as u64));
        }
        file
    }

    /// The file, all of it in memory.
    pub fn build(&self) -> Vec<u8> {
        let content = self.content();
        content.bytes(0, content.length as usize)
    }

    /// Writes the file, sparse.
    pub fn write(&self, path: &Path) -> PathBuf {
        self.content().write(path)
    }
}

fn batmap_header(batmap: &Batmap, at: u64) -> Vec<u8> {
    let add = |total: u32, byte: &u8| {
        let signed = i32::from(byte.cast_signed()).cast_unsigned();
        total.wrapping_add(if batmap.signed { signed } else { u32::from(*byte) })
    };
    let sum = !batmap.map.iter().fold(0_u32, add);
    let mut h = vec![0; 512];
    h[..8].copy_from_slice(b"tdbatmap");
    h[8..16].copy_from_slice(&at.to_be_bytes());
    h[16..20].copy_from_slice(&((batmap.map.len() / SECTOR) as u32).to_be_bytes());
    h[20..24].copy_from_slice(&batmap.version.to_be_bytes());
    h[24..28].copy_from_slice(&sum.wrapping_add(batmap.sum_off).to_be_bytes());
    h
}
