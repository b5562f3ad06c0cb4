//! When to try again, and how fast to ask.
//!
//! A request that reads is tried again after anything that can pass. One that changes something is
//! tried again only where it is certain that it was not done: the array said so
//! ([`Class::Busy`]), or it never left ([`Class::Unreachable`]). A lost answer is for the
//! [ledger](crate::ledger).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use plugin_sdk::Cx;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::tokio::sync::{Semaphore, SemaphorePermit};
use plugin_sdk::tokio::time::{sleep, sleep_until};

use crate::outcome::{Class, Failure, Outcome};

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It reads: twice is the same as once.
    Reads,
    /// It changes something.
    Changes,
}

/// How often to try, and how long to wait in between.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Tries, the first included.
    pub tries: u32,
    /// The first pause.
    pub first: Duration,
    /// The longest pause that is our own choice.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { tries: 8, first: Duration::from_millis(250), longest: Duration::from_secs(30) }
    }
}

impl RetryPolicy {
    /// A policy that never tries again.
    pub const NEVER: Self = Self { tries: 1, first: Duration::ZERO, longest: Duration::ZERO };

    /// The pause after the `n`-th try (from 1): doubled each time, and between half of that and all
    /// of it by chance, so that those who were refused together do not come back together.
    pub fn pause(&self, n: u32, chance: &Chance) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX));
        let whole = doubled.min(self.longest);
        whole / 2 + whole.mul_f64(chance.next() / 2.0)
    }

    /// Does `work` until it ends well, fails for good, or the tries or the call's time are used up.
    /// The failure then says how often it was tried.
    pub async fn run<T, F>(
        &self,
        cx: &Cx,
        chance: &Chance,
        effect: Effect,
        mut work: impl FnMut() -> F + Send,
    ) -> Outcome<T>
    where
        F: Future<Output = Outcome<T>> + Send,
    {
        let started = Instant::now();
        let mut n = 1;
        loop {
            let mut failure = match work().await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            failure.tried = Some((n, started.elapsed()));
            if n >= self.tries || !worth_it(failure.class, effect) {
                return Err(failure);
            }
            // What the array says is the least; jitter is on top of it, not below.
            let pause = match failure.retry_after {
                Some(after) => after + self.first.mul_f64(chance.next()),
                None => self.pause(n, chance),
            };
            if pause >= cx.remaining() {
                // Nobody is helped by waiting here for an end that is known: the caller is told
                // when to come back.
                return Err(failure);
            }
            wait(cx, pause).await?;
            n += 1;
        }
    }
}

fn worth_it(class: Class, effect: Effect) -> bool {
    match class {
        Class::Busy | Class::Unreachable => true,
        Class::Unknown | Class::Garbled => effect == Effect::Reads,
        _ => false,
    }
}

/// Waits; a cancel or the end of the call's time ends it with that error.
pub async fn wait(cx: &Cx, pause: Duration) -> Outcome<()> {
    cx.check()?;
    let pause = pause.min(cx.remaining());
    plugin_sdk::tokio::select! {
        biased;
        () = cx.cancelled() => {}
        () = sleep(pause) => {}
    }
    Ok(cx.check()?)
}

/// How long after its time a call may go on with what must not stay open. A call that ends 5 s late costs
/// the driver's process, and the calls beside it; so twice this, where one such step is in another, is less.
const LATE: Duration = Duration::from_secs(2);

/// The same call, deaf to cancel and with a little more time than it has: to look what became of a change
/// that was sent, or to complete one.
pub(crate) fn resolving(cx: &Cx) -> Cx {
    let left = if cx.is_cancelled() { Duration::ZERO } else { cx.remaining() };
    cx.shielded().within(left + LATE)
}

/// Chance for jitter: nothing depends on its quality.
#[derive(Debug)]
pub struct Chance(Mutex<u64>);

impl Chance {
    /// Chance that is the same in every run.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(seed | 1))
    }

    /// A number from 0 up to, not including, 1.
    pub fn next(&self) -> f64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Marsaglia's xorshift64 (Journal of Statistical Software 8, 2003).
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        f64::from((*state >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::seeded(Uuid::new_v4().as_u64_pair().1)
    }
}

/// How fast a vendor's array may be asked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests at the same time.
    pub at_once: usize,
    /// Requests in a second, on average; no limit if absent.
    pub per_second: Option<u32>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { at_once: 16, per_second: None }
    }
}

/// Lets requests through at a vendor's [`Pace`], and none while the array wants to be left alone.
#[derive(Debug)]
pub struct Gate {
    permits: Semaphore,
    per_second: Option<u32>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the next request may go; lies in the past by up to a second's worth of requests.
    next: Instant,
    /// Nothing goes before this.
    closed_until: Option<Instant>,
}

impl Gate {
    /// A gate.
    pub fn new(pace: Pace) -> Self {
        Self {
            permits: Semaphore::new(pace.at_once.max(1)),
            per_second: pace.per_second.filter(|rate| *rate > 0),
            state: Mutex::new(State { next: Instant::now(), closed_until: None }),
        }
    }

    /// Waits for a turn. It ends when what is returned is dropped.
    pub async fn pass(&self, cx: &Cx) -> Outcome<SemaphorePermit<'_>> {
        let permit = plugin_sdk::tokio::select! {
            biased;
            permit = self.permits.acquire() => permit,
            () = cx.cancelled() => return Err(stopped(cx)),
            () = sleep_until((Instant::now() + cx.remaining()).into()) => return Err(stopped(cx)),
        };
        let permit = permit.map_err(|_| Failure::new(Class::Own))?;
        while let Some(pause) = self.due() {
            if pause >= cx.remaining() {
                return Err(Failure::new(Class::Busy)
                    .fact("the array wants no request before the call's time is over")
                    .retry_after(pause));
            }
            wait(cx, pause).await?;
        }
        Ok(permit)
    }

    /// The array wants no request from anybody for so long.
    pub fn close_for(&self, pause: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + pause;
        state.closed_until = Some(state.closed_until.map_or(until, |other| other.max(until)));
    }

    /// How long to wait still; none if a request may go now, which is then counted.
    fn due(&self) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(until) = state.closed_until {
            if until > now {
                return Some(until - now);
            }
            state.closed_until = None;
        }
        let rate = self.per_second?;
        if state.next > now {
            return Some(state.next - now);
        }
        let burst = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        state.next = state.next.max(burst) + Duration::from_secs(1) / rate;
        None
    }
}

fn stopped(cx: &Cx) -> Failure {
    match cx.check() {
        Err(error) => error.into(),
        Ok(()) => Failure::new(Class::Busy).fact("too many requests are waiting for the array"),
    }
}
