//! Merging one image into its parent and taking it out of the tree: what a coalesce does.
//!
//! ```text
//! 1  merge/<node>.json      under the lock: this merge may begin, or go on where it was stopped
//! 2  the parent as large as the node, under the lock
//! 3  the node's sectors into the parent, without the lock; progress into the record, in place
//! 4  journal/<op>.json      under the lock again, when the same node is still the only child, and
//!                           nobody has taken the record away: from here on it is completed
//! 5  a base copy: each child of the node names the node's parent; then the node is deleted
//!    a disk:      the parent is no longer hidden, and gets the disk's name in place of its file
//! 6  journal record and merge record removed
//! ```
//!
//! # Why this is safe
//!
//! A node is merged only into a parent that is hidden and that no other image names. So nobody
//! reads the parent but through the node, and every sector that step 3 writes is one that the node
//! has: it shadows what is written until step 5, and a merge can be given up at any time before.
//! What changes a disk takes the record of its merge away, under the lock, before it does so; step
//! 4 misses it then. It also sees when the disk's file was written by somebody who did not.
//!
//! Whoever reads the node while step 5 runs reads on: its file is there until it is closed, and
//! what the parent has by now is shadowed by it still. A chain that is opened meanwhile is looked
//! up again. Chains of disks that somebody has open are not merged, because that one may hold names
//! of files, not files; unless he can be told (`readers`).

use std::collections::HashMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::doc::VERSION;
use super::journal::{Action, Record};
use super::readers::{Beside, Readers};
use super::scan::{Entry, Scan};
use super::{Format, Guard, Skipped, Tree, image_name};
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::header::Header;
use crate::image::{Mode, write_header, write_parent_names};
use crate::merge::{Options, Step, merge};
use crate::store::{Area, At};
use crate::{Image, SECTOR, sys};

/// How far a merge has come. Always one sector long, so that it can be written in place: it is the
/// old record or the new one, and one that was taken away does not come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// [`VERSION`].
    sm: u32,
    into: Uuid,
    node_image: Uuid,
    into_image: Uuid,
    /// When a disk's own image was last written: a data path that never asked for a claim must not
    /// lose what it wrote between two runs, either. A base copy is not written.
    modified: Option<(i64, i64)>,
    /// The node's blocks below this one are in the parent, durably.
    next_block: u64,
}

/// A base copy leaves the tree: its children become its parent's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Relink {
    pub(super) node: Uuid,
    pub(super) node_image: Uuid,
    pub(super) into: Uuid,
    pub(super) into_image: Uuid,
    pub(super) children: Vec<Child>,
    /// Somebody has it open: it is not deleted by who cannot ask.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) open: bool,
}

/// A child of a base copy that leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Child {
    pub(super) uuid: Uuid,
    /// The header it gets, whole: a power cut may tear the one that is written.
    pub(super) header: Vec<u8>,
}

/// A disk's parent takes the disk's place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Replace {
    pub(super) disk: Uuid,
    pub(super) base: Uuid,
    pub(super) base_image: Uuid,
}

/// One merge that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) node: Uuid,
    pub(super) into: Uuid,
}

/// How a merge ended.
pub(super) enum Ended {
    /// The node is gone; bytes copied by this call, and bytes of the storage that came back. Live:
    /// disks above it were open.
    Done { bytes: u64, freed: u64, live: bool },
    /// It is done, but for the node: somebody has it open, for this reason.
    Stays { why: String },
    /// The tree has changed so that it is no longer to be done.
    Moot,
}

impl Tree {
    /// Merges a node into its parent, going on where an earlier call was stopped. `lock` takes the
    /// store's lock, or ends in [`Error::Stopped`] when nobody waits for the merge any longer. `pace` is called
    /// with the bytes copied so far; its `Break` ends in [`Error::Stopped`], with the progress kept.
    pub(super) fn merge_node(
        &self,
        candidate: Candidate,
        lock: &dyn Fn() -> Result<Guard>,
        options: Options,
        readers: Option<&dyn Readers>,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Ended> {
        let Candidate { node, into } = candidate;
        let guard = lock()?;
        if !self.is_mergeable(candidate, readers)? {
            return Ok(Ended::Moot);
        }
        let before = self.allocated(node)? + self.allocated(into)?;
        let _kept = self.keep(&guard, candidate)?;
        let child = self.open_image(&Self::image_at(node, Format::Vhd), Mode::Read)?;
        let parent = self.open_image(&Self::image_at(into, Format::Vhd), Mode::Write)?;
        let mut progress = self.begin_merge(candidate, &child, &parent)?;
        sm_step::step!("sr_maintain.recorded");
        if parent.size() < child.size() {
            parent.grow(child.size())?;
        }
        drop(guard);
        let (mut gone, from) = (false, progress.next_block);
        let mut step = |step: Step| {
            progress.next_block = step.next_block;
            if self.write_progress(node, &progress).is_err() {
                // Taken away, or not to be written: the next call starts from what it finds.
                gone = true;
                return ControlFlow::Break(());
            }
            sm_step::step!("sr_maintain.copied");
            pace(step.bytes)
        };
        let mut merged = merge(&child, &parent, from, &options, &mut step);
        while let Err(Error::VolumeFull { needed, .. }) = &merged {
            parent.extend_volume(*needed)?;
            merged = merge(&child, &parent, from, &options, &mut step);
        }
        let copied = match merged {
            Err(Error::Stopped { .. }) if gone => return Ok(Ended::Moot),
            other => other?.bytes,
        };
        drop((child, parent));
        sm_step::step!("sr_maintain.all_copied");

        let _guard = lock()?;
        let kept = self.progress(node).is_some_and(|kept| {
            kept.into == into
                && kept.node_image == progress.node_image
                && kept.into_image == progress.into_image
        });
        let child = self.open_image(&Self::image_at(node, Format::Vhd), Mode::Read)?;
        let kept = kept && self.modified(node, &child)? == progress.modified;
        // A volume that is open is not removed.
        drop(child);
        if !kept || !self.is_mergeable(candidate, readers)? {
            return Ok(Ended::Moot);
        }
        let open = match readers {
            Some(readers) => self.open_above(&self.scan()?, node, readers)?,
            None => Vec::new(),
        };
        if let Some(readers) = readers.filter(|_| !open.is_empty()) {
            if let Some(why) = self.remove_beside(candidate, &progress, &open, readers)? {
                return Ok(Ended::Stays { why });
            }
        } else {
            let record = self.journal_removal(candidate, &progress, false)?;
            self.complete_removal(&record)?;
        }
        let left = [node, into].into_iter().filter_map(|uuid| self.allocated(uuid).ok());
        let (freed, live) = (before.saturating_sub(left.sum()), !open.is_empty());
        Ok(Ended::Done { bytes: copied, freed, live })
    }

    /// Gives up the merge of a disk that is about to change. The lock is held.
    pub(super) fn abandon_merge(&self, node: Uuid) -> Result<()> {
        self.store.remove(&Self::merge_at(node)).map(drop)
    }

    /// Removes records of merges whose node is gone.
    pub(super) fn forget_merges(&self, scan: &Scan) -> Result<()> {
        for name in self.store.names(Area::Merges)? {
            let node = super::parse_name(&name).map(|(uuid, _)| uuid);
            if node.is_none_or(|node| scan.get(node).is_none()) {
                self.store.remove(&At::new(Area::Merges, name))?;
            }
        }
        Ok(())
    }

    /// The first block that is not merged yet.
    pub(super) fn merged_blocks(&self, candidate: Candidate) -> u64 {
        let progress = self.progress(candidate.node).filter(|kept| kept.into == candidate.into);
        progress.map_or(0, |progress| progress.next_block)
    }

    /// From here on the removal is completed.
    pub(super) fn journal_removal(
        &self,
        candidate: Candidate,
        progress: &Progress,
        open: bool,
    ) -> Result<Record> {
        let mut removal = self.removal(candidate, progress)?;
        if let Action::Relink(relink) = &mut removal {
            relink.open = open;
        }
        let record = Record::new(Uuid::new_v4(), removal);
        if let Err(error) = self.write_record(&record) {
            let _ = self.remove_record(record.op);
            return Err(error);
        }
        sm_step::step!("sr_maintain.journalled");
        Ok(record)
    }

    fn is_mergeable(&self, candidate: Candidate, readers: Option<&dyn Readers>) -> Result<bool> {
        let (candidates, _) = self.candidates_beside(&self.scan()?, Beside::readers(readers))?;
        Ok(candidates.contains(&candidate))
    }

    fn allocated(&self, uuid: Uuid) -> Result<u64> {
        match self.stat(&Self::image_at(uuid, Format::Vhd)) {
            Ok(stat) => Ok(stat.allocated),
            Err(error) if error.is_not_found() => Ok(0),
            Err(error) => Err(error),
        }
    }

    pub(super) fn begin_merge(
        &self,
        candidate: Candidate,
        child: &Image,
        parent: &Image,
    ) -> Result<Progress> {
        let Candidate { node, into } = candidate;
        let fresh = Progress {
            sm: VERSION,
            into,
            node_image: child.info().uuid,
            into_image: parent.info().uuid,
            modified: self.modified(node, child)?,
            next_block: 0,
        };
        if let Some(kept) = self.progress(node) {
            if kept == (Progress { next_block: kept.next_block, ..fresh.clone() }) {
                return Ok(kept);
            }
            self.abandon_merge(node)?;
        }
        let at = Self::merge_at(node);
        self.store.remove(&at)?;
        let file = self.store.create(&at, SECTOR)?;
        let path = self.store.path_of(&at);
        sys::write_at(&*file, &path, &self.sector(&at, &fresh)?, 0)?;
        sys::sync(&*file, &path)?;
        Ok(fresh)
    }

    fn modified(&self, node: Uuid, image: &Image) -> Result<Option<(i64, i64)>> {
        if image.info().hidden {
            return Ok(None);
        }
        Ok(Some(self.stat(&Self::image_at(node, Format::Vhd))?.modified))
    }

    fn progress(&self, node: Uuid) -> Option<Progress> {
        let bytes = self.read_small(&Self::merge_at(node)).ok().flatten()?;
        serde_json::from_slice::<Progress>(&bytes).ok().filter(|kept| kept.sm <= VERSION)
    }

    /// Whether the record of a merge is there, of these images.
    pub(super) fn is_begun(
        &self,
        node: Uuid,
        into: Uuid,
        node_image: Uuid,
        into_image: Uuid,
    ) -> bool {
        self.progress(node).is_some_and(|kept| {
            kept.into == into && kept.node_image == node_image && kept.into_image == into_image
        })
    }

    fn write_progress(&self, node: Uuid, progress: &Progress) -> Result<()> {
        let at = Self::merge_at(node);
        let path = self.store.path_of(&at);
        let file = self.store.open(&at, true)?;
        sys::write_at(&*file, &path, &self.sector(&at, progress)?, 0)?;
        sys::sync(&*file, &path)
    }

    fn sector(&self, at: &At, progress: &Progress) -> Result<Vec<u8>> {
        let mut bytes = self.to_json(at, progress)?;
        bytes.resize(SECTOR as usize, b' ');
        Ok(bytes)
    }

    /// How the node leaves the tree.
    fn removal(&self, candidate: Candidate, progress: &Progress) -> Result<Action> {
        let Candidate { node, into } = candidate;
        let scan = self.scan()?;
        let index = scan.index.get(&node).copied().unwrap_or(usize::MAX);
        if scan.get(node).is_some_and(|entry| !entry.hidden() && entry.named_by == 0) {
            let base_image = progress.into_image;
            return Ok(Action::Replace(Replace { disk: node, base: into, base_image }));
        }
        let mut children = Vec::new();
        for entry in scan.entries.iter().filter(|entry| entry.parent() == Some(index)) {
            let image = self.open_image(&Self::image_at(entry.uuid, Format::Vhd), Mode::Write)?;
            let name = self.link_name(into);
            let header = image.header_for_parent(progress.into_image, &name)?;
            children.push(Child { uuid: entry.uuid, header: header.to_bytes().to_vec() });
        }
        let (node_image, into_image) = (progress.node_image, progress.into_image);
        let open = false;
        Ok(Action::Relink(Relink { node, node_image, into, into_image, children, open }))
    }

    /// Step 5 and 6, also by recovery: each looks whether it was done.
    pub(super) fn complete_removal(&self, record: &Record) -> Result<()> {
        let node = match &record.action {
            Action::Relink(relink) => {
                self.relink_children(relink)?;
                if !relink.open {
                    self.remove_node(relink)?;
                }
                relink.node
            }
            Action::Replace(replace) | Action::Exchange(replace) => {
                self.replace(replace)?;
                replace.disk
            }
            _ => return Ok(()),
        };
        self.abandon_merge(node)?;
        sm_step::step!("sr_maintain.progress_removed");
        self.remove_record(record.op)?;
        sm_step::step!("sr_maintain.finished");
        Ok(())
    }

    pub(super) fn relink_children(&self, relink: &Relink) -> Result<()> {
        let name = self.link_name(relink.into);
        for child in &relink.children {
            let at = Self::image_at(child.uuid, Format::Vhd);
            let path = self.store.path_of(&at);
            match self.probe(&at) {
                Ok(info)
                    if info.parent.as_ref().is_none_or(|link| link.uuid == relink.into_image) =>
                {
                    // Whoever wrote it may have been stopped before it was durable.
                    sys::sync(&*self.store.open(&at, true)?, &path)?;
                    continue;
                }
                // The last header, or a torn one.
                Ok(_) => {}
                Err(error) if error.is_corrupt() => {}
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            }
            let header = Header::parse(&child.header).map_err(Error::format(&path))?;
            let file = self.store.open(&at, true)?;
            write_parent_names(&*file, &path, &header, &name)?;
            sm_step::step!("sr_maintain.child_named");
            write_header(&*file, &path, &header)?;
            sm_step::step!("sr_maintain.child_relinked");
        }
        Ok(())
    }

    pub(super) fn remove_node(&self, relink: &Relink) -> Result<()> {
        let at = Self::image_at(relink.node, Format::Vhd);
        let same = match self.probe(&at) {
            Ok(info) => info.uuid == relink.node_image,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        if same {
            self.store.rename(&at, &Self::tmp_at(image_name(relink.node, Format::Vhd)))?;
            sm_step::step!("sr_maintain.node_moved");
            self.store.sync(Area::Images)?;
        }
        self.store.remove(&Self::tmp_at(image_name(relink.node, Format::Vhd)))?;
        sm_step::step!("sr_maintain.node_removed");
        Ok(())
    }

    fn replace(&self, replace: &Replace) -> Result<()> {
        let disk = Self::image_at(replace.disk, Format::Vhd);
        let base = Self::image_at(replace.base, Format::Vhd);
        if self.probe(&disk)?.uuid != replace.base_image {
            self.open_image(&base, Mode::Write)?.set_hidden(false)?;
            sm_step::step!("sr_maintain.base_shown");
            self.store.rename(&base, &disk)?;
            sm_step::step!("sr_maintain.disk_replaced");
        }
        self.store.sync(Area::Images)
    }

    fn merge_at(node: Uuid) -> At {
        At::new(Area::Merges, format!("{node}.json"))
    }

    /// The merges that can be done, those near a root first and those of long chains before
    /// others; and why others cannot.
    pub(super) fn candidates_beside(
        &self,
        scan: &Scan,
        beside: Beside<'_>,
    ) -> Result<(Vec<Candidate>, Vec<Skipped>)> {
        let mut skipped = Vec::new();
        let mut open: Vec<Option<String>> = vec![None; scan.entries.len()];
        // Disks that are open by who can be told, and all below them.
        let mut heard: HashMap<usize, String> = HashMap::new();
        let mut told = vec![false; scan.entries.len()];
        // Base copies that are claimed by us are those of a merge of ours.
        let me = self.store.merges_as();
        let kept = |uuid, holder: &String| {
            Some(holder) == me.as_ref() && scan.get(uuid).is_some_and(Entry::hidden)
        };
        for (uuid, holder) in self.claimed()? {
            if beside.is_own(uuid, &holder) || kept(uuid, &holder) {
                continue;
            }
            if beside.hears(uuid, &holder) {
                let Some(index) = scan.index.get(&uuid).copied() else { continue };
                for entry in scan.ancestry(index) {
                    if let Some(mark) = scan.index.get(&entry.uuid).and_then(|at| told.get_mut(*at))
                    {
                        *mark = true;
                    }
                }
                if !beside.leaves {
                    heard.insert(index, holder);
                }
                continue;
            }
            let mut next = scan.index.get(&uuid).copied();
            while let Some(index) = next {
                // A chain that is not sound may lead in a circle.
                let Some(mark) = open.get_mut(index).filter(|mark| mark.is_none()) else { break };
                *mark = Some(holder.clone());
                next = scan.entries.get(index).and_then(Entry::parent);
            }
        }
        let mut busy = Vec::new();
        for entry in self.records()? {
            if let super::journal::Entry::Record(record) = entry {
                busy.extend(record.uuids());
            }
        }
        if let Some(unknown) = scan.unknown(None) {
            let text = "cannot be read and may need any base copy, so none is merged or deleted";
            skipped.push(Skipped { uuid: unknown.uuid, reason: text.to_owned() });
            return Ok((Vec::new(), skipped));
        }
        let tallest = scan.tallest();
        let mut children: HashMap<usize, Vec<&Entry>> = HashMap::new();
        for entry in &scan.entries {
            if let Some(parent) = entry.parent() {
                children.entry(parent).or_default().push(entry);
            }
        }
        let mut found = Vec::new();
        for (index, entry) in scan.entries.iter().enumerate() {
            if let Some(reason) = scan.own_reason(index) {
                skipped.push(Skipped { uuid: entry.uuid, reason });
                continue;
            }
            let Some(parent) = entry.parent() else { continue };
            let Some(base) = scan.entries.get(parent) else { continue };
            // Without a child of its own it is garbage when hidden, not a merge.
            let garbage = entry.hidden() && entry.named_by == 0;
            if base.named_by != 1 || !base.hidden() || garbage || scan.reason(index).is_some() {
                continue;
            }
            let children = children.get(&index).map_or(&[][..], Vec::as_slice);
            if children.iter().filter(|child| child.depth > 0).count() != entry.named_by {
                let text = "a damaged image may need it".to_owned();
                skipped.push(Skipped { uuid: entry.uuid, reason: text });
                continue;
            }
            if entry.named_by == 0
                && let Err(error) = self.doc(entry.uuid)
            {
                skipped.push(Skipped { uuid: entry.uuid, reason: error.reason() });
                continue;
            }
            let holder = open.get(index).and_then(Option::as_deref);
            let told = told.get(index).copied().unwrap_or(true);
            let heard = heard.get(&index).map(|holder| is_open(holder));
            match unfit(entry, base, holder, told).or(heard) {
                Some(reason) => skipped.push(Skipped { uuid: entry.uuid, reason }),
                None if busy.contains(&entry.uuid) || busy.contains(&base.uuid) => {}
                None => {
                    let depth = tallest.get(index).copied().unwrap_or(0);
                    found.push((std::cmp::Reverse(depth), entry.depth, entry.uuid, base.uuid));
                }
            }
        }
        found.sort_unstable();
        let found = found.into_iter().map(|(_, _, node, into)| Candidate { node, into });
        Ok((found.collect(), skipped))
    }
}

fn is_open(holder: &str) -> String {
    format!("is part of a disk that is open: {holder}")
}

/// Why a node cannot be merged into its only parent.
fn unfit(node: &Entry, base: &Entry, holder: Option<&str>, told: bool) -> Option<String> {
    let (child, parent) = (node.info()?, base.info()?);
    if let Some(holder) = holder {
        return Some(is_open(holder));
    }
    if parent.disk_type == DiskType::Fixed && parent.size < child.size {
        return Some(format!("its parent {} is a fixed image and smaller", base.uuid));
    }
    if told && parent.size < child.size {
        let base = base.uuid;
        return Some(format!("its parent {base} is smaller, and a disk above is open"));
    }
    None
}
