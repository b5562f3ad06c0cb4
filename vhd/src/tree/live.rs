//! Merging a disk into its parent while it is open, by whoever has it open.
//!
//! ```text
//! 1  begin_live_merge    under the lock: nobody else has the disk open, and it may be merged;
//!                        merge/<disk>.json is left, which every change of the disk takes away
//! 2  the holder copies what the disk's own image holds into its parent, while it is written,
//!    until both are the same; then it stops the disk's requests, and closes the parent
//! 3  finish_live_merge   under the lock again, when the record is still there:
//!    journal/<op>.json, the parent is shown, and gets the disk's name in place of its file
//! 4  the holder opens the disk by its name, and lets its requests go on
//! ```
//!
//! # Why this is safe
//!
//! Until the rename of step 3 the disk's own image has everything, and shadows whatever is written
//! into the parent: the holder writes there only what the disk's own image holds already. So it can
//! be given up at any time before, by anybody. The rename is the commit point: a holder that lost
//! whoever stopped its requests looks under which name its file is, *with the lock held*, and goes
//! on with the old one exactly when that still has the disk's name. Therefore what was cut before
//! the rename is undone, and not completed as a merge is whose disk nobody writes.

use uuid::Uuid;

use super::journal::{Action, Record};
use super::merges::{Candidate, Replace};
use super::readers::Beside;
use super::{Format, Guard, Tree};
use crate::error::{Error, Result};
use crate::image::Mode;

/// A merge of a disk that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveMerge {
    /// The disk.
    pub disk: Uuid,
    /// Its parent, which becomes its image.
    pub into: Uuid,
    /// Footer UUID of the disk's own image.
    pub disk_image: Uuid,
    /// Footer UUID of the parent.
    pub into_image: Uuid,
}

impl Tree {
    /// Begins to merge a disk, which `holders` alone have open ([`Tree::claim`]), into its parent.
    /// The same again is the same merge. [`Error::InUse`] when others have it open,
    /// [`Error::WrongType`] when it cannot be merged, with the reason.
    ///
    /// Why not into a smaller parent: that one would have to grow, which may move its blocks under
    /// the holder, who reads them.
    pub fn begin_live_merge(
        &self,
        guard: &Guard,
        disk: Uuid,
        holders: &[&str],
    ) -> Result<LiveMerge> {
        self.ready(guard, &[disk])?;
        let candidate = self.live_candidate(disk, holders)?;
        let child = self.open_image(&Self::image_at(disk, Format::Vhd), Mode::Read)?;
        let parent = self.open_image(&Self::image_at(candidate.into, Format::Vhd), Mode::Read)?;
        if parent.size() < child.size() {
            let what = "is smaller than the disk, which must be closed to be merged into it";
            return Err(Error::WrongType { path: parent.path().to_owned(), what });
        }
        self.begin_merge(candidate, &child, &parent)?;
        Ok(LiveMerge {
            disk,
            into: candidate.into,
            disk_image: child.info().uuid,
            into_image: parent.info().uuid,
        })
    }

    /// Lets the parent take the disk's place. The holder has stopped the disk's requests, the
    /// parent holds all of it, durably, and is closed. The same again is fine.
    /// [`Error::WrongType`] when the disk was changed since the merge began: then the holder goes
    /// on with the file it has.
    pub fn finish_live_merge(
        &self,
        guard: &Guard,
        op: Uuid,
        merge: &LiveMerge,
        holders: &[&str],
    ) -> Result<()> {
        let LiveMerge { disk, into, disk_image, into_image } = *merge;
        self.ready(guard, &[disk])?;
        let at = Self::image_at(disk, Format::Vhd);
        let now = self.probe(&at)?.uuid;
        if now == into_image {
            return Ok(());
        }
        let known = self.is_begun(disk, into, disk_image, into_image) && now == disk_image;
        if !known || self.live_candidate(disk, holders)?.into != into {
            let what = "was changed since its merge began";
            return Err(Error::WrongType { path: self.store.path_of(&at), what });
        }
        let replace = Replace { disk, base: into, base_image: into_image };
        let record = Record::new(op, Action::Exchange(replace));
        let done = self.write_record(&record).and_then(|()| {
            sm_step::step!("sr_maintain.journalled");
            self.complete_removal(&record)
        });
        if let Err(error) = done {
            // What has happened decides; what cannot be undone now is by the next call.
            return match self.recover_exchange(&record) {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(error),
            };
        }
        Ok(())
    }

    /// Gives a merge up: the disk stays as it is. None is fine.
    pub fn cancel_live_merge(&self, guard: &Guard, disk: Uuid) -> Result<()> {
        self.ready(guard, &[disk])?;
        self.abandon_merge(disk)
    }

    /// Completes an exchange that is past its commit point, and undoes it before. Whether it is
    /// complete.
    pub(super) fn recover_exchange(&self, record: &Record) -> Result<bool> {
        let Action::Exchange(replace) = &record.action else { return Ok(false) };
        if self.probe(&Self::image_at(replace.disk, Format::Vhd))?.uuid == replace.base_image {
            self.complete_removal(record)?;
            return Ok(true);
        }
        let base = self.open_image(&Self::image_at(replace.base, Format::Vhd), Mode::Write)?;
        base.set_hidden(true)?;
        self.remove_record(record.op)?;
        Ok(false)
    }

    fn live_candidate(&self, disk: Uuid, holders: &[&str]) -> Result<Candidate> {
        let is_other = |claim: &String| !holders.contains(&claim.as_str());
        let others = self.claims(disk)?.into_iter().find(is_other);
        if let Some(holder) = others {
            return Err(Error::InUse { uuid: disk, holder });
        }
        let scan = self.scan()?;
        let path = || self.store.path_of(&Self::image_at(disk, Format::Vhd));
        let beside = Beside { own: Some((disk, holders)), ..Beside::default() };
        let (candidates, _) = self.candidates_beside(&scan, beside)?;
        let is_disk = |entry: &super::scan::Entry| !entry.hidden() && entry.named_by == 0;
        if !scan.get(disk).is_some_and(is_disk) {
            return Err(Error::NotALeaf { uuid: disk });
        }
        candidates.into_iter().find(|candidate| candidate.node == disk).ok_or_else(|| {
            let what = "cannot be merged into a parent: it has none, or others need that";
            Error::WrongType { path: path(), what }
        })
    }
}
