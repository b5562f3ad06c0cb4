//! Serves the frames of the host.
//!
//! One thread reads; the calls are polled on the main thread; whoever has something to say writes
//! a whole frame under a lock. Writing blocks: a driver that talks faster than the host listens is
//! slowed down.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sm_abi::abi_stable::sabi_trait::TD_Opaque;
use sm_abi::abi_stable::std_types::{RResult, RStr, RString};
use sm_abi::async_ffi::{FfiFuture, FutureExt};
use sm_abi::{Bytes, CallContext, DriverBox, DriverModule_Ref, Host_TO, Reply};
use sm_loader::frame::{Decoder, Frame, FrameError, Kind, encode};
use sm_loader::{ffi, wire};
use sm_model::Error;
use sm_model::error::Kind as ErrorKind;
use tokio::sync::oneshot;

type Answer = Result<Vec<u8>, Vec<u8>>;

/// Our side of the socket, for writing.
pub(crate) struct Line(Mutex<UnixStream>);

impl Line {
    pub(crate) fn new(socket: UnixStream) -> Arc<Self> {
        Arc::new(Self(Mutex::new(socket)))
    }

    /// Sends a frame. That the host is gone is noticed by the reader; a frame that is too long
    /// was made by the driver and is dropped, its sender answers for it.
    pub(crate) fn send(&self, frame: Result<Vec<u8>, FrameError>) -> bool {
        let Ok(frame) = frame else { return false };
        let _ = lock(&self.0).write_all(&frame);
        true
    }

    pub(crate) fn error(&self, id: u64, json: &[u8]) {
        if !self.send(encode(Kind::Error, id, &[json])) {
            let error = Error::internal("the driver's error is longer than a frame");
            self.send(encode(Kind::Error, id, &[&ffi::to_json(&error)]));
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        match answer {
            Ok(json) => {
                if !self.send(encode(Kind::Reply, id, &[&json])) {
                    let error = Error::new(
                        ErrorKind::Limit,
                        format!(
                            "the driver's reply of {} bytes is longer than a frame",
                            json.len()
                        ),
                    );
                    self.error(id, &ffi::to_json(&error));
                }
            }
            Err(json) => self.error(id, &json),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that the threads of this process share.
struct Shared {
    module: DriverModule_Ref,
    driver: String,
    line: Arc<Line>,
    opening: AtomicBool,
    session: OnceLock<DriverBox>,
    /// The health that was sent last.
    health: AtomicU32,
    running: Mutex<HashSet<u64>>,
    cancelled: Mutex<HashSet<u64>>,
    next_request: AtomicU64,
    requests: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
}

/// Serves until the session is closed or the host is gone; then this process ends.
pub(crate) fn serve(
    module: DriverModule_Ref,
    driver: String,
    line: Arc<Line>,
    socket: UnixStream,
) -> Result<(), String> {
    let shared = Arc::new(Shared {
        module,
        driver,
        line,
        opening: AtomicBool::new(false),
        session: OnceLock::new(),
        health: AtomicU32::new(0),
        running: Mutex::default(),
        cancelled: Mutex::default(),
        next_request: AtomicU64::new(1),
        requests: Mutex::default(),
    });
    // No drivers: it only polls, and parks on a futex between polls.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| format!("the runtime: {error}"))?;
    let (ended, end) = oneshot::channel();
    let calls = runtime.handle().clone();
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || {
            let mut closed = Some(ended);
            let end = Reader { shared, calls }.run(socket, &mut closed);
            if let Err(why) = end {
                eprintln!("sm-driver-host: {why}");
            }
            if closed.is_some() {
                // The host is gone, or talks nonsense. No destructor may hold this up.
                let own = rustix::process::getpid();
                let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
            }
        })
        .map_err(|error| format!("the reading thread: {error}"))?;
    let _ = runtime.block_on(end);
    // Other threads may still be in the driver: nothing of it is torn down.
    std::process::exit(0)
}

struct Reader {
    shared: Arc<Shared>,
    calls: tokio::runtime::Handle,
}

impl Reader {
    /// Reads until the socket ends. `ended` is taken when the session is being closed: from then
    /// on the end of the process is somebody else's business.
    fn run(
        &self,
        mut socket: UnixStream,
        ended: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), String> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = match socket.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("the socket: {error}")),
            };
            decoder.push(buffer.get(..count).unwrap_or_default());
            while let Some(frame) = decoder.next_frame().map_err(|error| error.to_string())? {
                self.receive(frame, ended)?;
            }
        }
    }

    fn receive(&self, frame: Frame, ended: &mut Option<oneshot::Sender<()>>) -> Result<(), String> {
        let Frame { kind, id, payload } = frame;
        let text = |error: wire::BadPayload| error.to_string();
        let shared = &self.shared;
        match kind {
            Kind::Open => {
                let open: wire::Open = wire::json(kind, &payload).map_err(text)?;
                if shared.opening.swap(true, Ordering::SeqCst) {
                    return Err("a second open".into());
                }
                self.calls.spawn(Arc::clone(shared).open(open));
            }
            Kind::Call => {
                let (head, request) = wire::CallHead::parse(id, &payload).map_err(text)?;
                if !lock(&shared.running).insert(id) {
                    return Err(format!("a second call {id}"));
                }
                let (context, operation) = (head.context, RString::from(head.operation));
                let request = Bytes::from(request.to_vec());
                self.calls.spawn(Arc::clone(shared).call(context, operation, request));
            }
            Kind::Cancel => {
                // A call that has ended is no longer there to be cancelled.
                if lock(&shared.running).contains(&id) {
                    lock(&shared.cancelled).insert(id);
                    if let Some(session) = shared.session.get() {
                        session.cancel(id);
                    }
                }
            }
            Kind::Level => {
                let level = *payload.first().ok_or("a level without a level")?;
                shared.module.set_log_level()(level);
            }
            Kind::RequestReply => {
                let answer = wire::parse_request_reply(&payload).map_err(text)?;
                if let Some(waiter) = lock(&shared.requests).remove(&id) {
                    let _ = waiter.send(answer);
                }
            }
            Kind::Health => {
                if let Some(session) = shared.session.get() {
                    shared.say_health(session.health());
                }
            }
            Kind::Close => {
                let milliseconds = wire::parse_close(&payload).map_err(text)?;
                let ended = ended.take().ok_or("a second close")?;
                let shared = Arc::clone(shared);
                self.calls.spawn(async move {
                    if let Some(session) = shared.session.get() {
                        let _ = ffi::guarded(session.close(milliseconds)).await;
                    }
                    shared.line.send(encode(Kind::Closed, 0, &[]));
                    let _ = ended.send(());
                });
            }
            Kind::Hello
            | Kind::Opened
            | Kind::Reply
            | Kind::Error
            | Kind::Log
            | Kind::Progress
            | Kind::Metric
            | Kind::Request
            | Kind::Closed => return Err(format!("a frame of kind {kind:?} from the host")),
        }
        Ok(())
    }
}

impl Shared {
    async fn open(self: Arc<Self>, open: wire::Open) {
        self.module.set_log_level()(open.level);
        let json = match wire::open_request(&open) {
            Ok(json) => json,
            Err(error) => return self.line.error(0, &ffi::to_json(&error)),
        };
        let host = Host_TO::from_value(ChildHost(Arc::clone(&self)), TD_Opaque);
        let opened = match ffi::guarded(self.module.open()(json.into(), host)).await {
            Ok(RResult::ROk(driver)) => Ok(driver),
            Ok(RResult::RErr(json)) => Err(json.into()),
            Err(ffi::Panicked) => {
                Err(ffi::to_json(&ffi::panicked(&self.driver).context("phase", "open")))
            }
        };
        match opened {
            Ok(driver) => {
                let _ = self.session.set(driver);
                self.line.send(encode(Kind::Opened, 0, &[]));
            }
            Err(json) => self.line.error(0, &json),
        }
    }

    async fn call(self: Arc<Self>, context: CallContext, operation: RString, request: Bytes) {
        let id = context.call_id;
        let Some(session) = self.session.get() else {
            lock(&self.running).remove(&id);
            let error = Error::internal("a call before the driver was open");
            return self.line.error(id, &ffi::to_json(&error));
        };
        let answer = ffi::answer(session.call(context, operation, request), &self.driver).await;
        lock(&self.running).remove(&id);
        lock(&self.cancelled).remove(&id);
        self.say_health(session.health());
        self.line.answer(id, answer);
    }

    /// Sends the health if it is another than before: before the answer of the call that changed
    /// it, so that the host knows when it has the answer.
    fn say_health(&self, health: u32) {
        if self.health.swap(health, Ordering::Relaxed) != health {
            self.line.send(encode(Kind::Health, 0, &[&health.to_le_bytes()]));
        }
    }
}

/// The host as the driver in this process sees it.
struct ChildHost(Arc<Shared>);

impl sm_abi::Host for ChildHost {
    fn log(&self, level: u8, call_id: u64, target: RStr<'_>, message: RStr<'_>, fields: RStr<'_>) {
        let log = wire::Log {
            level,
            target: target.to_string(),
            message: message.to_string(),
            fields: fields.to_string(),
        };
        self.0.line.send(wire::json_frame(Kind::Log, call_id, &log));
    }

    fn progress(&self, call_id: u64, permille: u32, stage: RStr<'_>) {
        let parts: [&[u8]; 2] = [&permille.to_le_bytes(), stage.as_str().as_bytes()];
        self.0.line.send(encode(Kind::Progress, call_id, &parts));
    }

    fn is_cancelled(&self, call_id: u64) -> bool {
        lock(&self.0.cancelled).contains(&call_id)
    }

    fn metric(&self, name: RStr<'_>, value: f64, labels: RStr<'_>) {
        if !value.is_finite() {
            return; // JSON has no word for it.
        }
        let metric = wire::Metric { name: name.to_string(), value, labels: labels.to_string() };
        self.0.line.send(wire::json_frame(Kind::Metric, 0, &metric));
    }

    fn request(&self, call_id: u64, service: RString, request: Bytes) -> FfiFuture<Reply> {
        let shared = &self.0;
        let id = shared.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&shared.requests).insert(id, sender);
        let sent = shared.line.send(wire::request_frame(id, call_id, &service, &request));
        if !sent {
            lock(&shared.requests).remove(&id); // Ends the wait below.
        }
        async move {
            match answer.await {
                Ok(Ok(reply)) => RResult::ROk(reply.into()),
                Ok(Err(error)) => RResult::RErr(error.into()),
                Err(_) => {
                    let error = Error::new(ErrorKind::Limit, "the request to the host is too long");
                    RResult::RErr(ffi::to_json(&error).into())
                }
            }
        }
        .into_ffi()
    }
}
