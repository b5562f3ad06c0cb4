//! Merging the leaf of a disk that is in use into its only parent.
//!
//! ```text
//! LeafMerge::start       what the leaf holds goes to the parent, and so does what the guest writes
//! LeafMerge::wait_ready  the parent lacks only what is in flight
//! LeafMerge::suspend     it is given up for now; the next start goes on with what it has left
//! LeafMerge::converge    the disk is paused; the parent has all of the leaf, and is closed
//!   (the caller)         gives the parent the name of the leaf: `Tree::finish_live_merge`
//! Converged::switch      the disk is served from the parent, and goes on
//! ```
//!
//! Whoever calls makes sure before that nobody else uses the parent, that it is as large as the
//! leaf, and that the leaf stays the leaf: `Tree::begin_live_merge` does. While it runs, the disk
//! must get no other leaf: what the guest writes then would be in the parent, and hidden by nothing
//! from those who read the old leaf. So a snapshot, or anything else that exchanges files, cancels
//! the merge first ([`LeafMerge::cancel`]). When that was forgotten, the merge fails at the next
//! write, and nothing more goes to the parent.
//!
//! # Why it can be given up at any moment
//!
//! The parent gets only what the leaf has already: a write of the guest is forwarded when the leaf
//! has it. The leaf hides all of that from every reader. So neither a half-done copy, nor a torn
//! sector after a power cut, nor new metadata that was lost shows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::left::{Left, Notes};
use super::options::{Options, Progress};
use super::target::{Failure, LocalTarget, Piece, PieceKind, Sent, Source, Target};
use super::watched::Watched;
use crate::disk::{Change, Drive, Options as DriveOptions, Paused, Plan, WatcherId};
use crate::error::{Errno, Error, Result};
use crate::export::Export;

/// Time that a dropped merge waits for the end of its parent.
const LEAVE: Duration = Duration::from_secs(1);

/// What the leaf of a disk holds itself.
struct Leaf {
    drive: Arc<Drive>,
    /// The file that it is.
    id: (u64, u64),
    /// What of it the parent has already.
    notes: Arc<Notes>,
}

impl Leaf {
    fn check(&self) -> Result<()> {
        if self.drive.leaf_id() == self.id {
            return Ok(());
        }
        Err(Error::new(Errno::Io, "the disk has another leaf now"))
    }
}

impl Source for Leaf {
    fn size(&self) -> u64 {
        Export::size(&*self.drive)
    }

    fn pieces(&self, range: std::ops::Range<u64>, into: &mut Vec<Piece>) -> Result<()> {
        self.check()?;
        let mut at = range.start;
        while at < range.end {
            let (has, end) = self.notes.run(&(at..range.end));
            if has {
                into.push(Piece { range: at..end, kind: PieceKind::Same });
                at = end;
                continue;
            }
            for (length, held) in self.drive.held_by_leaf(at, end - at)? {
                let kind = if held { PieceKind::Data } else { PieceKind::Same };
                into.push(Piece { range: at..at + length, kind });
                at += length;
            }
        }
        Ok(())
    }

    fn is_partial(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check()?;
        self.drive.read_aside(offset, buf)
    }
}

/// The parent, as long as the leaf is the leaf.
struct Parent {
    disk: LocalTarget,
    leaf: Arc<Leaf>,
}

impl Parent {
    fn check(&self) -> Result<(), Failure> {
        self.leaf.check().map_err(|error| Failure::permanent(error.what))
    }
}

impl Target for Parent {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn least_block(&self) -> u64 {
        self.disk.least_block()
    }

    fn is_blank(&self) -> bool {
        self.disk.is_blank()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.check()?;
        self.disk.write(offset, bytes)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.check()?;
        self.disk.zero(offset, length)
    }

    fn forward(&self, change: &Change<'_>) -> Result<Sent, Failure> {
        // Files are exchanged while no write is under way, so this holds until the write ends.
        self.check()?;
        self.disk.forward(change)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.disk.flush()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.disk.read(offset, buf)
    }

    fn renew(&self) -> Result<bool, Failure> {
        self.disk.renew()
    }

    fn abandon(&self) {
        self.disk.abandon();
    }
}

/// A leaf that is merged into its parent while the disk is in use. Dropped, it leaves the disk
/// alone; [`LeafMerge::cancel`] also tells when that is done.
pub struct LeafMerge {
    watched: Watched,
    parent: Arc<Drive>,
    leaf: (u64, u64),
    /// None when it is over.
    left: Mutex<Option<Left>>,
}

impl LeafMerge {
    /// Begins. `options` are those of the parent as a disk; it needs no notes of its metadata, since
    /// the leaf has everything. Waits, until `deadline`, for requests that are under way.
    pub fn start(
        drive: &Arc<Drive>,
        options: &DriveOptions,
        copy: Options,
        deadline: Instant,
    ) -> Result<Self> {
        Self::go_on(drive, options, copy, None, deadline)
    }

    /// As [`LeafMerge::start`], with what an earlier one has left. Where that does not fit the disk
    /// any more, it begins anew.
    pub fn go_on(
        drive: &Arc<Drive>,
        options: &DriveOptions,
        copy: Options,
        left: Option<Left>,
        deadline: Instant,
    ) -> Result<Self> {
        let plan = drive.plan();
        let mut below = plan.backing.into_iter();
        let Some(leaf) = below.next() else {
            return Err(Error::new(Errno::Invalid, "the disk has no parent to be merged into"));
        };
        if plan.read_only {
            return Err(Error::new(Errno::Invalid, "the disk is read-only"));
        }
        let leaf_id = drive.leaf_id();
        // Before the parent is opened, which may change its file.
        let left = match left.filter(|left| left.fits(drive)) {
            Some(left) => left,
            None => Left::none(drive, &leaf.path, deadline)?,
        };
        let parent = Plan { leaf, backing: below.collect(), read_only: false };
        let parent = Drive::open(&parent, DriveOptions { pending: None, ..options.clone() })?;
        let notes = left.notes();
        let source = Arc::new(Leaf { drive: drive.clone(), id: leaf_id, notes });
        let disk = LocalTarget::new(parent.clone(), false);
        let target = Arc::new(Parent { disk, leaf: source.clone() });
        let watched = Watched::start(drive, source, target, copy, deadline)?;
        Ok(Self { watched, parent, leaf: leaf_id, left: Mutex::new(Some(left)) })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.watched.copy.progress()
    }

    /// Device and inode number of the parent.
    pub fn parent_id(&self) -> (u64, u64) {
        self.parent.leaf_id()
    }

    /// Another limit for the copy, bytes per second.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.watched.copy.set_rate(rate);
    }

    /// Another limit for the copy, percent of one processor.
    pub fn set_cpu_percent(&self, percent: Option<u8>) {
        self.watched.copy.set_cpu_percent(percent);
    }

    fn take_left(&self) -> Option<Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until the parent lacks only what is in flight.
    pub fn wait_ready(&self, deadline: Instant) -> Result<()> {
        self.watched.copy.wait_ready(deadline)
    }

    /// Pauses the disk and makes sure that the parent has all of the leaf, durably; then the parent
    /// is closed, so that its file can be opened by others. Refused, and the disk goes on, when it
    /// is not ready, or when the parent fails just now.
    pub fn converge(&self, deadline: Instant) -> Result<Converged> {
        let Watched { drive, copy, .. } = &self.watched;
        let paused = self.watched.pause("merge", deadline)?;
        if drive.leaf_id() != self.leaf {
            return Err(Error::new(Errno::Io, "the disk has another leaf now"));
        }
        copy.settle(deadline)?;
        copy.end();
        if let Some(left) = self.take_left() {
            left.forget_in(&paused);
        }
        let converged = Converged {
            paused: Some(paused),
            watcher: self.watched.take_watcher(),
            leaf: self.leaf,
            switched: false,
        };
        self.parent.close(deadline)?;
        Ok(converged)
    }

    /// Gives it up: the disk goes on as it is. What the parent has got is hidden by the leaf. Waits
    /// for requests and threads until `deadline`.
    pub fn cancel(&self, deadline: Instant) -> Result<()> {
        self.suspend(deadline).map(drop)
    }

    /// As [`LeafMerge::cancel`], and answers what the next one need not copy again; none when it was
    /// given up before, or when the parent has failed in between, so that nobody knows what it has.
    pub fn suspend(&self, deadline: Instant) -> Result<Option<Left>> {
        let mut left = self.take_left();
        // While the copy still sees every write, or one in between would be seen by nobody.
        let before = left.as_mut().map(Left::begin);
        self.watched.cancel("merge", deadline)?;
        let copy = &self.watched.copy;
        self.parent.close(deadline)?;
        let (Some(mut left), Some(before)) = (left, before) else { return Ok(None) };
        if copy.progress().retries > 0 {
            return Ok(None);
        }
        let (missing, all) = copy.missing();
        left.end(before, &missing, all);
        Ok(Some(left))
    }
}

impl Drop for LeafMerge {
    fn drop(&mut self) {
        if self.watched.leave() {
            // Nobody waits for what the parent has: the leaf has it too.
            let _ = self.parent.close(Instant::now() + LEAVE);
        }
    }
}

/// A disk that is paused, and whose leaf is not needed any more. Dropped before the switch, the
/// disk goes on with its leaf, if that still has its name; and stays paused if not, because what
/// it writes into a file without a name would be lost.
#[must_use = "the disk is paused"]
pub struct Converged {
    paused: Option<Paused>,
    watcher: Option<WatcherId>,
    leaf: (u64, u64),
    switched: bool,
}

impl Converged {
    /// The disk that is paused.
    pub fn source(&self) -> Option<&Paused> {
        self.paused.as_ref()
    }

    /// The pause alone, for who looks himself under which name the leaf is before it ends. None
    /// after the switch.
    pub fn into_paused(mut self) -> Option<Paused> {
        let paused = self.paused.take()?;
        if let Some(watcher) = self.watcher.take() {
            paused.remove_watcher(watcher);
        }
        Some(paused)
    }

    /// Serves the disk by `plan` from now on, whose leaf is the old parent by its new name. After
    /// an error it can be tried again; the disk stays paused.
    pub fn switch(&mut self, plan: &Plan) -> Result<()> {
        let Some(paused) = &self.paused else { return Ok(()) };
        let prepared = paused.drive().prepare(plan)?;
        paused.replace(prepared)?;
        self.switched = true;
        Ok(())
    }

    /// Lets the disk go on with the leaf that it had, whatever is under its name: for who knows
    /// better.
    pub fn give_up(mut self) {
        self.switched = true;
    }
}

impl Drop for Converged {
    fn drop(&mut self) {
        let Some(paused) = self.paused.take() else { return };
        if let Some(watcher) = self.watcher {
            paused.remove_watcher(watcher);
        }
        if !self.switched && !has_name(&paused.drive().plan(), self.leaf) {
            tracing::error!("the leaf of a paused disk has lost its name: the disk stays paused");
            std::mem::forget(paused);
        }
    }
}

/// Whether the file of a plan's leaf is this one.
fn has_name(plan: &Plan, id: (u64, u64)) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::symlink_metadata(&plan.leaf.path);
    found.is_ok_and(|found| (found.dev(), found.ino()) == id)
}
