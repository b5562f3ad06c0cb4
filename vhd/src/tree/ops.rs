//! The operations with one visible effect: create, describe, introduce, delete.

use serde_json::Value;
use uuid::Uuid;

use super::doc::Doc;
use super::node::{Change, Format, Outcome};
use super::scan::{Scan, What};
use super::{Guard, Operation, Tree, image_name, mark};
use crate::error::{Error, Result};
use crate::image::{NewImage, create_in};
use crate::store::{Area, At};
use crate::{round_size, sys};

/// Sizes of raw disks are rounded up to a multiple of this, in bytes: the largest sector of a
/// disk drive.
const RAW_STEP: u64 = 4096;

/// Largest raw disk, in bytes: what a file offset can express. File systems have smaller limits,
/// and say so.
const RAW_LIMIT: u64 = i64::MAX as u64 / RAW_STEP * RAW_STEP;

/// Rounds a requested size up to what a disk of the format can have: [`round_size`] for a VHD, a
/// multiple of 4 KiB for a raw disk.
pub(super) fn disk_size(format: Format, requested: u64) -> Result<u64> {
    match format {
        Format::Vhd => round_size(requested),
        Format::Raw => requested
            .max(1)
            .checked_next_multiple_of(RAW_STEP)
            .filter(|size| *size <= RAW_LIMIT)
            .ok_or(Error::TooLarge { requested, limit: RAW_LIMIT }),
    }
}

impl Tree {
    /// Makes an empty disk of at least `size` bytes, rounded up to what its format can have.
    /// [`Outcome::Already`] when there is one of the same format and size.
    pub fn create(
        &self,
        guard: &Guard,
        uuid: Uuid,
        format: Format,
        size: u64,
        metadata: &Value,
    ) -> Result<Change> {
        let size = disk_size(format, size)?;
        self.ready(guard, &[uuid])?;
        let exists = |difference: String| Err(Error::Exists { uuid, difference });
        for found in Format::ALL {
            let found_size = match self.look(uuid, found) {
                None => continue,
                Some(What::Damaged(reason, _)) => return exists(format!("is damaged: {reason}")),
                Some(_) if found != format => {
                    return exists(format!("has the format {}", found.extension()));
                }
                Some(What::Vhd(info)) => info.size,
                Some(What::Raw { size, .. }) => size,
            };
            if found_size != size {
                return exists(format!("has {found_size} bytes"));
            }
            if self.doc(uuid)?.is_none() {
                return exists("was not made here; introduce it instead".to_owned());
            }
            self.sync_names()?;
            return Ok(Change::new(Outcome::Already, size));
        }
        if self.doc(uuid)?.is_some() {
            return exists("its image is gone".to_owned());
        }
        // The footer's UUID is not the disk's: it stays with the data when a snapshot gives the
        // disk a new leaf.
        let tmp = Self::tmp_at(image_name(uuid, format));
        match format {
            Format::Vhd => {
                let room = self.store.full_room(size).filter(|_| self.store.reserves());
                self.write_image(&tmp, &NewImage { uuid: Uuid::new_v4(), size, parent: None }, room)
            }
            Format::Raw => self.write_raw(&tmp, size),
        }
        .inspect_err(|_| drop(self.store.remove(&tmp)))?;
        self.place_new(Operation::Create, uuid, format, &Doc::new(format, metadata))?;
        Ok(Change::new(Outcome::Created, size))
    }

    /// Writes a new, empty VHD, synced; a volume has `room` bytes at least.
    pub(super) fn write_image(&self, at: &At, new: &NewImage, room: Option<u64>) -> Result<()> {
        let file = self.store.create(at, new.room()?.max(room.unwrap_or(0)))?;
        create_in(&*file, &self.store.path_of(at), new)
    }

    /// Writes a raw disk that reads as zeros, synced.
    fn write_raw(&self, at: &At, size: u64) -> Result<()> {
        let file = self.store.create(at, size)?;
        let path = self.store.path_of(at);
        sys::set_len(&*file, &path, size)?;
        sys::sync(&*file, &path)
    }

    /// Brings a finished image from `tmp` into place, behind its metadata. The rename of the image
    /// is the commit point: until then recovery finds the image in `tmp` and removes both.
    pub(super) fn place_new(
        &self,
        operation: Operation,
        uuid: Uuid,
        format: Format,
        doc: &Doc,
    ) -> Result<()> {
        let name = image_name(uuid, format);
        let tmp = Self::tmp_at(name);
        let placed = (|| {
            mark!(operation,
                Create => "vdi_create.image_written", Snapshot => "vdi_snapshot.image_written");
            self.stage_doc(uuid, doc)?;
            mark!(operation,
                Create => "vdi_create.metadata_staged", Snapshot => "vdi_snapshot.image_described");
            self.place_doc(uuid)?;
            mark!(operation,
                Create => "vdi_create.metadata_placed",
                Snapshot => "vdi_snapshot.image_metadata_placed");
            self.store.sync(Area::Docs)?;
            self.store.rename(&tmp, &Self::image_at(uuid, format))
        })();
        if let Err(error) = placed {
            // In this order: metadata without an image in `tmp` would be a lost disk.
            let _ = self.store.remove(&Self::tmp_at(format!("{uuid}.json")));
            if self.store.remove(&Self::doc_at(uuid)).is_ok() {
                let _ = self.store.remove(&tmp);
            }
            return Err(error);
        }
        mark!(operation,
            Create => "vdi_create.committed", Snapshot => "vdi_snapshot.image_placed");
        self.store.sync(Area::Images)
    }

    /// Makes a disk that is there already durable: whoever made it may have been cut before it came
    /// to that.
    pub(super) fn sync_names(&self) -> Result<()> {
        self.store.sync(Area::Docs)?;
        self.store.sync(Area::Images)
    }

    /// Replaces what is said about a disk. [`Outcome::Already`] when it says so.
    pub fn set_metadata(&self, guard: &Guard, uuid: Uuid, metadata: &Value) -> Result<Change> {
        self.describe(guard, uuid, metadata, Operation::Update)
    }

    /// Introduces an image that lies in the directory: from now on it is a disk with metadata.
    /// [`Outcome::Already`] when it is one, whose metadata stays.
    pub fn adopt(&self, guard: &Guard, uuid: Uuid, metadata: &Value) -> Result<Change> {
        self.describe(guard, uuid, metadata, Operation::Introduce)
    }

    fn describe(
        &self,
        guard: &Guard,
        uuid: Uuid,
        metadata: &Value,
        operation: Operation,
    ) -> Result<Change> {
        self.ready(guard, &[uuid])?;
        let node = self.get(uuid)?;
        if let super::Health::Quarantined(reason) = node.health {
            return Err(Error::Quarantined { uuid, reason });
        }
        if node.kind == super::Kind::Base {
            return Err(Error::NotALeaf { uuid });
        }
        let (outcome, doc) = match self.doc(uuid)? {
            Some(doc) if doc.metadata == *metadata || operation == Operation::Introduce => {
                self.store.sync(Area::Docs)?;
                return Ok(Change::new(Outcome::Already, node.virtual_size));
            }
            Some(doc) => (Outcome::Modified, Doc { metadata: metadata.clone(), ..doc }),
            None => (Outcome::Created, Doc::new(node.format, metadata)),
        };
        let staged = self.stage_doc(uuid, &doc);
        staged.inspect_err(|_| drop(self.store.remove(&Self::tmp_at(format!("{uuid}.json")))))?;
        mark!(operation,
            Update => "vdi_update.metadata_staged", Introduce => "vdi_introduce.metadata_staged");
        self.place_doc(uuid)?;
        mark!(operation,
            Update => "vdi_update.metadata_placed", Introduce => "vdi_introduce.metadata_placed");
        self.store.sync(Area::Docs)?;
        Ok(Change::new(outcome, node.virtual_size))
    }

    /// Deletes a disk, damaged or not, and the base copies that only it needed.
    /// [`Outcome::Already`] when there is none, [`Error::NotALeaf`] for a base copy.
    pub fn delete(&self, guard: &Guard, uuid: Uuid) -> Result<Change> {
        self.ready_to_change(guard, &[uuid])?;
        let mut moved = false;
        // Only a VHD can be, or have, a parent.
        let scan = if self.store.exists(&Self::image_at(uuid, Format::Vhd))? {
            self.scan()?
        } else {
            Scan::default()
        };
        if let Some(index) = scan.index.get(&uuid)
            && let Some(entry) = scan.entries.get(*index)
            && (entry.children > 0 || entry.hidden())
        {
            return Err(Error::NotALeaf { uuid });
        }
        for format in Format::ALL {
            let name = image_name(uuid, format);
            match self.store.rename(&Self::image_at(uuid, format), &Self::tmp_at(name)) {
                Ok(()) => moved = true,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        sm_step::step!("vdi_delete.moved");
        if moved {
            self.store.sync(Area::Images)?;
        }
        let described = self.store.remove(&Self::doc_at(uuid))?;
        self.forget_claims(uuid)?;
        sm_step::step!("vdi_delete.metadata_removed");
        if !moved && !described {
            return Ok(Change::new(Outcome::Already, 0));
        }
        let parent = scan.index.get(&uuid).and_then(|index| scan.entries.get(*index)?.parent());
        if let Some(parent) = parent.and_then(|parent| scan.entries.get(parent)) {
            self.collect_in(&scan, parent.uuid, Some(uuid))?;
        }
        sm_step::step!("vdi_delete.parents_moved");
        self.remove_dead()?;
        sm_step::step!("vdi_delete.finished");
        Ok(Change::new(Outcome::Deleted, 0))
    }
}
