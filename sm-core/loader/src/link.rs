//! The line to one child process, from its start to its end.

use std::collections::{HashMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use sm_model::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

use crate::child::Started;
use crate::frame::{self, Decoder, Frame, Kind};
use crate::hub::Hub;
use crate::wire;

/// How long a child that closed its socket may take to die by itself. Its own signal is a better
/// message than ours.
const FAREWELL: Duration = Duration::from_secs(2);

/// Longest line of a driver's output that is logged in one piece, in bytes.
const LINE: usize = 4096;

/// What ended a child.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// `SIGSEGV (signal 11)`, `exit status 1`, or why we killed it.
    pub(crate) of: String,
    /// The signal, if one did and it was not ours.
    pub(crate) signal: Option<i32>,
    /// The last lines it wrote to standard error, in their order.
    pub(crate) last_lines: Vec<String>,
}

/// What comes back for a frame that was sent.
#[derive(Debug)]
pub(crate) enum Answer {
    /// JSON of a reply; empty for `opened` and `closed`.
    Reply(Vec<u8>),
    /// JSON of an error.
    Error(Vec<u8>),
    /// The child died first.
    Died(Death),
}

/// Lines of a dead child's standard error that go into the error.
const LAST_LINES: usize = 3;

/// The line to one child.
pub(crate) struct Link {
    hub: Arc<Hub>,
    socket: UnixStream,
    /// Bytes the socket did not take yet.
    outgoing: Mutex<Vec<u8>>,
    more_to_send: Notify,
    /// The error of a child that could not load its driver: it says so before it is asked anything.
    pub(crate) refusal: OnceLock<Vec<u8>>,
    /// Who waits for the answer to which call; id 0 is open and close. `None` once it is dead.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    health: AtomicU32,
    pub(crate) process_id: Option<u32>,
    started: Instant,
    /// Why we want it dead.
    killed: OnceLock<String>,
    kill: Notify,
    /// Its end is what we asked for, and no failure.
    pub(crate) closing: AtomicBool,
    death: watch::Sender<Option<Death>>,
}

/// A wait for one answer. Dropped before the answer, it takes the call back.
pub(crate) struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    pub(crate) answer: oneshot::Receiver<Answer>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let unanswered =
            self.link.lock_waiting().as_mut().is_some_and(|map| map.remove(&self.id).is_some());
        if unanswered && self.id != 0 {
            self.link.cancel(self.id);
        }
    }
}

impl Link {
    /// Takes charge of a started child: its socket, its output and its end. `ended` is called
    /// once, after the last answer.
    pub(crate) fn new(
        handle: &Handle,
        started: Started,
        hub: Arc<Hub>,
        ended: impl FnOnce(&Self, &Death) + Send + 'static,
    ) -> std::io::Result<Arc<Self>> {
        let Started { mut child, socket } = started;
        let _context = handle.enter();
        let link = Arc::new(Self {
            hub,
            socket: UnixStream::from_std(socket)?,
            outgoing: Mutex::default(),
            more_to_send: Notify::new(),
            refusal: OnceLock::new(),
            waiting: Mutex::new(Some(HashMap::new())),
            health: AtomicU32::new(0),
            process_id: child.id(),
            started: Instant::now(),
            killed: OnceLock::new(),
            kill: Notify::new(),
            closing: AtomicBool::new(false),
            death: watch::Sender::new(None),
        });
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(output) = child.stdout.take() {
            handle.spawn(copy_lines(output, "stdout", Arc::clone(&link.hub), Arc::default()));
        }
        let errors = child.stderr.take().map(|output| {
            let (hub, last) = (Arc::clone(&link.hub), Arc::clone(&last_lines));
            handle.spawn(copy_lines(output, "stderr", hub, last))
        });
        let (run, running_handle) = (Arc::clone(&link), handle.clone());
        handle.spawn(async move {
            let of = run.serve(&running_handle, child).await;
            if let Some(errors) = errors {
                // Its last words are there already, unless something it started holds the pipe.
                let _ = tokio::time::timeout(Duration::from_millis(100), errors).await;
            }
            let last_lines =
                std::mem::take(&mut *last_lines.lock().unwrap_or_else(PoisonError::into_inner));
            let death = Death { last_lines: last_lines.into(), ..of };
            let waiting = run.lock_waiting().take().unwrap_or_default();
            ended(&run, &death);
            for (_, waiter) in waiting {
                let _ = waiter.send(Answer::Died(death.clone()));
            }
            run.death.send_replace(Some(death));
        });
        Ok(link)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it has been there.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether calls can be sent to it.
    pub(crate) fn is_alive(&self) -> bool {
        self.killed.get().is_none() && self.lock_waiting().is_some()
    }

    /// The last word on the driver's health; asks for a newer one.
    pub(crate) fn health(&self) -> u32 {
        if let Ok(frame) = frame::encode(Kind::Health, 0, &[]) {
            self.send(&frame);
        }
        self.health.load(Ordering::Relaxed)
    }

    /// Sends a frame that has an answer. `None` if the child is dead: then nothing was sent.
    pub(crate) fn ask(&self, id: u64, frame: &[u8]) -> Option<Waiting<'_>> {
        let (sender, answer) = oneshot::channel();
        self.lock_waiting().as_mut()?.insert(id, sender);
        self.send(frame);
        Some(Waiting { link: self, id, answer })
    }

    /// Asks for the end of a call.
    pub(crate) fn cancel(&self, call: u64) {
        if let Ok(frame) = frame::encode(Kind::Cancel, call, &[]) {
            self.send(&frame);
        }
    }

    /// Sends a whole frame: at once what the socket takes, the rest from the loader's runtime.
    /// Never waits, so a caller that goes away leaves no half of a frame behind. A failure is not
    /// reported: the end of the child is, to all who wait.
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = frame;
        if outgoing.is_empty() {
            while !rest.is_empty() {
                match self.socket.try_write(rest) {
                    Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(_) => return,
                }
            }
        }
        if !rest.is_empty() {
            outgoing.extend_from_slice(rest);
            self.more_to_send.notify_one();
        }
    }

    /// Sends what [`Self::send`] left over; never ends by itself.
    async fn send_rest(&self) {
        loop {
            self.more_to_send.notified().await;
            loop {
                if self.socket.writable().await.is_err() {
                    return std::future::pending().await; // The reader sees the end as well.
                }
                let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
                match self.socket.try_write(&outgoing) {
                    Ok(count) => drop(outgoing.drain(..count)),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => outgoing.clear(),
                }
                if outgoing.is_empty() {
                    outgoing.shrink_to(64 << 10);
                    break;
                }
            }
        }
    }

    /// Ends the child, now.
    pub(crate) fn kill(&self, why: impl Into<String>) {
        let _ = self.killed.set(why.into());
        self.kill.notify_one();
    }

    /// Waits until the child is gone and reaped.
    pub(crate) async fn gone(&self) {
        let _ = self.death.subscribe().wait_for(Option::is_some).await;
    }

    /// Reads until the child is gone, and reaps it.
    async fn serve(self: &Arc<Self>, handle: &Handle, mut child: Child) -> Death {
        let group =
            child.id().and_then(|number| i32::try_from(number).ok()).and_then(Pid::from_raw);
        let kill_all = || {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
        };
        let mut decoder = Decoder::default();
        let mut status = None;
        tokio::select! {
            biased;
            end = self.read(handle, &mut decoder) => if let Err(why) = end {
                self.kill(format!("a defect of its protocol: {why}"));
            },
            // Something it forked may hold its end of the socket open.
            exit = child.wait() => status = exit.ok(),
            () = self.kill.notified() => {}
            () = self.send_rest() => {}
        }
        if self.killed.get().is_some() {
            kill_all();
        }
        if status.is_none() {
            status = if let Ok(exit) = tokio::time::timeout(FAREWELL, child.wait()).await {
                exit.ok()
            } else {
                self.kill("it closed its socket and went on");
                kill_all();
                child.wait().await.ok()
            };
        }
        // What the child had started must not go on changing things while its successor repairs
        // them. The number cannot be another's yet: it was freed a moment ago, and numbers are
        // given out in turn.
        kill_all();
        // Answers that were written before the end count.
        let _ = self.read_what_is_there(handle, &mut decoder);
        describe(status, self.killed.get().cloned())
    }

    /// Reads frames until the socket ends.
    async fn read(self: &Arc<Self>, handle: &Handle, decoder: &mut Decoder) -> Result<(), String> {
        loop {
            if self.socket.readable().await.is_err() {
                return Ok(());
            }
            if self.read_what_is_there(handle, decoder)? {
                return Ok(());
            }
        }
    }

    /// Takes what the socket has now; tells whether it has ended.
    fn read_what_is_there(
        self: &Arc<Self>,
        handle: &Handle,
        decoder: &mut Decoder,
    ) -> Result<bool, String> {
        let mut buffer = [0; 16 << 10];
        loop {
            let count = match self.socket.try_read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Ok(true),
            };
            decoder.push(buffer.get(..count).unwrap_or_default());
            while let Some(frame) = decoder.next_frame().map_err(|error| error.to_string())? {
                self.receive(handle, frame)?;
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        // Nobody waits for a call that was given up: its answer is late, not wrong.
        let waiter = self.lock_waiting().as_mut().and_then(|map| map.remove(&id));
        match (waiter, answer) {
            (Some(waiter), answer) => drop(waiter.send(answer)),
            (None, Answer::Error(json)) if id == 0 => drop(self.refusal.set(json)),
            (None, _) => {}
        }
    }

    /// Acts on one frame of the child.
    fn receive(self: &Arc<Self>, handle: &Handle, frame: Frame) -> Result<(), String> {
        let Frame { kind, id, payload } = frame;
        let text = |error: wire::BadPayload| error.to_string();
        match kind {
            Kind::Hello => {
                let hello: wire::Hello = wire::json(kind, &payload).map_err(text)?;
                if hello.protocol != frame::PROTOCOL {
                    return Err(format!(
                        "sm-driver-host speaks version {}, this host {}",
                        hello.protocol,
                        frame::PROTOCOL
                    ));
                }
            }
            Kind::Opened | Kind::Closed => self.answer(0, Answer::Reply(Vec::new())),
            Kind::Reply => self.answer(id, Answer::Reply(payload)),
            Kind::Error => self.answer(id, Answer::Error(payload)),
            Kind::Log => {
                let log: wire::Log = wire::json(kind, &payload).map_err(text)?;
                self.hub.log(log.level, id, &log.target, &log.message, &log.fields);
            }
            Kind::Progress => {
                let (permille, stage) = wire::parse_progress(&payload).map_err(text)?;
                self.hub.progress(id, permille, stage);
            }
            Kind::Metric => {
                let metric: wire::Metric = wire::json(kind, &payload).map_err(text)?;
                self.hub.metric(&metric.name, metric.value, &metric.labels);
            }
            Kind::Health => {
                let health = wire::parse_health(&payload).map_err(text)?;
                self.health.store(health, Ordering::Relaxed);
            }
            Kind::Request => {
                let (_, service, request) = wire::parse_request(&payload).map_err(text)?;
                let (service, request) = (service.to_owned(), request.to_vec());
                let link = Arc::clone(self);
                handle.spawn(async move {
                    let answer = link.hub.request(&service, request).await;
                    let frame = wire::request_reply_frame(id, &answer).or_else(|error| {
                        let error = Error::internal("the answer of the host's service is too long")
                            .source(&error);
                        wire::request_reply_frame(id, &Err(crate::ffi::to_json(&error)))
                    });
                    if let Ok(frame) = frame {
                        link.send(&frame);
                    }
                });
            }
            Kind::Open
            | Kind::Call
            | Kind::Cancel
            | Kind::Level
            | Kind::RequestReply
            | Kind::Close => return Err(format!("a frame of kind {kind:?} from a child")),
        }
        Ok(())
    }
}

fn describe(status: Option<ExitStatus>, killed: Option<String>) -> Death {
    let signal = status.and_then(|status| status.signal());
    let (of, signal) = match (killed, signal, status.and_then(|status| status.code())) {
        (Some(why), _, _) => (why, None),
        (None, Some(signal), _) => (signal_name(signal), Some(signal)),
        (None, None, Some(code)) => (format!("exit status {code}"), None),
        (None, None, None) => ("an unknown cause".to_owned(), None),
    };
    Death { of, signal, last_lines: Vec::new() }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("{name} (signal {signal})")
}

/// Logs the output of a child line by line.
async fn copy_lines(
    mut output: impl AsyncRead + Unpin,
    stream: &'static str,
    hub: Arc<Hub>,
    last: Arc<Mutex<VecDeque<String>>>,
) {
    let mut pending = Vec::new();
    let mut buffer = [0; LINE];
    let say = |line: &[u8]| {
        let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        if !line.is_empty() {
            hub.output(stream, &line);
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() >= LAST_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    };
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        for byte in buffer.get(..count).unwrap_or_default() {
            if *byte == b'\n' || pending.len() >= LINE {
                say(&pending);
                pending.clear();
            }
            if *byte != b'\n' {
                pending.push(*byte);
            }
        }
    }
    say(&pending);
}
