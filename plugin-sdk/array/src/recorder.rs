//! What was asked of the array, without secrets.
//!
//! An [`Entry`] has no headers, no query and no body, so there is nothing to redact in it but the
//! path; that, and all words that come from an array, go through [`Redactor::scrub`]. The newest
//! entries are kept in memory; each is also a log event with target [`TARGET`] at level debug.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plugin_sdk::Secret;
use plugin_sdk::tracing;

/// Target of the log events.
pub const TARGET: &str = "array_request";

/// How many entries are kept.
const KEPT: usize = 1000;

/// A secret that is shorter is not searched for: it would turn every text into stars. Passwords of
/// that length are never sent in a place that is recorded.
const SHORTEST: usize = 4;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The vendor's operation.
    pub operation: &'static str,
    /// The verb; for a command line `CLI`.
    pub method: &'static str,
    /// The path without the query, or the command without its secrets.
    pub path: String,
    /// Status, where there was one.
    pub status: Option<u16>,
    /// The class of failure, if it did not get a whole answer.
    pub outcome: Option<String>,
    /// When it was sent.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Bytes of the body that was sent.
    pub sent: usize,
    /// Bytes of the body that came back.
    pub received: usize,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (method, path) = (self.method, &self.path);
        write!(f, "{}.{:03} {method} {path} ", at.as_secs(), at.subsec_millis())?;
        match (self.status, &self.outcome) {
            (Some(status), None) => write!(f, "{status}")?,
            (Some(status), Some(outcome)) => write!(f, "{status} {outcome}")?,
            (None, Some(outcome)) => write!(f, "{outcome}")?,
            (None, None) => f.write_str("done")?,
        }
        let took = self.took.as_secs_f64() * 1000.0;
        write!(f, " {took:.1} ms, {} B out, {} B in", self.sent, self.received)
    }
}

/// Knows the secrets, and takes them out of texts.
#[derive(Clone, Default)]
pub struct Redactor(Arc<RwLock<Vec<Secret>>>);

impl Redactor {
    /// Learns a secret: the password at open, each token as it comes.
    pub fn learn(&self, secret: &Secret) {
        if secret.reveal().len() < SHORTEST {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.iter().all(|other| other.reveal() != secret.reveal()) {
            known.push(secret.clone());
            // A session that lives for months gets a token every hour; the oldest are dead. The
            // first ones are those of the configuration.
            if known.len() > 64 {
                known.remove(16);
            }
        }
    }

    /// The text with `***` for each secret.
    pub fn scrub(&self, text: &str) -> String {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut text = text.to_owned();
        for secret in known.iter() {
            if text.contains(secret.reveal()) {
                text = text.replace(secret.reveal(), "***");
            }
        }
        text
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(***)")
    }
}

/// The log of requests. Clones write to the same one.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    entries: Arc<Mutex<VecDeque<Entry>>>,
    redactor: Redactor,
}

impl Recorder {
    /// A log that takes these secrets out.
    pub fn new(redactor: Redactor) -> Self {
        Self { entries: Arc::default(), redactor }
    }

    /// What takes secrets out.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Adds an entry.
    pub fn record(&self, mut entry: Entry) {
        entry.path = self.redactor.scrub(&entry.path);
        tracing::debug!(
            target: TARGET,
            operation = entry.operation,
            method = entry.method,
            path = entry.path,
            status = entry.status,
            outcome = entry.outcome,
            microseconds = u64::try_from(entry.took.as_micros()).unwrap_or(u64::MAX),
            sent = entry.sent,
            received = entry.received,
            "{entry}"
        );
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// The newest entries, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_paths_and_words() {
        let redactor = Redactor::default();
        redactor.learn(&Secret::from("canary-of-the-mine"));
        redactor.learn(&Secret::from("abc"));
        let recorder = Recorder::new(redactor.clone());
        recorder.record(Entry {
            operation: "logout",
            method: "DELETE",
            path: "/credentials/canary-of-the-mine".to_owned(),
            status: Some(200),
            outcome: None,
            started: UNIX_EPOCH,
            took: Duration::from_micros(1500),
            sent: 0,
            received: 2,
        });
        let line = recorder.entries()[0].to_string();
        assert_eq!(line, "0.000 DELETE /credentials/*** 200 1.5 ms, 0 B out, 2 B in");
        assert_eq!(
            redactor.scrub("wrong password canary-of-the-mine abc"),
            "wrong password *** abc"
        );
        assert!(!format!("{recorder:?} {redactor:?}").contains("canary"));
    }

    #[test]
    fn the_log_does_not_grow_without_bound() {
        let recorder = Recorder::default();
        for n in 0..KEPT + 7 {
            recorder.record(Entry {
                operation: "o",
                method: "GET",
                path: n.to_string(),
                status: None,
                outcome: None,
                started: UNIX_EPOCH,
                took: Duration::ZERO,
                sent: 0,
                received: 0,
            });
        }
        let entries = recorder.entries();
        assert_eq!((entries.len(), entries[0].path.as_str()), (KEPT, "7"));
    }
}
