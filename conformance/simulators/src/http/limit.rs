//! How much at once, and how often.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::core::Settings;

/// A bucket of permits, and places at the array.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    busy: usize,
    /// Permits used, and since when they come back.
    used: f64,
    since: Option<Instant>,
}

/// A place at the array, given back when dropped.
pub(crate) struct Place(Arc<Limit>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).busy -= 1;
        self.0.freed.notify_one();
    }
}

impl Limit {
    /// Whether a request goes beyond the rate.
    pub(crate) fn is_over(&self, settings: &Settings) -> bool {
        let Some(rate) = settings.rate else { return false };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gone = state.since.map_or(Duration::ZERO, |since| now - since).as_secs_f64();
        state.since = Some(now);
        state.used = (state.used - gone * f64::from(rate)).max(0.0);
        if state.used + 1.0 > f64::from(rate) {
            return true;
        }
        state.used += 1.0;
        false
    }

    /// Waits until there is a place.
    pub(crate) async fn enter(self: &Arc<Self>, settings: &Settings) -> Place {
        loop {
            let freed = self.freed.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if settings.parallel.is_none_or(|most| state.busy < most.max(1)) {
                    state.busy += 1;
                    return Place(self.clone());
                }
            }
            freed.await;
        }
    }
}
