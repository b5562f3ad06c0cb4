//! Files as the bytes of one input.
//!
//! ```text
//! control u8, number of files u8, then for each file
//!   repairs u8, length u64, number of pieces u8, then for each piece
//!     position u64, length u16, bytes
//! ```
//!
//! What is missing at the end of an input reads as zeros or is not there, so every input is files.

use crate::build::{Content, sum};

/// Most files of an input.
pub const FILES: usize = 6;
/// Most pieces of a file.
pub const PIECES: usize = 40;
/// Longest piece, bytes.
pub const PIECE: usize = 4096;

/// [`File::fixes`]: the checksum of the footer at the end is made right.
pub const FIX_END: u8 = 1;
/// That of the footer copy.
pub const FIX_COPY: u8 = 2;
/// That of the header.
pub const FIX_HEADER: u8 = 4;
/// That of the batmap.
pub const FIX_BATMAP: u8 = 8;
/// Before all that, the footer at the end becomes the same as the copy.
pub const SAME_FOOTERS: u8 = 16;

#[derive(Clone, Debug, Default)]
pub struct File {
    pub fixes: u8,
    pub length: u64,
    pub pieces: Vec<(u64, Vec<u8>)>,
}

#[derive(Clone, Debug, Default)]
pub struct Input {
    pub control: u8,
    pub files: Vec<File>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (part, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        part
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let part = self.take(bytes);
        part.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl Input {
    pub fn decode(bytes: &[u8]) -> Self {
        let mut reader = Reader(bytes);
        let control = reader.number(1) as u8;
        let count = (reader.number(1) as usize).min(FILES);
        let mut files = Vec::new();
        for _ in 0..count {
            let (fixes, length) = (reader.number(1) as u8, reader.number(8));
            let pieces = (0..(reader.number(1) as usize).min(PIECES))
                .map(|_| {
                    let at = reader.number(8);
                    let length = (reader.number(2) as usize).min(PIECE);
                    (at, reader.take(length).to_vec())
                })
                .collect();
            files.push(File { fixes, length, pieces });
        }
        Self { control, files }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.control, self.files.len() as u8];
        for file in &self.files {
            bytes.push(file.fixes);
            bytes.extend(file.length.to_be_bytes());
            bytes.push(file.pieces.len() as u8);
            for (at, piece) in &file.pieces {
                bytes.extend(at.to_be_bytes());
                bytes.extend((piece.len() as u16).to_be_bytes());
                bytes.extend(piece);
            }
        }
        bytes
    }
}

impl File {
    /// Of a file whose checksums are to stay right whatever becomes of it.
    pub fn of(content: &Content) -> Self {
        let pieces = content.pieces(PIECE).into_iter().take(PIECES).collect();
        let fixes = FIX_END | FIX_COPY | FIX_HEADER | FIX_BATMAP;
        Self { fixes, length: content.length, pieces }
    }

    /// The file, its checksums made right as it asks.
    pub fn content(&self) -> Content {
        let mut content = Content::default();
        // No file system has longer ones.
        let length = self.length.min(1 << 43);
        for (at, piece) in &self.pieces {
            if at.checked_add(piece.len() as u64).is_some_and(|end| end <= length) {
                content.put(*at, piece);
            }
        }
        content.set_length(length);
        let tail = if length % 512 == 511 { 511 } else { 512 };
        let end = length.saturating_sub(tail) / 512 * 512;
        if self.fixes & SAME_FOOTERS != 0 && length >= 1024 {
            let copy = content.bytes(0, tail as usize);
            content.put(end, &copy);
        }
        if self.fixes & FIX_END != 0 && length >= tail {
            fix(&mut content, end, 512, 64);
        }
        if self.fixes & FIX_COPY != 0 && end > 0 {
            fix(&mut content, 0, 512, 64);
        }
        let header = u64::from_be_bytes(content.bytes(16, 8).try_into().unwrap_or_default());
        let header = if header.is_multiple_of(512) && header < length { header } else { 512 };
        if self.fixes & FIX_HEADER != 0 {
            fix(&mut content, header, 1024, 36);
        }
        if self.fixes & FIX_BATMAP != 0 {
            fix_batmap(&mut content, header);
        }
        content
    }
}

fn fix(content: &mut Content, at: u64, length: usize, field: usize) {
    if at.checked_add(field as u64 + 4).is_none_or(|end| end > content.length) {
        return;
    }
    let mut bytes = content.bytes(at, length);
    bytes[field..field + 4].fill(0);
    let sum = sum(&bytes);
    content.put(at + field as u64, &sum.to_be_bytes());
}

fn fix_batmap(content: &mut Content, header: u64) {
    let h = content.bytes(header, 1024);
    let table = u64::from_be_bytes(h[16..24].try_into().unwrap_or_default());
    let entries = u64::from(u32::from_be_bytes(h[28..32].try_into().unwrap_or_default()));
    let at = table.saturating_add((entries * 4).next_multiple_of(512));
    if at.checked_add(512).is_none_or(|end| end > content.length) {
        return;
    }
    let b = content.bytes(at, 512);
    let map_at = u64::from_be_bytes(b[8..16].try_into().unwrap_or_default());
    let sectors = u32::from_be_bytes(b[16..20].try_into().unwrap_or_default());
    if b.starts_with(b"tdbatmap") && sectors <= 64 {
        let map = content.bytes(map_at, sectors as usize * 512);
        content.put(at + 24, &sum(&map).to_be_bytes());
    }
}
