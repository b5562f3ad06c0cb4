//! External programs.
//!
//! Why not `tokio::process`: its child is one process, while `multipath` or a mount helper is a
//! family. Here the whole process group ends at the deadline, a signal is sent only while the
//! leader is not reaped yet (so its number cannot belong to somebody else), and no signal handler
//! is installed into a process that is not ours.

use std::borrow::Cow;
use std::convert::Infallible;
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sm_model::host::CommandRecord;
use sm_model::{Error, Kind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::cx::Cx;
use crate::secret::Secret;

/// Where programs are looked for after the host's own `PATH`.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// What is kept of each output, in bytes, unless [`Command::capture`] says otherwise.
const CAPTURE: usize = 16 << 20;
/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How long a killed program may take to go. One that waits for a dead disk takes longer.
const KILLED: Duration = Duration::from_secs(5);
/// How long the outputs may stay open after the program has ended, held by a daemon it started.
const LINGER: Duration = Duration::from_secs(1);
/// How much of an output an error repeats, in bytes from its end.
const TAIL: usize = 2000;

/// A program to run, from [`Cx::command`].
///
/// It gets an argument vector (there is no shell), an environment of `LC_ALL=C` and `PATH` alone,
/// a process group of its own, and no input unless given. It must end before the call's deadline;
/// then, or at a cancel, the whole group gets SIGTERM and 2 s later SIGKILL.
///
/// ```no_run
/// # async fn volumes(cx: &plugin_sdk::Cx, group: &str) -> plugin_sdk::Result<serde_json::Value> {
/// let output =
///     cx.command("lvs").args(["--reportformat", "json", "--units", "b", group]).run().await?;
/// serde_json::from_slice(&output.stdout)
///     .map_err(|error| plugin_sdk::Error::internal("lvs wrote no JSON").source(&error))
/// # }
/// ```
#[must_use = "a command runs when `run` or `output` is awaited"]
pub struct Command {
    cx: Cx,
    program: String,
    arguments: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    stdin: Option<Vec<u8>>,
    hidden: Vec<Secret>,
    capture: usize,
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Bytes of both that were not kept, see [`Command::capture`].
    pub lost: u64,
    /// How long it took.
    pub duration: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }
}

impl Command {
    pub(crate) fn new(cx: Cx, program: String) -> Self {
        Self {
            cx,
            program,
            arguments: Vec::new(),
            environment: Vec::new(),
            stdin: None,
            hidden: Vec::new(),
            capture: CAPTURE,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Adds an argument that is shown as `***`. Any user of the machine can read it while the
    /// program runs: where the program allows, use [`stdin`](Self::stdin) or
    /// [`secret_env`](Self::secret_env).
    pub fn secret_arg(self, secret: &Secret) -> Self {
        self.arg(secret.reveal()).hide(secret)
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment to a secret.
    pub fn secret_env(self, name: impl Into<String>, secret: &Secret) -> Self {
        self.env(name, secret.reveal()).hide(secret)
    }

    /// Gives the program an input. With a secret in it, call [`hide`](Self::hide) too.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self
    }

    /// Replaces this text by `***` in records, logs and errors, also in the program's own words.
    pub fn hide(mut self, secret: &Secret) -> Self {
        if !secret.reveal().is_empty() {
            self.hidden.push(secret.clone());
        }
        self
    }

    /// Gives the program less time than the call has.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.cx = self.cx.within(limit);
        self
    }

    /// Sets how many bytes of each output are kept; what is beyond is read and counted. 16 MiB
    /// otherwise.
    pub fn capture(mut self, bytes: usize) -> Self {
        self.capture = bytes;
        self
    }

    /// Runs the program; another exit status than 0 is an error with the program's own words and
    /// the context `command` and `status`.
    ///
    /// Errors: `unsupported` if the program is not installed, `deadline_exceeded`, `cancelled`,
    /// `limit` if the output was too long to keep, `internal` for all else: the caller, who knows
    /// the program, gives it the right kind.
    pub async fn run(self) -> Result<Output> {
        let words = Words::of(&self);
        let capture = self.capture;
        let output = self.output().await?;
        if output.status != 0 {
            let message = format!("{} exited with status {}", words.program, output.status);
            let error = words.error(Kind::Internal, message, &output.stderr, &output.stdout);
            return Err(error.context("status", output.status));
        }
        if output.lost > 0 {
            let message = format!("{} wrote more than {capture} bytes", words.program);
            return Err(words.error(Kind::Limit, message, &[], &[]).context("lost", output.lost));
        }
        Ok(output)
    }

    /// Runs the program; its exit status is the caller's business. That a signal ended it is an
    /// `internal` error; else the errors are as of [`run`](Self::run).
    pub async fn output(self) -> Result<Output> {
        self.cx.check()?;
        let words = Words::of(&self);
        let (cx, started) = (self.cx.clone(), Instant::now());
        let supervisor = self.start(&words)?;
        // Dropped with this future: then the program is ended as at a cancel.
        let (wanted, unwanted) = oneshot::channel::<()>();
        let (answer, answered) = oneshot::channel();
        let handle = cx.call.session.runtime.clone();
        handle.spawn(supervisor.supervise(cx.clone(), unwanted, answer));
        let ended = answered.await.map_err(|_| Error::internal("a program was lost"))?;
        drop(wanted);

        let duration = started.elapsed();
        let code = ended.status.and_then(|status| status.code());
        words.report(&cx, code, duration);
        let program = &words.program;
        let Ended { status, stopped, stdout, stderr } = ended;
        if let Some(why) = stopped {
            let fate = if status.is_some() { "was killed" } else { "cannot be killed" };
            let message =
                format!("{program} {fate} after {:.1} s: {}", duration.as_secs_f64(), why.message);
            return Err(words.error(why.kind.clone(), message, &stderr.kept, &stdout.kept));
        }
        let Some(status) = code else {
            let signal = status.and_then(|status| status.signal()).unwrap_or_default();
            let message = format!("{program} was ended by signal {signal}");
            let error = words.error(Kind::Internal, message, &stderr.kept, &stdout.kept);
            return Err(error.context("signal", signal));
        };
        let lost = stdout.lost + stderr.lost;
        Ok(Output { status, stdout: stdout.kept, stderr: stderr.kept, lost, duration })
    }

    fn start(self, words: &Words) -> Result<Supervisor> {
        let path = search_path();
        let joined = env::join_paths(&path).unwrap_or_default();
        let program = find(&self.program, &path).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("the program {} is not installed", self.program))
                .context("command", &words.command)
                .hint(format!(
                    "install the package that holds it; looked in {}",
                    joined.to_string_lossy()
                ))
        })?;
        let failed = |error: std::io::Error| {
            Error::internal(format!("the program {} cannot be started", self.program))
                .context("command", &words.command)
                .source(&error)
        };
        let mut child = std::process::Command::new(program)
            .args(&self.arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", joined)
            .envs(self.environment)
            .process_group(0)
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let traffic = Traffic::of(&mut child, self.stdin.unwrap_or_default(), self.capture);
        match traffic.and_then(|traffic| Ok((traffic, Watch::of(&child)?))) {
            Ok((traffic, watch)) => Ok(Supervisor { leader: Leader { child, watch }, traffic }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(failed(error))
            }
        }
    }
}

/// How a program ended.
struct Ended {
    /// Absent if it does not go even when killed.
    status: Option<ExitStatus>,
    /// Why it was killed, if it was.
    stopped: Option<Error>,
    stdout: Captured,
    stderr: Captured,
}

/// A program that runs. A task of its own sees it to its end, so that it is reaped whatever
/// happens to the call.
struct Supervisor {
    leader: Leader,
    traffic: Traffic,
}

impl Supervisor {
    async fn supervise(
        mut self,
        cx: Cx,
        unwanted: oneshot::Receiver<()>,
        answer: oneshot::Sender<Ended>,
    ) {
        let Self { leader, traffic } = &mut self;
        let stop = async {
            tokio::select! {
                error = cx.ended() => error,
                _ = unwanted => Error::new(Kind::Cancelled, "nobody waits for it any more"),
            }
        };
        let stopped = tokio::select! {
            biased;
            () = traffic.during(leader.exited()) => None,
            error = stop => Some(error),
        };
        if stopped.is_some() {
            leader.signal(Signal::TERM);
            traffic.during(timeout(GRACE, leader.exited())).await.ok();
            // Also when the leader has gone: the rest of the group may be deaf to SIGTERM.
            leader.signal(Signal::KILL);
            traffic.during(timeout(KILLED, leader.exited())).await.ok();
        }
        timeout(LINGER, traffic.run()).await.ok();
        let status = leader.reap();
        let Traffic { stdout, stderr, .. } = self.traffic;
        // Nobody may be waiting; there is nothing to tell then.
        let _ = answer.send(Ended { status, stopped, stdout, stderr });
        if status.is_none() {
            self.leader.exited().await;
            self.leader.reap();
        }
    }
}

/// Tells when a process has ended, without reaping it.
///
/// A thread waits for it: a `pidfd` needs Linux 5.3, and a handler for SIGCHLD would be installed
/// into the whole host.
struct Watch {
    /// Number of the process, which is also its group's.
    pid: Pid,
    ended: oneshot::Receiver<()>,
}

impl Watch {
    fn of(child: &Child) -> std::io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(std::io::ErrorKind::InvalidData)?;
        let (tell, ended) = oneshot::channel();
        std::thread::Builder::new().name("drv-wait".to_owned()).spawn(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            // The one error that is no answer is an interruption.
            while rustix::process::waitid(WaitId::Pid(pid), options)
                .is_err_and(|error| error == Errno::INTR)
            {}
            let _ = tell.send(());
        })?;
        Ok(Self { pid, ended })
    }
}

/// The first process of a group.
struct Leader {
    child: Child,
    watch: Watch,
}

impl Leader {
    /// Waits until the process has ended. Cancel-safe; it still has to be reaped.
    async fn exited(&mut self) {
        if !self.watch.ended.is_terminated() {
            let _ = (&mut self.watch.ended).await;
        }
    }

    /// Signals the whole group. Only before [`reap`](Self::reap): until then the number is ours.
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.watch.pid, signal);
    }

    /// Takes the exit status if the process has ended.
    fn reap(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

/// What goes in and out of a program.
struct Traffic {
    stdin: Option<pipe::Sender>,
    input: Vec<u8>,
    /// How much of the input is written.
    fed: usize,
    stdout: Captured,
    stderr: Captured,
}

impl Traffic {
    fn of(child: &mut Child, input: Vec<u8>, capture: usize) -> std::io::Result<Self> {
        let receiver = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd);
        let captured = |pipe| Captured { pipe, kept: Vec::new(), capture, lost: 0 };
        Ok(Self {
            stdin: child
                .stdin
                .take()
                .map(|stdin| pipe::Sender::from_owned_fd(stdin.into()))
                .transpose()?,
            input,
            fed: 0,
            stdout: captured(child.stdout.take().map(|o| receiver(o.into())).transpose()?),
            stderr: captured(child.stderr.take().map(|e| receiver(e.into())).transpose()?),
        })
    }

    /// Feeds and reads until all is closed. Cancel-safe: it can be called again to go on.
    async fn run(&mut self) {
        let Self { stdin, input, fed, stdout, stderr } = self;
        let feed = async {
            while let Some(pipe) = stdin
                && *fed < input.len()
            {
                match pipe.write(&input[*fed..]).await {
                    Ok(written) => *fed += written,
                    Err(_) => break, // The program does not want to know more.
                }
            }
            *stdin = None;
        };
        tokio::join!(feed, stdout.fill(), stderr.fill());
    }

    /// Runs while something else is waited for.
    async fn during<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let traffic = async {
            self.run().await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            value = wait => value,
            never = traffic => match never {},
        }
    }
}

/// An output: its beginning, and how much more there was.
struct Captured {
    pipe: Option<pipe::Receiver>,
    kept: Vec<u8>,
    capture: usize,
    lost: u64,
}

impl Captured {
    async fn fill(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(read) => {
                    let keep = read.min(self.capture.saturating_sub(self.kept.len()));
                    self.kept.extend_from_slice(&buffer[..keep]);
                    self.lost += (read - keep) as u64;
                }
            }
        }
    }
}

/// How a command is shown: what is secret in it is not.
struct Words {
    program: String,
    argv: Vec<String>,
    command: String,
    hidden: Vec<Secret>,
}

impl Words {
    fn of(command: &Command) -> Self {
        let mut words = Self {
            program: command.program.clone(),
            argv: Vec::new(),
            command: String::new(),
            hidden: command.hidden.clone(),
        };
        let arguments = command.arguments.iter().map(|a| words.scrubbed(&a.to_string_lossy()));
        words.argv = std::iter::once(command.program.clone()).chain(arguments).collect();
        let quoted = words.argv.iter().map(|argument| {
            let plain = |c: char| c.is_alphanumeric() || "-_./=:,@+%*".contains(c);
            if !argument.is_empty() && argument.chars().all(plain) {
                argument.clone()
            } else {
                format!("{argument:?}")
            }
        });
        words.command = quoted.collect::<Vec<_>>().join(" ");
        words
    }

    fn scrubbed(&self, text: &str) -> String {
        self.hidden
            .iter()
            .fold(text.to_owned(), |text, secret| text.replace(secret.reveal(), "***"))
    }

    /// An error with the end of what the program said.
    fn error(&self, kind: Kind, message: String, stderr: &[u8], stdout: &[u8]) -> Error {
        let said = if stderr.trim_ascii().is_empty() { stdout } else { stderr };
        // Scrubbed before it is cut: half a secret is not found.
        let said = self.scrubbed(String::from_utf8_lossy(said).trim());
        let cut = (0..=said.len().saturating_sub(TAIL)).rfind(|i| said.is_char_boundary(*i));
        let tail = &said[cut.unwrap_or_default()..];
        let error = Error::new(kind, message).context("command", &self.command);
        if tail.is_empty() { error } else { error.backend(tail) }
    }

    /// Logs the run, and tells the host for its record; a host that keeps none is fine.
    fn report(&self, cx: &Cx, status: Option<i32>, duration: Duration) {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(command = self.command, status, milliseconds, "ran {}", self.program);
        let record = CommandRecord { argv: self.argv.clone(), status, milliseconds };
        let cx = cx.clone();
        cx.call.session.runtime.clone().spawn(async move {
            let _ = cx.request::<serde_json::Value>("command.record", &record).await;
        });
    }
}

/// The host's `PATH` and the usual places of an administrator's programs.
fn search_path() -> Vec<PathBuf> {
    let own = env::var_os("PATH").unwrap_or_default();
    let mut path: Vec<PathBuf> = Vec::new();
    for directory in env::split_paths(&own).chain(DIRECTORIES.map(PathBuf::from)) {
        if directory.is_absolute() && !path.contains(&directory) {
            path.push(directory);
        }
    }
    path
}

fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    let runs = |file: &Path| {
        std::fs::metadata(file)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|file| runs(file));
    }
    path.iter().map(|directory| directory.join(program)).find(|file| runs(file))
}
