//! A driver in this process: statically linked, or a shared library.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sm_abi::abi_stable::sabi_trait::TD_Opaque;
use sm_abi::abi_stable::std_types::{RResult, RStr, RString};
use sm_abi::async_ffi::{FfiFuture, FutureExt};
use sm_abi::{Bytes, DriverBox, DriverModule_Ref, Host_TO, Reply};
use sm_model::error::Kind;
use sm_model::host::OpenRequest;
use sm_model::{Error, Manifest, Result};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::background::{self, GaveUp, ToTheEnd, with_grace};
use crate::hub::{Hub, Registered, log_level};
use crate::open::check_open;
use crate::port::{Call, DriverPort, PortHealth};
use crate::services::HostServices;
use crate::{Placement, ffi};

/// A driver in this process.
///
/// The future of a call is polled where it is awaited; a mutation whose caller goes away is
/// driven to its end on the loader's runtime. A driver that does not answer in time cannot be
/// killed here: the call is answered for it, and the port is poisoned until it does answer.
pub struct InProcessPort {
    manifest: Manifest,
    module: DriverModule_Ref,
    session: Arc<Session>,
    hub: Arc<Hub>,
    handle: &'static Handle,
    grace: Duration,
    level: AtomicU8,
}

struct Session {
    driver: DriverBox,
    closed: AtomicBool,
    /// Calls that have begun and not ended, whoever polls them.
    running: AtomicUsize,
    /// Of these, the ones that were given up.
    stuck: AtomicUsize,
    ended: Notify,
}

/// A call as [`Session::running`] counts it; holds the driver open.
struct Slot {
    session: Arc<Session>,
    stuck: bool,
    _registered: Registered,
}

impl Slot {
    fn new(session: &Arc<Session>, registered: Registered) -> Self {
        session.running.fetch_add(1, Ordering::SeqCst);
        Self { session: Arc::clone(session), stuck: false, _registered: registered }
    }

    fn give_up(&mut self) {
        self.stuck = true;
        self.session.stuck.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.stuck {
            self.session.stuck.fetch_sub(1, Ordering::SeqCst);
        }
        if self.session.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.session.ended.notify_waiters();
        }
    }
}

impl InProcessPort {
    /// Opens a driver whose module this process has, for instance because it is linked into it.
    ///
    /// # Errors
    /// The configuration is checked first, then the services; then come the driver's own errors,
    /// and `deadline_exceeded` if it does not open within the budget.
    pub async fn from_module(
        module: DriverModule_Ref,
        request: OpenRequest,
        services: Arc<dyn HostServices>,
        budget: Duration,
        grace: Duration,
    ) -> Result<Self> {
        let handle = background::handle()?;
        let manifest = crate::inspect::parse_manifest(
            module.manifest()().as_str().as_bytes(),
            std::path::Path::new("the linked driver"),
        )?;
        check_open(&manifest, &request, Placement::InProcess, services.as_ref())?;
        let hub = Hub::new(&manifest.name, services);
        let level = log_level();
        module.set_log_level()(level);
        let json = serde_json::to_vec(&request).map_err(|error| {
            Error::internal("the open request cannot be written as JSON").source(&error)
        })?;
        let host = Host_TO::from_value(InProcessHost { hub: Arc::clone(&hub), handle }, TD_Opaque);
        let opening = module.open()(json.into(), host);
        let deadline = background::sleep_until(handle, Instant::now() + budget);
        let opened = tokio::select! {
            biased;
            opened = ffi::guarded(opening) => opened,
            () = deadline => return Err(too_slow_to_open(&manifest.name, budget)),
        };
        let driver = opened
            .map_err(|ffi::Panicked| ffi::panicked(&manifest.name).context("phase", "open"))?
            .into_result()
            .map_err(|json| ffi::from_json(&json, &manifest.name))?;
        let session = Arc::new(Session {
            driver,
            closed: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            stuck: AtomicUsize::new(0),
            ended: Notify::new(),
        });
        Ok(Self { manifest, module, session, hub, handle, grace, level: AtomicU8::new(level) })
    }

    /// Tells the driver what the host's log wants now, if that has changed.
    fn refresh_level(&self) {
        let level = log_level();
        if self.level.load(Ordering::Relaxed) != level {
            self.level.store(level, Ordering::Relaxed);
            self.module.set_log_level()(level);
        }
    }
}

#[async_trait]
impl DriverPort for InProcessPort {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    async fn call(&self, call: Call, request: Vec<u8>) -> Result<Vec<u8>> {
        self.refresh_level();
        let registered = self.hub.register(&call);
        let id = registered.id;
        let mut slot = Slot::new(&self.session, registered);
        // After the count: `close` sets the flag first and looks at the count then.
        if self.session.closed.load(Ordering::SeqCst) {
            return Err(closed(&self.manifest.name));
        }
        let budget = u64::try_from(call.remaining().as_millis()).unwrap_or(u64::MAX);
        let context = ffi::context(id, call.operation_id, budget);
        let future = self.session.driver.call(
            context,
            RString::from(call.operation.name()),
            Bytes::from(request),
        );
        let driver = self.manifest.name.clone();
        let (handle, grace) = (self.handle, self.grace);
        let mutating = call.operation.is_mutating();
        let supervised = async move {
            let name = driver.clone();
            let mut answer: Pin<Box<dyn Future<Output = _> + Send>> =
                Box::pin(async move { ffi::answer(future, &name).await });
            let session = Arc::clone(&slot.session);
            let stop = || session.driver.cancel(id);
            match with_grace(handle, &call, grace, &mut answer, stop).await {
                Ok(answer) => answer.map_err(|json| ffi::from_json(&json, &driver)),
                Err(why) => {
                    slot.give_up();
                    handle.spawn(async move {
                        let _ = answer.await;
                        drop(slot); // It has answered after all.
                    });
                    Err(gave_up(why, &call, &driver, grace))
                }
            }
        };
        ToTheEnd::new(handle, mutating, supervised).await
    }

    fn health(&self) -> PortHealth {
        if self.session.closed.load(Ordering::SeqCst)
            || self.session.stuck.load(Ordering::SeqCst) > 0
        {
            return PortHealth::Poisoned;
        }
        health(self.session.driver.health())
    }

    async fn close(&self, budget: Duration) {
        if self.session.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let session = Arc::clone(&self.session);
        let handle = self.handle;
        // To the end as well: a session that is closed half-way leaves locks behind.
        let closing = async move {
            let deadline = Instant::now() + budget;
            let idle = async {
                loop {
                    let ended = session.ended.notified();
                    if session.running.load(Ordering::SeqCst) == 0 {
                        return;
                    }
                    ended.await;
                }
            };
            tokio::select! {
                () = idle => {}
                () = background::sleep_until(handle, deadline) => return,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            tokio::select! {
                _ = ffi::guarded(session.driver.close(milliseconds)) => {}
                () = background::sleep_until(handle, deadline) => {}
            }
        };
        ToTheEnd::new(handle, true, closing).await;
    }
}

/// A driver's own word on its health.
pub(crate) fn health(code: u32) -> PortHealth {
    match code {
        0 => PortHealth::Ok,
        1 => PortHealth::Degraded,
        _ => PortHealth::Poisoned,
    }
}

pub(crate) fn closed(driver: &str) -> Error {
    Error::internal(format!("the session of the driver {driver} is closed"))
}

pub(crate) fn too_slow_to_open(driver: &str, budget: Duration) -> Error {
    Error::new(
        Kind::DeadlineExceeded,
        format!("the driver {driver} did not open within {} ms", budget.as_millis()),
    )
}

/// The answer to a call that the driver did not give one to.
pub(crate) fn gave_up(why: GaveUp, call: &Call, driver: &str, grace: Duration) -> Error {
    let operation = call.operation;
    let event = match why {
        GaveUp::Deadline => "its deadline",
        GaveUp::Cancelled => "it was cancelled",
    };
    let message = format!(
        "the driver {driver} did not answer {operation} within {} ms after {event}",
        grace.as_millis()
    );
    let error = if operation.is_mutating() {
        Error::new(Kind::Unknown, message).hint("it may have been done: look before trying again")
    } else {
        Error::new(
            match why {
                GaveUp::Deadline => Kind::DeadlineExceeded,
                GaveUp::Cancelled => Kind::Cancelled,
            },
            message,
        )
    };
    error.operation(operation.name()).context("driver", driver)
}

/// This process as a driver in it sees it.
struct InProcessHost {
    hub: Arc<Hub>,
    handle: &'static Handle,
}

/// Nothing may unwind into the driver, not even a subscriber that panics.
fn caught<T: Default>(work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_default()
}

impl sm_abi::Host for InProcessHost {
    fn log(&self, level: u8, call_id: u64, target: RStr<'_>, message: RStr<'_>, fields: RStr<'_>) {
        caught(|| {
            self.hub.log(level, call_id, target.as_str(), message.as_str(), fields.as_str());
        });
    }

    fn progress(&self, call_id: u64, permille: u32, stage: RStr<'_>) {
        caught(|| self.hub.progress(call_id, permille, stage.as_str()));
    }

    fn is_cancelled(&self, call_id: u64) -> bool {
        caught(|| self.hub.is_cancelled(call_id))
    }

    fn metric(&self, name: RStr<'_>, value: f64, labels: RStr<'_>) {
        caught(|| self.hub.metric(name.as_str(), value, labels.as_str()));
    }

    fn request(&self, _call_id: u64, service: RString, request: Bytes) -> FfiFuture<Reply> {
        let hub = Arc::clone(&self.hub);
        // On our runtime: the driver polls this from a thread that knows nothing of it.
        let task =
            self.handle.spawn(async move { hub.request(service.as_str(), request.into()).await });
        async move {
            match task.await {
                Ok(Ok(reply)) => RResult::ROk(reply.into()),
                Ok(Err(error)) => RResult::RErr(error.into()),
                Err(_) => RResult::RErr(
                    ffi::to_json(&Error::internal("the host's service panicked")).into(),
                ),
            }
        }
        .into_ffi()
    }
}
