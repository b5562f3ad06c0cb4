//! The process that holds a guest at rest, and what is said to it.
//!
//! `sm-freezer` has a socket as its input and output: lines of JSON, a [`Request`] each way in, an
//! [`Answer`] each way out. The end of the input is the end of whoever started it, by whatever
//! cause, and lets the guest go on. It runs in a session of its own, so no Ctrl-C reaches it, and
//! a request to end (SIGTERM) lets the guest go on first.
//!
//! What came of it is also written to a file, so that whoever comes after a dead coordinator can
//! read it; a lock on another file tells that the process lives.

mod client;
mod report;
mod serve;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sm_model::{Error, VdiUuid};
use uuid::Uuid;

use crate::quiescer::{Frozen, Limits, Method, Outcome, Ready};

pub use client::{Freezer, PROGRAM, VARIABLE};
pub use report::{Cause, Files, Report};
pub use serve::run;

/// What a freezer is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// To do all that is slow. The first request, or [`Request::Rescue`] is.
    Prepare(Start),
    /// To bring the guest to rest.
    Freeze {
        /// The disks whose snapshots are to be taken.
        disks: Vec<VdiUuid>,
    },
    /// To let it go on.
    Thaw {
        /// What came of the snapshots.
        outcome: Outcome,
    },
    /// To look at a guest whose freezer was killed, and to let it go on if it is at rest.
    Rescue(Start),
}

/// What a freezer has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// How the guest is brought to rest.
    pub method: Method,
    /// The set of snapshots.
    pub set: Uuid,
    /// How long each step may take.
    pub limits: Limits,
    /// Folder of the report and the lock.
    pub folder: PathBuf,
}

/// What a freezer answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// It is prepared.
    Ready(Ready),
    /// The guest is at rest.
    Frozen(Frozen),
    /// The guest goes on, as far as is known.
    Ended(Report),
    /// It was not done, and the guest is as it was.
    Failed {
        /// Why.
        error: Error,
    },
}
