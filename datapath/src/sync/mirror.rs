//! Moving a disk that is in use to another place.
//!
//! ```text
//! Mirror::start      the disk is watched, the copy begins; the guest goes on
//! Mirror::wait_ready the target lags behind by what is in flight, and stays so
//! Mirror::switch     the disk is paused, the target has everything, durably
//! Switched::finish   the disk ends: what waits, and what comes, is refused
//! Switched::back     the new place did not work out: the disk goes on as if nothing had been
//! ```
//!
//! Until [`Switched::finish`] the source is the disk; afterwards the target is. Nobody writes both.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Copy;
use super::options::{Options, Phase, Progress};
use super::target::Target;
use crate::disk::{Drive, Paused, WatcherId};
use crate::error::{Errno, Error, Result};
use crate::export::Export;

/// Bytes compared at a time.
const COMPARED: u64 = 1 << 20;

/// Time that a dropped mirror waits for requests that it still watches.
const LEAVE: Duration = Duration::from_secs(1);

/// A disk that is copied to another place while it is in use. Dropped, it leaves the disk alone;
/// [`Mirror::cancel`] also tells when that is done.
pub struct Mirror {
    drive: Arc<Drive>,
    copy: Arc<Copy>,
    watcher: Mutex<Option<WatcherId>>,
}

impl Mirror {
    /// Begins. Waits, until `deadline`, for requests that are under way.
    pub fn start(
        drive: &Arc<Drive>,
        target: Arc<dyn Target>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self> {
        let copy = Copy::start(drive.clone(), target, options)?;
        let watcher = drive.add_watcher(copy.clone(), deadline).inspect_err(|_| copy.end())?;
        let mirror = Self { drive: drive.clone(), copy, watcher: Mutex::new(Some(watcher)) };
        // From here on every change is seen, so what is looked at now cannot be missed later.
        mirror.copy.seed()?;
        Ok(mirror)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.copy.progress()
    }

    /// Another limit for the copy, bytes per second.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.copy.set_rate(rate);
    }

    /// Waits until it can be switched.
    pub fn wait_ready(&self, deadline: Instant) -> Result<()> {
        self.copy.wait_ready(deadline)
    }

    /// Pauses the disk and makes sure that the target has everything. Refused, and the disk goes on,
    /// when it is not ready, or when the target fails just now.
    pub fn switch(&self, deadline: Instant) -> Result<Switched> {
        match self.progress().phase {
            Phase::Ready => {}
            Phase::Failed(what) => {
                return Err(Error::new(Errno::Io, format!("the mirror has failed: {what}")));
            }
            other => {
                return Err(Error::new(Errno::Io, format!("the mirror is not ready: {other:?}")));
            }
        }
        // Whatever is done before the pause is not done during it.
        self.copy.flush().map_err(|failure| Error::new(Errno::Io, failure.what))?;
        Export::flush(&*self.drive)?;
        let paused = self.drive.pause(deadline)?;
        self.copy.settle(deadline)?;
        Ok(Switched { paused, copy: self.copy.clone(), watcher: self.take_watcher() })
    }

    fn take_watcher(&self) -> Option<WatcherId> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends it; the disk is as if there had been none, and the target holds nothing that makes
    /// sense. Waits for requests and threads until `deadline`.
    pub fn cancel(&self, deadline: Instant) -> Result<()> {
        self.copy.end();
        if let Some(watcher) = self.take_watcher() {
            self.drive.remove_watcher(watcher, deadline).inspect_err(|_| {
                // For another try, or for the drop.
                *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(watcher);
            })?;
        }
        if self.copy.wait_ended(deadline) {
            return Ok(());
        }
        Err(Error::new(Errno::Io, "the threads of the copy did not end in time"))
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(watcher) = self.take_watcher() {
            self.copy.end();
            // A disk that is paused, or has ended, keeps a watcher that does nothing any more.
            let _ = self.drive.remove_watcher(watcher, Instant::now() + LEAVE);
        }
    }
}

/// A disk that is paused, and a target that has all of it, durably.
#[must_use = "the disk is paused until it is finished, or goes back"]
pub struct Switched {
    paused: Paused,
    copy: Arc<Copy>,
    watcher: Option<WatcherId>,
}

impl Switched {
    /// The disk as it is now.
    pub fn source(&self) -> &Paused {
        &self.paused
    }

    /// Compares every byte of both. Answers where they differ first. Takes as long as reading both;
    /// why not sums of them: both have to be read for those as well.
    pub fn verify(&self) -> Result<Option<u64>> {
        let size = self.paused.drive().size();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < size {
            let length = (size - at).min(COMPARED) as usize;
            ours.resize(length, 0);
            theirs.resize(length, 0);
            self.paused.read(at, &mut ours)?;
            let read = self.copy.target.read(at, &mut theirs);
            read.map_err(|failure| Error::new(Errno::Io, failure.what))?;
            if let Some(index) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs)
            {
                return Ok(Some(at + index as u64));
            }
            at += length as u64;
        }
        Ok(None)
    }

    /// The target is the disk now. This one ends: requests that wait are refused, its files are
    /// complete and closed.
    pub fn finish(self) -> Result<()> {
        self.leave();
        self.paused.end()
    }

    /// The disk goes on where it is. The target is of no use any more.
    pub fn back(self) {
        self.leave();
    }

    fn leave(&self) {
        self.copy.end();
        if let Some(watcher) = self.watcher {
            self.paused.remove_watcher(watcher);
        }
    }
}
