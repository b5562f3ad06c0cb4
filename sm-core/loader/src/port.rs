//! How the core talks to an opened driver, whatever side of a process boundary it is on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sm_model::{Manifest, Operation, OperationId, Request, Result};

/// An opened driver: one session with the backend of one SR.
#[async_trait]
pub trait DriverPort: Send + Sync {
    /// What the driver says of itself.
    fn manifest(&self) -> &Manifest;

    /// Does one operation; request and reply are JSON of the operation's types.
    ///
    /// Cancel safety: the future of a mutating operation must be polled to its end. At the
    /// deadline, or after a cancel, the port asks the driver to stop, waits a grace, and then
    /// answers by itself with kind `unknown` (mutating) or `deadline_exceeded` (reading); a
    /// process port kills its child.
    async fn call(&self, call: Call, request: Vec<u8>) -> Result<Vec<u8>>;

    /// Whether the session works.
    fn health(&self) -> PortHealth;

    /// Ends the session within the budget. Calls afterwards fail.
    async fn close(&self, budget: Duration);
}

/// Whether a session works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortHealth {
    /// It does.
    Ok,
    /// It does, with restrictions the driver logs.
    Degraded,
    /// Its process has died too often: calls are answered `busy` until it has rested.
    Tripped,
    /// It must be opened anew.
    Poisoned,
}

/// One call of an operation.
#[derive(Clone)]
pub struct Call {
    /// What to do.
    pub operation: Operation,
    /// The caller's wish: the same id, the same answer.
    pub operation_id: OperationId,
    /// When the answer must be there.
    pub deadline: Instant,
    /// Set to end the call early.
    pub cancel: CancelFlag,
    /// Told how far the call is: 0 to 1000, and the stage's name.
    pub progress: Option<ProgressSink>,
}

/// See [`Call::progress`].
pub type ProgressSink = Arc<dyn Fn(u32, &str) + Send + Sync>;

impl Call {
    /// A call with nothing to report to.
    pub fn new(operation: Operation, operation_id: OperationId, budget: Duration) -> Self {
        Self {
            operation,
            operation_id,
            deadline: Instant::now() + budget,
            cancel: CancelFlag::default(),
            progress: None,
        }
    }

    /// The time left.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// A flag that ends a call early, shared by whoever may do so.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    set: AtomicBool,
    changed: tokio::sync::Notify,
}

impl CancelFlag {
    /// Sets the flag.
    pub fn cancel(&self) {
        self.0.set.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Whether it is set.
    pub fn is_cancelled(&self) -> bool {
        self.0.set.load(Ordering::SeqCst)
    }

    /// Waits until it is set. Cancel-safe.
    pub async fn cancelled(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_cancelled() {
                return;
            }
            changed.await;
        }
    }
}

/// Calls an operation with its typed request.
pub async fn call<R: Request>(port: &dyn DriverPort, call: Call, request: &R) -> Result<R::Reply> {
    debug_assert_eq!(call.operation, R::OPERATION);
    let json = serde_json::to_vec(request).map_err(|error| {
        sm_model::Error::internal("the request cannot be written as JSON").source(&error)
    })?;
    let reply = port.call(call, json).await.map_err(|e| e.operation(R::OPERATION.name()))?;
    serde_json::from_slice(&reply).map_err(|error| {
        sm_model::Error::internal(format!(
            "the driver {} answered {} with something else than the operation's reply",
            port.manifest().name,
            R::OPERATION
        ))
        .operation(R::OPERATION.name())
        .source(&error)
    })
}
