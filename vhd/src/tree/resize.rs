//! Growing a disk, also one that somebody has open.
//!
//! ```text
//! 1  tmp/<disk>.json         its metadata, synced
//! 2  journal/<op>.json       synced
//! 3  whoever has it open is stopped, and has closed it
//! 4  the image grows; its size is the last thing that changes
//! 5  whoever had it open goes on, and sees the new size
//! 6  metadata in place, record removed
//! ```
//!
//! When a disk that is open is cut between 2 and 6, whoever had it open goes on by himself, with
//! the image as it is: an image whose table has grown and whose size has not is sound. So recovery
//! must not write into it, and does not: by its size it tells whether the disk has grown, and
//! completes the rest or takes it back.

use serde_json::Value;
use uuid::Uuid;

use super::journal::{Action, Record};
use super::ops::disk_size;
use super::{Change, Format, Outcome, Tree, Writer};
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::image::Mode;
use crate::store::Area;
use crate::sys;

impl Tree {
    /// Grows a disk to at least `size` bytes, rounded up to what its format can have.
    /// [`Outcome::Already`] when the same operation did so before.
    pub fn resize(
        &self,
        guard: &super::Guard,
        op: Uuid,
        uuid: Uuid,
        size: u64,
        metadata: &Value,
    ) -> Result<Change> {
        self.resize_written(guard, op, uuid, size, metadata, None)
    }

    /// As [`Tree::resize`], of a disk that somebody has open: who is told to stop has it closed
    /// until he is told to go on. [`Error::WrongType`] for an image that is not made for that.
    pub fn resize_written(
        &self,
        guard: &super::Guard,
        op: Uuid,
        uuid: Uuid,
        size: u64,
        metadata: &Value,
        writer: Option<&dyn Writer>,
    ) -> Result<Change> {
        self.ready_to_change(guard, &[uuid])?;
        let node = self.sound_leaf(uuid)?;
        let size = disk_size(node.format, size)?;
        let known = self.doc(uuid)?;
        if known.is_some_and(|doc| doc.ops.contains(&op)) {
            return Ok(Change::new(Outcome::Already, node.virtual_size));
        }
        if size < node.virtual_size {
            return Err(Error::Shrink { from: node.virtual_size, to: size });
        }
        if writer.is_some() {
            self.refuse_fixed(uuid, node.format)?;
            writer.map_or(Ok(()), Writer::prepare)?;
        }
        self.stage_doc(uuid, &self.next_doc(uuid, node.format, op, metadata)?)
            .inspect_err(|_| self.clear(&[uuid]))?;
        sm_step::step!("vdi_resize.metadata_staged");
        let from = node.virtual_size;
        let (format, live) = (node.format, writer.is_some());
        let record = Record::new(op, Action::Resize { uuid, format, size, from, live });
        let grown = self.write_record(&record).and_then(|()| {
            sm_step::step!("vdi_resize.journalled");
            if let Some(writer) = writer {
                writer.stop()?;
                sm_step::step!("vdi_resize.writer_stopped");
            }
            self.grow(uuid, format, size, from)
        });
        if let Err(error) = grown {
            // The size is the last thing that changes, so the disk is as it was.
            // Should even this fail, the record stays, and the next call completes or undoes it.
            let _ = self.undo_resize(&record, uuid);
            if let Some(writer) = writer {
                writer.go_on();
            }
            return Err(error);
        }
        sm_step::step!("vdi_resize.grown");
        if let Some(writer) = writer {
            writer.go_on();
            sm_step::step!("vdi_resize.writer_went_on");
        }
        self.complete_resize(&record, uuid)?;
        // The operation is noted in either case, so that it is known when it comes again.
        let outcome = if size == from { Outcome::Already } else { Outcome::Modified };
        Ok(Change::new(outcome, size))
    }

    /// What a cut leaves in the middle of a fixed image can only be cleared by who has it alone.
    fn refuse_fixed(&self, uuid: Uuid, format: Format) -> Result<()> {
        let at = Self::image_at(uuid, format);
        if format == Format::Vhd && self.probe(&at)?.disk_type != DiskType::Fixed {
            return Ok(());
        }
        let what = "is a fixed image, which must be closed to become larger";
        Err(Error::WrongType { path: self.store.path_of(&at), what })
    }

    /// Completes the growth of a disk that may be open, if its size says that it has grown, and
    /// takes it back if not. Whether it is complete.
    pub(super) fn recover_live_resize(
        &self,
        record: &Record,
        uuid: Uuid,
        format: Format,
        size: u64,
    ) -> Result<bool> {
        let grown = match self.probe(&Self::image_at(uuid, format)) {
            Ok(info) => info.size >= size,
            Err(error) if error.is_not_found() || error.is_corrupt() => false,
            Err(error) => return Err(error),
        };
        if grown {
            // Whoever wrote the size may have been stopped before it was durable.
            let at = Self::image_at(uuid, format);
            sys::sync(&*self.store.open(&at, true)?, &self.store.path_of(&at))?;
            self.complete_resize(record, uuid)?;
        } else {
            self.undo_resize(record, uuid)?;
        }
        Ok(grown)
    }

    pub(super) fn grow(&self, uuid: Uuid, format: Format, size: u64, from: u64) -> Result<()> {
        let at = Self::image_at(uuid, format);
        if format == Format::Vhd {
            let image = self.open_image(&at, Mode::Write)?;
            let room = |size| self.store.full_room(size);
            if let (Some(before), Some(after)) = (room(from), room(size))
                && (self.store.reserves() || self.stat(&at)?.length >= before)
            {
                image.extend_volume(after)?;
            }
            loop {
                match image.grow(size) {
                    Err(Error::VolumeFull { needed, .. }) => image.extend_volume(needed)?,
                    other => break other?,
                }
            }
            return image.finish_growing(from);
        }
        let path = self.store.path_of(&at);
        let file = self.store.open(&at, true)?;
        if sys::stat(&*file, &path)?.length < size {
            sys::set_len(&*file, &path, size)?;
        }
        sys::sync(&*file, &path)
    }

    pub(super) fn complete_resize(&self, record: &Record, uuid: Uuid) -> Result<()> {
        self.place_doc(uuid)?;
        sm_step::step!("vdi_resize.metadata_placed");
        self.store.sync(Area::Docs)?;
        self.remove_record(record.op)?;
        sm_step::step!("vdi_resize.finished");
        Ok(())
    }

    pub(super) fn undo_resize(&self, record: &Record, uuid: Uuid) -> Result<()> {
        // The record first: while it is there, the staged metadata belongs to it.
        self.remove_record(record.op)?;
        self.clear(&[uuid]);
        Ok(())
    }
}
