//! Limits of requests and bytes per second.
//!
//! Each request is given its turn when it comes, and waits for it by itself: no lock is held
//! meanwhile, and nobody is inside the gate. So a pause never waits for a limit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// So many per second in the long run, and that many at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests or bytes per second; 0 is taken for 1.
    pub per_second: u64,
    /// How many may come at once after a rest, beyond the rate.
    pub burst: u64,
}

/// What a disk may be asked for. None: as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests that read, write or clear.
    #[serde(default)]
    pub operations: Option<Rate>,
    /// Bytes read, written or cleared.
    #[serde(default)]
    pub bytes: Option<Rate>,
}

/// When the next of a kind has its turn, if nothing was saved up.
#[derive(Default)]
struct Turn(Option<Instant>);

impl Turn {
    /// Takes `count` of a rate; answers from when on they may be used.
    fn take(&mut self, rate: Rate, count: u64, now: Instant) -> Instant {
        let time = |count: u64| {
            let nanoseconds =
                u128::from(count) * 1_000_000_000 / u128::from(rate.per_second.max(1));
            Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX / 4))
        };
        let next = self.0.map_or(now, |next| next.max(now));
        let saved = time(rate.burst);
        self.0 = next.checked_add(time(count)).or(Some(next));
        next.checked_sub(saved).map_or(now, |at| at.max(now))
    }
}

#[derive(Default)]
struct Turns {
    limits: Limits,
    operations: Turn,
    bytes: Turn,
    /// Counts changes of the limits.
    changes: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Limiter {
    on: AtomicBool,
    turns: Mutex<Turns>,
    changed: Condvar,
}

impl Limiter {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on; who waits for a limit that was before goes on at once.
    pub(super) fn set(&self, limits: Limits) {
        let mut turns = self.turns();
        turns.changes += 1;
        *turns = Turns { limits, changes: turns.changes, ..Turns::default() };
        self.on.store(limits != Limits::default(), Ordering::Release);
        drop(turns);
        self.changed.notify_all();
    }

    pub(super) fn get(&self) -> Limits {
        self.turns().limits
    }

    /// Whether anything is limited.
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Waits for the turn of a request.
    pub(super) fn wait(&self, bytes: u64) {
        if !self.is_on() {
            return;
        }
        let mut turns = self.turns();
        let (now, limits, changes) = (Instant::now(), turns.limits, turns.changes);
        let mut turn = now;
        if let Some(rate) = limits.operations {
            turn = turn.max(turns.operations.take(rate, 1, now));
        }
        if let Some(rate) = limits.bytes {
            turn = turn.max(turns.bytes.take(rate, bytes, now));
        }
        while turns.changes == changes {
            let left = turn.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            turns =
                self.changed.wait_timeout(turns, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Limiter, Limits, Rate, Turn};

    #[test]
    fn turns_come_at_the_rate_after_what_was_saved_up() {
        let start = Instant::now();
        let rate = Rate { per_second: 100, burst: 5 };
        let mut turn = Turn::default();
        let at: Vec<u128> =
            (0..10).map(|_| (turn.take(rate, 1, start) - start).as_millis()).collect();
        assert_eq!(at, [0, 0, 0, 0, 0, 0, 10, 20, 30, 40]);
        // A rest saves up, but no more than the burst.
        let later = start + Duration::from_secs(60);
        let at: Vec<u128> =
            (0..8).map(|_| (turn.take(rate, 1, later) - later).as_millis()).collect();
        assert_eq!(at, [0, 0, 0, 0, 0, 0, 10, 20]);
        // No rate overflows.
        let rate = Rate { per_second: 0, burst: u64::MAX };
        assert_eq!(Turn::default().take(rate, u64::MAX, start), start);
    }

    #[test]
    fn who_waits_goes_on_when_the_limit_is_taken_away() {
        let limiter = Arc::new(Limiter::default());
        limiter.set(Limits { operations: Some(Rate { per_second: 1, burst: 0 }), bytes: None });
        limiter.wait(0);
        // An hour's worth of requests.
        for _ in 0..3 {
            limiter.turns().operations.take(Rate { per_second: 1, burst: 0 }, 1200, Instant::now());
        }
        let waiting = {
            let limiter = limiter.clone();
            std::thread::spawn(move || limiter.wait(0))
        };
        limiter.set(Limits::default());
        waiting.join().unwrap();
        assert!(!limiter.is_on());
    }
}
