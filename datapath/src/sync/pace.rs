//! How fast the copy goes: bytes in flight, bytes per second, and regard for the guest.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest time to wait for before it is looked again whether to go on.
const NAP: Duration = Duration::from_millis(50);

/// Bytes that are read and not yet written, of all threads together.
#[derive(Default)]
pub(super) struct InFlight {
    used: Mutex<u64>,
    freed: Condvar,
}

impl InFlight {
    /// Takes bytes; `false` when there is no room for a while. A single larger piece is let
    /// through.
    pub(super) fn take(&self, bytes: u64, most: u64) -> bool {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut u64| *used > 0 && *used + bytes > most;
        let (mut used, _) =
            self.freed.wait_timeout_while(used, NAP, full).unwrap_or_else(PoisonError::into_inner);
        if full(&mut used) {
            return false;
        }
        *used += bytes;
        true
    }

    pub(super) fn give_back(&self, bytes: u64) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) -= bytes;
        self.freed.notify_one();
    }
}

/// A limit in bytes per second, for all threads together.
pub(super) struct Throttle {
    /// Zero is no limit.
    rate: AtomicU64,
    /// When the next bytes may go.
    next: Mutex<Instant>,
}

impl Throttle {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate: AtomicU64::new(rate.unwrap_or(0)), next: Mutex::new(Instant::now()) }
    }

    pub(super) fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(super) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Time until something may go.
    pub(super) fn wait(&self) -> Duration {
        if self.rate().is_none() {
            return Duration::ZERO;
        }
        let next = *self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.saturating_duration_since(Instant::now()).min(NAP)
    }

    /// Some bytes go.
    pub(super) fn spend(&self, bytes: u64) {
        let Some(rate) = self.rate() else { return };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*next).max(Instant::now());
        *next = start + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
    }
}

/// Steps of a factor of two, and all steps: up to a minute.
const FINE: u32 = 4;
const STEPS: usize = 26 * FINE as usize;

/// How long writes of the guest take, since the last look.
pub(super) struct Latency {
    counts: [AtomicU32; STEPS],
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [const { AtomicU32::new(0) }; STEPS] }
    }
}

impl Latency {
    pub(super) fn count(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let octave = micros.ilog2();
        let quarter = ((micros << 2) >> octave) as u32 & (FINE - 1);
        let step = ((octave * FINE + quarter) as usize).min(STEPS - 1);
        self.counts[step].fetch_add(1, Ordering::Relaxed);
    }

    /// Microseconds that one of a hundred writes exceeded; none when there were too few to tell.
    pub(super) fn take(&self) -> Option<u64> {
        let counts =
            self.counts.each_ref().map(|count| u64::from(count.swap(0, Ordering::Relaxed)));
        let all: u64 = counts.iter().sum();
        if all < 16 {
            return None;
        }
        let mut above = all / 100 + 1;
        let step = counts.iter().rposition(|count| {
            above = above.saturating_sub(*count);
            above == 0
        })? as u64;
        let fine = u64::from(FINE);
        Some((1 << (step / fine)) * (fine + step % fine) / fine)
    }
}

/// Slower when the guest's slowest writes take twice as long as without a copy, faster when not.
pub(super) struct Regard {
    base: Option<u64>,
}

impl Regard {
    /// The copy is never made slower than this, bytes per second: it has to end.
    const LEAST: u64 = 16 << 20;

    pub(super) fn new() -> Self {
        Self { base: None }
    }

    /// What the guest's writes take before there is a copy, microseconds.
    pub(super) fn learn(&mut self, slowest: u64) {
        self.base = Some(self.base.map_or(slowest, |base| base.max(slowest)));
    }

    /// The new limit, given the old one, what was copied per second, and how long writes took.
    pub(super) fn decide(&self, old: Option<u64>, copied: u64, slowest: u64) -> Option<u64> {
        let base = self.base?;
        if slowest > base.saturating_mul(2) {
            let from = old.map_or(copied, |old| old.min(copied.max(Self::LEAST)));
            return Some((from / 2).max(Self::LEAST));
        }
        // Without effect once it is more than the target takes.
        old.map(|old| old.saturating_add(old / 4)).filter(|rate| *rate < 1 << 40)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{InFlight, Latency, Regard, Throttle};

    #[test]
    fn the_slowest_hundredth_is_found_within_a_quarter() {
        let latency = Latency::default();
        assert_eq!(latency.take(), None, "nothing was counted");
        for _ in 0..980 {
            latency.count(Duration::from_micros(90));
        }
        for _ in 0..20 {
            latency.count(Duration::from_millis(3));
        }
        let slowest = latency.take().unwrap();
        assert!((2048..=3000).contains(&slowest), "{slowest}");
        assert_eq!(latency.take(), None, "counted once");
        (0..1000).for_each(|_| latency.count(Duration::from_micros(100)));
        let slowest = latency.take().unwrap();
        assert!((80..=100).contains(&slowest), "{slowest}");
    }

    #[test]
    fn twice_the_latency_halves_the_rate_and_no_further_than_it_must() {
        let mut regard = Regard::new();
        assert_eq!(regard.decide(None, 1 << 30, 1 << 20), None, "nothing is known");
        regard.learn(100);
        assert_eq!(regard.decide(None, 1 << 30, 150), None);
        assert_eq!(regard.decide(None, 1 << 30, 201), Some(1 << 29));
        assert_eq!(regard.decide(Some(1 << 29), 1 << 29, 500), Some(1 << 28));
        assert_eq!(regard.decide(Some(16 << 20), 16 << 20, 500), Some(16 << 20));
        assert_eq!(regard.decide(Some(1 << 28), 1 << 28, 100), Some((1 << 28) + (1 << 26)));
    }

    #[test]
    fn bytes_in_flight_are_bounded_and_one_large_piece_goes() {
        let bytes = InFlight::default();
        assert!(bytes.take(500, 100));
        assert!(!bytes.take(1, 100));
        bytes.give_back(500);
        assert!(bytes.take(60, 100) && bytes.take(40, 100) && !bytes.take(1, 100));
        bytes.give_back(60);
        assert!(bytes.take(60, 100));
    }

    #[test]
    fn a_throttle_asks_to_wait_for_what_was_spent() {
        let throttle = Throttle::new(None);
        throttle.spend(1 << 40);
        assert_eq!(throttle.wait(), Duration::ZERO);
        throttle.set(Some(1000));
        throttle.spend(1000);
        assert!(throttle.wait() > Duration::from_millis(1));
        throttle.set(None);
        assert_eq!(throttle.wait(), Duration::ZERO);
    }
}
