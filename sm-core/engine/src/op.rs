//! One wish of a caller.

use std::time::{Duration, Instant};

use sm_loader::port::{Call, CancelFlag, ProgressSink};
use sm_model::{Error, Kind, Operation, OperationId, Result};

/// Time for an operation when the caller names none.
pub const DEFAULT_BUDGET: Duration = Duration::from_secs(60);

/// One wish of a caller: its identity, the time it may take, and who may end it early.
///
/// The same [`Op::id`] always gets the same answer, also after a crash: to retry, use the same
/// `Op` (or one with the same id) and the same arguments.
#[derive(Clone)]
pub struct Op {
    /// The idempotency key.
    pub id: OperationId,
    /// How long each operation of a driver may take. Jobs (import, export, copy, maintenance) have
    /// no limit of their own; each step of them has this one.
    pub budget: Duration,
    /// Ends it early.
    pub cancel: CancelFlag,
    /// Told how far it is.
    pub progress: Option<ProgressSink>,
}

impl Default for Op {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Op")
            .field("id", &self.id)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

impl Op {
    /// A new wish with an id nobody has used.
    pub fn new() -> Self {
        Self {
            id: OperationId::random(),
            budget: DEFAULT_BUDGET,
            cancel: CancelFlag::default(),
            progress: None,
        }
    }

    /// With this id: a retry, or a toolstack's own numbering.
    #[must_use]
    pub fn with_id(mut self, id: OperationId) -> Self {
        self.id = id;
        self
    }

    /// With this time.
    #[must_use]
    pub fn with_budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// Ended early by this flag.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancelFlag) -> Self {
        self.cancel = cancel;
        self
    }

    /// Reporting to this sink.
    #[must_use]
    pub fn with_progress(mut self, progress: ProgressSink) -> Self {
        self.progress = Some(progress);
        self
    }

    /// A part of this wish, with an id that follows from it.
    #[must_use]
    pub fn part(&self, role: &str) -> Self {
        Self { id: OperationId(self.id.derived(role, 0)), ..self.clone() }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.budget
    }

    pub(crate) fn call(&self, operation: Operation) -> Call {
        let mut call = Call::new(operation, self.id, self.budget);
        call.cancel = self.cancel.clone();
        call.progress.clone_from(&self.progress);
        call
    }

    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "the caller cancelled"));
        }
        Ok(())
    }
}
