//! How fast the copy goes: bytes in flight, bytes per second, and regard for the guest.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time to wait for before it is looked again whether to go on.
const NAP: Duration = Duration::from_millis(50);

/// How much of what was not used is used later.
const LATE: Duration = Duration::from_millis(20);

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

/// Time that this thread has had a processor, nanoseconds.
pub(super) fn thread_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A limit in bytes per second, or in anything else, for all threads together.
pub(super) struct Throttle {
    /// Of whoever asked for one, and what leaves room for the guest; zero is no limit.
    rate: AtomicU64,
    room: AtomicU64,
    /// When the next bytes may go.
    next: Mutex<Instant>,
    turn: Mutex<()>,
}

impl Throttle {
    pub(super) fn new(rate: Option<u64>) -> Self {
        let (rate, room) = (AtomicU64::new(rate.unwrap_or(0)), AtomicU64::new(0));
        Self { rate, room, next: Mutex::new(Instant::now()), turn: Mutex::default() }
    }

    /// While there is a limit, one thread at a time waits for it and takes what comes next: if all
    /// did, all would wake for each piece.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.least().map(|_| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// What leaves room for the guest.
    pub(super) fn set_room(&self, rate: Option<u64>) {
        let rate = rate.unwrap_or(0);
        if self.room.swap(rate, Ordering::Relaxed) != rate {
            // What was spent at a lower rate is no debt at a higher one.
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next = (*next).min(Instant::now() + NAP);
        }
    }

    /// What was asked for.
    pub(super) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// What holds.
    fn least(&self) -> Option<u64> {
        let room = Some(self.room.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        self.rate().into_iter().chain(room).min()
    }

    /// Time until something may go.
    pub(super) fn wait(&self) -> Duration {
        if self.least().is_none() {
            return Duration::ZERO;
        }
        let next = *self.next.lock().unwrap_or_else(PoisonError::into_inner);
        next.saturating_duration_since(Instant::now()).min(NAP)
    }

    /// Some bytes go.
    pub(super) fn spend(&self, bytes: u64) {
        let Some(rate) = self.least() else { return };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Whoever was late catches up, or the limit would be one that is never reached.
        let start = (*next).max(now.checked_sub(LATE).unwrap_or(now));
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

/// Leaves room for a guest that writes much.
///
/// A copy takes all that disks and processors give, and a guest that keeps them busy, too, is left
/// with a fifth of what it had. So while it writes, the copy is held to a part of the speed that it
/// has when nothing holds it, which is measured from time to time. The part grows as the copy gets
/// on: what is not copied yet is written without the target, so a copy that begins slowly and ends
/// fast costs the guest less than an even one that takes as long.
#[derive(Default)]
pub(super) struct Room {
    ticks: u32,
    /// Bytes copied when the measurement began, and when that was.
    from: Option<(u64, Instant)>,
    /// Bytes per second of a copy that nothing holds.
    full: u64,
}

/// How a copy goes on until the next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// As if the guest did not write.
    Not,
    /// As much at a time as beside a guest that writes.
    Beside,
    /// So many bytes per second.
    To(u64),
}

impl Held {
    pub(super) fn rate(self) -> Option<u64> {
        if let Self::To(rate) = self { Some(rate) } else { None }
    }
}

impl Room {
    /// Writes of the guest per second from which on the copy makes room: with fewer, it takes
    /// nothing from it that it would miss.
    const MANY: u64 = 2000;

    /// Ticks from one measurement to the next; the second one is earlier.
    const CYCLE: u32 = 64;
    const SECOND: u32 = 8;

    /// The part of the full speed at the beginning, in thousandths; a thousand more at the end.
    /// Together the copy takes 1.6 times as long as one that is held by nothing else.
    const FIRST: u64 = 250;

    /// What to do until the next tick. `writes` of the guest per second; bytes `copied` until
    /// `now`; `done`: thousandths of the copy.
    pub(super) fn decide(&mut self, writes: u64, copied: u64, now: Instant, done: u64) -> Held {
        if writes < Self::MANY {
            *self = Self::default();
            return Held::Beside;
        }
        if let Some((before, begin)) = self.from.take() {
            let time = now.duration_since(begin).as_micros().max(1);
            let full = u128::from(copied.saturating_sub(before)) * 1_000_000 / time;
            // One that others have disturbed is not believed at once.
            self.full = u64::try_from(full).unwrap_or(u64::MAX).max(self.full / 4 * 3);
        }
        let tick = self.ticks;
        self.ticks = self.ticks.wrapping_add(1);
        if tick == Self::SECOND || tick.is_multiple_of(Self::CYCLE) || self.full == 0 {
            self.from = Some((copied, now));
            return Held::Not;
        }
        Held::To((self.full / 1000).saturating_mul(Self::FIRST + done).max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Held, InFlight, Latency, Regard, Room, Throttle};

    #[test]
    fn a_copy_makes_room_for_a_guest_that_writes_much_and_for_no_other() {
        let (mut room, begin) = (Room::default(), Instant::now());
        let mut tick = |ticks: u32, writes, copied, done| {
            room.decide(writes, copied, begin + Duration::from_millis(50) * ticks, done)
        };
        let (much, copied) = (50_000, 50_000_000);
        let of_full = |part| Held::To(20 * copied / 1000 * part);
        assert_eq!(tick(0, Room::MANY - 1, 0, 0), Held::Beside, "it writes little");
        assert_eq!(tick(1, much, 0, 0), Held::Not, "the full speed is measured first");
        assert_eq!(tick(2, much, copied, 0), of_full(Room::FIRST));
        assert_eq!(tick(3, much, copied, 500), of_full(Room::FIRST + 500));
        (4..9).for_each(|it| assert_eq!(tick(it, much, copied, 0), of_full(Room::FIRST)));
        assert_eq!(tick(9, much, copied, 0), Held::Not, "it is measured again");
        let slower = Held::To(20 * copied / 1000 * 3 / 4 * Room::FIRST);
        assert_eq!(tick(10, much, copied, 0), slower, "nothing was copied");
        assert_eq!(tick(11, 0, copied, 0), Held::Beside);
        assert_eq!(tick(12, much, copied, 0), Held::Not, "from the beginning");
        assert_eq!(tick(13, much, copied, 0), Held::Not, "nothing is known");
    }

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

    #[test]
    fn what_was_spent_at_a_lower_rate_is_no_debt_at_a_higher_one() {
        let throttle = Throttle::new(None);
        throttle.set_room(Some(1));
        throttle.spend(1 << 20);
        throttle.set_room(Some(1 << 30));
        let debt = throttle.next.lock().unwrap().saturating_duration_since(Instant::now());
        assert!(debt <= super::NAP, "{debt:?}");
        assert_eq!(throttle.rate(), None, "nobody has asked for one");
    }
}
