//! Programs: run to their end within a deadline, or kept running and stopped by their handle.
//!
//! Everything is started with a death signal: when this program is killed, nothing stays behind.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::Result;

/// Time for a server to answer its first client.
const START: Duration = Duration::from_secs(20);

/// Time for a server to end when it is asked to.
const END: Duration = Duration::from_secs(10);

/// How programs are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheduling {
    /// In real time, so that builds and tests beside it take no time from it.
    RealTime,
    /// As everybody else.
    Usual,
}

impl Scheduling {
    /// What this machine permits.
    pub(crate) fn find() -> Result<Self> {
        let permitted = run(Command::new("chrt").args(["--rr", "1", "true"]), END)?;
        Ok(if permitted.status.success() { Self::RealTime } else { Self::Usual })
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::RealTime => "in real time (SCHED_RR)",
            Self::Usual => "as usual: SCHED_RR is not permitted here",
        }
    }

    /// A command that dies with this program, and is scheduled so.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut words: Vec<OsString> = ["setpriv", "--pdeathsig", "KILL"].map(Into::into).into();
        if self == Self::RealTime {
            words.extend(["chrt", "--rr", "1"].map(Into::into));
        }
        words.push(program.as_ref().to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command
    }
}

/// This program, scheduled as the servers are: it gives the orders while they and the load have
/// all processors.
pub(crate) struct Raised(Scheduling);

impl Raised {
    pub(crate) fn new(scheduling: Scheduling) -> Result<Self> {
        if scheduling == Scheduling::RealTime {
            schedule(&["--rr", "--pid", "2"])?;
        }
        Ok(Self(scheduling))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if self.0 == Scheduling::RealTime {
            let _ = schedule(&["--other", "--pid", "0"]);
        }
    }
}

fn schedule(words: &[&str]) -> Result<()> {
    let own = std::process::id().to_string();
    succeed(Command::new("chrt").args(words).arg(own), END).map(drop)
}

/// What a program that has ended left behind.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end, which must come within `deadline`.
pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<Ended> {
    Running::start(command)?.end(deadline)
}

/// Runs a command that must succeed; answers what it printed.
pub(crate) fn succeed(command: &mut Command, deadline: Duration) -> Result<String> {
    let ended = run(command, deadline)?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    Err(format!("{}: {}: {}", text(command), ended.status, ended.stderr.trim()).into())
}

/// A command as a person would type it, without what is put before it.
pub(crate) fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// A program that runs while something else is done.
pub(crate) struct Running {
    child: Child,
    text: String,
    stdout: Option<std::thread::JoinHandle<String>>,
    stderr: Option<std::thread::JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let text = text(command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| {
            format!("{text}: {error}; `cargo xtask setup` installs what is missing")
        })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Ok(Self { child, text, stdout: stdout.map(drain), stderr: stderr.map(drain) })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(rustix::process::kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for its end, which must come within `deadline`.
    pub(crate) fn end(mut self, deadline: Duration) -> Result<Ended> {
        let Some(status) = wait(&mut self.child, deadline)? else {
            return Err(format!("{} did not end within {deadline:?}", self.text).into());
        };
        let all = |stream: Option<std::thread::JoinHandle<String>>| {
            stream.and_then(|stream| stream.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (all(self.stdout.take()), all(self.stderr.take()));
        Ok(Ended { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn drain(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is better than nothing.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits until the child ends; none when it has not by the deadline.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + deadline;
    let handle = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs())?,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [PollFd::new(&handle, PollFlags::IN)];
        match rustix::event::poll(&mut watched, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(child.wait()?)),
        }
    }
}

/// Asks again and again, at short intervals, until there is an answer.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(format!("{what}: not within {deadline:?}").into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Processor time of all threads of a process, those that have ended included.
pub(crate) fn cpu_of(process: u32) -> Result<Duration> {
    let process = nix::unistd::Pid::from_raw(i32::try_from(process)?);
    let time = nix::time::clock_gettime(nix::time::clock_getcpuclockid(process)?)?;
    Ok(Duration::from(time))
}

/// Kills a process, if it is one that was told of `folder` when it was started.
pub(crate) fn kill_of(process: u32, folder: &Path) -> Result<()> {
    let Some(process) = Pid::from_raw(i32::try_from(process)?) else { return Ok(()) };
    // The handle first: what it means cannot become another process behind the look.
    let Ok(handle) = rustix::process::pidfd_open(process, PidfdFlags::empty()) else {
        return Ok(());
    };
    let words = std::fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero()))?;
    let words = String::from_utf8_lossy(&words);
    if folder.to_str().is_some_and(|folder| words.contains(folder)) {
        rustix::process::pidfd_send_signal(&handle, Signal::KILL)?;
    }
    Ok(())
}

/// A server that answers at a socket.
pub(crate) struct Server {
    child: Child,
    text: String,
    log: PathBuf,
    /// From its start until it greeted a client.
    pub(crate) started: Duration,
}

impl Server {
    /// Starts it and waits until it greets a client at `socket`. What it says goes to a file
    /// beside it.
    pub(crate) fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        if socket.as_os_str().len() > 100 {
            return Err(format!("{} is too long for a socket", socket.display()).into());
        }
        let text = text(command);
        let log = socket.with_extension("log");
        let file = File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let begin = Instant::now();
        let child = command.spawn().map_err(|error| {
            format!("{text}: {error}; `cargo xtask setup` installs what is missing")
        })?;
        let mut server = Self { child, text, log, started: Duration::ZERO };
        until(&format!("{}: a greeting", server.text), START, || {
            if let Some(status) = server.child.try_wait()? {
                let said = std::fs::read_to_string(&server.log).unwrap_or_default();
                return Err(format!("{} ended: {status}: {}", server.text, said.trim()).into());
            }
            greeted(socket)
        })?;
        server.started = begin.elapsed();
        Ok(server)
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.child.id())
    }

    /// Bytes it has read from storage.
    pub(crate) fn read_from_storage(&self) -> Result<u64> {
        let counters = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = counters.lines().find_map(|line| line.strip_prefix("read_bytes: "));
        Ok(line.ok_or("no read_bytes")?.parse()?)
    }

    /// A figure of `/proc/PID/status` that is given in KiB, in bytes.
    pub(crate) fn memory(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or(format!("no {name}"))?.parse::<u64>()? * 1024)
    }

    /// Asks it to end and waits for that; answers how long it took.
    pub(crate) fn stop(mut self) -> Result<Duration> {
        let begin = Instant::now();
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)?;
        match wait(&mut self.child, END)? {
            Some(_) => Ok(begin.elapsed()),
            None => Err(format!("{} did not end within {END:?} of SIGTERM", self.text).into()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody greets at a socket as the protocol says.
pub(crate) fn greeted(socket: &Path) -> Result<Option<()>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => return Ok(None),
            _ => return Err(format!("{}: {error}", socket.display()).into()),
        },
    };
    stream.set_read_timeout(Some(START))?;
    let mut magic = [0; 8];
    match stream.read_exact(&mut magic) {
        Ok(()) if &magic == b"NBDMAGIC" => Ok(Some(())),
        Ok(()) => Err(format!("{} greets with {magic:?}", socket.display()).into()),
        Err(error) => Err(format!("{} does not greet: {error}", socket.display()).into()),
    }
}
