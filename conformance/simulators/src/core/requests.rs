//! What was asked of the array: each request has a number, so that tests can order events.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// A request.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// Its number, from 1.
    pub number: u64,
    /// When it came; milliseconds by the array's clock.
    pub at: u64,
    /// The vendor's name of the call.
    pub call: String,
    /// Method and path with query, or the command. No headers and no body.
    pub line: String,
    /// The status of its answer; 0 where there was none.
    pub status: u16,
    /// What went wrong by the fault script.
    pub fault: Option<String>,
    /// How many others were under way when it came.
    pub others: usize,
    /// How long the array took, from its arrival until it was carried out. 0 before that.
    pub microseconds: u32,
}

/// The log of requests.
#[derive(Debug, Default)]
pub struct Requests(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    last: u64,
    under_way: BTreeMap<u64, Instant>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request at its arrival, and answers its number.
    pub fn begin(&self, at: u64, call: &str, line: &str) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        let (number, others) = (state.last, state.under_way.len());
        state.under_way.insert(number, Instant::now());
        let (call, line) = (call.to_owned(), line.to_owned());
        let (status, fault, microseconds) = (0, None, 0);
        state.asked.push(Asked { number, at, call, line, status, fault, others, microseconds });
        number
    }

    /// Notes what became of it.
    pub fn end(&self, number: u64, status: u16, fault: Option<String>) {
        let mut state = self.lock();
        let began = state.under_way.remove(&number);
        let took = began.map_or(0, |began| began.elapsed().as_micros());
        if let Some(asked) = state.asked.iter_mut().rev().find(|asked| asked.number == number) {
            asked.status = status;
            asked.fault = fault;
            asked.microseconds = u32::try_from(took).unwrap_or(u32::MAX);
        }
    }

    /// All requests since the last [`clear`](Self::clear).
    pub fn all(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How often each call came.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for asked in &self.lock().asked {
            *counts.entry(asked.call.clone()).or_default() += 1;
        }
        counts
    }

    /// Forgets them. Numbers go on.
    pub fn clear(&self) {
        self.lock().asked.clear();
    }
}
