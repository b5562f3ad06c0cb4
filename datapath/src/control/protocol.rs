//! What is said on the control socket: JSON, a document on a line, an answer to each.
//!
//! ```text
//! > {"version":1,"id":7,"command":"pause","milliseconds":5000}
//! < {"id":7,"done":{"milliseconds":1}}
//! > {"version":1,"id":8,"command":"resume"}
//! < {"id":8,"error":{"kind":"not_paused","message":"..."}}
//! ```
//!
//! Commands of one connection are done one after the other. A process outlives the program that
//! started it, so both ends may be of another release: a field is only ever added, a reader
//! ignores what it does not know, a command that is not known is an `unsupported` error, and
//! [`VERSION`] changes only when that does not do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::mirroring::{MirrorPhase, MirrorStart, MirrorStatus, MirrorSwitch, Moved};
pub use super::remote::{Credentials, Listen, RemoteStatus};
use crate::disk::{Kind, Limits, Plan, Stats};

/// The version of the protocol.
pub const VERSION: u32 = 1;

/// Longest line, bytes. A plan of 30 images with the longest paths takes 130 KiB.
pub const LONGEST_LINE: usize = 1 << 20;

/// A line to the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Any number; the answer has it.
    pub id: u64,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// How it is: answered with [`Status`], also while something else is going on.
    Status,
    /// Opens the images and serves them. With the same leaf again it is a [`Command::Refresh`], or
    /// nothing when the plan is the same.
    Activate {
        /// The images.
        plan: Plan,
        /// Of the writer's lock, for people; 0 for a reader.
        #[serde(default)]
        epoch: u64,
        /// What is known, or to be noted, of changes.
        #[serde(flatten)]
        tracking: Tracking,
    },
    /// Ends the clients' connections, makes durable what they wrote, and closes the images. Done
    /// already is done.
    Deactivate,
    /// Makes durable what was written.
    Flush,
    /// What has changed of the disk by now, as far as its log goes back: answered with [`Changes`].
    /// All that was answered before is in it.
    Changes,
    /// Stops the requests and makes durable what was written. Nothing touches the images until
    /// this connection says [`Command::Resume`] or ends. Answered with [`Paused`].
    Pause {
        /// How long to wait for requests that are under way.
        milliseconds: u64,
        /// A file that whoever changes the images holds locked (`flock`). If this connection ends
        /// before it has said what is to be, the process waits for that lock, looks at the images
        /// and decides by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lock: Option<PathBuf>,
        /// Closes the images too and unlocks the leaf, so that whoever holds `lock` may rewrite any
        /// of them. They are opened anew by [`Command::Refresh`], of the same plan too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        close: bool,
    },
    /// Begins to merge the leaf into its parent while it is served. Whoever says so has made sure
    /// that nobody else uses the parent, and that it is as large as the leaf. The merge is this
    /// connection's: it is given up when that ends, and when anything else changes what is served.
    ///
    /// One that was given up before leaves what it has copied: the next of the same process goes on
    /// there, as long as the disk has the same leaf and the same parent.
    Merge {
        /// What it may use.
        #[serde(flatten)]
        pace: MergePace,
        /// The parent, as whoever exchanges the images knows it: a disk with another one is not
        /// merged. A process of an earlier release does not look.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<PathBuf>,
    },
    /// How far the merge is: answered with [`Merging`].
    Merging,
    /// Pauses the disk with the parent complete, durable and closed. Whoever says so gives the
    /// parent the leaf's name then, and has the disk go over with [`Command::Refresh`]. As for
    /// [`Command::Pause`] else. Refused unless the merge is ready.
    Converge {
        /// How long to wait for requests that are under way.
        milliseconds: u64,
        /// As in [`Command::Pause`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lock: Option<PathBuf>,
    },
    /// Gives the merge of this connection up; none is fine.
    CancelMerge,
    /// Goes over to other images: those of the plan, or the same ones changed. Within a pause of
    /// this connection, or with one of its own.
    Refresh {
        /// The images.
        plan: Plan,
    },
    /// Ends the pause of this connection.
    Resume,
    /// Sets the limits; absent ones are lifted.
    Limit(Limits),
    /// Begins to copy the disk to another place while it is used. Answered with [`MirrorStatus`];
    /// [`Status::mirror`] tells how far it is. To the same target again is done already.
    MirrorStart(MirrorStart),
    /// Sets the limit of the copy; absent, it is lifted. Answered with [`MirrorStatus`].
    MirrorRate {
        /// Bytes per second.
        #[serde(default)]
        rate: Option<u64>,
    },
    /// Ends this disk in favour of the mirror's target. Answered with [`Moved`], also when that is
    /// done already. After a failure this is the disk as before.
    MirrorSwitch(MirrorSwitch),
    /// Ends the mirror. None there is done already.
    MirrorCancel,
    /// Serves the disk to other hosts. Answered with [`RemoteStatus`].
    Listen(Listen),
    /// Does not serve other hosts any more, and sends them away. Done already is done.
    Unlisten,
    /// Deactivates, removes the run directory and ends the process.
    End,
    /// Anything of a later release.
    #[serde(other)]
    Unknown,
}

/// What a merge may use. What clients write is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergePace {
    /// Bytes per second that are copied at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Percent of one processor, all threads that copy together. A process of an earlier release
    /// does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
}

/// What a process is told of the changes of its disk, and of who may make them. An older one ignores
/// it, and says so of the changes: see [`Status::changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// Where the log of the disk's changes is, if the disk has one; it may come and go during a
    /// pause. See [`crate::change`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<PathBuf>,
    /// What clients are shown of changes since points in time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<BitmapFile>,
    /// See [`crate::disk::Options::shut_out`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shut_out: Option<PathBuf>,
}

/// What changed since a point in time, for `qemu:dirty-bitmap:NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitmapFile {
    /// The name that clients ask for.
    pub name: String,
    /// A file in the layout of a log of changes, of the size of the disk.
    pub path: PathBuf,
}

/// Answer to [`Command::Changes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// A file in the layout of a log of changes, beside the sockets, until somebody asks again;
    /// whoever has read it may remove it. Absent while no log is open: it is whole in its place
    /// then, or there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A line from the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// That of the request; 0 when it could not be read.
    pub id: u64,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a command went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well; what there is to tell depends on the command.
    Done(Value),
    /// Not.
    Error(Failure),
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// Object, fact, system's words.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The line is no request of this protocol, or of a version that is not spoken.
    Malformed,
    /// The command is of a later release, or this disk cannot do it.
    Unsupported,
    /// Needs [`Command::Activate`] first.
    NotActive,
    /// Needs [`Command::Pause`] first, on this connection.
    NotPaused,
    /// Needs [`Command::Merge`] first, on this connection.
    NotMerging,
    /// Somebody else has paused it, or requests did not end in time.
    Busy,
    /// Another process has the leaf open for writing, or what was asked for is taken.
    InUse,
    /// What was asked for makes no sense: an address, or a file of a certificate.
    Invalid,
    /// The target of a mirror cannot be reached.
    Unreachable,
    /// The target of a mirror cannot be written, or is the disk itself.
    Refused,
    /// The target of a mirror is smaller than the disk.
    TooSmall,
    /// There is no mirror, or it cannot be switched to now.
    NotReady,
    /// The target of a mirror is not the same as the disk.
    Differs,
    /// The disk was moved to another place.
    Moved,
    /// An image is not there.
    NotFound,
    /// An image cannot be trusted.
    Corrupt,
    /// The storage is full.
    NoSpace,
    /// The storage failed.
    Storage,
    /// Any kind of a later release.
    #[serde(other)]
    Other,
}

/// Answer to [`Command::Pause`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// How long it took until nothing was under way any more, milliseconds.
    pub milliseconds: u64,
    /// Whether the images are closed: a process of an earlier release does not know how.
    #[serde(default)]
    pub closed: bool,
}

/// Answer to [`Command::Merging`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merging {
    /// Where it is.
    pub phase: MergePhase,
    /// Why it failed or is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that there were to copy, as far as they have been counted.
    #[serde(default)]
    pub total: u64,
    /// Bytes copied, including those that were copied again.
    #[serde(default)]
    pub copied: u64,
    /// Bytes to be copied still.
    #[serde(default)]
    pub remaining: u64,
}

/// Where a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergePhase {
    /// This connection has none, or it was given up because of something else.
    None,
    /// Something is still to be copied.
    Copying,
    /// The parent lacks only what is in flight: it can converge.
    Ready,
    /// The parent failed, and is tried again.
    Retrying,
    /// The parent failed, and the merge is over.
    Failed,
    /// Any phase of a later release.
    #[serde(other)]
    Other,
}

/// Answer to [`Command::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the protocol.
    pub protocol: u32,
    /// Release of the program.
    pub release: String,
    /// Its process id.
    pub pid: u32,
    /// The name of the disk.
    pub name: String,
    /// Where clients find it.
    pub uri: String,
    /// What it does.
    pub state: State,
    /// What it serves, when active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Size the clients see, bytes; 0 unless active.
    #[serde(default)]
    pub size: u64,
    /// Epoch of the writer's lock.
    #[serde(default)]
    pub epoch: u64,
    /// Where it looks for the log of the disk's changes; absent from a process that tracks none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<PathBuf>,
    /// Whether changes are noted in that log.
    #[serde(default)]
    pub tracked: bool,
    /// Names of the bitmaps that clients can ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bitmaps: Vec<String>,
    /// Connections of clients.
    #[serde(default)]
    pub connections: u64,
    /// What was done since it was activated.
    #[serde(default)]
    pub statistics: Statistics,
    /// What it may do in a second.
    #[serde(default)]
    pub limits: Limits,
    /// How far its mirror is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorStatus>,
    /// Where it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// How other hosts reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteStatus>,
    /// How many times it has looked whether it can go on, each time whoever had paused it was gone.
    #[serde(default)]
    pub looks: u64,
}

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No image is open, and clients are sent away.
    Attached,
    /// Clients are served.
    Active,
    /// Requests wait for whoever paused it.
    Paused,
    /// Requests wait, whoever paused it is gone, and the images are not there as a whole.
    Waiting,
    /// The disk was moved to another place: no image is open, clients are sent away, and it will
    /// not be active here again.
    Moved,
    /// Any state of a later release.
    #[serde(other)]
    Other,
}

/// What clients asked for since the disk was activated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Reads.
    #[serde(default)]
    pub read: Counter,
    /// Writes.
    #[serde(default)]
    pub write: Counter,
    /// Flushes.
    #[serde(default)]
    pub flush: Counter,
    /// Trims.
    #[serde(default)]
    pub trim: Counter,
    /// Requests for zeros.
    #[serde(default)]
    pub zeroes: Counter,
}

/// One kind of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// How many ended, failed ones included.
    pub operations: u64,
    /// Bytes of those that did not fail.
    pub bytes: u64,
    /// How many failed.
    #[serde(default)]
    pub errors: u64,
    /// Time they took in all, nanoseconds.
    #[serde(default)]
    pub nanoseconds: u64,
    /// How many took how long: pairs of an upper bound in nanoseconds, and a count; steps that
    /// nothing fell into are left out.
    #[serde(default)]
    pub latency: Vec<(u64, u64)>,
}

impl From<&Stats> for Statistics {
    fn from(stats: &Stats) -> Self {
        let counter = |kind| {
            stats.of(kind).map_or_else(Counter::default, |of| Counter {
                operations: of.operations,
                bytes: of.bytes,
                errors: of.errors,
                nanoseconds: of.nanoseconds,
                latency: of.latency.clone(),
            })
        };
        Self {
            read: counter(Kind::Read),
            write: counter(Kind::Write),
            flush: counter(Kind::Flush),
            trim: counter(Kind::Trim),
            zeroes: counter(Kind::Zeroes),
        }
    }
}

impl Counter {
    /// The latency that a share of the requests (0 to 1) does not exceed, nanoseconds; absent
    /// without requests.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let all: u64 = self.latency.iter().map(|(_, count)| count).sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a rank among requests need not be exact"
        )]
        let rank = ((all as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        self.latency.iter().find_map(|(bound, count)| {
            seen += count;
            (seen >= rank && *count > 0).then_some(*bound)
        })
    }
}

impl Failure {
    /// A failure.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use super::*;

    #[test]
    fn requests_are_lines_that_people_can_write() {
        let request: Request =
            serde_json::from_str(r#"{"version":1,"id":7,"command":"pause","milliseconds":50}"#)
                .unwrap();
        let command = Command::Pause { milliseconds: 50, lock: None, close: false };
        assert_eq!(request, Request { version: 1, id: 7, command });
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"version":1,"id":7,"command":"pause","milliseconds":50}"#);
    }

    #[test]
    fn what_a_later_release_adds_is_read() {
        let text = r#"{"version":1,"id":7,"command":"mirror","target":"nbd://x"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(request.command, Command::Unknown);
        let text = r#"{"id":7,"error":{"kind":"frozen","message":"m","since":3}}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        let failure = Failure::new(FailureKind::Other, "m");
        assert_eq!(reply, Reply { id: 7, outcome: Outcome::Error(failure) });
    }

    #[test]
    fn a_percentile_is_the_bound_that_the_share_is_below() {
        let counter =
            Counter { latency: vec![(10, 98), (100, 1), (1000, 1)], ..Counter::default() };
        assert_eq!(counter.percentile(0.5), Some(10));
        assert_eq!(counter.percentile(0.99), Some(100));
        assert_eq!(counter.percentile(1.0), Some(1000));
        assert_eq!(Counter::default().percentile(0.5), None);
    }
}
