//! Being told what is written to a disk, before and after.

use std::any::Any;
use std::sync::Arc;

use crate::error::Result;

/// What a request changes.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// Bytes are written.
    Data {
        /// Bytes from the start of the disk.
        offset: u64,
        /// What is written.
        bytes: &'a [u8],
    },
    /// A range becomes zeros: a trim, or a request for zeros.
    Zeroes {
        /// Bytes from the start of the disk.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The space must stay allocated.
        keep_space: bool,
    },
}

impl Change<'_> {
    /// First byte that changes.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Data { offset, .. } | Self::Zeroes { offset, .. } => *offset,
        }
    }

    /// Number of bytes that change.
    pub fn length(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => bytes.len() as u64,
            Self::Zeroes { length, .. } => *length,
        }
    }
}

/// What a watcher keeps from the beginning of a change to its end.
#[derive(Default)]
pub struct Ticket(Option<Box<dyn Any + Send>>);

impl Ticket {
    /// Nothing is kept; costs nothing.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Keeps a value.
    pub fn of(value: impl Any + Send) -> Self {
        Self(Some(Box::new(value)))
    }

    /// The value, if there is one of that type.
    pub fn take<T: Any>(self) -> Option<T> {
        self.0?.downcast().ok().map(|value| *value)
    }
}

/// Watches the changes of a disk. Called by many threads at once, one for each request.
///
/// For each request that changes the disk, in this order: [`Watcher::before`], the disk is written,
/// [`Watcher::after`], the client is answered. A watcher comes and goes only while no request is
/// under way, so whoever saw the beginning of a change sees its end.
pub trait Watcher: Send + Sync {
    /// Called before the disk is written. May wait, for a range to be free, say; may begin the
    /// same write elsewhere. Must not call the disk it watches.
    fn before(&self, _change: &Change<'_>) -> Ticket {
        Ticket::none()
    }

    /// Called when the disk has the change, or has failed and may have any part of it (`written` is
    /// false), before the client is answered.
    fn after(&self, _change: &Change<'_>, _ticket: Ticket, _written: bool) {}

    /// A flush of the disk has succeeded; the client is answered when this returns, and gets the
    /// error if there is one.
    fn flushed(&self) -> Result<()> {
        Ok(())
    }

    /// It only wants to know which ranges are written, not what: only [`Watcher::touched`] and
    /// [`Watcher::flushed`] are called. Requests may then be handed to a ring of transfers.
    fn only_ranges(&self) -> bool {
        false
    }

    /// Called before a range is written, of a watcher that [only wants to know
    /// ranges](Watcher::only_ranges). The write may still fail. Must be cheap, and must not wait.
    fn touched(&self, _offset: u64, _length: u64) {}

    /// The disk has another size from now on. No request is under way. Changes behind the old end
    /// are told from here on, and must be taken.
    fn resized(&self, _size: u64) {}
}

/// Names a watcher of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatcherId(u64);

/// Those who watch a disk.
#[derive(Clone, Default)]
pub(super) struct Watchers {
    pub(super) all: Vec<(WatcherId, Arc<dyn Watcher>)>,
    /// Those that want to know all of a change.
    pub(super) whole: bool,
    next: u64,
}

impl Watchers {
    pub(super) fn add(&mut self, watcher: Arc<dyn Watcher>) -> WatcherId {
        let id = WatcherId(self.next);
        self.next += 1;
        self.all.push((id, watcher));
        self.count();
        id
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        self.all.retain(|(other, _)| *other != id);
        self.count();
    }

    pub(super) fn touched(&self, offset: u64, length: u64) {
        for (_, watcher) in self.all.iter().filter(|(_, watcher)| watcher.only_ranges()) {
            watcher.touched(offset, length);
        }
    }

    pub(super) fn resized(&self, size: u64) {
        self.all.iter().for_each(|(_, watcher)| watcher.resized(size));
    }

    fn count(&mut self) {
        self.whole = self.all.iter().any(|(_, watcher)| !watcher.only_ranges());
    }
}
