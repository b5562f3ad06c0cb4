//! Sessions of those who manage the array: they expire, there may be only so many, and they do not
//! outlive a restart.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::clock::Clock;

/// The sessions.
#[derive(Debug)]
pub struct Sessions {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: BTreeMap<String, Session>,
    most: Option<usize>,
    idle: u64,
    /// Most that were open at once.
    peak: usize,
    /// How many were ever opened.
    opened: u64,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who it is of.
    pub user: String,
    /// A second token, for vendors that want one with each change.
    pub csrf: String,
    used: u64,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the maximum of {0} sessions is reached")]
pub struct TooMany(pub usize);

impl Sessions {
    pub(super) fn new(clock: Clock) -> Self {
        let state = State { open: BTreeMap::new(), most: None, idle: 300_000, peak: 0, opened: 0 };
        Self { clock, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, idle) = (self.clock.now(), state.idle);
        state.open.retain(|_, session| now <= session.used.saturating_add(idle));
        state
    }

    /// How many there may be, and how long they live without a request.
    pub fn limit(&self, most: Option<usize>, idle: u64) {
        let mut state = self.lock();
        state.most = most;
        state.idle = idle;
    }

    /// Opens one and answers its token.
    pub fn open(&self, user: &str) -> Result<String, TooMany> {
        let mut state = self.lock();
        if let Some(most) = state.most.filter(|most| state.open.len() >= *most) {
            return Err(TooMany(most));
        }
        let token = Uuid::new_v4().simple().to_string();
        let csrf = Uuid::new_v4().simple().to_string();
        let session = Session { user: user.to_owned(), csrf, used: self.clock.now() };
        state.open.insert(token.clone(), session);
        state.peak = state.peak.max(state.open.len());
        state.opened += 1;
        Ok(token)
    }

    /// The session of a token, which lives on, or nothing where it has ended.
    pub fn touch(&self, token: &str) -> Option<Session> {
        let now = self.clock.now();
        let mut state = self.lock();
        let session = state.open.get_mut(token)?;
        session.used = now;
        Some(session.clone())
    }

    /// Whether a session has not ended. It lives no longer for that.
    pub fn is_open(&self, token: &str) -> bool {
        self.lock().open.contains_key(token)
    }

    /// Gives a session another second token.
    pub fn renew_csrf(&self, token: &str) -> Option<String> {
        let csrf = Uuid::new_v4().simple().to_string();
        self.lock().open.get_mut(token)?.csrf.clone_from(&csrf);
        Some(csrf)
    }

    /// Ends a session.
    pub fn close(&self, token: &str) -> bool {
        self.lock().open.remove(token).is_some()
    }

    /// Ends all sessions.
    pub fn drop_all(&self) {
        self.lock().open.clear();
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// How many were opened since the array was started.
    pub fn opened(&self) -> u64 {
        self.lock().opened
    }

    /// The most that were open at once.
    pub fn peak(&self) -> usize {
        self.lock().peak
    }
}
