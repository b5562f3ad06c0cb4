//! Base copies that are being merged, in stores where the place of what is removed or made shorter goes
//! to others at once: in volumes ([`Store::merges_as`]).
//!
//! A merge reads its node and writes into the node's parent without the lock. While it does, both are
//! claimed, so that nobody removes them or gives their space away; a disk that is merged is not, since
//! nothing is written into it, and what changes it ends the merge. Whoever is stopped in the middle
//! leaves the claims; his next maintenance takes them back.
//!
//! Whoever was told to go over to another chain, and has not said that he did, may read the node that is
//! no longer in it. So a base copy without children stays as long as somebody has a disk open above its
//! parent who was not told since.
//!
//! [`Store::merges_as`]: crate::store::Store::merges_as

use std::collections::HashSet;

use uuid::Uuid;

use super::claim::claim_at;
use super::merges::{Candidate, Relink};
use super::scan::{Entry, Scan};
use super::{Format, Guard, Tree};
use crate::error::{Error, Result};
use crate::store::At;

/// Takes the claims of a merge back when it ends.
pub(super) struct Kept<'a> {
    tree: &'a Tree,
    claims: Vec<At>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for claim in &self.claims {
            // What is left now is taken back by the next maintenance.
            let _ = self.tree.store.remove(claim);
        }
    }
}

impl Tree {
    /// Keeps what a merge works on from others, until it ends.
    pub(super) fn keep(&self, _: &Guard, candidate: Candidate) -> Result<Kept<'_>> {
        let Candidate { node, into } = candidate;
        let mut kept = Kept { tree: self, claims: Vec::new() };
        let Some(me) = self.store.merges_as() else { return Ok(kept) };
        if let Some(holder) = self.claims(into)?.into_iter().find(|holder| *holder != me) {
            return Err(Error::InUse { uuid: into, holder });
        }
        let mut images = vec![into];
        if self.probe(&Self::image_at(node, Format::Vhd))?.hidden {
            images.push(node);
        }
        for image in images {
            let claim = claim_at(image, &me);
            if !self.store.exists(&claim)? {
                self.store.create(&claim, 0)?;
            }
            kept.claims.push(claim);
        }
        self.store.ready_target(&Self::image_at(into, Format::Vhd))?;
        Ok(kept)
    }

    /// Takes back what an earlier merge of ours has left. Nobody merges just now.
    pub(super) fn release_kept(&self, _: &Guard) -> Result<()> {
        let Some(me) = self.store.merges_as() else { return Ok(()) };
        let ours: Vec<Uuid> =
            self.claimed()?.into_iter().filter(|c| c.1 == me).map(|c| c.0).collect();
        if ours.is_empty() {
            return Ok(());
        }
        let scan = self.scan()?;
        for uuid in ours {
            if scan.get(uuid).is_none_or(Entry::hidden) {
                self.store.remove(&claim_at(uuid, &me))?;
            }
        }
        Ok(())
    }

    /// Whether a base copy must not be removed, nor made shorter, because it is being merged.
    pub fn is_kept(&self, base: Uuid) -> Result<bool> {
        Ok(self.store.merges_as().is_some() && !self.claims(base)?.is_empty())
    }

    /// Whether somebody may read a base copy without children who is not among `told`.
    pub(super) fn may_be_read(
        &self,
        scan: &Scan,
        base: &Entry,
        told: &HashSet<(Uuid, String)>,
    ) -> Result<bool> {
        if self.store.merges_as().is_none() {
            return Ok(false);
        }
        if self.is_kept(base.uuid)? {
            return Ok(true);
        }
        let Some(parent) = base.parent().and_then(|parent| scan.entries.get(parent)) else {
            return Ok(false);
        };
        let parent = parent.uuid;
        Ok(self.claimed()?.into_iter().any(|claim| {
            let index = scan.index.get(&claim.0);
            let above = index.is_some_and(|at| scan.ancestry(*at).any(|e| e.uuid == parent));
            above && claim.0 != parent && !told.contains(&claim)
        }))
    }

    /// Error [`Error::InUse`] if somebody has a disk open above a base copy that leaves the tree who
    /// would not see what is written here: only he can complete it.
    pub(super) fn only_near(&self, relink: &Relink) -> Result<()> {
        let claimed = self.claimed()?.into_iter();
        let far: Vec<_> = claimed.filter(|claim| !self.store.is_near(&claim.1)).collect();
        if far.is_empty() {
            return Ok(());
        }
        let scan = self.scan()?;
        let is_child = |uuid: Uuid| relink.children.iter().any(|child| child.uuid == uuid);
        for (uuid, holder) in far {
            let Some(index) = scan.index.get(&uuid) else { continue };
            if scan.ancestry(*index).any(|entry| is_child(entry.uuid)) {
                return Err(Error::InUse { uuid, holder });
            }
        }
        Ok(())
    }
}
