//! Moving a disk that is in use to another place.
//!
//! ```text
//! Mirror::start      the disk is watched, the copy begins; the guest goes on
//! Mirror::wait_ready the target lags behind by what is in flight, and stays so
//! Mirror::switch     the disk is paused, the target has everything, durably
//! Switched::finish   the disk ends: what waits, and what comes, is refused
//! Switched::go_on    the switch did not work out: the disk and its mirror go on
//! Switched::back     the new place did not work out: the disk goes on as if nothing had been
//! ```
//!
//! Until [`Switched::finish`] the source is the disk; afterwards the target is. Nobody writes both.

use std::sync::Arc;
use std::time::Instant;

use super::engine::Copy;
use super::options::{Options, Progress};
use super::regions::REGION;
use super::target::Target;
use super::watched::Watched;
use crate::disk::{Drive, Paused, WatcherId};
use crate::error::{Errno, Error, Result};
use crate::export::Export;

/// Bytes compared at a time: whole regions.
const COMPARED: u64 = 1 << 20;

/// How a target differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The first byte.
    pub first: u64,
    /// Bytes of the regions that differ.
    pub bytes: u64,
}

/// A disk that is copied to another place while it is in use. Dropped, it leaves the disk alone;
/// [`Mirror::cancel`] also tells when that is done.
pub struct Mirror(Watched);

impl Mirror {
    /// Begins. Waits, until `deadline`, for requests that are under way.
    pub fn start(
        drive: &Arc<Drive>,
        target: Arc<dyn Target>,
        options: Options,
        deadline: Instant,
    ) -> Result<Self> {
        Watched::start(drive, drive.clone(), target, options, deadline).map(Self)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.0.copy.progress()
    }

    /// Another limit for the copy, bytes per second.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.0.copy.set_rate(rate);
    }

    /// Waits until it can be switched.
    pub fn wait_ready(&self, deadline: Instant) -> Result<()> {
        self.0.copy.wait_ready(deadline)
    }

    /// Pauses the disk and makes sure that the target has everything. Refused, and the disk goes on,
    /// when it is not ready, or when the target fails just now.
    pub fn switch(&self, deadline: Instant) -> Result<Switched> {
        let paused = self.0.pause("mirror", deadline)?;
        self.0.copy.settle(deadline)?;
        Ok(Switched { paused, copy: self.0.copy.clone(), watcher: self.0.take_watcher() })
    }

    /// Ends it; the disk is as if there had been none, and the target holds nothing that makes
    /// sense. Waits for requests and threads until `deadline`.
    pub fn cancel(&self, deadline: Instant) -> Result<()> {
        self.0.cancel("mirror", deadline)
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

    /// Compares every byte of both; none if they are alike. Takes as long as reading both; why not
    /// sums of them: both have to be read for those as well. What differs is marked to be copied
    /// again, which a mirror that goes on does.
    pub fn verify(&self) -> Result<Option<Difference>> {
        let size = self.paused.drive().size();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut found: Option<Difference> = None;
        let mut at = 0;
        while at < size {
            let length = (size - at).min(COMPARED) as usize;
            ours.resize(length, 0);
            theirs.resize(length, 0);
            self.paused.read(at, &mut ours)?;
            let read = self.copy.target.read(at, &mut theirs);
            read.map_err(|failure| Error::new(Errno::Io, failure.what))?;
            let regions = ours.chunks(REGION as usize).zip(theirs.chunks(REGION as usize));
            for ((ours, theirs), start) in regions.zip((at..).step_by(REGION as usize)) {
                let Some(index) = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs)
                else {
                    continue;
                };
                let difference =
                    found.get_or_insert(Difference { first: start + index as u64, bytes: 0 });
                difference.bytes += ours.len() as u64;
                self.copy.regions.mark(&(start..start + ours.len() as u64));
            }
            at += length as u64;
        }
        Ok(found)
    }

    /// The target is the disk now. This one ends: requests that wait are refused, its files are
    /// complete and closed.
    pub fn finish(self) -> Result<()> {
        self.leave();
        self.paused.end()
    }

    /// The disk goes on where it is, and so does `mirror`, which this is the switch of.
    pub fn go_on(mut self, mirror: &Mirror) {
        mirror.0.put_back(self.watcher.take());
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
