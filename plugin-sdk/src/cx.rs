//! The context of a call.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sm_model::host::SnapshotCaught;
use sm_model::{Error, HostId, Kind, OperationId, Result, SrUuid};
use tokio::sync::Notify;

use crate::command::Command;
use crate::host::Host;
use crate::kv::Kv;
use crate::panics;

/// How long a [shielded](Cx::shielded) context lasts at least.
const SHIELD: Duration = Duration::from_secs(30);

/// A cancel that comes so shortly before the deadline comes because of it.
const CLOCKS: Duration = Duration::from_millis(100);

/// What goes with a call: its time, its identity, and the host's services. Clones are cheap and
/// mean the same call.
#[derive(Clone)]
pub struct Cx {
    pub(crate) call: Arc<Call>,
    deadline: Instant,
    shielded: bool,
}

/// What all contexts of one call share.
pub(crate) struct Call {
    pub(crate) session: Arc<SessionInfo>,
    /// The operation's name, or `open` or `close`.
    pub(crate) operation: &'static str,
    /// 0 outside of a call.
    pub(crate) id: u64,
    pub(crate) operation_id: OperationId,
    pub(crate) deadline: Instant,
    pub(crate) trace_id: [u64; 2],
    pub(crate) span_id: u64,
    pub(crate) cancel: CancelFlag,
}

/// What all calls of one opened driver share.
pub(crate) struct SessionInfo {
    pub(crate) driver: &'static str,
    pub(crate) host: Host,
    pub(crate) host_id: HostId,
    pub(crate) installation: String,
    pub(crate) sr: Option<SrUuid>,
    /// As given: secrets are references.
    pub(crate) device_config: sm_model::DeviceConfig,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// A flag that wakes who waits for it.
#[derive(Default)]
pub(crate) struct CancelFlag {
    set: AtomicBool,
    changed: Notify,
}

impl CancelFlag {
    pub(crate) fn set(&self) {
        self.set.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::SeqCst)
    }

    async fn wait(&self) {
        loop {
            // Made before the look at the flag, so that no wake-up falls in between.
            let changed = self.changed.notified();
            if self.is_set() {
                return;
            }
            changed.await;
        }
    }
}

impl Cx {
    pub(crate) fn new(call: Arc<Call>) -> Self {
        Self { deadline: call.deadline, call, shielded: false }
    }

    /// Name of the operation, as in the trait; `open` and `close` outside of operations.
    pub fn operation(&self) -> &'static str {
        self.call.operation
    }

    /// The caller's wish: the same id gets the same answer. A backend that can store a tag with a
    /// new object stores this one, so that a replay finds it.
    pub fn operation_id(&self) -> OperationId {
        self.call.operation_id
    }

    /// The SR the driver was opened for; none at a probe.
    pub fn sr(&self) -> Option<SrUuid> {
        self.call.session.sr
    }

    /// This host.
    pub fn host(&self) -> &HostId {
        &self.call.session.host_id
    }

    /// Which of the installations of this host it is; see
    /// [`OpenRequest::installation`](sm_model::host::OpenRequest::installation).
    pub fn installation(&self) -> &str {
        &self.call.session.installation
    }

    /// The device configuration as the caller gave it, secrets still references: what
    /// [`sr_create`](crate::Driver::sr_create) answers with.
    pub fn device_config(&self) -> &sm_model::DeviceConfig {
        &self.call.session.device_config
    }

    /// W3C `traceparent` header for requests to the backend, if the call is traced.
    pub fn traceparent(&self) -> Option<String> {
        let [high, low] = self.call.trace_id;
        let span = self.call.span_id;
        (high != 0 || low != 0).then(|| format!("00-{high:016x}{low:016x}-{span:016x}-01"))
    }

    /// When the answer must be there.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The time left; zero when it is over.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same call with at most so much time left, for a step that must not use it all up.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        let deadline = Instant::now().checked_add(limit).unwrap_or(self.deadline);
        Self { deadline: deadline.min(self.deadline), ..self.clone() }
    }

    /// The same call, deaf to cancel and with at least 30 s left: for the window between making
    /// something on the backend and recording it, where stopping would leave a loose end.
    ///
    /// ```
    /// # use plugin_sdk::{Cx, Result};
    /// # async fn array_create(_: &Cx) -> Result<u64> { Ok(7) }
    /// # async fn tag(_: &Cx, _: u64) -> Result<()> { Ok(()) }
    /// async fn create(cx: &Cx) -> Result<u64> {
    ///     cx.check()?;
    ///     let cx = &cx.shielded();
    ///     let volume = array_create(cx).await?;
    ///     tag(cx, volume).await?;
    ///     Ok(volume)
    /// }
    /// ```
    #[must_use]
    pub fn shielded(&self) -> Self {
        let least = Instant::now() + SHIELD;
        Self { call: Arc::clone(&self.call), deadline: self.deadline.max(least), shielded: true }
    }

    /// Whether the caller wants the call to end early.
    pub fn is_cancelled(&self) -> bool {
        if self.shielded {
            return false;
        }
        let call = &self.call;
        if !call.cancel.is_set() && call.id != 0 && call.session.host.is_cancelled(call.id) {
            call.cancel.set();
        }
        call.cancel.is_set()
    }

    /// Waits until the caller wants the call to end early. Cancel-safe.
    pub async fn cancelled(&self) {
        if self.shielded {
            std::future::pending::<()>().await;
        }
        self.call.cancel.wait().await;
    }

    /// Ends the call if it should end: error kind `cancelled` or `deadline_exceeded`. Belongs
    /// before every step that can be the last one.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(self.cancelled_error());
        }
        if self.remaining().is_zero() {
            return Err(self.deadline_error());
        }
        Ok(())
    }

    /// Tells how far the call is (0 to 1000) and what it is doing.
    pub fn progress(&self, permille: u32, stage: &str) {
        if self.call.id != 0 {
            self.call.session.host.progress(self.call.id, permille.min(1000), stage);
        }
    }

    /// Reports a measured value, such as the duration of a request to the backend.
    pub fn metric(&self, name: &str, value: f64, labels: &[(&str, &str)]) {
        let labels: serde_json::Map<String, serde_json::Value> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let labels = serde_json::Value::Object(labels).to_string();
        self.call.session.host.metric(name, value, &labels);
    }

    /// Runs work that blocks (an ioctl, `flock`, a long computation) on a thread of its own, at
    /// most 16 at a time, with the context at hand for [`check`](Self::check) and
    /// [`progress`](Self::progress).
    ///
    /// It is waited for even past the deadline or a cancel, because a thread cannot be stopped:
    /// the work calls [`check`](Self::check) now and then. Work that has not begun by then is
    /// given up with error kind `cancelled` or `deadline_exceeded`. A panic becomes an `internal`
    /// error.
    ///
    /// ```
    /// # use plugin_sdk::{Cx, Result};
    /// async fn fill(cx: &Cx, blocks: u32) -> Result<()> {
    ///     cx.blocking(move |cx| {
    ///         for block in 0..blocks {
    ///             cx.check()?;
    ///             cx.progress(1000 * block / blocks, "filling");
    ///         }
    ///         Ok(())
    ///     })
    ///     .await
    /// }
    /// ```
    pub async fn blocking<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T> + Send + 'static,
    {
        let cx = self.clone();
        let span = tracing::Span::current();
        // Whoever sets it first decides: a thread that begins, or this future that gives up.
        // Aborting the task would not do: tokio looks at that only when a thread becomes free.
        let decided = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&decided);
        let mut task = self.call.session.runtime.spawn_blocking(move || {
            if begins.swap(true, Ordering::SeqCst) {
                return Ok(Err(Error::internal("given up"))); // Nobody is listening.
            }
            let _entered = span.enter();
            panics::caught(|| work(&cx))
        });
        let joined = tokio::select! {
            biased;
            joined = &mut task => joined,
            error = self.ended() => {
                if !decided.swap(true, Ordering::SeqCst) {
                    return Err(error.hint("all threads for blocking work were busy"));
                }
                task.await
            }
        };
        match joined {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(panic.error()),
            Err(join) => Err(Error::internal("blocking work was lost").source(&join)),
        }
    }

    /// A program to run, with the call's deadline.
    pub fn command(&self, program: impl Into<String>) -> Command {
        Command::new(self.clone(), program.into())
    }

    /// The driver's own state on this host.
    pub fn kv(&self) -> Kv<'_> {
        Kv { cx: self }
    }

    /// Asks the host for a service by name, for those that have no method here. Error kind
    /// `unsupported` if the host lacks it.
    pub async fn request<A: DeserializeOwned>(
        &self,
        service: &str,
        request: &impl Serialize,
    ) -> Result<A> {
        self.call.session.host.request(self.call.id, service, request).await
    }

    /// As [`Self::request`], from a thread for [blocking work](Self::blocking).
    pub fn request_blocking<A: DeserializeOwned>(
        &self,
        service: &str,
        request: &impl Serialize,
    ) -> Result<A> {
        self.call.session.runtime.block_on(self.request(service, request))
    }

    /// Tells the host, in a `vdi_snapshot`, that the snapshots hold what was written before and
    /// nothing of what is written from now on: guests that were stopped for them may go on while the
    /// driver describes what it took. After this the call takes no others: it answers with these, or
    /// fails.
    pub async fn snapshots_caught(&self) {
        let request = SnapshotCaught { operation: self.call.operation_id };
        let told = self.request::<serde_json::Value>("snapshot.caught", &request).await;
        if let Err(error) = told {
            // An earlier host: it waits for the answer.
            tracing::debug!(%error, "the host was not told that the snapshots are taken");
        }
    }

    /// As [`Self::snapshots_caught`], from a thread for [blocking work](Self::blocking).
    pub fn snapshots_caught_blocking(&self) {
        self.call.session.runtime.block_on(self.snapshots_caught());
    }

    /// Waits for the cancel or the deadline, whichever comes first: what the call then ends with.
    /// Cancel-safe.
    pub async fn ended(&self) -> Error {
        tokio::select! {
            biased;
            () = self.cancelled() => self.cancelled_error(),
            () = tokio::time::sleep_until(self.deadline.into()) => self.deadline_error(),
        }
    }

    /// A host cancels also what does not end in time, and by its clock that is over a little
    /// before it is by ours.
    fn cancelled_error(&self) -> Error {
        if self.remaining() < CLOCKS {
            return self.deadline_error();
        }
        Error::new(Kind::Cancelled, format!("{} was cancelled", self.operation()))
    }

    fn deadline_error(&self) -> Error {
        Error::new(
            Kind::DeadlineExceeded,
            format!("{} did not end within the time given", self.operation()),
        )
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx")
            .field("operation", &self.operation())
            .field("operation_id", &self.operation_id())
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}
