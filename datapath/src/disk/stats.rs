//! What a disk has done: counts, bytes, and how long requests took.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Trims.
    Trim,
    /// Requests for zeros.
    Zeroes,
}

impl Kind {
    /// All of them, in the order of [`Stats::kinds`].
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Trim, Self::Zeroes];
}

/// Steps of the histogram: four to each doubling, from 1 µs to more than four minutes.
const STEPS: usize = 4 * 28;

/// Requests of one kind. Counted since the disk was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindStats {
    /// Which.
    pub kind: Kind,
    /// Requests that ended, failed ones included.
    pub operations: u64,
    /// Bytes of those that did not fail.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Time they took in all, nanoseconds. Waiting for a limit is not counted, waiting for a pause
    /// is.
    pub nanoseconds: u64,
    /// How many took how long: upper bound in nanoseconds, and count; empty steps are left out.
    /// A step is a quarter of a doubling.
    pub latency: Vec<(u64, u64)>,
}

impl KindStats {
    /// The time that this share (0 to 1) of the requests did not exceed, to the upper end of its
    /// step; none without requests.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.latency.iter().map(|step| step.1).sum();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "counts far below 2^52"
        )]
        let wanted = (total as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        self.latency.iter().find_map(|(bound, count)| {
            seen += count;
            (seen >= wanted.max(1)).then(|| Duration::from_nanos(*bound))
        })
    }
}

/// What a disk has done since it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// By kind, in the order of [`Kind::ALL`].
    pub kinds: Vec<KindStats>,
}

impl Stats {
    /// Those of one kind.
    pub fn of(&self, kind: Kind) -> Option<&KindStats> {
        self.kinds.iter().find(|stats| stats.kind == kind)
    }
}

struct Counters {
    bytes: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    latency: [AtomicU64; STEPS],
}

/// Counters of some of the threads, far from those of others in memory.
#[repr(align(128))]
struct Shard([Counters; Kind::ALL.len()]);

/// Counts requests; no locks, and no cache line that many threads write.
pub(super) struct Meter(Box<[Shard]>);

const SHARDS: usize = 8;

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn my_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SHARD.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    })
}

/// The step that a time belongs to.
fn step(nanoseconds: u64) -> usize {
    let units = nanoseconds / 1000;
    if units == 0 {
        return 0;
    }
    let doubling = units.ilog2();
    // The two bits below the highest.
    let quarter = if doubling >= 2 { units >> (doubling - 2) } else { units << (2 - doubling) } & 3;
    (doubling as usize * 4 + quarter as usize).min(STEPS - 1)
}

/// First nanosecond behind a step.
fn bound(step: usize) -> u64 {
    let (doubling, quarter) = (step / 4, step as u64 % 4);
    ((1 << doubling) * 1000 / 4) * (5 + quarter)
}

impl Meter {
    pub(super) fn new() -> Self {
        let counter = || AtomicU64::new(0);
        let counters = || Counters {
            bytes: counter(),
            errors: counter(),
            nanoseconds: counter(),
            latency: std::array::from_fn(|_| counter()),
        };
        Self((0..SHARDS).map(|_| Shard(std::array::from_fn(|_| counters()))).collect())
    }

    pub(super) fn count(&self, kind: Kind, bytes: u64, took: Duration, done: bool) {
        let Some(shard) = self.0.get(my_shard()) else { return };
        let counters = &shard.0[kind as usize];
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if done {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
        counters.nanoseconds.fetch_add(took, Ordering::Relaxed);
        if let Some(count) = counters.latency.get(step(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> Stats {
        let kinds = Kind::ALL.map(|kind| {
            let all = || self.0.iter().map(|shard| &shard.0[kind as usize]);
            let sum = |of: fn(&Counters) -> &AtomicU64| {
                all().map(|counters| of(counters).load(Ordering::Relaxed)).sum()
            };
            let steps = (0..STEPS).map(|step| {
                let count: u64 =
                    all().map(|counters| counters.latency[step].load(Ordering::Relaxed)).sum();
                (bound(step), count)
            });
            let latency: Vec<_> = steps.filter(|(_, count)| *count > 0).collect();
            KindStats {
                kind,
                operations: latency.iter().map(|step| step.1).sum(),
                bytes: sum(|counters| &counters.bytes),
                errors: sum(|counters| &counters.errors),
                nanoseconds: sum(|counters| &counters.nanoseconds),
                latency,
            }
        });
        Stats { kinds: kinds.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kind, Meter, STEPS, bound, step};

    #[test]
    fn every_time_lies_below_the_bound_of_its_step_and_not_below_the_one_before() {
        let mut nanoseconds = 1_u64;
        while nanoseconds < 60_000_000_000 {
            let at = step(nanoseconds);
            assert!(nanoseconds / 1000 * 1000 < bound(at), "{nanoseconds} in step {at}");
            if at > 0 && nanoseconds >= 4000 {
                assert!(nanoseconds >= bound(at - 1) / 1000 * 1000, "{nanoseconds} in step {at}");
            }
            nanoseconds += nanoseconds / 7 + 1;
        }
        assert_eq!(step(u64::MAX), STEPS - 1);
    }

    #[test]
    fn what_was_counted_is_read_whoever_counted_it() {
        let meter = Meter::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..100 {
                        let took = Duration::from_micros(if index < 99 { 10 } else { 5000 });
                        meter.count(Kind::Write, 512, took, index != 50);
                    }
                });
            }
        });
        let stats = meter.read();
        let writes = stats.of(Kind::Write).unwrap();
        assert_eq!((writes.operations, writes.bytes, writes.errors), (400, 396 * 512, 4));
        let half = writes.percentile(0.5).unwrap();
        assert!((10..13).contains(&half.as_micros()), "{half:?}");
        let most = writes.percentile(0.999).unwrap();
        assert!((5000..6300).contains(&most.as_micros()), "{most:?}");
        assert_eq!(stats.of(Kind::Read).unwrap().percentile(0.5), None);
    }
}
