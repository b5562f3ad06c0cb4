//! What goes wrong in a lab.

use std::fmt;
use std::time::Duration;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something in a lab failed. Its debug form is its sentence, because that is what a test
/// that returns it shows.
#[derive(thiserror::Error)]
pub enum Error {
    /// No guest can run on this machine. Tests fail with this; they are not skipped.
    #[error("no lab on this machine: {reason}\n  hint: {hint}")]
    Unavailable {
        /// What is missing.
        reason: String,
        /// What can be done.
        hint: String,
    },
    /// A guest did not come up.
    #[error("{guest} did not boot: {reason}\n{console}")]
    Boot {
        /// The guest.
        guest: String,
        /// What happened instead.
        reason: String,
        /// The end of what it said on its console.
        console: String,
    },
    /// A guest is switched off, so it can do nothing.
    #[error("{guest} is off")]
    Off {
        /// The guest.
        guest: String,
    },
    /// A guest went away in the middle.
    #[error("{guest} went away while {doing}\n{console}")]
    Gone {
        /// The guest.
        guest: String,
        /// What it was doing.
        doing: String,
        /// The end of what it said on its console.
        console: String,
    },
    /// Something took too long. A command has been ended.
    #[error("{guest}: {doing} took longer than {} s{said}", .after.as_secs_f32())]
    Late {
        /// The guest.
        guest: String,
        /// What it was doing.
        doing: String,
        /// The time it had.
        after: Duration,
        /// What it had said until then.
        said: String,
    },
    /// A command ended with another status than 0.
    #[error("{guest}: {command} ended with {status}{said}")]
    Failed {
        /// The guest.
        guest: String,
        /// The command.
        command: String,
        /// Its exit status, 128 and the signal if there was one.
        status: i32,
        /// What it said.
        said: String,
    },
    /// What was asked of the lab cannot be.
    #[error("{0}")]
    Wrong(String),
    /// An operation of the machine failed.
    #[error("cannot {doing}: {cause}")]
    Machine {
        /// Completes "cannot".
        doing: String,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Adds what was being done to an error of the system.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::Machine { doing: what(), cause: cause.into() })
    }
}
