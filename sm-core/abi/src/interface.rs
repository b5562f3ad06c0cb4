//! The interface itself. `conformance/abi-fixtures/` holds frozen copies of this file.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RStr, RString, RVec};
use async_ffi::FfiFuture;

/// JSON text as bytes.
pub type Bytes = RVec<u8>;
/// Ok: the reply's JSON. Err: the error's JSON.
pub type Reply = RResult<Bytes, Bytes>;
/// Ok: the opened driver. Err: the error's JSON.
pub type OpenResult = RResult<DriverBox, Bytes>;
/// An opened driver, as it crosses.
pub type DriverBox = Driver_TO<'static, RBox<()>>;
/// A host, as it crosses.
pub type HostBox = Host_TO<'static, RBox<()>>;

/// Levels of [`Host::log`] and [`DriverModule`]'s `set_log_level`.
pub struct LogLevel;

impl LogLevel {
    pub const ERROR: u8 = 1;
    pub const WARN: u8 = 2;
    pub const INFO: u8 = 3;
    pub const DEBUG: u8 = 4;
    pub const TRACE: u8 = 5;
}

/// What goes with every call.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct CallContext {
    /// Number of the call in this process, for log, progress and cancel.
    pub call_id: u64,
    /// W3C trace id, most significant half first; zero if there is none.
    pub trace_id: [u64; 2],
    /// W3C span id; zero if there is none.
    pub span_id: u64,
    /// What is left of the time, in milliseconds: not an instant, because clocks step.
    pub budget_ms: u64,
    /// The operation id, most significant half first: the same id, the same answer.
    pub operation_id: [u64; 2],
    /// Zero: room for an epoch that the host hands out. What decides whether a host is shut out is the
    /// record on the backend.
    pub fence_epoch: u64,
    /// Zero; room for what must be known before the JSON is read.
    pub flags: u64,
}

/// Root module of a driver.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = DriverModule_Ref)))]
#[sabi(missing_field(option))]
pub struct DriverModule {
    /// The manifest's JSON, the same as in the ELF section.
    pub manifest: extern "C" fn() -> RStr<'static>,
    /// Events above this level ([`LogLevel`], 0 for none) are dropped inside the driver.
    pub set_log_level: extern "C" fn(level: u8),
    /// Opens the driver for one SR. The request is an `OpenRequest`.
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(request: Bytes, host: HostBox) -> FfiFuture<OpenResult>,
}

impl RootModule for DriverModule_Ref {
    abi_stable::declare_root_module_statics! {DriverModule_Ref}
    const BASE_NAME: &'static str = "sm_driver";
    const NAME: &'static str = "sm_driver";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// An opened driver: one session with the backend of one SR.
#[sabi_trait]
pub trait Driver: Send + Sync {
    /// Does one operation. An operation the driver does not know is an `unsupported` error.
    fn call(&self, context: CallContext, operation: RString, request: Bytes) -> FfiFuture<Reply>;
    /// Asks a running call to end early; it still answers.
    fn cancel(&self, call_id: u64);
    /// 0 works, 1 degraded, 2 must be opened anew. Never blocks.
    fn health(&self) -> u32;
    /// Ends the session; at most this long, in milliseconds.
    #[sabi(last_prefix_field)]
    fn close(&self, budget_ms: u64) -> FfiFuture<()>;
}

/// The process that loaded a driver, as the driver sees it.
#[sabi_trait]
pub trait Host: Send + Sync {
    /// A log event; `fields` is a JSON object. Call 0 is no call.
    fn log(&self, level: u8, call_id: u64, target: RStr<'_>, message: RStr<'_>, fields: RStr<'_>);
    /// How far a call is, 0 to 1000, and what it is doing.
    fn progress(&self, call_id: u64, permille: u32, stage: RStr<'_>);
    /// Whether a call should end early.
    fn is_cancelled(&self, call_id: u64) -> bool;
    /// A measured value; `labels` is a JSON object.
    fn metric(&self, name: RStr<'_>, value: f64, labels: RStr<'_>);
    /// A service of the host: `kv.get`, `secret.get`, ... A service it lacks is an `unsupported`
    /// error.
    #[sabi(last_prefix_field)]
    fn request(&self, call_id: u64, service: RString, request: Bytes) -> FfiFuture<Reply>;
}
