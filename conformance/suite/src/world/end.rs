//! What the backend holds besides the driver's word, and the end of a check.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sm_model::sr::{SrAttach, SrDestroy, SrDetach};
use sm_model::vdi::{VdiDeactivate, VdiDestroy, VdiDetach};

use super::World;
use crate::bench::{Bench, Kept, Owned};
use crate::verdict::{Stop, Verdict, must};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the backend is not looked at.
const BLIND: &str = "neither backend.directory, backend.simulator nor backend.volume-groups is set";

impl<'a> World<'a> {
    /// What the backend holds, if it can be looked at.
    pub(crate) fn files(&self) -> Verdict<Option<BTreeSet<String>>> {
        let Some(tree) = self.bench.inventory() else { return Ok(None) };
        tree.look().map(Some).map_err(Stop::NotTestable)
    }

    /// As [`World::files`], for a check that is nothing without.
    pub(crate) fn must_see_files(&self) -> Verdict<BTreeSet<String>> {
        self.files()?.ok_or_else(|| Stop::NotTestable(BLIND.into()))
    }

    /// Files that the driver keeps in a folder.
    pub(crate) fn own_files(&self) -> Verdict<BTreeSet<String>> {
        self.bench.own_files().map_err(Stop::NotTestable)
    }

    /// Bytes that are taken on the backend.
    pub(crate) fn taken(&self) -> Verdict<u64> {
        let tree = self.bench.inventory();
        let tree = tree.ok_or_else(|| Stop::NotTestable(BLIND.into()))?;
        tree.taken().map_err(Stop::NotTestable)
    }

    /// What is there that was not there when the SR was empty.
    pub(crate) fn left_over(&self) -> Verdict<Vec<String>> {
        let (Some(empty), Some(now)) = (&self.empty, self.files()?) else { return Ok(vec![]) };
        Ok(now.difference(empty).cloned().collect())
    }

    /// Removes everything. What cannot be removed, or is left over, is a failure of the driver.
    pub(crate) fn finish(&mut self) -> Verdict {
        if self.port.is_none() {
            self.reopen()?;
        }
        for vdi in std::mem::take(&mut self.attached) {
            self.services.forget(vdi);
            self.call(VdiDeactivate { vdi })?;
            self.call(VdiDetach { vdi })?;
        }
        if self.empty.is_some() {
            // Snapshots last or first, as it comes: each order must do.
            for vdi in self.list()?.into_keys() {
                self.call(VdiDestroy { vdi })?;
            }
            let left = self.left_over()?;
            must(left.is_empty(), || {
                format!("a leak: no VDI is left, and the backend holds {}", left.join(", "))
            })?;
        }
        if self.keeps() {
            self.close()?;
            self.owned = false;
            let kept = Kept { sr: self.sr, empty: self.empty.take() };
            *lock(&self.bench.kept) = Some(kept);
            return Ok(());
        }
        if self.can("sr_destroy") {
            self.call(SrDetach {})?;
            self.call(SrDestroy {})?;
            self.owned = false;
            if let (Some(before), Some(now)) = (&self.untouched, self.files()?) {
                let left: Vec<String> = now.difference(before).cloned().collect();
                must(left.is_empty(), || {
                    format!("a leak: the SR is gone, and the backend holds {}", left.join(", "))
                })?;
            }
        }
        self.close()
    }

    /// Whether its SR, which is empty again, is for the next check.
    fn keeps(&self) -> bool {
        self.bench.config.suite.keep_sr
            && self.empty.is_some()
            && self.config == self.bench.device_config(false)
    }

    /// Takes the SR that was kept, if there is one.
    pub(super) fn take_kept(&mut self) -> Verdict<bool> {
        let Some(kept) = lock(&self.bench.kept).take() else { return Ok(false) };
        self.sr = kept.sr;
        self.own_sr()?;
        self.reopen()?;
        self.call(SrAttach {})?;
        (self.empty, self.untouched) = (kept.empty, None);
        Ok(true)
    }

    /// Removes the SR that was kept, for a check that begins without one.
    pub(crate) fn without_kept(bench: &'a Bench) -> Verdict {
        if lock(&bench.kept).is_none() {
            return Ok(());
        }
        let mut world = World::bare(bench, "kept")?;
        world.take_kept()?;
        world.empty = None;
        world.finish()
    }

    /// As [`World::finish`], of a second SR beside the check's own.
    pub(crate) fn finish_quietly(&mut self) -> Verdict {
        self.empty = None;
        self.untouched = None;
        self.finish()
    }

    /// Whatever is left of the check is of no use to the next one.
    pub(crate) fn wipe(&mut self) {
        if self.owned && !self.bench.config.owns_backend() {
            // A failure of it would hide the one that is told.
            let _ = self.tidy();
        }
        let _ = self.close();
        if self.bench.config.owns_backend()
            && let Ok(entries) = std::fs::read_dir(&self.bench.place)
        {
            for entry in entries.flatten() {
                let path = entry.path();
                let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
            }
        }
        let _ = self.bench.own(&Owned::Gone { sr: self.sr });
    }

    /// Removes the SR with all that is in it, where the place is not the run's to empty.
    fn tidy(&mut self) -> Verdict {
        self.reopen()?;
        self.call(SrAttach {})?;
        for vdi in std::mem::take(&mut self.attached) {
            self.services.forget(vdi);
            let _ = self.call(VdiDeactivate { vdi });
            let _ = self.call(VdiDetach { vdi });
        }
        for vdi in self.list()?.into_keys() {
            let _ = self.call(VdiDestroy { vdi });
        }
        self.call(SrDetach {})?;
        self.call(SrDestroy {})?;
        Ok(())
    }
}
