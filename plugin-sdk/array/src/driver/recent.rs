//! What this driver made or removed a moment ago, and the array may not show yet.
//!
//! Lists of arrays lag. A toolstack forgets a disk that a scan leaves out, and a destroy that does
//! not find its disk says that it is gone; so within the time in which reads may be stale, what this
//! driver knows counts more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::model::VdiUuid;

/// What happened to a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    Made,
    Removed,
}

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<BTreeMap<VdiUuid, (Instant, Happened)>>);

impl Recent {
    pub(super) fn note(&self, vdi: VdiUuid, happened: Happened) {
        self.lock().insert(vdi, (Instant::now(), happened));
    }

    /// What happened to a VDI within `stale`.
    pub(super) fn of(&self, vdi: VdiUuid, stale: Duration) -> Option<Happened> {
        self.all(stale).get(&vdi).copied()
    }

    /// All that happened within `stale`; forgets what is older.
    pub(super) fn all(&self, stale: Duration) -> BTreeMap<VdiUuid, Happened> {
        let mut recent = self.lock();
        recent.retain(|_, (at, _)| at.elapsed() < stale);
        recent.iter().map(|(vdi, (_, happened))| (*vdi, *happened)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VdiUuid, (Instant, Happened)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
