//! The gate that requests pass, and that is closed while something underneath is changed.
//!
//! Closing stops the intake first and then waits for those inside, so a busy client cannot hold it
//! off. A request that comes to a closed gate waits until it opens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Set while the gate is closed; the lower bits count who is inside.
const CLOSED: u64 = 1 << 63;

/// Set when it will not open again.
const SHUT: u64 = 1 << 62;

struct Inner {
    state: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

/// See the module.
pub(super) struct Gate(Arc<Inner>);

/// Being inside; leaves when dropped.
pub(super) struct Pass<'a>(&'a Inner);

/// As [`Pass`], to be kept for longer than a call.
pub(super) struct LongPass(Arc<Inner>);

/// The gate has been shut for good.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shut;

/// Why a gate was not closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotClosed {
    /// The deadline came while somebody else had it closed.
    Taken,
    /// The deadline came with so many inside; it is open again.
    Busy(u64),
    /// It was shut before.
    Shut,
}

impl Inner {
    /// Comes in, unless the gate is closed.
    fn step_in(&self) -> Result<(), Option<Shut>> {
        let before = self.state.fetch_add(1, Ordering::AcqRel);
        if before & (CLOSED | SHUT) == 0 {
            return Ok(());
        }
        self.leave();
        Err((before & SHUT != 0).then_some(Shut))
    }

    fn leave(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & (CLOSED | SHUT) != 0 {
            // With the lock held nobody is between looking at the count and waiting for it.
            drop(self.held());
            self.changed.notify_all();
        }
    }

    fn held(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> u64 {
        self.state.load(Ordering::Acquire)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for LongPass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            state: AtomicU64::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }))
    }

    /// Comes in, waiting while the gate is closed.
    pub(super) fn enter(&self) -> Result<Pass<'_>, Shut> {
        loop {
            match self.0.step_in() {
                Ok(()) => return Ok(Pass(&self.0)),
                Err(Some(shut)) => return Err(shut),
                Err(None) => {}
            }
            let mut held = self.0.held();
            while self.0.state() & (CLOSED | SHUT) == CLOSED {
                held = self.0.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Comes in if the gate is open.
    pub(super) fn try_enter(&self) -> Option<LongPass> {
        self.0.step_in().is_ok().then(|| LongPass(self.0.clone()))
    }

    /// Closes the gate and waits until nobody is inside.
    pub(super) fn close(&self, deadline: Instant) -> Result<(), NotClosed> {
        let mut held = self.0.held();
        loop {
            let state = self.0.state();
            if state & SHUT != 0 {
                return Err(NotClosed::Shut);
            }
            if state & CLOSED == 0 {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotClosed::Taken);
            }
            held =
                self.0.changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        // Only with the lock held, so nobody else has done it meanwhile.
        self.0.state.fetch_or(CLOSED, Ordering::AcqRel);
        loop {
            let inside = self.0.state() & !(CLOSED | SHUT);
            if inside == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(held);
                self.open();
                return Err(NotClosed::Busy(inside));
            }
            held =
                self.0.changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Opens a gate that [`Gate::close`] has closed.
    pub(super) fn open(&self) {
        let held = self.0.held();
        self.0.state.fetch_and(!CLOSED, Ordering::AcqRel);
        drop(held);
        self.0.changed.notify_all();
    }

    /// A closed gate will not open again: who waits, and who comes, is told so.
    pub(super) fn shut(&self) {
        let held = self.0.held();
        self.0.state.fetch_or(SHUT, Ordering::AcqRel);
        drop(held);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::{Gate, NotClosed, Shut};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn nobody_is_inside_while_it_is_closed_however_busy_it_is() {
        let gate = Gate::new();
        let (inside, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let passed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let _pass = gate.enter().unwrap();
                        inside.fetch_add(1, Ordering::SeqCst);
                        std::hint::spin_loop();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        passed.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..500 {
                gate.close(soon()).unwrap();
                let before = passed.load(Ordering::SeqCst);
                for _ in 0..100 {
                    assert_eq!(inside.load(Ordering::SeqCst), 0);
                    std::hint::spin_loop();
                }
                assert_eq!(passed.load(Ordering::SeqCst), before);
                assert!(gate.try_enter().is_none());
                gate.open();
                let until = soon();
                while passed.load(Ordering::SeqCst) == before {
                    assert!(Instant::now() < until, "nobody comes in any more");
                    std::thread::yield_now();
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn a_gate_that_cannot_be_emptied_in_time_is_open_again() {
        let gate = Gate::new();
        let pass = gate.try_enter().unwrap();
        assert_eq!(gate.close(Instant::now()), Err(NotClosed::Busy(1)));
        assert!(gate.enter().is_ok(), "open again");
        drop(pass);
        gate.close(soon()).unwrap();
        assert_eq!(gate.close(Instant::now()), Err(NotClosed::Taken));
        gate.shut();
        assert_eq!(gate.enter().err(), Some(Shut));
        assert_eq!(gate.close(soon()), Err(NotClosed::Shut));
    }
}
