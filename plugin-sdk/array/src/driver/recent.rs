//! What this driver made or removed a moment ago, and the array may not show yet.
//!
//! Lists of arrays lag. A toolstack forgets a disk that a scan leaves out, and a destroy that does
//! not find its disk says that it is gone; so within the time in which reads may be stale, what this
//! driver knows counts more.

use std::collections::{BTreeMap, BTreeSet};
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
    written: Mutex<BTreeMap<String, Written>>,
}

/// What was written of a volume.
#[derive(Debug)]
struct Written {
    at: Instant,
    document: Document,
    /// Its text, and those whose place it took: what a stale read shows. Any other is of somebody who
    /// has written since, another session or host, and counts more.
    texts: BTreeSet<String>,
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

    /// A document was written as this text, in the place of the one that was read `before`.
    pub(super) fn wrote(&self, id: &str, document: &Document, text: &str, before: Option<&str>) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let old = written.remove(id).map(|old| old.texts).unwrap_or_default();
        let texts =
            old.into_iter().chain([Some(text), before].into_iter().flatten().map(str::to_owned));
        let (at, document, texts) = (Instant::now(), document.clone(), texts.collect());
        written.insert(id.to_owned(), Written { at, document, texts });
    }

    /// The document that was written within `stale`, unless somebody has written since: the text that
    /// is `read` now is neither it nor older.
    pub(super) fn document(
        &self,
        id: &str,
        stale: Duration,
        read: Option<&str>,
    ) -> Option<Document> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, written| written.at.elapsed() < stale);
        let read = read.filter(|text| !text.is_empty());
        if read.is_some_and(|text| written.get(id).is_some_and(|w| !w.texts.contains(text))) {
            written.remove(id);
        }
        written.get(id).map(|written| written.document.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VdiUuid, (Instant, Happened)>> {
        self.happened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
