//! Notes of new metadata, for whoever opens an image after its writer was killed.
//!
//! They are in a file that lives in memory: a power cut takes them, and takes what they are about
//! as well. One note of 32 bytes says that sectors of a block are present, and where the block is:
//!
//! | offset | size | |
//! |---|---|---|
//! | 0 | 4 | block |
//! | 4 | 4 | sector of the file where the block's bitmap begins |
//! | 8 | 4 | first sector of the block |
//! | 12 | 4 | number of sectors, at least 1 |
//! | 16 | 8 | generation |
//! | 24 | 8 | checksum of the first 24 bytes |
//!
//! All integers are little-endian. Nothing here crosses a page, so a killed process leaves a note
//! whole or not at all. There are two areas. While the notes in one are made superfluous by
//! publishing what they say, new ones go into the other; an area is emptied by wiping its first
//! note, and what lies behind it is of an older generation from then on.

use uuid::Uuid;

use crate::error::Result;
use crate::store::Blob;
use crate::sys;

const COOKIE: &[u8; 8] = b"vhdnotes";

/// Bytes of the header: cookie, boot, image, device and inode, checksum.
const HEADER: usize = 64;

/// Bytes of a note.
const NOTE: usize = 32;

/// Where the first area begins.
const START: u64 = 4096;

/// Bytes of an area: 65,536 notes. Those of one area are published at once, at the latest when it
/// is full.
const AREA: u64 = 2 << 20;

/// Sectors of a block that are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) block: u32,
    pub(super) sector: u32,
    pub(super) first: u32,
    pub(super) count: u32,
}

/// Whose notes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Which run of the system: notes do not outlive it.
    pub(super) boot: Uuid,
    /// Footer UUID.
    pub(super) image: Uuid,
    /// Device and inode.
    pub(super) file: (u64, u64),
}

impl Owner {
    fn to_bytes(self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        raw[..8].copy_from_slice(COOKIE);
        raw[8..24].copy_from_slice(self.boot.as_bytes());
        raw[24..40].copy_from_slice(self.image.as_bytes());
        raw[40..48].copy_from_slice(&self.file.0.to_le_bytes());
        raw[48..56].copy_from_slice(&self.file.1.to_le_bytes());
        let sum = checksum(&raw[..56]);
        raw[56..].copy_from_slice(&sum.to_le_bytes());
        raw
    }

    fn parse(raw: &[u8]) -> Option<Self> {
        if !raw.starts_with(COOKIE) || le64(raw, 56)? != checksum(raw.get(..56)?) {
            return None;
        }
        Some(Self {
            boot: Uuid::from_slice(raw.get(8..24)?).ok()?,
            image: Uuid::from_slice(raw.get(24..40)?).ok()?,
            file: (le64(raw, 40)?, le64(raw, 48)?),
        })
    }
}

impl Note {
    fn to_bytes(self, generation: u64) -> [u8; NOTE] {
        let mut raw = [0; NOTE];
        for (at, value) in [self.block, self.sector, self.first, self.count].iter().enumerate() {
            raw[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        raw[16..24].copy_from_slice(&generation.to_le_bytes());
        let sum = checksum(&raw[..24]);
        raw[24..].copy_from_slice(&sum.to_le_bytes());
        raw
    }

    /// The note and its generation; none for anything else.
    fn parse(raw: &[u8]) -> Option<(Self, u64)> {
        let generation = le64(raw, 16)?;
        if le64(raw, 24)? != checksum(raw.get(..24)?) {
            return None;
        }
        let [block, sector, first, count] = [0, 4, 8, 12].map(|at| le32(raw, at).unwrap_or(0));
        (count > 0).then_some((Self { block, sector, first, count }, generation))
    }
}

fn le64(raw: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(raw.get(at..at + 8)?.try_into().ok()?))
}

fn le32(raw: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(raw.get(at..at + 4)?.try_into().ok()?))
}

/// FNV-1a over words: tells what was never written as a note from what was.
fn checksum(raw: &[u8]) -> u64 {
    raw.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum: u64, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

/// The file of notes of an image that is being written.
pub(super) struct Notes {
    file: Box<dyn Blob>,
    /// Bytes used of each area.
    used: [u64; 2],
    /// Where new notes go.
    current: usize,
    generation: u64,
}

/// What was found in a file of notes.
pub(super) enum Found {
    /// No notes, or notes that a reboot has made void.
    Nothing,
    /// Notes of this image.
    Ours(Vec<Note>),
    /// Notes of another image in this run of the system.
    Others(Owner),
}

/// Reads what a writer has left. `path` is for messages.
pub(super) fn read(file: &dyn Blob, path: &std::path::Path, owner: Owner) -> Result<Found> {
    let mut raw = [0; HEADER];
    sys::read_upto(file, path, &mut raw, 0)?;
    let Some(found) = Owner::parse(&raw).filter(|found| found.boot == owner.boot) else {
        return Ok(Found::Nothing);
    };
    let mut notes = Vec::new();
    for area in 0..2 {
        let mut raw = vec![0; AREA as usize];
        sys::read_upto(file, path, &mut raw, START + area * AREA)?;
        let mut generation = None;
        for raw in raw.chunks_exact(NOTE) {
            let Some((note, of)) = Note::parse(raw) else { break };
            if *generation.get_or_insert(of) != of {
                break;
            }
            notes.push(note);
        }
    }
    Ok(match notes.is_empty() {
        true => Found::Nothing,
        false if found == owner => Found::Ours(notes),
        false => Found::Others(found),
    })
}

impl Notes {
    /// Begins with no notes, whatever the file holds. `path` is for messages.
    pub(super) fn begin(file: Box<dyn Blob>, path: &std::path::Path, owner: Owner) -> Result<Self> {
        // Emptied before the header says whose they are.
        for area in 0..2 {
            sys::write_at(&*file, path, &[0; NOTE], START + area * AREA)?;
        }
        sys::write_at(&*file, path, &owner.to_bytes(), 0)?;
        // Later than any generation in the file, without having to look: they count up from the
        // time.
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let generation = u64::try_from(now.as_nanos()).unwrap_or(0);
        Ok(Self { file, used: [0; 2], current: 0, generation })
    }

    /// Appends a note. After an error it is as if it had not been tried.
    pub(super) fn append(&mut self, note: Note) -> std::io::Result<()> {
        let used = &mut self.used[self.current];
        if *used + NOTE as u64 > AREA {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let at = START + self.current as u64 * AREA + *used;
        self.file.write_at(&note.to_bytes(self.generation), at)?;
        *used += NOTE as u64;
        Ok(())
    }

    /// Whether more than half of the room for notes is taken.
    pub(super) fn is_crowded(&self) -> bool {
        self.used[self.current] > AREA / 2
    }

    /// What was noted so far is going to be published: later notes go elsewhere, if that is empty.
    /// Answers which area is superfluous once it is.
    pub(super) fn turn(&mut self) -> usize {
        let other = 1 - self.current;
        if self.used[other] == 0 {
            self.current = other;
            self.generation += 1;
        }
        1 - self.current
    }

    /// Empties an area that [`Notes::turn`] has named.
    pub(super) fn empty(&mut self, area: usize) {
        if self.used[area] == 0 || area == self.current {
            return;
        }
        let at = START + area as u64 * AREA;
        // What is left of them says what is in the image by now, so keeping them does no harm
        // except that the area cannot be used.
        if self.file.write_at(&[0; NOTE], at).is_ok() {
            let _ = self.file.punch(at, AREA);
            self.used[area] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use uuid::Uuid;

    use super::{AREA, Found, NOTE, Note, Notes, Owner, read};

    fn owner() -> Owner {
        Owner { boot: Uuid::from_u128(1), image: Uuid::from_u128(2), file: (3, 4) }
    }

    fn note(block: u32) -> Note {
        Note { block, sector: 100 + block, first: 5, count: 7 }
    }

    fn found(file: &std::fs::File, owner: Owner) -> Vec<u32> {
        match read(file, Path::new("notes"), owner).unwrap() {
            Found::Ours(notes) => notes.iter().map(|note| note.block).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn notes_are_there_until_they_are_emptied_and_only_for_their_owner() {
        let file = tempfile::tempfile().unwrap();
        let begin = || {
            Notes::begin(Box::new(file.try_clone().unwrap()), Path::new("notes"), owner()).unwrap()
        };
        let mut notes = begin();
        for block in 0..5 {
            notes.append(note(block)).unwrap();
        }
        assert_eq!(found(&file, owner()), [0, 1, 2, 3, 4]);
        let first = notes.turn();
        notes.append(note(10)).unwrap();
        assert_eq!(found(&file, owner()), [0, 1, 2, 3, 4, 10]);
        // The first could not be published: nothing is emptied, and nothing is written over it.
        assert_eq!(notes.turn(), first);
        notes.append(note(11)).unwrap();
        notes.empty(first);
        assert_eq!(found(&file, owner()), [10, 11]);
        let second = notes.turn();
        notes.append(note(20)).unwrap();
        assert_eq!(found(&file, owner()), [20, 10, 11], "of an older generation behind it: not");
        notes.empty(second);
        assert_eq!(found(&file, owner()), [20]);

        let other = Owner { image: Uuid::from_u128(9), ..owner() };
        assert!(
            matches!(read(&file, Path::new("notes"), other), Ok(Found::Others(of)) if of == owner())
        );
        let later = Owner { boot: Uuid::from_u128(9), ..owner() };
        assert!(matches!(read(&file, Path::new("notes"), later), Ok(Found::Nothing)));
        drop(begin());
        assert_eq!(found(&file, owner()), [0; 0]);
    }

    #[test]
    fn a_full_area_takes_no_more() {
        let file = tempfile::tempfile().unwrap();
        let mut notes = Notes::begin(Box::new(file), Path::new("notes"), owner()).unwrap();
        for _ in 0..AREA / NOTE as u64 {
            notes.append(note(1)).unwrap();
        }
        assert!(notes.append(note(2)).is_err());
        let full = notes.turn();
        notes.append(note(2)).unwrap();
        notes.empty(full);
        assert!(!notes.is_crowded());
    }
}
