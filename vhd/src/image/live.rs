//! An image that a machine uses.
//!
//! Whoever fills a new image wants its metadata in the file when a write returns, and needs no
//! order, because it syncs once at the end. A machine writes for months, and its power goes when
//! it goes. So a live image publishes with its flushes, in the order described in [`super::publish`]
//! and without a sync per new block; what was written and not flushed is, after a power cut, old
//! or new sector by sector.
//!
//! A process that is killed is no power cut to the machine, which goes on with another process and
//! relies on what it was answered. So what is not yet in the file is noted, before the answer, in a
//! file that lives in memory ([`super::notes`]); whoever makes the image live next puts the notes
//! into it. Until that has happened nobody else may write to the image or give back space of it:
//! the data that the notes are of looks like space that nobody uses.
//!
//! The end of a live file is made roomy: its footer stands behind places for further blocks. It
//! comes back to its place at [`Image::close`], or, after a death, when the image is made live
//! again.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::notes::{self, Found, Note, Notes, Owner};
use super::write::Part;
use super::{Image, Stage, State, areas_of, lock};
use crate::bat::{self, ABSENT};
use crate::error::{Error, Result};
use crate::header::Header;
use crate::store::Blob;
use crate::{SECTOR, sys};

/// How an image is made live.
#[derive(Default)]
pub struct Live {
    /// Where new metadata is noted; without it, the death of this process loses what was not
    /// flushed, as a power cut does. It must not outlive the system, and may be empty.
    pub notes: Option<Box<dyn Blob>>,
    /// The name of the notes, for messages.
    pub notes_path: PathBuf,
    /// Which run of the system this is: `/proc/sys/kernel/random/boot_id`. Notes of another are
    /// void.
    pub boot: Uuid,
}

impl Image {
    /// Makes an image live that was opened for writing. What its last writer has noted and not
    /// published is put into it, durably.
    ///
    /// [`Error::OtherNotes`] and [`Error::BadNotes`], with nothing changed, when the notes are of
    /// another image, or cannot be of what this one holds: to begin without them would lose what
    /// somebody was told is written.
    pub fn go_live(&self, live: Live) -> Result<()> {
        self.check_plain()?;
        let owner = Owner { boot: live.boot, image: self.info.uuid, file: self.info.file_id };
        let found = match &live.notes {
            Some(file) => notes::read(&**file, &live.notes_path, owner)?,
            None => Found::Nothing,
        };
        match found {
            Found::Nothing => {}
            Found::Ours(notes) => {
                let bad = |what| Error::BadNotes {
                    path: self.path.clone(),
                    notes: live.notes_path.clone(),
                    what,
                };
                self.replay(&notes, &bad)?;
                self.publish(true)?;
            }
            Found::Others(other) => {
                return Err(Error::OtherNotes {
                    path: self.path.clone(),
                    notes: live.notes_path,
                    owner: other.image,
                });
            }
        }
        self.trim_end()?;
        // Only now is nothing lost when the old notes are.
        let begin = |file| Notes::begin(file, &live.notes_path, owner);
        *lock(&self.notes) = live.notes.map(begin).transpose()?;
        self.stage.store(Stage::Live as u8, Ordering::Release);
        Ok(())
    }

    /// Enters what was noted, in memory.
    fn replay(&self, notes: &[Note], bad: &dyn Fn(String) -> Error) -> Result<()> {
        let parts = {
            let mut state = self.state();
            let (table, parts) = self.check_notes(&state, notes).map_err(bad)?;
            for note in notes {
                if state.table.get(note.block as usize) == Some(&ABSENT) {
                    state.fresh.insert(note.block);
                }
            }
            state.table = table;
            state.changes += 1;
            // On a volume, the table of the file has said where the last block is.
            let stride = state.header.as_ref().map_or(0, Header::stride);
            let ends = notes.iter().map(|note| u64::from(note.sector) * SECTOR + stride);
            state.end = state.end.max(ends.max().unwrap_or(0));
            parts
        };
        self.commit(&parts)
    }

    /// Whether notes go together with what the image holds; the table with their blocks in it.
    fn check_notes(&self, state: &State, notes: &[Note]) -> Result<(Vec<u32>, Vec<Part>), String> {
        let Some(header) = &state.header else { return Err("the image is a fixed one".to_owned()) };
        let sectors = state.sectors();
        let mut table = state.table.clone();
        let mut parts = Vec::with_capacity(notes.len());
        for note in notes {
            let Note { block, sector, first, count } = *note;
            if u64::from(first) + u64::from(count) > sectors {
                return Err(format!("sectors {first} and {count} more of block {block}"));
            }
            match table.get_mut(block as usize) {
                Some(entry) if *entry == ABSENT && sector != ABSENT => *entry = sector,
                Some(entry) if *entry == sector => {}
                Some(entry) => return Err(format!("block {block} is at {entry}, not at {sector}")),
                None => return Err(format!("there is no block {block}")),
            }
            parts.push(Part::new(block, sector, first, count));
        }
        // The end of the file is behind all places that were ever given.
        let areas = areas_of(&self.path, state, header).map_err(|error| error.to_string())?;
        bat::verify(&table, header.stride(), state.footer_at, &areas)
            .map_err(|fault| fault.to_string())?;
        Ok((table, parts))
    }

    /// Brings the footer back to behind the last block, and gives back what was behind it.
    fn trim_end(&self) -> Result<()> {
        let Some(to) = self.used_end() else { return Ok(()) };
        let (footer, footer_at) = {
            let state = self.state();
            if state.volume || to >= state.footer_at {
                return Ok(());
            }
            (state.footer.to_bytes(), state.footer_at)
        };
        // The shorter file has its footer before it is made shorter.
        sys::write_at(&*self.file, &self.path, &footer, to)?;
        self.sync()?;
        if let Err(error) = sys::set_len(&*self.file, &self.path, to + SECTOR) {
            // The old footer is still the one at the end.
            self.state().move_end(footer_at);
            return Err(error);
        }
        self.state().move_end(to);
        Ok(())
    }

    /// Ends being live: all is published and durable, the end of the file is where it would be of
    /// an image that was never live, and nothing is written any more.
    pub fn close(&self) -> Result<()> {
        if self.stage() != Stage::Live {
            return self.flush();
        }
        self.flush()?;
        // A power cut may leave the file as long as it was: both footers are there.
        self.trim_end()?;
        self.seal();
        Ok(())
    }

    /// Nothing is written any more, not even a footer: others may. What was not published by now is
    /// in the notes only.
    pub fn seal(&self) {
        self.stage.store(Stage::Sealed as u8, Ordering::Release);
        *lock(&self.notes) = None;
    }

    /// Whether the block table in the file is the one in memory, when all is published: nobody else
    /// has written to the image.
    pub fn is_as_stored(&self) -> Result<bool> {
        let state = self.state();
        let Some(header) = &state.header else { return Ok(true) };
        let mut raw = vec![0; state.table.len() * 4];
        sys::read_at(&*self.file, &self.path, &mut raw, header.table_offset)?;
        Ok(bat::parse(&raw) == state.table)
    }

    /// Whether it is live.
    pub fn is_live(&self) -> bool {
        self.stage() == Stage::Live
    }

    /// Whether a file has notes of this image that [`Image::go_live`] would put into it.
    pub fn is_noted(&self, notes: &dyn Blob, path: &Path, boot: Uuid) -> Result<bool> {
        let owner = Owner { boot, image: self.info.uuid, file: self.info.file_id };
        Ok(matches!(notes::read(notes, path, owner)?, Found::Ours(_)))
    }

    /// Whether a sync has failed, so that nothing is written any more.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced.load(Ordering::Acquire)
    }
}
