//! A copy of a disk that is in use: what a mirror and a merge have in common.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::engine::Copy;
use super::options::{Options, Phase};
use super::target::{Source, Target};
use crate::disk::{Drive, Paused, WatcherId};
use crate::error::{Errno, Error, Result};
use crate::export::Export;

/// Time that a dropped copy waits for requests that it still watches.
const LEAVE: Duration = Duration::from_secs(1);

/// Flushes before a pause: each has less to do than the one before, until one is done in
/// [`SHORT`]; the one in the pause takes about as long.
const FLUSHES: usize = 4;

const SHORT: Duration = Duration::from_millis(5);

/// A copy, and the disk that tells it of its changes until this is dropped.
pub(super) struct Watched {
    pub(super) drive: Arc<Drive>,
    pub(super) copy: Arc<Copy>,
    watcher: Mutex<Option<WatcherId>>,
}

impl Watched {
    /// Begins to copy. Waits, until `deadline`, for requests that are under way.
    pub(super) fn start(
        drive: &Arc<Drive>,
        source: Arc<dyn Source>,
        target: Arc<dyn Target>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self> {
        let copy = Copy::start(source, target, options)?;
        let watcher = drive.add_watcher(copy.clone(), deadline).inspect_err(|_| copy.end())?;
        let watched = Self { drive: drive.clone(), copy, watcher: Mutex::new(Some(watcher)) };
        // From here on every change is seen, so what is looked at now cannot be missed later.
        watched.copy.seed()?;
        Ok(watched)
    }

    /// Pauses the disk when the copy, called `what`, is ready; refused when it is not.
    pub(super) fn pause(&self, what: &str, deadline: Instant) -> Result<Paused> {
        let refuse = |what: String| Err(Error::new(Errno::Io, what));
        match self.copy.progress().phase {
            Phase::Ready => {}
            Phase::Failed(why) => return refuse(format!("the {what} has failed: {why}")),
            Phase::Copying => return refuse(format!("the {what} is not ready: it is copying")),
            Phase::Retrying(why) => {
                return refuse(format!("the {what} is not ready: its target fails: {why}"));
            }
            Phase::Ended => return refuse(format!("the {what} has ended")),
        }
        // Whatever is done before the pause is not done during it.
        for _ in 0..FLUSHES {
            let begin = Instant::now();
            self.copy.flush().map_err(|failure| Error::new(Errno::Io, failure.what))?;
            Export::flush(&*self.drive)?;
            if begin.elapsed() < SHORT {
                break;
            }
        }
        self.drive.pause(deadline)
    }

    pub(super) fn take_watcher(&self) -> Option<WatcherId> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives back what [`Watched::take_watcher`] took.
    pub(super) fn put_back(&self, watcher: Option<WatcherId>) {
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = watcher;
    }

    /// Ends it. Waits for requests and threads until `deadline`.
    pub(super) fn cancel(&self, what: &str, deadline: Instant) -> Result<()> {
        self.copy.end();
        if let Some(watcher) = self.take_watcher() {
            self.drive.remove_watcher(watcher, deadline).inspect_err(|_| {
                // For another try, or for the drop.
                self.put_back(Some(watcher));
            })?;
        }
        if self.copy.wait_ended(deadline) {
            return Ok(());
        }
        Err(Error::new(Errno::Io, format!("the threads of the {what} did not end in time")))
    }

    /// Ends it, and has the disk forget it; whether that was still to be done.
    pub(super) fn leave(&self) -> bool {
        let Some(watcher) = self.take_watcher() else { return false };
        self.copy.end();
        // A disk that is paused, or has ended, keeps a watcher that does nothing any more.
        let _ = self.drive.remove_watcher(watcher, Instant::now() + LEAVE);
        true
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.leave();
    }
}
