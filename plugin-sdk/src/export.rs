//! What `export_driver!` places into the library: the one file that touches the binary interface.
//!
//! Every entry is a generic function over the driver's type, so that the macro adds two statics
//! and nothing else. No panic leaves an entry, and no code of the driver runs on a thread of the
//! host: the host polls a [`JoinHandle`](tokio::task::JoinHandle).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use serde::Deserialize;
use sm_abi::abi_stable::erased_types::TD_Opaque;
use sm_abi::abi_stable::library::{__call_root_module_loader, CheckTypeLayout, RootModuleResult};
use sm_abi::abi_stable::prefix_type::PrefixTypeTrait;
use sm_abi::abi_stable::std_types::{RResult, RStr, RString};
use sm_abi::async_ffi::{FfiFuture, FutureExt};
use sm_abi::{
    Bytes, CallContext, Driver_TO, DriverBox, DriverModule, DriverModule_Ref, HostBox, OpenResult,
    Reply,
};
use sm_model::host::{OpenRequest, SECRET_PREFIX, SecretGet, SecretText};
use sm_model::{Error, Kind, Operation, OperationId, Result, VdiUuid};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::Instrument;

pub use sm_abi::abi_stable::library::LibHeader;

pub use crate::manifest::ManifestText;

use crate::config::{DeviceConfig, RawConfig};
use crate::cx::{Call, CancelFlag, Cx, SessionInfo};
use crate::driver::{Driver, SessionHealth, dispatch};
use crate::host::Host;
use crate::panics::{self, Caught};
use crate::{runtime, trace};

/// Time for `open`, which has no budget of its own: the host drops the future when it has had
/// enough.
const OPEN_BUDGET: Duration = Duration::from_secs(120);

/// Makes a driver out of the library: one line at the end of its `lib.rs`.
///
/// The crate's type is `cdylib` (and `rlib`, for its unit tests), and `#![forbid(unsafe_code)]` is
/// fine. At most one driver per library.
#[macro_export]
macro_rules! export_driver {
    ($driver:ty $(,)?) => {
        const _: () = {
            // The symbol that abi_stable 0.11 looks for.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            static HEADER: $crate::export::LibHeader = $crate::export::header::<$driver>();

            #[used]
            #[unsafe(link_section = ".sm_driver")]
            static MANIFEST: [u8; $crate::export::ManifestText::<$driver>::LEN] =
                $crate::export::ManifestText::<$driver>::array();
        };
    };
}

/// The header of a library that exports `D`.
pub const fn header<D: Driver>() -> LibHeader {
    // SAFETY: `constructor` returns the root module of the very type that is named here.
    unsafe {
        LibHeader::from_constructor::<DriverModule_Ref>(constructor::<D>, CheckTypeLayout::Yes)
    }
}

extern "C" fn constructor<D: Driver>() -> RootModuleResult {
    __call_root_module_loader(root_module::<D>)
}

/// The root module of a driver, for a host that links it statically.
pub fn root_module<D: Driver>() -> DriverModule_Ref {
    DriverModule { manifest: manifest::<D>, set_log_level, open: open::<D> }.leak_into_prefix()
}

extern "C" fn manifest<D: Driver>() -> RStr<'static> {
    RStr::from(ManifestText::<D>::TEXT)
}

extern "C" fn set_log_level(level: u8) {
    // A panic here has nowhere to go.
    let _ = panics::caught(|| trace::set_level(level));
}

extern "C" fn open<D: Driver>(request: Bytes, host: HostBox) -> FfiFuture<OpenResult> {
    let host = Host::new(host);
    let started = panics::caught(|| {
        panics::install_hook();
        trace::install(&host);
        start_open::<D>(&request, host)
    });
    let task = started.unwrap_or_else(|panic| Err(panic.error()));
    async move {
        match joined(task).await {
            Ok(session) => RResult::ROk(DriverBox::from(Driver_TO::from_value(session, TD_Opaque))),
            Err(error) => RResult::RErr(to_json(&error.operation("open"))),
        }
    }
    .into_ffi()
}

fn start_open<D: Driver>(request: &[u8], host: Host) -> Result<Task<Session<D>>> {
    let request: OpenRequest = serde_json::from_slice(request)
        .map_err(|error| Error::internal("the request to open cannot be read").source(&error))?;
    let runtime = runtime::handle(D::MANIFEST.name, D::MANIFEST.workers)?;
    let info = Arc::new(SessionInfo {
        driver: D::MANIFEST.name,
        host,
        host_id: request.host,
        installation: request.installation,
        sr: request.sr,
        device_config: request.device_config,
        runtime: runtime.clone(),
    });
    let call = outside_call(&info, "open", OPEN_BUDGET);
    let span = trace::span(&call, None);
    let work = Caught::new(async move {
        let cx = Cx::new(call);
        let opening = async {
            let Some(sr) = info.sr else { return Ok(None) };
            let config = D::Config::parse(&resolve(&cx).await?)?;
            D::open(config, sr, &cx).await.map(Some)
        };
        let driver = tokio::select! {
            biased;
            driver = opening => driver?,
            error = cx.ended() => return Err(error),
        };
        Ok(Session(Some(Arc::new(Inner { info, driver, running: Running::default() }))))
    });
    let work = async move { work.await.unwrap_or_else(|panic| Err(panic.error())) };
    Ok(Task { handle: runtime.spawn(work.instrument(span)), abort_on_drop: true })
}

/// The device configuration with the text of secrets in place of their references.
pub(crate) async fn resolve(cx: &Cx) -> Result<RawConfig> {
    let mut resolved = Vec::new();
    for (key, value) in cx.device_config() {
        if value.starts_with(SECRET_PREFIX) {
            let request = SecretGet { reference: value.clone() };
            let secret: SecretText = cx.request("secret.get", &request).await.map_err(|error| {
                error.context("key", key).hint(format!("the secret {value} could not be read"))
            })?;
            resolved.push((key.clone(), secret.text));
        } else {
            resolved.push((key.clone(), value.clone()));
        }
    }
    Ok(resolved.into_iter().collect())
}

/// A context without a driver, for tests of a driver's parts.
pub(crate) fn bare_cx(host: HostBox, budget: Duration) -> Result<Cx> {
    let host = Host::new(host);
    panics::install_hook();
    trace::install(&host);
    let info = Arc::new(SessionInfo {
        driver: "test",
        host,
        host_id: sm_model::HostId("test".to_owned()),
        installation: String::new(),
        sr: None,
        device_config: sm_model::DeviceConfig::new(),
        runtime: runtime::handle("test", 1)?,
    });
    Ok(Cx::new(outside_call(&info, "test", budget)))
}

/// A call that the host did not number: `open` and `close`.
fn outside_call(info: &Arc<SessionInfo>, operation: &'static str, budget: Duration) -> Arc<Call> {
    Arc::new(Call {
        session: Arc::clone(info),
        operation,
        id: 0,
        operation_id: OperationId::from_halves([0, 0]),
        deadline: after(budget),
        trace_id: [0, 0],
        span_id: 0,
        cancel: CancelFlag::default(),
    })
}

/// An instant that far away; a budget without end is a year.
fn after(budget: Duration) -> Instant {
    Instant::now() + budget.min(Duration::from_secs(365 * 24 * 3600))
}

/// An opened driver, as it crosses. Empty only while it is dropped.
struct Session<D: Driver>(Option<Arc<Inner<D>>>);

impl<D: Driver> Drop for Session<D> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            // The driver's destructor is its code: not on the host's thread, and it may panic.
            let runtime = inner.info.runtime.clone();
            let _ = panics::caught(|| runtime.spawn(Caught::new(async move { drop(inner) })));
        }
    }
}

struct Inner<D> {
    info: Arc<SessionInfo>,
    /// Absent in a session that only probes.
    driver: Option<D>,
    running: Running,
}

/// The calls that run, for cancel and close.
#[derive(Default)]
struct Running {
    calls: Mutex<HashMap<u64, Weak<Call>>>,
    ended: Notify,
    closed: AtomicBool,
}

impl Running {
    fn calls(&self) -> MutexGuard<'_, HashMap<u64, Weak<Call>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn drained(&self) {
        loop {
            let ended = self.ended.notified();
            if self.calls().is_empty() {
                return;
            }
            ended.await;
        }
    }
}

/// Takes a call off the list of those that run, however it ends.
struct Registered<D: Driver>(Arc<Inner<D>>, u64);

impl<D: Driver> Drop for Registered<D> {
    fn drop(&mut self) {
        self.0.running.calls().remove(&self.1);
        self.0.running.ended.notify_waiters();
    }
}

impl<D: Driver> sm_abi::Driver for Session<D> {
    fn call(&self, context: CallContext, operation: RString, request: Bytes) -> FfiFuture<Reply> {
        let started = panics::caught(|| self.start(context, &operation, request));
        let task = started.unwrap_or_else(|panic| Err(panic.error()));
        async move {
            match joined(task).await {
                Ok(json) => RResult::ROk(json.into()),
                Err(error) => RResult::RErr(to_json(&error.operation(operation.as_str()))),
            }
        }
        .into_ffi()
    }

    fn cancel(&self, call_id: u64) {
        let _ = panics::caught(|| {
            let running = self.0.as_ref().map(|inner| &inner.running);
            let call = running.and_then(|running| running.calls().get(&call_id)?.upgrade());
            if let Some(call) = call {
                call.cancel.set();
            }
        });
    }

    fn health(&self) -> u32 {
        let health = panics::caught(|| Some(self.0.as_ref()?.driver.as_ref()?.health()));
        match health {
            Ok(None | Some(SessionHealth::Ok)) => 0,
            Ok(Some(SessionHealth::Degraded)) => 1,
            Ok(Some(SessionHealth::Poisoned)) | Err(_) => 2,
        }
    }

    fn close(&self, budget_ms: u64) -> FfiFuture<()> {
        let inner = self.0.clone();
        let task = panics::caught(|| {
            let inner = inner?;
            inner.running.closed.store(true, Ordering::SeqCst);
            let call = outside_call(&inner.info, "close", Duration::from_millis(budget_ms));
            let (span, runtime) = (trace::span(&call, None), inner.info.runtime.clone());
            let work = async move {
                let cx = Cx::new(call);
                let closing = async {
                    inner.running.drained().await;
                    if let Some(driver) = &inner.driver {
                        driver.close(&cx).await;
                    }
                };
                tokio::select! {
                    () = closing => {}
                    _ = cx.ended() => tracing::warn!("the session did not end in time"),
                }
            };
            Some(runtime.spawn(Caught::new(work.instrument(span))))
        });
        async move {
            if let Ok(Some(task)) = task {
                let _ = task.await;
            }
        }
        .into_ffi()
    }
}

impl<D: Driver> Session<D> {
    /// Starts a call on the driver's own runtime.
    fn start(
        &self,
        context: CallContext,
        operation: &str,
        request: Bytes,
    ) -> Result<Task<Vec<u8>>> {
        let operation: Operation = operation.parse().map_err(|_| {
            Error::unsupported(format!(
                "the driver {} does not know the operation {operation:?}",
                D::MANIFEST.name
            ))
            .hint("it was built with an SDK that is older than this host")
        })?;
        let closed = || Error::internal("the session is closed");
        let inner = self.0.clone().ok_or_else(closed)?;
        let call = Arc::new(Call {
            session: Arc::clone(&inner.info),
            operation: operation.name(),
            id: context.call_id,
            operation_id: OperationId::from_halves(context.operation_id),
            deadline: after(Duration::from_millis(context.budget_ms)),
            trace_id: context.trace_id,
            span_id: context.span_id,
            cancel: CancelFlag::default(),
        });
        inner.running.calls().insert(call.id, Arc::downgrade(&call));
        let registered = Registered(Arc::clone(&inner), call.id);
        // After the call is on the list, so that close waits for it or it sees the close.
        if inner.running.closed.load(Ordering::SeqCst) {
            return Err(closed());
        }
        let subject: Subject = serde_json::from_slice(&request).unwrap_or_default();
        let vdi = subject.vdi.or(subject.uuid);
        let span = trace::span(&call, vdi);
        let work = async move {
            let cx = Cx::new(call);
            let Registered(inner, _) = &registered;
            cx.check()?;
            let work = dispatch(inner.driver.as_ref(), &cx, operation, &request);
            if operation.is_mutating() {
                return work.await;
            }
            tokio::select! {
                biased;
                result = work => result,
                error = cx.ended() => Err(error),
            }
        };
        let info = Arc::clone(&inner.info);
        let work = Caught::new(work.instrument(span));
        let work = async move {
            let result = work.await.unwrap_or_else(|panic| Err(panic.error()));
            result.map_err(|error| {
                let error = error.operation(operation.name()).context("driver", info.driver);
                let error = if let Some(sr) = info.sr { error.context("sr", sr) } else { error };
                if let Some(vdi) = vdi { error.context("vdi", vdi) } else { error }
            })
        };
        let handle = inner.info.runtime.spawn(work);
        Ok(Task { handle, abort_on_drop: !operation.is_mutating() })
    }
}

/// The VDI a request is about, whatever else it says.
#[derive(Default, Deserialize)]
struct Subject {
    vdi: Option<VdiUuid>,
    uuid: Option<VdiUuid>,
}

/// Work on the driver's runtime. The host may poll it from any thread, and may drop it: then work
/// that only reads is aborted, and work that changes something goes on to its end.
struct Task<T> {
    handle: JoinHandle<Result<T>>,
    abort_on_drop: bool,
}

impl<T> Future for Task<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.handle).poll(cx).map(|joined| {
            joined.unwrap_or_else(|join| {
                Err(Error::new(Kind::Unknown, "the driver lost the call").source(&join))
            })
        })
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if self.abort_on_drop {
            self.handle.abort();
        }
    }
}

async fn joined<T>(task: Result<Task<T>>) -> Result<T> {
    task?.await
}

fn to_json(error: &Error) -> Bytes {
    let json = serde_json::to_vec(error);
    json.unwrap_or_else(|_| {
        br#"{"kind":"internal","message":"an error cannot be written as JSON","retry":"permanent"}"#
            .to_vec()
    })
    .into()
}
