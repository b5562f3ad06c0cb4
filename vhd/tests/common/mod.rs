//! A VHD writer that shares no code with the crate, for files good and bad, and the tools that
//! read ours independently.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of a shared file")]

use std::path::{Path, PathBuf};
use std::process::Command;

pub const SECTOR: usize = 512;

/// Code, bytes, and overrides of length and offset.
pub type Locator = ([u8; 4], Vec<u8>, Option<u32>, Option<u64>);

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
    /// Block, bitmap, and the byte its data is filled with.
    pub blocks: Vec<(usize, Vec<u8>, u8)>,
    /// Overrides entries of the table after the blocks were placed.
    pub table: Vec<(usize, u32)>,
    pub parent: u128,
    pub parent_name: String,
    pub locators: Vec<Locator>,
    pub copy: bool,
    pub end: bool,
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
            blocks: Vec::new(),
            table: Vec::new(),
            parent: 0,
            parent_name: String::new(),
            locators: Vec::new(),
            copy: true,
            end: true,
            cut: 0,
            truncate: None,
        }
    }
}

pub fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn sum(bytes: &[u8]) -> u32 {
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

    pub fn build(&self) -> Vec<u8> {
        if self.kind == 2 {
            let mut raw = vec![0; self.size as usize];
            for (_, _, fill) in &self.blocks {
                raw[..4096].fill(*fill);
            }
            raw.extend(self.footer());
            return raw;
        }
        let mut raw = vec![0; 1536];
        if self.copy {
            raw[..512].copy_from_slice(&self.footer());
        }
        raw.resize(self.bat_offset as usize, 0);
        let mut bat = vec![0xff_u8; (self.entries_written as usize * 4).next_multiple_of(512)];
        raw.extend(&bat);
        let mut locators = Vec::new();
        for (code, bytes, length, offset) in &self.locators {
            let at = offset.unwrap_or(raw.len() as u64);
            locators.push((*code, length.unwrap_or(bytes.len() as u32), at));
            raw.extend(bytes);
            raw.resize(raw.len().next_multiple_of(512), 0);
        }
        for (block, bitmap, fill) in &self.blocks {
            let sector = (raw.len() / SECTOR) as u32;
            if let Some(entry) = bat.get_mut(block * 4..block * 4 + 4) {
                entry.copy_from_slice(&sector.to_be_bytes());
            }
            raw.extend(bitmap);
            raw.resize(raw.len() + 4096, *fill);
            raw.resize(raw.len() + self.block as usize - 4096, 0);
        }
        for (index, sector) in &self.table {
            bat[index * 4..index * 4 + 4].copy_from_slice(&sector.to_be_bytes());
        }
        let at = self.bat_offset as usize;
        raw[at..at + bat.len()].copy_from_slice(&bat);

        let mut h = vec![0; 1024];
        h[..8].copy_from_slice(&self.header_cookie);
        h[8..16].copy_from_slice(&self.next_record.to_be_bytes());
        h[16..24].copy_from_slice(&self.bat_offset_said.unwrap_or(self.bat_offset).to_be_bytes());
        h[24..28].copy_from_slice(&0x10000_u32.to_be_bytes());
        h[28..32].copy_from_slice(&self.entries.to_be_bytes());
        h[32..36].copy_from_slice(&self.block.to_be_bytes());
        h[40..56].copy_from_slice(&self.parent.to_be_bytes());
        for (index, unit) in self.parent_name.encode_utf16().take(256).enumerate() {
            h[64 + index * 2..66 + index * 2].copy_from_slice(&unit.to_be_bytes());
        }
        for (index, (code, length, at)) in locators.iter().enumerate() {
            let slot = 576 + index * 24;
            h[slot..slot + 4].copy_from_slice(code);
            h[slot + 4..slot + 8].copy_from_slice(&512_u32.to_be_bytes());
            h[slot + 8..slot + 12].copy_from_slice(&length.to_be_bytes());
            h[slot + 16..slot + 24].copy_from_slice(&at.to_be_bytes());
        }
        let checksum = sum(&h).wrapping_add(self.header_sum_off);
        h[36..40].copy_from_slice(&checksum.to_be_bytes());
        raw[512..1536].copy_from_slice(&h);
        if self.end {
            raw.extend(self.footer());
        }
        raw.truncate(raw.len() - self.cut);
        if let Some(length) = self.truncate {
            raw.truncate(length);
        }
        raw
    }

    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.build()).unwrap();
        path.to_owned()
    }
}

/// Runs a tool that the tests need; the machine is not fit for them without it.
pub fn tool(package: &str, program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): install the package {package}")
    });
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}

pub fn qemu_img(args: &[&str]) -> (bool, String) {
    tool("qemu-utils", "qemu-img", args)
}

pub fn vhdiinfo(path: &Path) -> (bool, String) {
    tool("libvhdi-utils", "vhdiinfo", &[path.to_str().unwrap()])
}

/// Names in the section of crash points of the running binary.
pub fn steps() -> Vec<String> {
    use object::{Object, ObjectSection};
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let section = file.section_by_name(sm_step::SECTION).expect("the binary has crash points");
    sm_step::names(section.data().unwrap())
}

/// A small deterministic generator; the seed is printed by whoever uses it.
pub struct Random(pub u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("VHD_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
                as u64
        });
        println!("seed {seed} (set VHD_SEED to repeat)");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
