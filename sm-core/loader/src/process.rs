//! A driver in a child process.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sm_model::error::Kind as ErrorKind;
use sm_model::host::OpenRequest;
use sm_model::{Error, Manifest, Operation, Result};
use tokio::runtime::Handle;

use crate::background::{self, ToTheEnd, sleep_until, with_grace};
use crate::child::{self, Program};
use crate::frame::{self, Kind};
use crate::hub::{Hub, log_level};
use crate::in_process::{closed, gave_up, health, too_slow_to_open};
use crate::link::{Answer, Death, Link};
use crate::open::ChildOptions;
use crate::port::{Call, DriverPort, PortHealth};
use crate::restart::{Ledger, Verdict};
use crate::services::HostServices;
use crate::stage::Staged;
use crate::wire::{self, CallHead};
use crate::{LoadError, ffi};

/// How long a child that was killed is waited for.
const LEFT: Duration = Duration::from_secs(2);

/// A driver in a child process.
///
/// Calls travel as frames over a socket, any number at a time. When the child dies, the calls in
/// flight end as `unknown` (mutating) or `unreachable` (reading), and the next call starts another
/// child with the same request, at the pace of [`RestartPolicy`](crate::RestartPolicy). A child
/// that does not answer within deadline and grace is killed.
///
/// Dropping the port kills the child; [`DriverPort::close`] ends it in order.
pub struct ProcessPort {
    shared: Arc<Shared>,
}

/// How the children of a port are run.
pub(crate) struct ProcessOptions {
    pub(crate) program: PathBuf,
    pub(crate) grace: Duration,
    pub(crate) child: ChildOptions,
}

struct Shared {
    manifest: Manifest,
    library: File,
    options: ProcessOptions,
    request: OpenRequest,
    hub: Arc<Hub>,
    handle: &'static Handle,
    state: Arc<Mutex<State>>,
    /// Held while a child is started, so that many calls start one.
    starting: tokio::sync::Mutex<()>,
    level: AtomicU8,
}

struct State {
    link: Option<Arc<Link>>,
    ledger: Ledger,
    first: bool,
    closed: bool,
}

impl ProcessPort {
    /// Starts a child for a driver that was staged, and opens the driver in it.
    pub(crate) async fn open(
        staged: Staged,
        options: ProcessOptions,
        request: OpenRequest,
        services: Arc<dyn HostServices>,
        budget: Duration,
    ) -> Result<Self> {
        let state = State {
            link: None,
            ledger: Ledger::new(options.child.restart.clone()),
            first: true,
            closed: false,
        };
        let library = File::open(&staged.copy)
            .map_err(|source| LoadError::Stage { path: staged.copy.clone(), source })?;
        let manifest = staged.inspection.manifest;
        let shared = Arc::new(Shared {
            hub: Hub::new(&manifest.name, services),
            manifest,
            library,
            options,
            request,
            handle: background::handle()?,
            state: Arc::new(Mutex::new(state)),
            starting: tokio::sync::Mutex::new(()),
            level: AtomicU8::new(0),
        });
        let port = Self { shared };
        port.shared.start(Instant::now() + budget).await?;
        Ok(port)
    }

    /// Number of the child's process, if there is one.
    pub fn process_id(&self) -> Option<u32> {
        self.shared.lock().link.as_ref().filter(|link| link.is_alive()).and_then(|l| l.process_id)
    }
}

impl Drop for ProcessPort {
    fn drop(&mut self) {
        let link = {
            let mut state = self.shared.lock();
            // A mutation that goes on without its caller holds the rest, not the right to restart.
            state.closed = true;
            state.link.take()
        };
        if let Some(link) = link
            && link.is_alive()
        {
            link.closing.store(true, Ordering::SeqCst);
            link.kill("its port was dropped");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The child, if it is alive.
    fn alive(&self) -> Result<Option<Arc<Link>>> {
        let state = self.lock();
        if state.closed {
            return Err(closed(self.name()));
        }
        Ok(state.link.as_ref().filter(|link| link.is_alive()).cloned())
    }

    /// The child; starts one if there is none, when the policy allows it.
    async fn start(&self, deadline: Instant) -> Result<Arc<Link>> {
        if let Some(link) = self.alive()? {
            return Ok(link);
        }
        let _one = self.starting.lock().await;
        if let Some(link) = self.alive()? {
            return Ok(link);
        }
        self.wait_for_leave(deadline).await?;
        let first = std::mem::replace(&mut self.lock().first, false);
        let started = child::start(
            self.handle,
            Program {
                path: &self.options.program,
                library: &self.library,
                manifest: &self.manifest,
                options: &self.options.child,
                first,
            },
        )
        .await?;
        let state = Arc::clone(&self.state);
        let ended = move |link: &Link, death: &Death| {
            if !link.closing.load(Ordering::SeqCst) {
                lock(&state).ledger.died(Instant::now(), link.age(), &death.of);
            }
        };
        let link =
            Link::new(self.handle, started, Arc::clone(&self.hub), ended).map_err(|error| {
                LoadError::Host { what: "the socket to a driver", why: error.to_string() }
            })?;
        if let Err(error) = self.open_in(&link, deadline).await {
            link.closing.store(true, Ordering::SeqCst);
            link.kill("its driver did not open");
            link.gone().await;
            return Err(error);
        }
        let mut state = self.lock();
        if state.closed {
            link.kill("its port was dropped");
            return Err(closed(self.name()));
        }
        state.link = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Waits as the restart policy says, if the deadline allows it.
    async fn wait_for_leave(&self, deadline: Instant) -> Result<()> {
        let (verdict, last, deaths) = {
            let state = self.lock();
            let ledger = &state.ledger;
            (ledger.verdict(Instant::now()), ledger.last.clone(), ledger.recent())
        };
        let busy = |wait: Duration, message: String| {
            let retry_after_ms = u64::try_from(wait.as_millis()).ok();
            Error::new(ErrorKind::Busy { retry_after_ms }, message).context("driver", self.name())
        };
        let name = self.name();
        match verdict {
            Verdict::Now => Ok(()),
            Verdict::Wait(wait) => {
                let until = Instant::now() + wait;
                if until >= deadline {
                    return Err(busy(
                        wait,
                        format!(
                            "the process of the driver {name} died of {last} and is started again \
                             in {} ms",
                            wait.as_millis()
                        ),
                    ));
                }
                sleep_until(self.handle, until).await;
                Ok(())
            }
            Verdict::Open(wait) => Err(busy(
                wait,
                format!(
                    "the process of the driver {name} has died {deaths} times within {} s, the \
                     last time of {last}; it is not started again for {} s",
                    self.options.child.restart.window.as_secs(),
                    wait.as_secs().max(1)
                ),
            )
            .hint("the driver's log says why; opening the SR anew tries again at once")),
        }
    }

    /// Opens the driver in a new child.
    async fn open_in(&self, link: &Link, deadline: Instant) -> Result<()> {
        let begun = Instant::now();
        let level = log_level();
        self.level.store(level, Ordering::Relaxed);
        let open = wire::Open { level, request: self.request.clone() };
        let frame = wire::json_frame(Kind::Open, 0, &open)
            .map_err(|error| Error::internal("the open request is too long").source(&error))?;
        let died = |death: &Death| died("while it was opened", self.name(), death);
        let refused = || link.refusal.get().map(|json| ffi::from_json(json, self.name()));
        let Some(mut waiting) = link.ask(0, &frame) else {
            let gone = || Error::internal("the driver's process was gone at once");
            return Err(refused().unwrap_or_else(gone));
        };
        tokio::select! {
            biased;
            answer = &mut waiting.answer => match answer {
                Ok(Answer::Reply(_)) => Ok(()),
                Ok(Answer::Error(json)) => Err(ffi::from_json(&json, self.name())),
                Ok(Answer::Died(death)) => Err(refused().unwrap_or_else(|| died(&death))),
                Err(_) => Err(Error::internal("the line to the driver was lost")),
            },
            () = sleep_until(self.handle, deadline) => {
                Err(too_slow_to_open(self.name(), deadline.saturating_duration_since(begun)))
            }
        }
    }

    fn refresh_level(&self, link: &Link) {
        let level = log_level();
        if self.level.load(Ordering::Relaxed) != level {
            self.level.store(level, Ordering::Relaxed);
            if let Ok(frame) = frame::encode(Kind::Level, 0, &[&[level]]) {
                link.send(&frame);
            }
        }
    }

    async fn call(&self, call: Call, request: Vec<u8>) -> Result<Vec<u8>> {
        let registered = self.hub.register(&call);
        let id = registered.id;
        loop {
            let link = self.start(call.deadline).await?;
            self.refresh_level(&link);
            let budget = u64::try_from(call.remaining().as_millis()).unwrap_or(u64::MAX);
            let head = CallHead {
                context: ffi::context(id, call.operation_id, budget),
                operation: call.operation.name(),
            };
            let frame = head.frame(&request).map_err(|error| {
                Error::new(ErrorKind::Limit, "the request is too long").source(&error)
            })?;
            let Some(mut waiting) = link.ask(id, &frame) else {
                continue; // It died between two calls, and nothing was sent: another one, then.
            };
            let (grace, name) = (self.options.grace, self.name());
            let stop = || link.cancel(id);
            return match with_grace(self.handle, &call, grace, &mut waiting.answer, stop).await {
                Ok(Ok(Answer::Reply(reply))) => Ok(reply),
                Ok(Ok(Answer::Error(json))) => Err(ffi::from_json(&json, name)),
                Ok(Ok(Answer::Died(death))) => Err(died_in(call.operation, name, &death)),
                Ok(Err(_)) => Err(Error::internal("the line to the driver was lost")),
                Err(why) => {
                    link.kill(format!("not answering {}", call.operation));
                    link.gone().await;
                    Err(gave_up(why, &call, name, grace))
                }
            };
        }
    }
}

/// The error of a call that was in flight when the child died.
fn died_in(operation: Operation, driver: &str, death: &Death) -> Error {
    let error = died(&format!("during {operation}"), driver, death).operation(operation.name());
    if !operation.is_mutating() {
        return error;
    }
    let mut error = error.hint("it may have been done: look before trying again");
    error.kind = ErrorKind::Unknown;
    error
}

fn died(when: &str, driver: &str, death: &Death) -> Error {
    let message = format!("the process of the driver {driver} died of {} {when}", death.of);
    let mut error = Error::new(ErrorKind::Unreachable, message).context("driver", driver);
    if let Some(signal) = death.signal {
        error = error.context("signal", signal);
    }
    if !death.last_lines.is_empty() {
        error = error.context("stderr", death.last_lines.join(" / "));
    }
    error
}

#[async_trait]
impl DriverPort for ProcessPort {
    fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    async fn call(&self, call: Call, request: Vec<u8>) -> Result<Vec<u8>> {
        let shared = Arc::clone(&self.shared);
        let mutating = call.operation.is_mutating();
        let handle = self.shared.handle;
        ToTheEnd::new(handle, mutating, async move { shared.call(call, request).await }).await
    }

    fn health(&self) -> PortHealth {
        let link = {
            let state = self.shared.lock();
            if state.closed {
                return PortHealth::Poisoned;
            }
            if matches!(state.ledger.verdict(Instant::now()), Verdict::Open(_)) {
                return PortHealth::Tripped;
            }
            state.link.clone()
        };
        match link.filter(|link| link.is_alive()) {
            Some(link) => health(link.health()),
            None => PortHealth::Degraded, // The next call starts a child.
        }
    }

    async fn close(&self, budget: Duration) {
        let link = {
            let mut state = self.shared.lock();
            state.closed = true;
            state.link.take()
        };
        let Some(link) = link else { return };
        let handle = self.shared.handle;
        let closing = async move {
            link.closing.store(true, Ordering::SeqCst);
            let deadline = Instant::now() + budget;
            let milliseconds = u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
            let frame = frame::encode(Kind::Close, 0, &[&milliseconds.to_le_bytes()]);
            if let Ok(frame) = frame
                && let Some(mut waiting) = link.ask(0, &frame)
            {
                tokio::select! {
                    biased;
                    _ = &mut waiting.answer => {}
                    () = sleep_until(handle, deadline) => {}
                }
            }
            link.kill("its port was closed");
            // One that hangs in the kernel, on a mount whose server is gone, ends when that lets it
            // go. What it has locked it keeps until then.
            tokio::select! {
                () = link.gone() => {}
                () = sleep_until(handle, Instant::now() + LEFT) => {}
            }
        };
        ToTheEnd::new(handle, true, closing).await;
    }
}
