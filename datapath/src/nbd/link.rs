//! What the threads of one connection share.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::handshake::Agreed;
use super::wire::Wire;
use crate::error::Error;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that has chosen its export.
pub(super) struct Link {
    pub(super) wire: Box<dyn Wire>,
    pub(super) agreed: Agreed,
    pub(super) pace: Pace,
    pub(super) gauge: Arc<Gauge>,
    /// Held while replies go out: those of different threads do not mix.
    sending: Mutex<()>,
    errors: AtomicU64,
}

/// Requests of a connection that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicUsize);

impl Gauge {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    pub(super) fn new(wire: Box<dyn Wire>, agreed: Agreed, gauge: Arc<Gauge>) -> Self {
        let (sending, errors) = (Mutex::new(()), AtomicU64::new(0));
        Self { wire, agreed, pace: Pace::default(), gauge, sending, errors }
    }

    pub(super) fn send(&self, first: &[u8], second: &[u8]) -> io::Result<()> {
        let _turn = self.turn();
        self.wire.send(first, second)
    }

    /// Whoever has it may send on the wire itself.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.sending)
    }

    /// Says that a request has failed; not each time, or a broken disk would fill the log.
    pub(super) fn log(&self, error: &Error) {
        let count = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            let (export, errno) = (&self.agreed.name, error.errno);
            tracing::warn!(export, ?errno, count, "a request has failed: {error}");
        }
    }
}

/// Kinds of requests that take their own time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    /// Whatever must be durable.
    Durable = 2,
    /// Zeros and trims.
    Space = 3,
    /// Never worth another thread.
    Other = 4,
}

/// How long requests have taken lately.
///
/// A disk that answers from memory is best served by one thread, which saves the changes between
/// threads; one that makes its callers wait is best served by several.
#[derive(Debug, Default)]
pub(super) struct Pace([AtomicU32; 5]);

/// Nanoseconds beyond which another thread pays: a few times what it costs to wake one.
const SLOW: u32 = 50_000;

impl Pace {
    pub(super) fn add(&self, kind: Kind, time: Duration, bytes: usize) {
        let Some(cell) = self.0.get(kind as usize) else { return };
        // What copying the bytes takes is not waiting: 4 GB/s.
        let copying = Duration::from_nanos(bytes as u64 / 4);
        let taken = u32::try_from(time.saturating_sub(copying).as_nanos()).unwrap_or(u32::MAX / 16);
        let old = cell.load(Ordering::Relaxed);
        // One that was interrupted tells nothing; many that are slow are believed soon.
        let taken = taken.min(old * 2 + 10_000);
        cell.store((old / 8 * 7 + taken / 8).min(u32::MAX / 16), Ordering::Relaxed);
    }

    pub(super) fn is_slow(&self, kind: Kind) -> bool {
        self.0.get(kind as usize).is_some_and(|cell| cell.load(Ordering::Relaxed) > SLOW)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kind, Pace};

    #[test]
    fn one_interruption_makes_no_slow_disk_and_a_slow_disk_is_seen_soon() {
        let pace = Pace::default();
        let add = |time| pace.add(Kind::Read, time, 4096);
        (0..50).for_each(|_| add(Duration::from_micros(3)));
        add(Duration::from_millis(10));
        assert!(!pace.is_slow(Kind::Read), "one of fifty was interrupted");
        (0..50).for_each(|_| add(Duration::from_millis(10)));
        assert!(pace.is_slow(Kind::Read), "fifty in a row took ten milliseconds");
        assert!(!pace.is_slow(Kind::Write), "writes are not reads");
        (0..50).for_each(|_| add(Duration::from_micros(3)));
        assert!(!pace.is_slow(Kind::Read), "fifty in a row took three microseconds");
    }
}
