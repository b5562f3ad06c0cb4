//! Finishing or taking back what was cut, and collecting base copies that nobody needs.

use std::collections::HashSet;

use uuid::Uuid;

use super::journal::{Action, Entry, Record};
use super::scan::Scan;
use super::{Format, Guard, Tree, image_name, parse_image, parse_name};
use crate::error::Result;
use crate::store::{Area, At};

/// What [`Tree::recover`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Operations that were past their commit point and are complete now.
    pub completed: Vec<Uuid>,
    /// Operations that were not, and left no trace.
    pub undone: Vec<Uuid>,
    /// Dead files removed from `tmp`.
    pub removed: Vec<String>,
    /// Operations that could be neither completed nor undone. The disks they name can be read but
    /// not changed until they are; the others are not concerned.
    pub failed: Vec<Failed>,
}

/// An operation that recovery could not deal with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The operation.
    pub op: Uuid,
    /// Disks and base copies that are part of it.
    pub uuids: Vec<Uuid>,
    /// Why.
    pub reason: String,
}

impl Tree {
    /// Completes or undoes what earlier calls left behind. Every call that changes something runs
    /// it first; with nothing left behind it costs two directory reads.
    ///
    /// Twice is the same as once, and a cut inside it is dealt with by the next run.
    pub fn recover(&self, guard: &Guard) -> Result<Recovery> {
        self.recover_beside(guard, None)
    }

    /// As [`Tree::recover`], with one record, and all that it names, left as it is.
    pub(super) fn recover_beside(&self, guard: &Guard, ahead: Option<&Record>) -> Result<Recovery> {
        self.check_guard(guard)?;
        self.store.heal()?;
        let mut recovery = Recovery::default();
        for entry in self.records()? {
            match entry {
                Entry::Torn(name) => {
                    self.store.remove(&At::new(Area::Journal, &*name))?;
                    recovery.removed.push(name);
                }
                Entry::Record(record) if Some(&record) == ahead => {}
                Entry::Record(record) => match self.recover_record(&record) {
                    Ok(true) => recovery.completed.push(record.op),
                    Ok(false) => recovery.undone.push(record.op),
                    Err(error) => recovery.failed.push(Failed {
                        op: record.op,
                        uuids: record.uuids(),
                        reason: error.reason(),
                    }),
                },
            }
        }
        let kept: HashSet<Uuid> = recovery
            .failed
            .iter()
            .flat_map(|failed| failed.uuids.iter().copied())
            .chain(ahead.iter().flat_map(|record| record.uuids()))
            .collect();
        recovery.removed.extend(self.remove_leftovers(&kept)?);
        Ok(recovery)
    }

    /// Whether the operation is complete now, rather than undone.
    fn recover_record(&self, record: &Record) -> Result<bool> {
        match &record.action {
            Action::Switch(switch) => {
                if self.is_committed(switch)? {
                    self.complete_switch(record, switch)?;
                    sm_step::step!("recover.completed");
                    Ok(true)
                } else {
                    self.undo_switch(record, switch)?;
                    sm_step::step!("recover.undone");
                    Ok(false)
                }
            }
            Action::Group { members } => {
                let completed = self.recover_group(record, members)?;
                if completed {
                    sm_step::step!("recover.group_completed");
                } else {
                    sm_step::step!("recover.group_taken_back");
                }
                Ok(completed)
            }
            Action::Relink(_) | Action::Replace(_) => {
                if let Action::Relink(relink) = &record.action {
                    self.only_near(relink)?;
                }
                // Everything that a merge copies is durable before its record is.
                self.complete_removal(record)?;
                sm_step::step!("recover.removed_from_tree");
                Ok(true)
            }
            Action::Exchange(_) => {
                let completed = self.recover_exchange(record)?;
                if !completed {
                    sm_step::step!("recover.undone");
                }
                Ok(completed)
            }
            Action::Resize { uuid, format, size, live: true, .. } => {
                let completed = self.recover_live_resize(record, *uuid, *format, *size)?;
                sm_step::step!("recover.resize_looked_at");
                Ok(completed)
            }
            Action::Resize { uuid, format, size, from, live: false } => {
                // Growing again is harmless. If it cannot be done, the disk has its old size,
                // because the size is the last thing that changes.
                match self.grow(*uuid, *format, *size, *from) {
                    Ok(()) => {
                        sm_step::step!("recover.grown");
                        self.complete_resize(record, *uuid)?;
                        Ok(true)
                    }
                    Err(error)
                        if error.is_no_space() || error.is_not_found() || error.is_corrupt() =>
                    {
                        self.undo_resize(record, *uuid)?;
                        Ok(false)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Removes what lies in `tmp`, except what belongs to `kept`.
    ///
    /// An image there was not created yet, or is deleted already, and takes its metadata with it,
    /// metadata first. Then the base copies that only it needed. The images go last, because they
    /// are what tells that there is something to do.
    fn remove_leftovers(&self, kept: &HashSet<Uuid>) -> Result<Vec<String>> {
        let found = self.store.names(Area::Tmp)?;
        let dead: Vec<String> = found
            .into_iter()
            .filter(|name| !parse_name(name).is_some_and(|(uuid, _)| kept.contains(&uuid)))
            .collect();
        if dead.is_empty() {
            return Ok(dead);
        }
        let images: Vec<(Uuid, Format)> =
            dead.iter().filter_map(|name| parse_image(name)).collect();
        for (uuid, _) in &images {
            let mut in_place = false;
            for format in Format::ALL {
                in_place |= self.store.exists(&Self::image_at(*uuid, format))?;
            }
            if !in_place && self.store.remove(&Self::doc_at(*uuid))? {
                sm_step::step!("recover.metadata_removed");
            }
        }
        let parents: Vec<Uuid> = images
            .iter()
            .filter(|(_, format)| *format == Format::Vhd)
            .filter_map(|(uuid, format)| self.probe(&Self::tmp_at(image_name(*uuid, *format))).ok())
            .filter_map(|info| info.parent)
            .map(|parent| parent.uuid)
            .collect();
        for parent in parents {
            // Read anew for each, since one may have taken along what the next one looks at.
            let scan = self.scan()?;
            let mut entries = scan.entries.iter();
            let named = entries.find(|entry| entry.info().is_some_and(|info| info.uuid == parent));
            if let Some(entry) = named {
                self.collect_in(&scan, entry.uuid, None)?;
            }
            sm_step::step!("recover.parents_moved");
        }
        let mut dead = dead;
        for name in self.store.names(Area::Tmp)? {
            // Also the base copies that came here just now.
            if parse_image(&name).is_some() && !dead.contains(&name) {
                let keep = parse_image(&name).is_some_and(|(uuid, _)| kept.contains(&uuid));
                if !keep {
                    dead.push(name);
                }
            }
        }
        if !images.is_empty() {
            // What is deleted from here on stays so.
            self.store.sync(Area::Images)?;
        }
        for name in &dead {
            self.store.remove(&Self::tmp_at(name))?;
            sm_step::step!("recover.removed");
        }
        Ok(dead)
    }

    /// Removes deleted images, all of whose traces are gone.
    pub(super) fn remove_dead(&self) -> Result<()> {
        for name in self.store.names(Area::Tmp)? {
            if parse_image(&name).is_some() {
                self.store.remove(&Self::tmp_at(name))?;
            }
        }
        Ok(())
    }

    /// Deletes every hidden base copy that no image needs. Answers which.
    ///
    /// Only needed for what other tools left behind, and after damaged images were deleted: as
    /// long as there is one that does not even tell whom it needs, nothing is collected.
    pub fn collect(&self, guard: &Guard) -> Result<Vec<Uuid>> {
        self.collect_after(guard, &HashSet::new())
    }

    /// As [`Tree::collect`]; `told` are claims of those who read nothing that is not in their chain.
    pub(super) fn collect_after(
        &self,
        guard: &Guard,
        told: &HashSet<(Uuid, String)>,
    ) -> Result<Vec<Uuid>> {
        self.ready(guard, &[])?;
        let mut collected = Vec::new();
        loop {
            let scan = self.scan()?;
            let unused = scan.entries.iter().filter(|e| e.hidden() && e.named_by == 0);
            let mut found = None;
            for entry in unused {
                if !self.may_be_read(&scan, entry, told)? {
                    found = Some(entry);
                    break;
                }
            }
            let Some(entry) = found else { break };
            let found = self.collect_in(&scan, entry.uuid, None)?;
            if found.is_empty() {
                break;
            }
            collected.extend(found);
        }
        self.remove_dead()?;
        Ok(collected)
    }

    /// Moves a base copy to `tmp` if nobody needs it, then its parent, and so on.
    pub(super) fn collect_from(&self, base: Uuid) -> Result<Vec<Uuid>> {
        let scan = self.scan()?;
        self.collect_in(&scan, base, None)
    }

    /// As [`Tree::collect_from`], with a scan from before `gone` was moved away.
    pub(super) fn collect_in(
        &self,
        scan: &Scan,
        base: Uuid,
        gone: Option<Uuid>,
    ) -> Result<Vec<Uuid>> {
        let mut collected = Vec::new();
        if !scan.is_complete_without(gone) {
            return Ok(collected);
        }
        let mut next = scan.index.get(&base).copied();
        let mut lost_child = usize::from(gone.is_some());
        while let Some(entry) = next.and_then(|index| scan.entries.get(index)) {
            if !entry.hidden() || entry.named_by > lost_child {
                break;
            }
            if self.is_kept(entry.uuid)? {
                // A later collection takes it.
                break;
            }
            let name = image_name(entry.uuid, Format::Vhd);
            match self.store.rename(&Self::image_at(entry.uuid, Format::Vhd), &Self::tmp_at(name)) {
                Ok(()) => {}
                // Two deleted leaves of one base: the first has taken it along.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            self.store.remove(&Self::doc_at(entry.uuid))?;
            collected.push(entry.uuid);
            lost_child = 1;
            next = entry.parent();
        }
        Ok(collected)
    }
}
