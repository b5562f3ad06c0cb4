//! The log of a disk's changes beside the disk that is served: open while the disk can be written,
//! closed, and complete, while it is paused.
//!
//! Whether there is a log is looked up each time the disk goes on. So a log that was made or taken
//! away during a pause is found, or not found, also when whoever made it was killed before he could
//! tell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;
use vhd::change::LogFile;

use super::protocol::{BitmapFile, Changes, Failure};
use super::served::{Served, failure, not_active};
use crate::change::{Named, Tracker};
use crate::disk::{Drive, Paused, WatcherId};
use crate::error::Result;
use crate::export::Export;

/// The log of one disk.
#[derive(Default)]
pub(super) struct Log {
    path: Option<PathBuf>,
    open: Option<(Arc<Tracker>, WatcherId)>,
}

impl Log {
    /// The log at a path, if there is one: of a disk that nobody can write yet.
    pub(super) fn begin(path: Option<PathBuf>, drive: &Drive, until: Instant) -> Result<Self> {
        let mut log = Self { path, open: None };
        if let Some(tracker) = log.find(drive)? {
            let id = drive.add_watcher(tracker.clone(), until)?;
            log.open = Some((tracker, id));
        }
        Ok(log)
    }

    /// Where it is looked for.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// Looks for it somewhere else from the next pause on.
    pub(super) fn set_path(&mut self, path: PathBuf) {
        self.path = Some(path);
    }

    /// What has changed by now, of a disk that is not paused.
    fn now(&self) -> Option<&Tracker> {
        self.open.as_ref().map(|(tracker, _)| tracker.as_ref())
    }

    /// Whether changes are tracked.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn find(&self, drive: &Drive) -> Result<Option<Arc<Tracker>>> {
        match &self.path {
            Some(path) if !drive.read_only() => Tracker::open_path(path, drive.size()),
            _ => Ok(None),
        }
    }

    /// Before a paused disk goes on. After an error it must not be written: the log says that it
    /// knows all changes.
    pub(super) fn open(&mut self, paused: &Paused) -> Result<()> {
        if self.open.is_none()
            && let Some(tracker) = self.find(paused.drive())?
        {
            let id = paused.add_watcher(tracker.clone());
            self.open = Some((tracker, id));
        }
        Ok(())
    }

    /// After a disk was paused.
    pub(super) fn close(&mut self, paused: &Paused) {
        if let Some((_, id)) = &self.open {
            paused.remove_watcher(*id);
        }
        self.end();
    }

    /// Writes nothing more to it.
    pub(super) fn leave(&mut self) {
        self.open = None;
    }

    /// After a disk was closed. A log that cannot be written says from before that it cannot be
    /// relied on, so that nothing depends on it.
    pub(super) fn end(&mut self) {
        if let Some((tracker, _)) = self.open.take()
            && let Err(error) = tracker.close()
        {
            tracing::warn!(%error, "everything counts as changed");
        }
    }
}

impl Served {
    /// Writes down what has changed by now.
    pub(super) fn changes(&self) -> std::result::Result<Changes, Failure> {
        let inner = self.inner();
        let active = inner.active.as_ref().ok_or_else(not_active)?;
        let Some(tracker) = active.log.now() else { return Ok(Changes::default()) };
        let path = self.place.changed_by_now();
        LogFile::write_path(&path, tracker.since(), Uuid::nil(), &tracker.map())
            .map_err(|error| failure(&error.into()))?;
        Ok(Changes { path: Some(path) })
    }
}

/// What changed since points in time, from files.
pub(super) fn bitmaps(files: &[BitmapFile], size: u64) -> Result<Vec<Named>> {
    let mut named = Vec::with_capacity(files.len());
    for BitmapFile { name, path } in files {
        let Some(file) = LogFile::open_path(path, false)? else {
            let what = format!("{} is not there", path.display());
            return Err(crate::error::Error::new(crate::error::Errno::Io, what));
        };
        named.push(Named { name: name.clone(), bitmap: Arc::new(file.map(size)?) });
    }
    Ok(named)
}
