//! What a copy may use, and what it says of itself.

use std::time::Duration;

/// What may be under way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Bytes that are read and not yet written.
    pub in_flight: u64,
    /// Bytes that are copied in one piece. While they are, writes of the guest to the same place
    /// wait, once writes are forwarded.
    pub piece: u64,
}

/// How a copy goes about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes per second of the copy; what the guest writes is not counted.
    pub rate: Option<u64>,
    /// Percent of one processor that the threads that copy may use, all together.
    pub cpu_percent: Option<u8>,
    /// Halves the rate when the guest's slowest writes take twice as long as before.
    pub regard: bool,
    /// While the guest does not write.
    pub idle: Load,
    /// While it does.
    pub busy: Load,
    /// Threads that copy.
    pub workers: usize,
    /// Longest time that a write of the guest waits for the target. Then writes are not forwarded
    /// for some time.
    pub patience: Duration,
    /// Time before the target is tried again: at first, and at most. It is doubled each time.
    pub retry: (Duration, Duration),
    /// Time without any success after which it has failed for good.
    pub give_up: Duration,
    /// Time between a new connection and its first request, after one that ended with requests in
    /// flight: the server may still be at those, and they must not come after newer ones.
    pub settle: Duration,
    /// Time between two flushes of the target: what is copied again when it dies.
    pub flush_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rate: None,
            cpu_percent: None,
            regard: false,
            idle: Load { in_flight: 16 << 20, piece: 1 << 20 },
            busy: Load { in_flight: 1 << 20, piece: 256 << 10 },
            workers: 16,
            patience: Duration::from_secs(1),
            retry: (Duration::from_millis(100), Duration::from_secs(10)),
            give_up: Duration::from_secs(600),
            settle: Duration::from_millis(500),
            flush_every: Duration::from_secs(5),
        }
    }
}

/// Where a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Something is still to be copied.
    Copying,
    /// The target lags behind by what is in flight only, and stays so: it can be switched to.
    Ready,
    /// The target failed, for this reason, and is tried again. The guest does not notice.
    Retrying(String),
    /// Over, for this reason. The source is as if there had been no copy.
    Failed(String),
    /// Over: switched, or cancelled.
    Ended,
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it is.
    pub phase: Phase,
    /// Bytes that there were to copy at the start, as far as they have been counted.
    pub total: u64,
    /// Bytes copied, including those that were copied again.
    pub copied: u64,
    /// Bytes to be copied still.
    pub dirty: u64,
    /// Bytes being copied.
    pub copying: u64,
    /// Bytes that the guest made to be copied again.
    pub redirtied: u64,
    /// Writes of the guest that were forwarded.
    pub forwarded: u64,
    /// Whether they are now.
    pub forward: bool,
    /// Times that the target failed.
    pub retries: u64,
    /// Bytes per second that the copy is held to.
    pub rate: Option<u64>,
}
