//! Reading the sector bitmaps of many blocks.
//!
//! They lie 2 MiB apart, 512 bytes each, so reading ahead fetches data that nobody wants: a full
//! disk of 10 GiB has 2.5 MiB of bitmaps, and 640 MiB of read-ahead around them. So the file is
//! told that reads will jump, and the next bitmaps are asked for while the present one is looked
//! at, which keeps a disk busy with many requests at a time. Bitmaps that lie close together,
//! those of small blocks, are read in one piece.

use std::path::Path;

use rustix::fs::Advice;

use crate::error::Result;
use crate::header::Header;
use crate::store::Blob;
use crate::{SECTOR, sys};

/// Bitmaps asked for before the first of them is read.
const AHEAD: usize = 256;

/// Bitmaps at most this far apart are read in one piece, bytes: about what a disk reads in the
/// time of one request.
const NEAR: u64 = 64 << 10;

/// Longest piece, bytes.
const PIECE: u64 = 1 << 20;

/// One read: the range, and how many bitmaps it serves.
struct Piece {
    start: u64,
    end: u64,
    count: usize,
}

/// Hands the bitmap of each of these blocks to `each`, which says whether to go on. `blocks` are
/// (sector, block), verified to lie within the file; the order is that of the file.
pub(crate) fn read(
    blob: &dyn Blob,
    path: &Path,
    header: &Header,
    mut blocks: Vec<(u32, u32)>,
    each: &mut dyn FnMut(u32, &[u8]) -> bool,
) -> Result<()> {
    blocks.sort_unstable();
    let size = header.bitmap_bytes();
    let mut pieces: Vec<Piece> = Vec::new();
    for (sector, _) in &blocks {
        let start = u64::from(*sector) * SECTOR;
        let end = start + size;
        match pieces.last_mut() {
            Some(last) if start - last.end <= NEAR && end - last.start <= PIECE => {
                last.end = end;
                last.count += 1;
            }
            _ => pieces.push(Piece { start, end, count: 1 }),
        }
    }
    blob.expect_random();
    let mut blocks = blocks.iter();
    let mut buf = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        if index % (AHEAD / 2) == 0 {
            let from = if index == 0 { 0 } else { index + AHEAD / 2 };
            let to = index + AHEAD;
            ask_for(blob, pieces.get(from..to.min(pieces.len())).unwrap_or(&[]));
        }
        buf.resize((piece.end - piece.start) as usize, 0);
        sys::read_at(blob, path, &mut buf, piece.start)?;
        for (sector, block) in blocks.by_ref().take(piece.count) {
            let at = (u64::from(*sector) * SECTOR - piece.start) as usize;
            if !each(*block, &buf[at..at + size as usize]) {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn ask_for(blob: &dyn Blob, pieces: &[Piece]) {
    let Some(file) = blob.as_file() else { return };
    for piece in pieces {
        // Advice only: an error changes nothing.
        let length = std::num::NonZeroU64::new(piece.end - piece.start);
        if rustix::fs::fadvise(file, piece.start, length, Advice::WillNeed).is_err() {
            return;
        }
    }
}
