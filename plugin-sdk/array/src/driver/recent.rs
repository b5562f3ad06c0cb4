//! What this driver made or removed a moment ago, and the array may not show yet.
//!
//! Lists of arrays lag. A toolstack forgets a disk that a scan leaves out, and a destroy that does
//! not find its disk says that it is gone; so within the time in which reads may be stale, what this
//! driver knows counts more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::model::VdiUuid;

use crate::metadata::Document;

/// What happened to a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    Made,
    Removed,
}

#[derive(Debug, Default)]
pub(super) struct Recent {
    happened: Mutex<BTreeMap<VdiUuid, (Instant, Happened)>>,
    /// By the array's id: an update that began with a stale text would undo the one before.
    written: Mutex<BTreeMap<String, (Instant, Document)>>,
}

impl Recent {
    pub(super) fn note(&self, vdi: VdiUuid, happened: Happened) {
        self.lock().insert(vdi, (Instant::now(), happened));
    }

    /// A VDI's volume was just removed: nobody waits for it to appear.
    pub(super) fn forget(&self, vdi: VdiUuid) {
        self.lock().remove(&vdi);
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

    /// A document was written.
    pub(super) fn wrote(&self, id: &str, document: &Document) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.insert(id.to_owned(), (Instant::now(), document.clone()));
    }

    /// The document that was written within `stale`.
    pub(super) fn document(&self, id: &str, stale: Duration) -> Option<Document> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, (at, _)| at.elapsed() < stale);
        written.get(id).map(|(_, document)| document.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VdiUuid, (Instant, Happened)>> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
