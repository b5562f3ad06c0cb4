//! A disk whose requests wait, and the exchange of its files.
//!
//! A pause can also close the files ([`Paused::close_files`]): then nothing that this process knows
//! of them can be wrong later, so whoever has the right to may change anything in them, the leaf
//! too. They are opened anew before the requests go on, and never go on without.

use std::sync::{Arc, Mutex, PoisonError};

use super::chain::Chain;
use super::drive::Drive;
use super::watch::{Watcher, WatcherId};
use crate::error::{Errno, Error, Result};

/// Files that are open and ready to take the place of those in use.
pub struct Prepared {
    chain: Arc<Chain>,
}

impl Prepared {
    pub(super) fn new(chain: Chain) -> Self {
        Self { chain: Arc::new(chain) }
    }
}

/// A disk whose requests wait. All that was answered is in the files, and durable. Dropping this
/// lets the requests go on; when the files are closed, it ends the disk: they are refused.
pub struct Paused {
    drive: Arc<Drive>,
    /// Files that are not served any more. They are closed when the requests go on already: who
    /// closes the last descriptor of a large file without a name waits until its space is free.
    retired: Mutex<Vec<Arc<Chain>>>,
}

impl Paused {
    pub(super) fn of(drive: Arc<Drive>) -> Self {
        Self { drive, retired: Mutex::default() }
    }

    /// The disk that is paused.
    pub fn drive(&self) -> &Arc<Drive> {
        &self.drive
    }

    /// Closes the files and unlocks the leaf, until [`Paused::replace`]. Closed already is fine.
    /// After an error they are open, as before.
    pub fn close_files(&self) -> Result<()> {
        let mut underneath = self.drive.underneath_to_change();
        if let Some(chain) = underneath.open_chain() {
            if !self.drive.read_only {
                chain.close()?;
            }
            underneath.set_chain(None);
        }
        Ok(())
    }

    /// Whether [`Paused::close_files`] was called, and nothing has been opened since.
    pub fn is_closed(&self) -> bool {
        self.drive.underneath().open_chain().is_none()
    }

    /// Serves other files from now on. The old leaf is not written any more, and unlocked. After an
    /// error the old ones are served as before when this is dropped, unless they were closed.
    pub fn replace(&self, prepared: Prepared) -> Result<()> {
        let drive = &self.drive;
        let mut underneath = drive.underneath_to_change();
        let new = prepared.chain;
        if new.size() < underneath.size() || new.plan().read_only != drive.read_only {
            return Err(Error::new(Errno::Invalid, "not a successor of the disk that is paused"));
        }
        if !drive.read_only {
            if let Some(old) = underneath.open_chain()
                && new.leaf_id() == old.leaf_id()
                && !new.is_as_stored()?
            {
                let what = "somebody else has written to the leaf";
                return Err(Error::new(Errno::Io, what));
            }
            new.begin(&drive.options)?;
            if let Some(old) = underneath.open_chain() {
                // All of it is published since the pause, and nothing was written after.
                old.retire(&new);
            }
        }
        let old = underneath.open_chain().cloned();
        self.retired.lock().unwrap_or_else(PoisonError::into_inner).extend(old);
        underneath.set_chain(Some(new));
        Ok(())
    }

    /// As [`Drive::add_watcher`], with nothing in between.
    pub fn add_watcher(&self, watcher: Arc<dyn Watcher>) -> WatcherId {
        self.drive.underneath_to_change().watchers.add(watcher)
    }

    /// As [`Drive::remove_watcher`], with nothing in between.
    pub fn remove_watcher(&self, id: WatcherId) {
        self.drive.underneath_to_change().watchers.remove(id);
    }

    /// Makes everything durable again that was written since, by somebody who has the pause.
    pub fn flush(&self) -> Result<()> {
        if self.drive.read_only { Ok(()) } else { self.drive.underneath().chain()?.flush() }
    }

    /// Reads while nobody writes.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.drive.underneath().chain()?.read(offset, buf)
    }

    /// As [`Drive::close`], with nothing in between: requests that wait are refused, for a disk
    /// that goes on elsewhere.
    pub fn end(self) -> Result<()> {
        let drive = &self.drive;
        drive.gate.shut();
        drive.publisher.stop();
        match drive.underneath().open_chain() {
            Some(chain) if !drive.read_only => chain.close(),
            _ => Ok(()),
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if self.is_closed() {
            self.drive.gate.shut();
        } else {
            self.drive.gate.open();
        }
    }
}
