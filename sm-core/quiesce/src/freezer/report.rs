//! What came of a freeze, and where that is written.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sm_model::{Error, Kind, Result};
use uuid::Uuid;

use crate::quiescer::{REFUSED, Thawed};

/// Until it is looked again whether a freezer has ended.
const NAP: Duration = Duration::from_millis(5);

/// Why a guest was let go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Whoever froze it said so.
    Told,
    /// Its time was over.
    Window,
    /// Whoever froze it is gone.
    Orphaned,
    /// The freezer was told to end by a signal.
    Signal,
    /// It was not brought to rest.
    NotFrozen,
    /// Its freezer was killed.
    Rescued,
}

/// What came of a freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How many file systems, volumes or disks were frozen; none if the guest did not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<u64>,
    /// Microseconds from the guest's word that it is at rest until it was told to go on.
    pub microseconds: u64,
    /// Why it was told.
    pub cause: Cause,
    /// Why the guest was not brought to rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Error>,
    /// What it said then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thawed: Option<Thawed>,
    /// What went wrong when it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Error>,
    /// After that: whether it is known to go on now.
    pub goes_on: bool,
}

impl Report {
    /// Refuses if the guest was not at rest from its word to the moment it was told to go on, by
    /// the one who took the snapshots.
    pub fn held(&self, window: Duration) -> Result<()> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        let milliseconds = self.microseconds / 1000;
        let error = match (self.cause, &self.failed) {
            (Cause::Told, None) if Duration::from_micros(self.microseconds) <= window => {
                return Ok(());
            }
            (Cause::Told, Some(error)) => error.clone(),
            (Cause::Told | Cause::Window, _) => Error::new(
                Kind::DeadlineExceeded,
                format!(
                    "the snapshots were not there when the guest had to go on, after \
                     {milliseconds} ms"
                ),
            )
            .hint(format!("it may stay at rest for {} ms", window.as_millis())),
            (Cause::Orphaned, _) => {
                Error::new(Kind::Unknown, "the process that took the snapshots is gone")
            }
            (Cause::Signal, _) => {
                Error::new(Kind::Cancelled, "the process that held the guest was told to end")
            }
            (Cause::NotFrozen, _) => Error::internal("the guest was not brought to rest"),
            (Cause::Rescued, _) => {
                Error::new(REFUSED, "the process that held the guest was killed")
            }
        };
        if self.goes_on {
            return Err(error);
        }
        Err(error.hint("the guest may still be frozen: it does not answer; look at it"))
    }
}

/// The files of one freezer.
#[derive(Clone, Debug)]
pub struct Files {
    report: PathBuf,
    lock: PathBuf,
}

impl Files {
    /// Of a set, in this folder.
    pub fn new(folder: &Path, set: Uuid) -> Self {
        Self {
            report: folder.join(format!("{set}.json")),
            lock: folder.join(format!("{set}.lock")),
        }
    }

    /// Taken by the freezer for its life; none if another one lives.
    pub(super) fn live(&self) -> Result<Option<File>> {
        let failed =
            |error: std::io::Error| Error::from(error).context("path", self.lock.display());
        let file = File::options().create(true).append(true).open(&self.lock).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Waits until no freezer lives; a timeout is an error.
    pub fn ended(&self, until: Instant) -> Result<()> {
        while self.lock.exists() {
            if self.live()?.is_some() {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = "the process that holds the guest does not end";
                return Err(
                    Error::new(Kind::DeadlineExceeded, text).context("path", self.lock.display())
                );
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// What a freezer that has ended has written; none if it was killed, or there was none.
    pub fn report(&self) -> Option<Report> {
        serde_json::from_slice(&std::fs::read(&self.report).ok()?).ok()
    }

    pub(super) fn write(&self, report: &Report) -> Result<()> {
        let failed =
            |error: std::io::Error| Error::from(error).context("path", self.report.display());
        let text = serde_json::to_vec(report)
            .map_err(|error| Error::internal("a report is no JSON").source(&error))?;
        let fresh = self.report.with_extension("new");
        let mut file = File::create(&fresh).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        std::fs::rename(&fresh, &self.report).map_err(failed)
    }

    /// Removes them. Nobody may need them any more.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.report);
        let _ = std::fs::remove_file(&self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn report(cause: Cause) -> Report {
        Report {
            frozen: Some(2),
            microseconds: 5_000,
            cause,
            refused: None,
            thawed: Some(Thawed { count: 2, document: None }),
            failed: None,
            goes_on: true,
        }
    }

    #[test]
    fn only_a_guest_that_was_told_in_time_and_said_yes_was_at_rest() {
        assert_eq!(report(Cause::Told).held(WINDOW), Ok(()));
        let late = Report { microseconds: 10_000_001, ..report(Cause::Told) };
        assert_eq!(
            late.held(WINDOW).unwrap_err().message,
            "the snapshots were not there when the guest had to go on, after 10000 ms"
        );
        let words = "couldn't hold writes: fsfreeze is limited up to 10 seconds";
        let error = Error::new(REFUSED, "refused").backend(words);
        let failed = Report { failed: Some(error.clone()), ..report(Cause::Told) };
        assert_eq!(failed.held(WINDOW), Err(error));
        for (cause, message) in [
            (Cause::Window, "the snapshots were not there when the guest had to go on, after 5 ms"),
            (Cause::Orphaned, "the process that took the snapshots is gone"),
            (Cause::Signal, "the process that held the guest was told to end"),
            (Cause::NotFrozen, "the guest was not brought to rest"),
            (Cause::Rescued, "the process that held the guest was killed"),
        ] {
            assert_eq!(report(cause).held(WINDOW).unwrap_err().message, message);
        }
        let lost = Report { goes_on: false, ..report(Cause::Orphaned) };
        assert_eq!(
            lost.held(WINDOW).unwrap_err().hint.as_deref(),
            Some("the guest may still be frozen: it does not answer; look at it")
        );
    }
}
