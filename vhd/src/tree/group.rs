//! Snapshots of several disks at one point in time: all of them, or none.
//!
//! ```text
//! 1  all that takes space    for each disk as for one: see `apply.rs`; a disk that shares nothing
//!                            which changes (an empty leaf, a raw disk) gets tmp/N.new alone
//! 2  journal/<op>.json       one record for all, synced
//! 3  the writers stop        all of them, before the first is switched
//! 4  link and rename         for each disk with data; the last rename is the commit point
//! 5  sync                    of the names
//! 6  the writers go on
//! 7  the rest                as for one disk, for each; the record goes last
//! ```
//!
//! # What may be done ahead
//!
//! Steps 1 and 2, by [`Tree::prepare_group`], with the lock given back after them. The record is then
//! that of a group which nobody has committed: whoever changes the store first takes it back, as after
//! a death. So what is prepared is there with all that it was made from unchanged, or it is not there,
//! and then it is made when it is needed. Nobody else can switch a disk of it: only the operation that
//! the record is of looks whether it is all there.
//!
//! # Who may go on, and with what
//!
//! Whoever looks by himself, because the caller has died, finds his disk switched, or not, and goes
//! on with what he finds. So a disk that was not switched may have been written since, and nothing
//! of the group can be completed by switching it later. Therefore recovery completes a group exactly
//! when every disk is switched: then all had stopped before, and none had gone on. Otherwise no
//! snapshot is made: a disk that was switched stays on its new leaf, which has all that was written
//! since, with a base copy below that maintenance merges away; one that was not stays as it is. No
//! snapshot of a group has a name before all have been decided upon.
//!
//! When no disk has data, there is nothing to switch, and the first snapshot that gets its name
//! decides: all were looked at while the writers were stopped.

use std::collections::HashSet;
use std::ops::ControlFlow;

use uuid::Uuid;

use super::doc::{Doc, VERSION};
use super::journal::{Action, Beside, FileId, Member, Record, Switch};
use super::node::{Change, Format, Outcome};
use super::{Guard, Operation, Snapshot, Tree, Writer};
use crate::copy::Progress;
use crate::error::{Error, Result};
use crate::image::{Mode, NewImage, ParentLink};
use crate::store::Area;

/// The disks and the snapshots of a group.
fn named(requests: &[Snapshot<'_>]) -> Result<Vec<Uuid>> {
    let uuids: Vec<Uuid> =
        requests.iter().flat_map(|request| [request.source, request.new]).collect();
    let mut seen = HashSet::new();
    match uuids.iter().find(|uuid| !seen.insert(**uuid)) {
        None => Ok(uuids),
        Some(twice) => {
            let difference = "is named twice in one group".to_owned();
            Err(Error::Exists { uuid: *twice, difference })
        }
    }
}

impl Tree {
    /// Takes snapshots of several disks at one point in time; `writer` is told once for all of them.
    /// Answers one change for each request, in their order.
    ///
    /// [`Outcome::Already`] when the same operation made them all before. If some of what it made is
    /// gone since, the rest goes too, and all are made anew.
    pub fn snapshot_group(
        &self,
        guard: &Guard,
        requests: &[Snapshot<'_>],
        writer: Option<&dyn Writer>,
        progress: Progress<'_>,
    ) -> Result<Vec<Change>> {
        let [first, ..] = requests else { return Ok(Vec::new()) };
        if let [only] = requests {
            return Ok(vec![self.snapshot_written(guard, only, writer, progress)?]);
        }
        let uuids = named(requests)?;
        self.check_guard(guard)?;
        let mut ahead = self.ahead(first.op, requests)?;
        self.ready_beside(guard, &uuids, ahead.as_ref())?;
        let mut made = Vec::new();
        for request in requests {
            made.push(self.made_before(request)?);
        }
        if made.iter().all(Option::is_some) {
            return Ok(made.into_iter().flatten().collect());
        }
        for (request, _) in requests.iter().zip(&made).filter(|(_, made)| made.is_some()) {
            self.delete(guard, request.new)?;
        }

        let op = first.op;
        let mut with_data = HashSet::new();
        // Once more when a disk that was empty has got data before its writer stopped; after that
        // nobody writes any more.
        for _ in 0..2 {
            let prepared = ahead.take();
            let was_ahead = prepared.is_some();
            let record = match prepared {
                Some(record) => record,
                None => self.stage_group(op, requests, &with_data, writer, progress)?,
            };
            let Action::Group { members } = &record.action else { break };
            let ready = if was_ahead { writer.map_or(Ok(()), Writer::prepare) } else { Ok(()) };
            let stopped = ready.and_then(|()| writer.map_or(Ok(()), Writer::stop));
            let done = stopped.and_then(|()| {
                let filled = self.filled(requests, members)?;
                if filled.is_empty() { self.commit_group(members) } else { Ok(filled) }
            });
            match done {
                Ok(filled) if filled.is_empty() => {}
                Ok(filled) => {
                    self.recover_group(&record, members)?;
                    with_data.extend(filled);
                    continue;
                }
                Err(error) => {
                    // If this fails as well, the record stays and the next call tries again.
                    self.recover_group(&record, members)?;
                    return Err(error);
                }
            }
            if let Some(writer) = writer {
                writer.go_on();
            }
            sm_step::step!("vdi_snapshot.group_went_on");
            self.complete_group(&record, members)?;
            if was_ahead {
                // Their time was another one. One that is cut here has the earlier one.
                for request in requests {
                    self.set_metadata(guard, request.new, request.new_metadata)?;
                }
            }
            let sizes = requests.iter().map(|request| self.get(request.new));
            return sizes
                .map(|node| Ok(Change::new(Outcome::Created, node?.virtual_size)))
                .collect();
        }
        let holder = "it is written although it was stopped".to_owned();
        Err(Error::InUse { uuid: first.source, holder })
    }

    /// Does ahead what of a [`Self::snapshot_group`] takes time and space. Nothing of it is seen, and
    /// the next call of another operation that changes the store takes it back. Where there is nothing
    /// to gain it does nothing: for one disk, and where one is raw, since that is copied as it is then.
    pub fn prepare_group(&self, guard: &Guard, requests: &[Snapshot<'_>]) -> Result<()> {
        let [first, _, ..] = requests else { return Ok(()) };
        let uuids = named(requests)?;
        self.ready_to_change(guard, &uuids)?;
        for request in requests {
            if self.made_before(request)?.is_some()
                || self.sound_leaf(request.source)?.format == Format::Raw
            {
                return Ok(());
            }
        }
        let progress: Progress<'_> = &mut |_| ControlFlow::Continue(());
        self.stage_group(first.op, requests, &HashSet::new(), None, progress)?;
        sm_step::step!("vdi_snapshot.group_prepared");
        Ok(())
    }

    /// The record of a group that was prepared, if all of it is there and nothing of it was switched.
    fn ahead(&self, op: Uuid, requests: &[Snapshot<'_>]) -> Result<Option<Record>> {
        let Some(bytes) = self.read_small(&Self::journal_at(op))? else { return Ok(None) };
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else { return Ok(None) };
        let Action::Group { members } = &record.action else { return Ok(None) };
        let pair = |member: &Member| match member {
            Member::Switch(switch) => (switch.base.as_ref().map(|base| base.source), switch.target),
            Member::Beside(beside) => (Some(beside.source), beside.target),
        };
        let wanted = requests.iter().map(|request| (Some(request.source), request.new));
        if record.sm > VERSION || !members.iter().map(pair).eq(wanted) {
            return Ok(None);
        }
        for member in members {
            if !self.is_ahead(member)? {
                return Ok(None);
            }
        }
        Ok(Some(record))
    }

    fn is_ahead(&self, member: &Member) -> Result<bool> {
        let staged = |uuid: Uuid, id: FileId| {
            let FileId::Image(expected) = id else { return Ok(false) };
            match self.probe(&Self::new_at(uuid)) {
                Ok(info) => Ok(info.uuid == expected),
                Err(error) if error.is_not_found() || error.is_corrupt() => Ok(false),
                Err(error) => Err(error),
            }
        };
        let (target, id) = match member {
            Member::Switch(switch) => (switch.target, switch.target_id),
            Member::Beside(beside) => (beside.target, beside.id),
        };
        if let Member::Switch(Switch { base: Some(base), .. }) = member
            && (self.store.exists(&Self::image_at(base.name, Format::Vhd))?
                || !staged(base.source, FileId::Image(base.leaf))?)
        {
            return Ok(false);
        }
        Ok(staged(target, id)? && self.store.exists(&Self::tmp_at(format!("{target}.json")))?)
    }

    /// Steps 1 and 2.
    fn stage_group(
        &self,
        op: Uuid,
        requests: &[Snapshot<'_>],
        with_data: &HashSet<Uuid>,
        writer: Option<&dyn Writer>,
        progress: Progress<'_>,
    ) -> Result<Record> {
        let mut members = Vec::with_capacity(requests.len());
        let mut staged = || -> Result<Record> {
            for request in requests {
                let member = self.stage_member(op, request, with_data, &mut *progress)?;
                members.push(member);
                sm_step::step!("vdi_snapshot.member_staged");
            }
            writer.map_or(Ok(()), Writer::prepare)?;
            let record = Record::new(op, Action::Group { members: std::mem::take(&mut members) });
            self.write_record(&record)?;
            sm_step::step!("vdi_snapshot.group_journalled");
            Ok(record)
        };
        staged().inspect_err(|_| {
            let _ = self.remove_record(op);
            let uuids: Vec<Uuid> =
                requests.iter().flat_map(|request| [request.source, request.new]).collect();
            self.clear(&uuids);
        })
    }

    fn stage_member(
        &self,
        op: Uuid,
        request: &Snapshot<'_>,
        with_data: &HashSet<Uuid>,
        progress: Progress<'_>,
    ) -> Result<Member> {
        let Snapshot { source, new, .. } = *request;
        let node = self.sound_leaf(source)?;
        let doc = Doc { created_by: Some(op), ..Doc::new(node.format, request.new_metadata) }
            .after(op, request.new_metadata);
        let tmp = Self::new_at(new);
        let beside = |id| Member::Beside(Beside { source, target: new, format: node.format, id });
        if node.format == Format::Raw {
            self.clone_raw(&node, &tmp, request.allow_copy, progress)?;
            self.stage_doc(new, &doc)?;
            return Ok(beside(FileId::Inode(self.stat(&tmp)?.id.1)));
        }
        let image = self.open_image(&Self::image_at(source, Format::Vhd), Mode::Read)?;
        if image.is_empty() && !with_data.contains(&source) {
            let parent = image.info().parent.as_ref().zip(node.parent);
            let parent = parent
                .map(|(link, uuid)| ParentLink { uuid: link.uuid, name: self.link_name(uuid) });
            let uuid = Uuid::new_v4();
            self.store.remove(&tmp)?;
            self.write_image(&tmp, &NewImage { uuid, size: node.virtual_size, parent }, None)?;
            self.stage_doc(new, &doc)?;
            return Ok(beside(FileId::Image(uuid)));
        }
        let switch = Switch {
            operation: Operation::Snapshot,
            base: Some(Self::base_of(&node)?),
            target: new,
            format: Format::Vhd,
            target_id: FileId::Image(Uuid::new_v4()),
            old_parent: None,
        };
        self.stage_switch(&switch, &node, &doc)?;
        Ok(Member::Switch(switch))
    }

    /// The disks that were empty and are not any more.
    fn filled(&self, requests: &[Snapshot<'_>], members: &[Member]) -> Result<Vec<Uuid>> {
        let mut filled = Vec::new();
        for (request, member) in requests.iter().zip(members) {
            if let Member::Beside(Beside { format: Format::Vhd, .. }) = member {
                let at = Self::image_at(request.source, Format::Vhd);
                if !self.open_image(&at, Mode::Read)?.is_empty() {
                    filled.push(request.source);
                }
            }
        }
        Ok(filled)
    }

    /// Steps 4 and 5.
    fn commit_group(&self, members: &[Member]) -> Result<Vec<Uuid>> {
        for member in members {
            if let Member::Switch(switch) = member {
                self.commit(switch)?;
                sm_step::step!("vdi_snapshot.member_switched");
            }
        }
        self.store.sync(Area::Images)?;
        Ok(Vec::new())
    }

    /// Whether the commit point was passed: told by what is in place.
    fn is_group_committed(&self, members: &[Member]) -> Result<bool> {
        let mut switches = 0;
        for member in members {
            if let Member::Switch(switch) = member {
                switches += 1;
                if !self.is_committed(switch)? {
                    return Ok(false);
                }
            }
        }
        if switches > 0 {
            return Ok(true);
        }
        for member in members {
            if let Member::Beside(beside) = member
                && self.is_placed(beside)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_placed(&self, beside: &Beside) -> Result<bool> {
        let at = Self::image_at(beside.target, beside.format);
        match beside.id {
            FileId::Image(expected) => match self.probe(&at) {
                Ok(info) => Ok(info.uuid == expected),
                Err(error) if error.is_not_found() || error.is_corrupt() => Ok(false),
                Err(error) => Err(error),
            },
            FileId::Inode(expected) => match self.stat(&at) {
                Ok(stat) => Ok(stat.id.1 == expected),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error),
            },
        }
    }

    /// Step 7, also by recovery: each looks whether it was done.
    fn complete_group(&self, record: &Record, members: &[Member]) -> Result<()> {
        // Those that need no switch first: the first of them decides where there are no others.
        for member in members {
            let Member::Beside(beside) = member else { continue };
            self.place_doc(beside.target)?;
            self.store.sync(Area::Docs)?;
            let new = Self::new_at(beside.target);
            if self.store.exists(&new)? {
                self.store.rename(&new, &Self::image_at(beside.target, beside.format))?;
            }
            sm_step::step!("vdi_snapshot.member_placed");
            self.store.sync(Area::Images)?;
        }
        for member in members {
            if let Member::Switch(switch) = member {
                self.finish_switch(switch)?;
            }
        }
        self.remove_record(record.op)?;
        sm_step::step!("vdi_snapshot.group_finished");
        Ok(())
    }

    /// Completes a group that is past its commit point, and takes it back before. Whether it is
    /// complete.
    pub(super) fn recover_group(&self, record: &Record, members: &[Member]) -> Result<bool> {
        if self.is_group_committed(members)? {
            self.complete_group(record, members)?;
            return Ok(true);
        }
        let mut staged = Vec::new();
        for member in members {
            match member {
                Member::Switch(switch) if self.is_committed(switch)? => {
                    // Its disk has gone on with the new leaf, and stays there.
                    if let Some(base) = &switch.base {
                        let at = Self::image_at(base.name, Format::Vhd);
                        self.open_image(&at, Mode::Write)?.set_hidden(true)?;
                        sm_step::step!("recover.member_kept");
                    }
                    staged.push(switch.target);
                }
                Member::Switch(switch) => {
                    self.unlink_base(switch)?;
                    staged.extend(switch.base.as_ref().map(|base| base.source));
                    staged.push(switch.target);
                }
                Member::Beside(beside) => {
                    // The first of them may have got that far.
                    self.store.remove(&Self::doc_at(beside.target))?;
                    staged.push(beside.target);
                }
            }
        }
        self.remove_staged(&staged)?;
        self.remove_record(record.op)?;
        Ok(false)
    }
}
