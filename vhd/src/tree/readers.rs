//! Those who have disks open and can be told that images change.
//!
//! A claim says that somebody has a disk open, and maintenance leaves its chain alone. Of those who
//! can be told, it leaves the disk's own image alone, and merges the base copies below it:
//!
//! ```text
//! 1-3  as any merge: what is copied into the parent is shadowed by the node for every reader
//! 4    the disks whose own images are children of the node are stopped, and closed
//! 5    journal/<op>.json   it says that somebody has the node open
//! 6    each child of the node names the node's parent
//! 7    every disk above goes over to its new chain
//! 8    the node is deleted, when all of them have said so; records removed
//! ```
//!
//! A parent that is smaller than the node would have to grow first, which may move blocks that a
//! reader knows; it is left alone then.
//!
//! Cut after 5, recovery completes 6, and leaves the node: it cannot ask who has gone over. What 6
//! writes, a parent's name and the header, is written by nobody who has the image open. Then the
//! node is a base copy without children, which the next maintenance deletes after all who have
//! disks open have gone over to what there is ([`Tree::collect_beside`]).

use std::collections::HashSet;

use uuid::Uuid;

use super::journal::Action;
use super::merges::{Candidate, Progress};
use super::scan::{Entry, Scan};
use super::{Guard, Planned, Tree};
use crate::error::Result;

/// See the module. Called with the store's lock held, except for [`Readers::hears`].
pub trait Readers: Sync {
    /// Whether whoever has made this claim can be told of everything that happens to the images of
    /// the disk.
    fn hears(&self, disk: Uuid, holder: &str) -> bool;

    /// Stop, and close all images, until told to go over. After an error none is stopped.
    fn close(&self, disks: &[Uuid]) -> Result<()>;

    /// The disk has other images now, durably: go over to them, and on. Nothing else of the disk is
    /// open when this returns without an error.
    fn go_over(&self, disk: Uuid) -> Result<()>;
}

/// Whose claims count as if they were not there.
#[derive(Clone, Copy, Default)]
pub(super) struct Beside<'a> {
    /// Those who hear of changes.
    pub(super) readers: Option<&'a dyn Readers>,
    /// Their own images may be merged, too: they do it themselves.
    pub(super) leaves: bool,
    /// A disk, and those who have it open.
    pub(super) own: Option<(Uuid, &'a [&'a str])>,
}

impl<'a> Beside<'a> {
    pub(super) fn readers(readers: Option<&'a dyn Readers>) -> Self {
        Self { readers, ..Self::default() }
    }

    pub(super) fn is_own(&self, disk: Uuid, holder: &str) -> bool {
        self.own.is_some_and(|(own, holders)| own == disk && holders.contains(&holder))
    }

    pub(super) fn hears(&self, disk: Uuid, holder: &str) -> bool {
        self.readers.is_some_and(|readers| readers.hears(disk, holder))
    }
}

impl Tree {
    /// Disks that can be merged into their parents by those who have them open, with
    /// [`Tree::begin_live_merge`].
    pub fn live_leaves(&self, readers: &dyn Readers) -> Result<Vec<Planned>> {
        let scan = self.settled(|| self.scan())?;
        let beside = Beside { readers: Some(readers), leaves: true, own: None };
        let (candidates, _) = self.candidates_beside(&scan, beside)?;
        let open: HashSet<Uuid> = self.claimed()?.into_iter().map(|(disk, _)| disk).collect();
        let is_open_disk = |node: &Uuid| {
            open.contains(node) && scan.get(*node).is_some_and(|entry| !entry.hidden())
        };
        let found = candidates.into_iter().filter(|candidate| is_open_disk(&candidate.node));
        Ok(found.map(|candidate| Planned { live: true, ..self.planned(candidate) }).collect())
    }

    /// As [`Tree::collect`], after all who have disks open have gone over to their images as they
    /// are. When one does not, nothing is deleted, and the error is that.
    pub fn collect_beside(&self, guard: &Guard, readers: &dyn Readers) -> Result<Vec<Uuid>> {
        self.ready(guard, &[])?;
        let scan = self.scan()?;
        if !scan.entries.iter().any(|entry| entry.hidden() && entry.named_by == 0) {
            return Ok(Vec::new());
        }
        let (mut over, mut told) = (HashSet::new(), HashSet::new());
        for (disk, holder) in self.claimed()? {
            if !readers.hears(disk, &holder) {
                continue;
            }
            if over.insert(disk) {
                readers.go_over(disk)?;
            }
            told.insert((disk, holder));
        }
        self.collect_after(guard, &told)
    }

    /// The disks above a node that somebody has open who hears of changes.
    pub(super) fn open_above(
        &self,
        scan: &Scan,
        node: Uuid,
        readers: &dyn Readers,
    ) -> Result<Vec<Uuid>> {
        let mut open = Vec::new();
        for (disk, holder) in self.claimed()? {
            let Some(index) = scan.index.get(&disk) else { continue };
            let is_above = scan.ancestry(*index).any(|entry: &Entry| entry.uuid == node);
            if is_above && readers.hears(disk, &holder) && !open.contains(&disk) {
                open.push(disk);
            }
        }
        Ok(open)
    }

    /// Steps 4 to 8 of a merge below disks that are open. Why the node stays, if it does.
    pub(super) fn remove_beside(
        &self,
        candidate: Candidate,
        progress: &Progress,
        open: &[Uuid],
        readers: &dyn Readers,
    ) -> Result<Option<String>> {
        let scan = self.scan()?;
        let node = scan.index.get(&candidate.node).copied();
        let is_child = |disk: &Uuid| scan.get(*disk).is_some_and(|entry| entry.parent() == node);
        let children: Vec<Uuid> = open.iter().copied().filter(is_child).collect();
        readers.close(&children)?;
        sm_step::step!("sr_maintain.readers_closed");
        let record = self.journal_removal(candidate, progress, true).and_then(|record| {
            if let Action::Relink(relink) = &record.action {
                self.relink_children(relink)?;
            }
            Ok(record)
        });
        sm_step::step!("sr_maintain.relinked");
        let mut silent = None;
        for disk in open {
            // Also after a failure: those who are stopped go on with what there is.
            if let Err(error) = readers.go_over(*disk) {
                let why = format!("disk {disk} has not gone over to its new chain: {error}");
                silent = silent.or(Some(why));
            }
        }
        sm_step::step!("sr_maintain.readers_told");
        let record = record?;
        if let (Action::Relink(relink), None) = (&record.action, &silent) {
            self.remove_node(relink)?;
        }
        self.complete_removal(&record)?;
        Ok(silent)
    }
}
