//! When a child that died is started again.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// When a child that died is started again: at once after the first death, then after a time that
/// doubles with each further one, with jitter, so that the children of many SRs do not come back
/// in step. After too many deaths not at all for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// The time after the second death. Usually 1 s.
    pub backoff_min: Duration,
    /// Most time between two starts, and how long a child must live for its death to count as a
    /// first one again. Usually 60 s.
    pub backoff_max: Duration,
    /// After so many deaths within the window no child is started. Usually 5.
    pub deaths: usize,
    /// See [`Self::deaths`]. Usually 10 min.
    pub window: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            deaths: 5,
            window: Duration::from_secs(600),
        }
    }
}

/// The deaths of one port's children.
#[derive(Debug)]
pub(crate) struct Ledger {
    policy: RestartPolicy,
    deaths: VecDeque<Instant>,
    /// Deaths in a row without a long life between them.
    streak: u32,
    /// What the last one died of.
    pub(crate) last: String,
    not_before: Option<Instant>,
}

/// Whether a child may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Now,
    /// After this time.
    Wait(Duration),
    /// Too many deaths; after this time there are fewer in the window.
    Open(Duration),
}

impl Ledger {
    pub(crate) fn new(policy: RestartPolicy) -> Self {
        Self { policy, deaths: VecDeque::new(), streak: 0, last: String::new(), not_before: None }
    }

    /// Records a death.
    pub(crate) fn died(&mut self, now: Instant, lived: Duration, of: &str) {
        self.streak = if lived >= self.policy.backoff_max { 1 } else { self.streak + 1 };
        of.clone_into(&mut self.last);
        self.deaths.push_back(now);
        while self.deaths.len() > self.policy.deaths {
            self.deaths.pop_front();
        }
        self.not_before = self.streak.checked_sub(2).map(|doublings| {
            let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
            let longest =
                self.policy.backoff_min.saturating_mul(factor).min(self.policy.backoff_max);
            // Between half of it and all of it.
            let random = RandomState::new().build_hasher().finish();
            let share = (random % 1024) as u32;
            now + longest / 2 + longest / 2 * share / 1024
        });
    }

    pub(crate) fn verdict(&self, now: Instant) -> Verdict {
        if self.policy.deaths > 0
            && self.deaths.len() >= self.policy.deaths
            && let Some(oldest) = self.deaths.front()
        {
            let age = now.saturating_duration_since(*oldest);
            if age < self.policy.window {
                return Verdict::Open(self.policy.window.saturating_sub(age));
            }
        }
        match self.not_before.map(|instant| instant.saturating_duration_since(now)) {
            Some(wait) if wait > Duration::ZERO => Verdict::Wait(wait),
            _ => Verdict::Now,
        }
    }

    /// Deaths that count now.
    pub(crate) fn recent(&self) -> usize {
        self.deaths.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_longer_each_time() {
        let policy = RestartPolicy { deaths: 100, ..RestartPolicy::default() };
        let mut ledger = Ledger::new(policy);
        let now = Instant::now();
        assert_eq!(ledger.verdict(now), Verdict::Now);
        ledger.died(now, SECOND, "");
        assert_eq!(ledger.verdict(now), Verdict::Now);
        for longest in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            ledger.died(now, SECOND, "");
            let Verdict::Wait(wait) = ledger.verdict(now) else { panic!("no wait") };
            let longest = SECOND * longest;
            assert!(wait >= longest / 2 && wait <= longest, "{wait:?} for {longest:?}");
        }
    }

    #[test]
    fn a_long_life_is_forgiven() {
        let mut ledger = Ledger::new(RestartPolicy::default());
        let now = Instant::now();
        ledger.died(now, SECOND, "");
        ledger.died(now, SECOND, "");
        ledger.died(now, 61 * SECOND, "");
        assert_eq!(ledger.verdict(now), Verdict::Now);
    }

    #[test]
    fn five_deaths_in_ten_minutes_open_the_circuit_until_the_first_is_old() {
        let mut ledger = Ledger::new(RestartPolicy::default());
        let start = Instant::now();
        for minute in 0..5 {
            ledger.died(start + 60 * SECOND * minute, 61 * SECOND, "signal 11");
        }
        let now = start + 300 * SECOND;
        assert_eq!(ledger.verdict(now), Verdict::Open(300 * SECOND));
        assert_eq!(ledger.verdict(now + 301 * SECOND), Verdict::Now);
    }

    #[test]
    fn without_a_limit_the_circuit_never_opens() {
        let policy =
            RestartPolicy { deaths: 0, backoff_min: Duration::ZERO, ..RestartPolicy::default() };
        let mut ledger = Ledger::new(policy);
        let now = Instant::now();
        for _ in 0..50 {
            ledger.died(now, SECOND, "");
        }
        assert_eq!(ledger.verdict(now), Verdict::Now);
    }
}
