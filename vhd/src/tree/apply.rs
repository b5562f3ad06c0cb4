//! Snapshot, clone, revert, resize: the operations with more than one visible effect.
//!
//! A snapshot of a leaf `S` with data makes it the base copy of two new leaves:
//!
//! ```text
//! 1  tmp/N.new, tmp/S.new    empty leaves on the base-to-be, synced
//! 2  tmp/N.json, tmp/S.json  metadata, synced
//! 3  journal/<op>.json       synced
//! 4  link S.vhd -> B.vhd     before 5 also on the storage: the data must not lose its only name
//! 5  rename S.new over S.vhd the commit point: before it everything is undone, after it completed
//! 6  metadata in place, rename N.new -> N.vhd, directories synced
//! 7  B is marked hidden      last, since before 5 it is the same file as S
//! 8  record removed
//! ```
//!
//! Where hard links are not supported, 4 is a rename; recovery finds `S` missing and `B` there and
//! renames it back. A revert is the same with the snapshot as `S` and the disk as `N`, which then
//! exists already and is replaced; a snapshot without data needs no base, and the commit point is
//! the rename of the disk's new leaf.

use serde_json::Value;
use uuid::Uuid;

use super::doc::Doc;
use super::journal::{Action, Base, FileId, Record, Switch};
use super::node::{Change, Format, Kind, Method, Node, Outcome};
use super::scan::What;
use super::{MAX_DEPTH, Operation, Tree, image_name, mark};
use crate::copy::{Progress, copy};
use crate::error::{Error, Result};
use crate::image::{Mode, NewImage, ParentLink};
use crate::store::{Area, At, Stat};
use crate::{Disk, Raw, sys};

/// Whoever has a disk open for writing while it is changed underneath. It is told when to stop and
/// when to go on; what it wrote before it stopped must be in the files then, durably.
///
/// The store's lock is held all the time. One that is not told to go on, because the caller has
/// ended, must take that lock itself and look at what is there.
pub trait Writer {
    /// It will be told to stop soon. What takes time is done now; nothing is left of that when it
    /// fails.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Stop. Once stopped, it says so again.
    fn stop(&self) -> Result<()>;

    /// Go on, with the images as they are now; they are durable. What it had open before is not
    /// used any more when this returns. It cannot say no: the change is made.
    fn go_on(&self);
}

/// A snapshot or clone to be made: what the new disk is called decides which of the two it is.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Id of the operation: the same id again is the same snapshot.
    pub op: Uuid,
    /// The disk whose content the new one gets. Its file becomes the base copy, so a process that
    /// has it open for writing must be told: [`Tree::snapshot_written`].
    pub source: Uuid,
    /// Name of the new disk.
    pub new: Uuid,
    /// What to say about the new disk.
    pub new_metadata: &'a Value,
    /// Whether a raw disk may be copied byte by byte where the file system cannot clone files.
    pub allow_copy: bool,
}

/// A disk to be put back to what a snapshot holds.
#[derive(Clone, Copy, Debug)]
pub struct Revert<'a> {
    /// Id of the operation: the same id again does nothing.
    pub op: Uuid,
    /// The disk; it keeps its name, loses its content and takes the snapshot's size.
    pub vdi: Uuid,
    /// The snapshot, which stays.
    pub snapshot: Uuid,
    /// What to say about the disk from now on.
    pub metadata: &'a Value,
    /// As in [`Snapshot::allow_copy`].
    pub allow_copy: bool,
}

impl Tree {
    /// Makes a snapshot or clone of a disk. [`Outcome::Already`] when `new` was made by the same
    /// operation before. `progress` is called during a copy of a raw disk only.
    pub fn snapshot(
        &self,
        guard: &super::Guard,
        request: &Snapshot<'_>,
        progress: Progress<'_>,
    ) -> Result<Change> {
        self.snapshot_written(guard, request, None, progress)
    }

    /// As [`Tree::snapshot`], of a disk that somebody has open for writing.
    pub fn snapshot_written(
        &self,
        guard: &super::Guard,
        request: &Snapshot<'_>,
        writer: Option<&dyn Writer>,
        progress: Progress<'_>,
    ) -> Result<Change> {
        let Snapshot { op, source, new, .. } = *request;
        self.ready_to_change(guard, &[source, new])?;
        if let Some(change) = self.made_before(request)? {
            return Ok(change);
        }
        let node = self.sound_leaf(source)?;
        let doc = Doc { created_by: Some(op), ..Doc::new(node.format, request.new_metadata) }
            .after(op, request.new_metadata);
        let mut change = Change::new(Outcome::Created, node.virtual_size);
        if node.format == Format::Raw {
            writer.map_or(Ok(()), Writer::prepare)?;
            writer.map_or(Ok(()), Writer::stop)?;
            let tmp = Self::tmp_at(image_name(new, Format::Raw));
            let made = self.clone_raw(&node, &tmp, request.allow_copy, progress);
            change.method = made.inspect_err(|_| drop(self.store.remove(&tmp)))?;
            self.place_new(Operation::Snapshot, new, Format::Raw, &doc)?;
            if let Some(writer) = writer {
                writer.go_on();
            }
            return Ok(change);
        }
        let at = Self::image_at(source, Format::Vhd);
        let mut image = self.open_image(&at, Mode::Read)?;
        if let Some(writer) = writer.filter(|_| image.is_empty()) {
            // What was written may not be in the file before the writer has stopped.
            writer.prepare()?;
            writer.stop()?;
            image = self.open_image(&at, Mode::Read)?;
        }
        if image.is_empty() {
            // Nothing in it: the new disk becomes its sibling, and no level is added.
            let parent = image.info().parent.as_ref().zip(node.parent);
            let parent = parent
                .map(|(link, uuid)| ParentLink { uuid: link.uuid, name: self.link_name(uuid) });
            let tmp = Self::tmp_at(image_name(new, Format::Vhd));
            let uuid = Uuid::new_v4();
            let image = NewImage { uuid, size: node.virtual_size, parent };
            let made = self.write_image(&tmp, &image, None);
            made.inspect_err(|_| drop(self.store.remove(&tmp)))?;
            self.place_new(Operation::Snapshot, new, Format::Vhd, &doc)?;
            if let Some(writer) = writer {
                writer.go_on();
            }
            return Ok(change);
        }
        drop(image);
        let switch = Switch {
            operation: Operation::Snapshot,
            base: Some(Self::base_of(&node)?),
            target: new,
            format: Format::Vhd,
            target_id: FileId::Image(Uuid::new_v4()),
            old_parent: None,
        };
        self.switch(op, &switch, &node, &doc, writer)?;
        Ok(change)
    }

    /// Puts a disk back to a snapshot's content. [`Outcome::Already`] when the same operation did
    /// so before.
    pub fn revert(
        &self,
        guard: &super::Guard,
        request: &Revert<'_>,
        progress: Progress<'_>,
    ) -> Result<Change> {
        let Revert { op, vdi, snapshot, .. } = *request;
        self.ready_to_change(guard, &[vdi, snapshot])?;
        let old = self.get(vdi)?;
        if old.kind == Kind::Base {
            return Err(Error::NotALeaf { uuid: vdi });
        }
        let known = self.doc(vdi).ok().flatten();
        if vdi == snapshot || known.is_some_and(|doc| doc.ops.contains(&op)) {
            return Ok(Change::new(Outcome::Already, old.virtual_size));
        }
        let node = self.sound_leaf(snapshot)?;
        if old.format != node.format {
            return Err(Error::FormatsDiffer { left: vdi, right: snapshot });
        }
        let doc = self.next_doc(vdi, node.format, op, request.metadata)?;
        let mut change = Change::new(Outcome::Modified, node.virtual_size);
        let mut switch = Switch {
            operation: Operation::Revert,
            base: None,
            target: vdi,
            format: node.format,
            target_id: FileId::Image(Uuid::new_v4()),
            old_parent: old.parent,
        };
        if node.format == Format::Raw {
            let tmp = Self::new_at(vdi);
            let made = self.clone_raw(&node, &tmp, request.allow_copy, progress);
            change.method = made.inspect_err(|_| drop(self.store.remove(&tmp)))?;
            switch.target_id = FileId::Inode(self.stat(&tmp)?.id.1);
        } else {
            let image = self.open_image(&Self::image_at(snapshot, Format::Vhd), Mode::Write)?;
            if !image.is_empty() {
                switch.base = Some(Self::base_of(&node)?);
            }
        }
        self.switch(op, &switch, &node, &doc, None)?;
        Ok(change)
    }

    /// The answer when the new disk is there already, made by this operation.
    pub(super) fn made_before(&self, request: &Snapshot<'_>) -> Result<Option<Change>> {
        let Snapshot { op, new, .. } = *request;
        let there = Format::ALL.into_iter().find_map(|format| self.look(new, format));
        let doc = self.doc(new)?;
        match (there, doc) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let difference = "its image is gone".to_owned();
                Err(Error::Exists { uuid: new, difference })
            }
            (Some(what), Some(doc)) if doc.created_by == Some(op) => {
                let size = match what {
                    What::Vhd(info) => info.size,
                    What::Raw { size, .. } => size,
                    What::Damaged(..) => 0,
                };
                self.sync_names()?;
                Ok(Some(Change::new(Outcome::Already, size)))
            }
            (Some(_), _) => {
                let difference = "was not made by this operation".to_owned();
                Err(Error::Exists { uuid: new, difference })
            }
        }
    }

    /// A disk that can be the source of something.
    pub(super) fn sound_leaf(&self, uuid: Uuid) -> Result<Node> {
        let node = self.get(uuid)?;
        match &node.health {
            super::Health::Quarantined(reason) => {
                Err(Error::Quarantined { uuid, reason: reason.clone() })
            }
            super::Health::Ok if node.kind == Kind::Base => Err(Error::NotALeaf { uuid }),
            super::Health::Ok => Ok(node),
        }
    }

    pub(super) fn next_doc(
        &self,
        uuid: Uuid,
        format: Format,
        op: Uuid,
        metadata: &Value,
    ) -> Result<Doc> {
        let doc = self.doc(uuid)?.unwrap_or_else(|| Doc::new(format, metadata));
        Ok(doc.after(op, metadata))
    }

    pub(super) fn base_of(source: &Node) -> Result<Base> {
        if source.depth >= MAX_DEPTH {
            let (uuid, depth, limit) = (source.uuid, source.depth, MAX_DEPTH);
            return Err(Error::ChainTooLong { uuid, depth, limit });
        }
        // New ids on every try, and the record tells them: what an earlier try left behind is never
        // taken for this one's.
        Ok(Base { source: source.uuid, name: Uuid::new_v4(), leaf: Uuid::new_v4() })
    }

    pub(super) fn new_at(uuid: Uuid) -> At {
        Self::tmp_at(format!("{uuid}.new"))
    }

    /// Removes what was staged for disks; best effort, since recovery does the same.
    pub(super) fn clear(&self, uuids: &[Uuid]) {
        for uuid in uuids {
            let _ = self.store.remove(&Self::new_at(*uuid));
            let _ = self.store.remove(&Self::tmp_at(format!("{uuid}.json")));
        }
    }

    /// Fills `tmp` with a raw disk's content, synced.
    pub(super) fn clone_raw(
        &self,
        source: &Node,
        tmp: &At,
        allow_copy: bool,
        progress: Progress<'_>,
    ) -> Result<Method> {
        let at = Self::image_at(source.uuid, Format::Raw);
        let (from_path, path) = (self.store.path_of(&at), self.store.path_of(tmp));
        self.store.remove(tmp)?;
        let from = self.store.open(&at, false)?;
        let to = self.store.create(tmp, source.virtual_size)?;
        if to.reflink(&*from).map_err(Error::io(&path, "clone"))? {
            sys::sync(&*to, &path)?;
            return Ok(Method::Reflink);
        }
        if !allow_copy {
            return Err(Error::CopyNotAllowed { uuid: source.uuid });
        }
        let from = Raw::from_blob(from, &from_path, Mode::Read)?;
        sys::set_len(&*to, &path, from.size())?;
        let to = Raw::from_blob(to, &path, Mode::Write)?;
        copy(&from, &to, progress)?;
        Ok(Method::Copy)
    }

    pub(super) fn stat(&self, at: &At) -> Result<Stat> {
        sys::stat(&*self.store.open(at, false)?, &self.store.path_of(at))
    }

    /// Prepares and runs a switch. `content` is the node whose content the target gets.
    fn switch(
        &self,
        op: Uuid,
        switch: &Switch,
        content: &Node,
        target_doc: &Doc,
        writer: Option<&dyn Writer>,
    ) -> Result<()> {
        let record = Record::new(op, Action::Switch(switch.clone()));
        let prepared = self
            .stage_switch(switch, content, target_doc)
            .and_then(|()| writer.map_or(Ok(()), Writer::prepare))
            .and_then(|()| self.write_record(&record));
        if let Err(error) = prepared {
            let _ = self.remove_record(op);
            let source = switch.base.as_ref().map(|base| base.source);
            self.clear(&[Some(switch.target), source].into_iter().flatten().collect::<Vec<_>>());
            return Err(error);
        }
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.journalled", Revert => "vdi_revert.journalled");
        // Everything that takes time is done: it stops for two renames and a sync.
        let committed =
            writer.map_or(Ok(()), Writer::stop).and_then(|()| self.commit(switch)).and_then(|()| {
                if writer.is_some() {
                    // What it makes durable from now on lies in a file that must be found again.
                    self.store.sync(Area::Images)?;
                }
                Ok(())
            });
        if let Err(error) = committed {
            // If this fails as well, the record stays and the next call tries again.
            if !self.is_committed(switch)? {
                self.undo_switch(&record, switch)?;
            }
            return Err(error);
        }
        if let Some(writer) = writer {
            writer.go_on();
            mark!(switch.operation, Snapshot => "vdi_snapshot.writer_went_on");
        }
        self.complete_switch(&record, switch)
    }

    /// Steps 1 and 2: everything that takes space.
    pub(super) fn stage_switch(
        &self,
        switch: &Switch,
        content: &Node,
        target_doc: &Doc,
    ) -> Result<()> {
        if let FileId::Image(uuid) = switch.target_id {
            let parent = match (&switch.base, content.parent) {
                (Some(base), _) => {
                    let uuid = content.image_uuid.unwrap_or_default();
                    Some(ParentLink { uuid, name: self.link_name(base.name) })
                }
                (None, Some(parent)) => {
                    let info = self.probe(&Self::image_at(parent, Format::Vhd))?;
                    Some(ParentLink { uuid: info.uuid, name: self.link_name(parent) })
                }
                (None, None) => None,
            };
            let mut leaf = NewImage { uuid, size: content.virtual_size, parent };
            let path = Self::new_at(switch.target);
            self.store.remove(&path)?;
            self.write_image(&path, &leaf, None)?;
            mark!(switch.operation,
                Snapshot => "vdi_snapshot.new_leaf_written", Revert => "vdi_revert.new_leaf_written");
            if let Some(base) = &switch.base {
                leaf.uuid = base.leaf;
                let path = Self::new_at(base.source);
                self.store.remove(&path)?;
                // Whoever writes the disk goes on in it: it has the room that the disk had.
                let full = self.store.full_room(leaf.size).filter(|room| {
                    let source = Self::image_at(base.source, Format::Vhd);
                    self.stat(&source).is_ok_and(|stat| stat.length >= *room)
                });
                self.write_image(&path, &leaf, full)?;
                mark!(switch.operation,
                    Snapshot => "vdi_snapshot.source_leaf_written",
                    Revert => "vdi_revert.source_leaf_written");
            }
        }
        self.stage_doc(switch.target, target_doc)?;
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.metadata_staged", Revert => "vdi_revert.metadata_staged");
        Ok(())
    }

    /// Steps 4 and 5.
    pub(super) fn commit(&self, switch: &Switch) -> Result<()> {
        if let Some(base) = &switch.base {
            let source = Self::image_at(base.source, Format::Vhd);
            let kept = Self::image_at(base.name, Format::Vhd);
            if !self.store.link(&source, &kept)? {
                self.store.rename(&source, &kept)?;
            }
            mark!(switch.operation,
                Snapshot => "vdi_snapshot.linked", Revert => "vdi_revert.linked");
            // Without a sync in between: the store keeps the order, so there is never a time when
            // the data has no name.
            self.store.rename(&Self::new_at(base.source), &source)?;
        } else {
            let target = Self::image_at(switch.target, switch.format);
            self.store.rename(&Self::new_at(switch.target), &target)?;
        }
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.switched", Revert => "vdi_revert.switched");
        Ok(())
    }

    /// Whether the commit point was passed: told by what is in place, not by what was written.
    pub(super) fn is_committed(&self, switch: &Switch) -> Result<bool> {
        let (uuid, id) = match &switch.base {
            Some(base) => (base.source, FileId::Image(base.leaf)),
            None => (switch.target, switch.target_id),
        };
        let path = Self::image_at(uuid, switch.format);
        match id {
            FileId::Image(expected) => match self.probe(&path) {
                Ok(info) => Ok(info.uuid == expected),
                Err(error) if error.is_not_found() || error.is_corrupt() => Ok(false),
                Err(error) => Err(error),
            },
            FileId::Inode(expected) => match self.stat(&path) {
                Ok(stat) => Ok(stat.id.1 == expected),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Steps 6 to 8, also by recovery: each looks whether it was done.
    pub(super) fn complete_switch(&self, record: &Record, switch: &Switch) -> Result<()> {
        self.finish_switch(switch)?;
        self.remove_record(record.op)?;
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.finished", Revert => "vdi_revert.finished");
        Ok(())
    }

    /// As [`Self::complete_switch`], with the record left.
    pub(super) fn finish_switch(&self, switch: &Switch) -> Result<()> {
        self.place_doc(switch.target)?;
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.metadata_placed", Revert => "vdi_revert.metadata_placed");
        self.store.sync(Area::Docs)?;
        let new = Self::new_at(switch.target);
        if switch.base.is_some() && self.store.exists(&new)? {
            self.store.rename(&new, &Self::image_at(switch.target, switch.format))?;
        }
        mark!(switch.operation,
            Snapshot => "vdi_snapshot.new_placed", Revert => "vdi_revert.new_placed");
        self.store.sync(Area::Images)?;
        if let Some(base) = &switch.base {
            let path = Self::image_at(base.name, Format::Vhd);
            self.open_image(&path, Mode::Write)?.set_hidden(true)?;
            mark!(switch.operation,
                Snapshot => "vdi_snapshot.base_hidden", Revert => "vdi_revert.base_hidden");
        }
        if let Some(parent) = switch.old_parent {
            self.collect_from(parent)?;
            mark!(switch.operation, Revert => "vdi_revert.parents_moved");
            self.remove_dead()?;
        }
        Ok(())
    }

    /// Takes back steps 1 to 4.
    pub(super) fn undo_switch(&self, record: &Record, switch: &Switch) -> Result<()> {
        let mut staged = vec![switch.target];
        self.unlink_base(switch)?;
        staged.extend(switch.base.as_ref().map(|base| base.source));
        // The record last: while it is there, this is run again.
        self.remove_staged(&staged)?;
        self.remove_record(record.op)
    }

    /// Takes back the first half of step 4.
    pub(super) fn unlink_base(&self, switch: &Switch) -> Result<()> {
        if let Some(base) = &switch.base {
            let source = Self::image_at(base.source, Format::Vhd);
            let kept = Self::image_at(base.name, Format::Vhd);
            if self.store.exists(&kept)? {
                if !self.store.exists(&source)? {
                    self.store.rename(&kept, &source)?;
                } else if self.stat(&source)?.id == self.stat(&kept)?.id {
                    self.store.remove(&kept)?;
                }
                sm_step::step!("recover.unlinked");
                self.store.sync(Area::Images)?;
            }
        }
        Ok(())
    }

    /// Takes back steps 1 and 2.
    pub(super) fn remove_staged(&self, uuids: &[Uuid]) -> Result<()> {
        for uuid in uuids {
            self.store.remove(&Self::new_at(*uuid))?;
            self.store.remove(&Self::tmp_at(format!("{uuid}.json")))?;
        }
        sm_step::step!("recover.unstaged");
        Ok(())
    }
}
