//! A test kit: runs a driver in the test's own process, through the very functions a host calls.
//!
//! Nothing is loaded, so a debugger works and a driver's unit tests need no built library; yet the
//! request travels as JSON, the call runs on the driver's own runtime, and a panic becomes an
//! error, as in production. The test needs no runtime: [`run`] is enough.
//!
//! ```
//! # use plugin_sdk::{Cx, Driver, Manifest, Result, manifest, model::{SrUuid, sr::*, vdi::Health}};
//! # struct Mine;
//! # impl Driver for Mine {
//! #     type Config = ();
//! #     const MANIFEST: Manifest =
//! #         manifest! { name: "mine", title: "", operations: [sr_scan] };
//! #     async fn open(_: (), _: SrUuid, _: &Cx) -> Result<Self> { Ok(Self) }
//! #     async fn sr_scan(&self, _: &Cx, _: SrScan) -> Result<SrScanned> {
//! #         Ok(SrScanned::default())
//! #     }
//! # }
//! use plugin_sdk::testing;
//!
//! testing::run(async {
//!     let driver = testing::open::<Mine>(SrUuid::random(), &[]).await?;
//!     let page = driver.call(SrScan::default()).await?;
//!     assert!(page.vdis.is_empty());
//!     driver.close().await;
//!     Ok(())
//! })
//! # .unwrap();
//! ```

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sm_abi::abi_stable::erased_types::TD_Opaque;
use sm_abi::abi_stable::std_types::{RResult, RStr, RString};
use sm_abi::async_ffi::{FfiFuture, FutureExt};
use sm_abi::{Bytes, CallContext, DriverBox, Host_TO, Reply};
use sm_model::host::{CommandRecord, KvGet, KvList, KvPut, OpenRequest, SecretGet, SecretText};
use sm_model::operation::Request;
use sm_model::sr::{SrProbe, SrProbed};
use sm_model::{Error, HostId, Manifest, OperationId, Result, SrUuid};

use crate::cx::Cx;
use crate::driver::{Driver, SessionHealth};
use crate::export::{bare_cx, root_module};
use crate::panics::Caught;

/// Budget of a call that sets none.
const BUDGET: Duration = Duration::from_secs(60);

/// Polls a future to its end on this thread, which needs no runtime.
pub fn run<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Opens a driver for an SR, on a host of its own.
pub async fn open<D: Driver>(sr: SrUuid, config: &[(&str, &str)]) -> Result<Opened<D>> {
    TestHost::new().open(sr, config).await
}

/// Probes with a device configuration that may be incomplete.
pub async fn probe<D: Driver>(config: &[(&str, &str)]) -> Result<SrProbed> {
    TestHost::new().probe::<D>(config).await
}

/// The driver's manifest as a host reads it. Error kind `internal` if it cannot be read, or if a
/// default is not of its field's type.
pub fn manifest<D: Driver>() -> Result<Manifest> {
    let text = root_module::<D>().manifest()().as_str();
    let manifest: Manifest = serde_json::from_str(text)
        .map_err(|error| Error::internal("the manifest cannot be read").source(&error))?;
    let defaults =
        manifest.config.iter().filter_map(|f| Some((f.name.clone(), f.default.clone()?)));
    manifest.check_config(&defaults.collect(), true)?;
    Ok(manifest)
}

/// Sets how much the driver logs; `None` is nothing. Holds for the whole process.
pub fn set_log_level<D: Driver>(level: Option<tracing::Level>) {
    let level = match level {
        None => 0,
        Some(tracing::Level::ERROR) => sm_abi::LogLevel::ERROR,
        Some(tracing::Level::WARN) => sm_abi::LogLevel::WARN,
        Some(tracing::Level::INFO) => sm_abi::LogLevel::INFO,
        Some(tracing::Level::DEBUG) => sm_abi::LogLevel::DEBUG,
        Some(_) => sm_abi::LogLevel::TRACE,
    };
    root_module::<D>().set_log_level()(level);
}

/// A host in memory: state, secrets, and all that a driver told it. Clones are the same host.
#[derive(Clone, Default)]
pub struct TestHost(Arc<State>);

#[derive(Default)]
struct State {
    heard: Mutex<Heard>,
    kv: Mutex<BTreeMap<String, Value>>,
    secrets: Mutex<BTreeMap<String, String>>,
    services: Mutex<BTreeMap<String, Service>>,
    cancelled: Mutex<HashSet<u64>>,
}

type Service = Arc<dyn Fn(Value) -> Result<Value> + Send + Sync>;

/// What a driver told the host.
#[derive(Clone, Debug, Default)]
struct Heard {
    logs: Vec<Log>,
    progress: Vec<Progress>,
    metrics: Vec<(String, f64)>,
    commands: Vec<CommandRecord>,
}

/// A log event.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// 1 is an error, 5 a trace.
    pub level: u8,
    /// Number of the call; 0 outside of a call.
    pub call: u64,
    /// The module it is from.
    pub target: String,
    /// The text.
    pub message: String,
    /// All else: a JSON object.
    pub fields: Value,
}

/// A report of progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Number of the call.
    pub call: u64,
    /// How far it is, 0 to 1000.
    pub permille: u32,
    /// What it is doing.
    pub stage: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestHost {
    /// A host that knows nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a secret; `reference` begins with `secret://`.
    #[must_use]
    pub fn secret(self, reference: &str, text: &str) -> Self {
        lock(&self.0.secrets).insert(reference.to_owned(), text.to_owned());
        self
    }

    /// Adds a service, or replaces one of the built-in ones (`kv.*`, `secret.get`,
    /// `command.record`).
    #[must_use]
    pub fn service(
        self,
        name: &str,
        answer: impl Fn(Value) -> Result<Value> + Send + Sync + 'static,
    ) -> Self {
        lock(&self.0.services).insert(name.to_owned(), Arc::new(answer));
        self
    }

    /// Opens a driver for an SR. The configuration is checked against the manifest first, as a
    /// real host does.
    pub async fn open<D: Driver>(&self, sr: SrUuid, config: &[(&str, &str)]) -> Result<Opened<D>> {
        self.session(Some(sr), config).await
    }

    /// Probes with a device configuration that may be incomplete.
    pub async fn probe<D: Driver>(&self, config: &[(&str, &str)]) -> Result<SrProbed> {
        self.session::<D>(None, config).await?.call(SrProbe {}).await
    }

    /// Runs a part of a driver that needs a context and nothing else, with so much time.
    ///
    /// ```
    /// use plugin_sdk::testing::{TestHost, run};
    /// # use std::time::Duration;
    ///
    /// let host = TestHost::new();
    /// run(host.with_cx(Duration::from_secs(1), |cx| async move { cx.kv().put("n", &1).await }))?;
    /// assert_eq!(host.kv()["n"], 1);
    /// # Ok::<(), plugin_sdk::Error>(())
    /// ```
    pub async fn with_cx<T, F>(
        &self,
        budget: Duration,
        work: impl FnOnce(Cx) -> F + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let cx = bare_cx(Host_TO::from_value(Face(self.clone()), TD_Opaque), budget)?;
        let runtime = cx.call.session.runtime.clone();
        let joined = runtime.spawn(Caught::new(work(cx))).await;
        let result = joined.map_err(|join| Error::internal("the work was lost").source(&join))?;
        result.unwrap_or_else(|panic| Err(panic.error()))
    }

    /// All log events, in order.
    pub fn logs(&self) -> Vec<Log> {
        lock(&self.0.heard).logs.clone()
    }

    /// All reports of progress, in order.
    pub fn progress(&self) -> Vec<Progress> {
        lock(&self.0.heard).progress.clone()
    }

    /// All measured values, in order.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        lock(&self.0.heard).metrics.clone()
    }

    /// All commands the driver ran, in order of their ends.
    pub fn commands(&self) -> Vec<CommandRecord> {
        lock(&self.0.heard).commands.clone()
    }

    /// The driver's state.
    pub fn kv(&self) -> BTreeMap<String, Value> {
        lock(&self.0.kv).clone()
    }

    async fn session<D: Driver>(
        &self,
        sr: Option<SrUuid>,
        config: &[(&str, &str)],
    ) -> Result<Opened<D>> {
        let config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        manifest::<D>()?.check_config(&config, sr.is_none())?;
        let (host, installation) = (HostId("test".to_owned()), String::new());
        let request = OpenRequest { sr, device_config: config, host, installation };
        let host = Host_TO::from_value(Face(self.clone()), TD_Opaque);
        match root_module::<D>().open()(write(&request)?.into(), host).await {
            RResult::ROk(driver) => {
                Ok(Opened { driver: Arc::new(driver), host: self.clone(), kind: PhantomData })
            }
            RResult::RErr(json) => Err(read(&json)?),
        }
    }

    fn serve(&self, service: &str, request: Value) -> Result<Value> {
        let custom = lock(&self.0.services).get(service).cloned();
        if let Some(custom) = custom {
            return custom(request);
        }
        let invalid = |error: serde_json::Error| {
            Error::internal(format!("the request for {service} cannot be read")).source(&error)
        };
        match service {
            "kv.get" => {
                let KvGet { key } = serde_json::from_value(request).map_err(invalid)?;
                Ok(json!({ "value": lock(&self.0.kv).get(&key) }))
            }
            "kv.put" => {
                let KvPut { key, value, .. } = serde_json::from_value(request).map_err(invalid)?;
                let mut kv = lock(&self.0.kv);
                match value {
                    Some(value) => kv.insert(key, value),
                    None => kv.remove(&key),
                };
                Ok(json!({}))
            }
            "kv.list" => {
                let KvList { prefix } = serde_json::from_value(request).map_err(invalid)?;
                let mut entries = lock(&self.0.kv).clone();
                entries.retain(|key, _| key.starts_with(&prefix));
                Ok(json!({ "entries": entries }))
            }
            "secret.get" => {
                let SecretGet { reference } = serde_json::from_value(request).map_err(invalid)?;
                let text = lock(&self.0.secrets).get(&reference).cloned().ok_or_else(|| {
                    Error::not_found(format!("the host keeps no secret {reference}"))
                })?;
                serde_json::to_value(SecretText { text }).map_err(invalid)
            }
            "command.record" => {
                let record = serde_json::from_value(request).map_err(invalid)?;
                lock(&self.0.heard).commands.push(record);
                Ok(json!({}))
            }
            _ => Err(Error::unsupported(format!("the host has no service {service}"))),
        }
    }
}

/// The host as the driver sees it.
struct Face(TestHost);

impl sm_abi::Host for Face {
    fn log(&self, level: u8, call: u64, target: RStr<'_>, message: RStr<'_>, fields: RStr<'_>) {
        let fields = serde_json::from_str(&fields).unwrap_or(Value::Null);
        let (target, message) = (target.into(), message.into());
        lock(&self.0.0.heard).logs.push(Log { level, call, target, message, fields });
    }

    fn progress(&self, call: u64, permille: u32, stage: RStr<'_>) {
        let stage = stage.into();
        lock(&self.0.0.heard).progress.push(Progress { call, permille, stage });
    }

    fn is_cancelled(&self, call_id: u64) -> bool {
        lock(&self.0.0.cancelled).contains(&call_id)
    }

    fn metric(&self, name: RStr<'_>, value: f64, _labels: RStr<'_>) {
        lock(&self.0.0.heard).metrics.push((name.into(), value));
    }

    fn request(&self, _call_id: u64, service: RString, request: Bytes) -> FfiFuture<Reply> {
        let answer = read(&request)
            .and_then(|request| self.0.serve(&service, request))
            .and_then(|a| write(&a));
        let reply = match answer {
            Ok(json) => RResult::ROk(json.into()),
            Err(error) => RResult::RErr(write(&error).unwrap_or_default().into()),
        };
        std::future::ready(reply).into_ffi()
    }
}

/// An opened driver.
pub struct Opened<D> {
    driver: Arc<DriverBox>,
    host: TestHost,
    kind: PhantomData<fn() -> D>,
}

impl<D: Driver> Opened<D> {
    /// A call of an operation. Awaiting it does it; [`CallBuilder::start`] starts it in the
    /// background.
    pub fn call<R: Request>(&self, request: R) -> CallBuilder<R> {
        CallBuilder {
            driver: Arc::clone(&self.driver),
            host: self.host.clone(),
            request,
            operation_id: OperationId::random(),
            budget: BUDGET,
        }
    }

    /// A call with any operation name and any request, for what no typed call can say.
    pub async fn call_raw(&self, operation: &str, json: &str) -> Result<Value> {
        let context = context(OperationId::random(), BUDGET);
        answer(self.driver.call(context, operation.into(), json.as_bytes().to_vec().into()).await)
    }

    /// The host it was opened on.
    pub fn host(&self) -> &TestHost {
        &self.host
    }

    /// What the driver says of its session.
    pub fn health(&self) -> SessionHealth {
        match self.driver.health() {
            0 => SessionHealth::Ok,
            1 => SessionHealth::Degraded,
            _ => SessionHealth::Poisoned,
        }
    }

    /// Ends the session, within ten seconds. Calls afterwards fail.
    pub async fn close(&self) {
        self.driver.close(10_000).await;
    }
}

/// A call that is not made yet.
#[must_use = "a call is made when it is awaited or started"]
pub struct CallBuilder<R> {
    driver: Arc<DriverBox>,
    host: TestHost,
    request: R,
    operation_id: OperationId,
    budget: Duration,
}

impl<R: Request> CallBuilder<R> {
    /// Sets the operation id, to replay a call. Random otherwise.
    pub fn operation_id(mut self, id: OperationId) -> Self {
        self.operation_id = id;
        self
    }

    /// Sets the time given. 60 s otherwise.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// Starts the call. It runs on the driver's runtime, whether the result is polled or not.
    pub fn start(self) -> Running<R::Reply> {
        let context = context(self.operation_id, self.budget);
        let future: Pin<Box<dyn Future<Output = _> + Send>> = match write(&self.request) {
            Ok(json) => {
                Box::pin(self.driver.call(context, R::OPERATION.name().into(), json.into()))
            }
            Err(error) => Box::pin(std::future::ready(RResult::RErr(
                write(&error).unwrap_or_default().into(),
            ))),
        };
        let (driver, host, id) = (self.driver, self.host, context.call_id);
        Running { driver, host, id, future, reply: PhantomData }
    }
}

impl<R: Request> IntoFuture for CallBuilder<R> {
    type Output = Result<R::Reply>;
    type IntoFuture = Running<R::Reply>;

    fn into_future(self) -> Self::IntoFuture {
        self.start()
    }
}

/// A call that runs. Dropping it is what a host does that gives up: an operation that only reads
/// is aborted, one that changes something goes on.
#[must_use = "the answer comes when it is awaited"]
pub struct Running<T> {
    driver: Arc<DriverBox>,
    host: TestHost,
    id: u64,
    future: Pin<Box<dyn Future<Output = Reply> + Send>>,
    reply: PhantomData<fn() -> T>,
}

impl<T> Running<T> {
    /// Number of the call, as in [`Log::call`].
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Asks the call to end early.
    pub fn cancel(&self) {
        lock(&self.host.0.cancelled).insert(self.id);
        self.driver.cancel(self.id);
    }
}

impl<T: DeserializeOwned> Future for Running<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.future.as_mut().poll(cx).map(answer)
    }
}

fn context(operation_id: OperationId, budget: Duration) -> CallContext {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    CallContext {
        call_id: NEXT.fetch_add(1, Ordering::Relaxed),
        trace_id: [0, 0],
        span_id: 0,
        budget_ms: u64::try_from(budget.as_millis()).unwrap_or(u64::MAX),
        operation_id: operation_id.halves(),
        fence_epoch: 0,
        flags: 0,
    }
}

fn answer<T: DeserializeOwned>(reply: Reply) -> Result<T> {
    match reply {
        RResult::ROk(json) => read(&json),
        RResult::RErr(json) => Err(read(&json)?),
    }
}

fn write(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("no JSON").source(&error))
}

fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|error| {
        let text = String::from_utf8_lossy(json);
        Error::internal(format!("unexpected JSON: {text}")).source(&error)
    })
}
