//! Where everything that an opened driver says beside its answers arrives.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use sm_abi::LogLevel;
use sm_model::{Error, Operation};
use tracing::Span;
use tracing::level_filters::LevelFilter;

use crate::ffi;
use crate::port::{Call, CancelFlag, ProgressSink};
use crate::services::HostServices;

/// Numbers of calls are unique in this process, whatever driver they go to; 0 is no call.
static NEXT_CALL: AtomicU64 = AtomicU64::new(1);

/// The calls of one opened driver, and the services it may use.
pub(crate) struct Hub {
    driver: String,
    services: Arc<dyn HostServices>,
    calls: Mutex<HashMap<u64, Running>>,
}

#[derive(Clone)]
struct Running {
    operation: Operation,
    span: Span,
    cancel: CancelFlag,
    progress: Option<ProgressSink>,
}

/// A call that is known to the hub for as long as this lives.
pub(crate) struct Registered {
    hub: Arc<Hub>,
    pub(crate) id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.hub.lock().remove(&self.id);
    }
}

impl Hub {
    pub(crate) fn new(driver: &str, services: Arc<dyn HostServices>) -> Arc<Self> {
        Arc::new(Self { driver: driver.to_owned(), services, calls: Mutex::default() })
    }

    pub(crate) fn register(self: &Arc<Self>, call: &Call) -> Registered {
        let id = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
        let running = Running {
            operation: call.operation,
            span: Span::current(),
            cancel: call.cancel.clone(),
            progress: call.progress.clone(),
        };
        self.lock().insert(id, running);
        Registered { hub: Arc::clone(self), id }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Running>> {
        // The map is consistent after every statement, so a panic of another holder is no matter.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self, call: u64) -> Option<Running> {
        self.lock().get(&call).cloned()
    }

    pub(crate) fn is_cancelled(&self, call: u64) -> bool {
        self.lock().get(&call).is_some_and(|running| running.cancel.is_cancelled())
    }

    pub(crate) fn progress(&self, call: u64, permille: u32, stage: &str) {
        if let Some(sink) = self.running(call).and_then(|running| running.progress) {
            sink(permille.min(1000), stage);
        }
    }

    pub(crate) fn metric(&self, name: &str, value: f64, labels: &str) {
        self.services.metric(name, value, labels);
    }

    /// A driver's request to a service of ours; both answers are JSON.
    pub(crate) async fn request(
        &self,
        service: &str,
        request: Vec<u8>,
    ) -> Result<Vec<u8>, Vec<u8>> {
        let name = service.split('.').next().unwrap_or(service);
        let answer = if self.services.names().contains(&name) {
            self.services.request(service, request).await
        } else {
            Err(Error::unsupported(format!("this host has no service {service}")))
        };
        answer.map_err(|error| ffi::to_json(&error))
    }

    /// A driver's log event, as an event of ours: target `driver`, in the span of its call.
    ///
    /// Callsites are static, so there is one for each level.
    pub(crate) fn log(&self, level: u8, call: u64, target: &str, message: &str, fields: &str) {
        let running = self.running(call);
        let op = running.as_ref().map_or("", |running| running.operation.name());
        let span = running.as_ref().and_then(|running| running.span.id());
        let driver = self.driver.as_str();
        macro_rules! event {
            ($level:ident) => {
                tracing::event!(
                    target: "driver",
                    parent: span,
                    tracing::Level::$level,
                    driver,
                    call,
                    op,
                    target,
                    fields,
                    "{message}"
                )
            };
        }
        match level {
            LogLevel::ERROR => event!(ERROR),
            LogLevel::WARN => event!(WARN),
            LogLevel::INFO => event!(INFO),
            LogLevel::DEBUG => event!(DEBUG),
            _ => event!(TRACE),
        }
    }

    /// A line the driver's process wrote to its standard output or error.
    pub(crate) fn output(&self, stream: &'static str, line: &str) {
        tracing::warn!(target: "driver", driver = self.driver, stream, "{line}");
    }
}

/// The level above which nobody in this process listens: 0 for none, else a [`LogLevel`].
pub(crate) fn log_level() -> u8 {
    let level = LevelFilter::current();
    if level == LevelFilter::OFF {
        0
    } else if level == LevelFilter::ERROR {
        LogLevel::ERROR
    } else if level == LevelFilter::WARN {
        LogLevel::WARN
    } else if level == LevelFilter::INFO {
        LogLevel::INFO
    } else if level == LevelFilter::DEBUG {
        LogLevel::DEBUG
    } else {
        LogLevel::TRACE
    }
}
