//! Commands in guests.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Result};
use crate::guest::{Guest, lock};
use crate::power::Line;
use crate::wire::{Kind, PIECE, Request};

/// Time for a command that says nothing else.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a command ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status; 128 and the signal if there was one, 127 if there is no such program.
    pub status: i32,
    /// What came on its standard output.
    pub stdout: Vec<u8>,
    /// What came on its standard error.
    pub stderr: Vec<u8>,
    guest: String,
    command: String,
}

impl Output {
    /// Standard output as text, without blanks at the ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, without blanks at the ends.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// Another exit status than 0 is an error.
    pub fn success(self) -> Result<Self> {
        if self.status == 0 {
            return Ok(self);
        }
        let said = said(&self.stdout, &self.stderr);
        Err(Error::Failed { guest: self.guest, command: self.command, status: self.status, said })
    }
}

fn said(stdout: &[u8], stderr: &[u8]) -> String {
    let mut text = String::new();
    for (bytes, mark) in [(stdout, ">"), (stderr, "!")] {
        for line in String::from_utf8_lossy(bytes).lines() {
            let _ = write!(text, "\n  {mark} {line}");
        }
    }
    text
}

/// A command in a guest, to be described.
#[must_use]
pub struct Call<'a> {
    guest: &'a Guest,
    argv: Vec<String>,
    env: Vec<(String, String)>,
    directory: PathBuf,
    input: Vec<u8>,
    deadline: Duration,
}

impl<'a> Call<'a> {
    pub(crate) fn new(guest: &'a Guest, argv: Vec<String>) -> Self {
        Self {
            guest,
            argv,
            env: Vec::new(),
            directory: PathBuf::from("/"),
            input: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// A variable of its environment. There are only `PATH`, `HOME` and `LAB_GUEST` otherwise.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Its working directory; `/` if nothing is said.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// What it finds on its standard input; nothing if nothing is said.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// How long it may take, 60 s if nothing is said. It is killed then, with its process group.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Output> {
        let deadline = self.deadline;
        self.start()?.wait(deadline)
    }

    /// Runs it to its end, which must be a good one, and answers what it printed, without blanks
    /// at the ends.
    pub fn check(self) -> Result<String> {
        Ok(self.run()?.success()?.text())
    }

    /// Starts it. It is killed when the handle is dropped.
    pub fn start(self) -> Result<Running> {
        let text = self.argv.join(" ");
        let request = Request::Run { argv: self.argv, env: self.env, directory: self.directory };
        let running = Running::begin(self.guest, &request, text)?;
        let pieces = self.input.chunks(PIECE).chain(std::iter::once(&[][..]));
        for piece in pieces {
            // A command may end before it has read all; so may the guest, which wait() tells.
            if running.put(Kind::Input, piece).is_err() || running.ended().is_some() {
                break;
            }
        }
        Ok(running)
    }

    /// A request that is no command.
    pub(crate) fn ask(guest: &'a Guest, request: &Request, what: String) -> Result<()> {
        Running::begin(guest, request, what)?.wait(DEADLINE)?.success().map(drop)
    }
}

/// A command that runs in a guest.
pub struct Running {
    guest: Guest,
    line: Line,
    call: u32,
    text: String,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Status(i32),
    /// The guest went away.
    Gone,
}

impl Running {
    fn begin(guest: &Guest, request: &Request, text: String) -> Result<Self> {
        let line = guest.line()?;
        let lab = &guest.inner.lab;
        let call = lab.requests.fetch_add(1, Ordering::Relaxed);
        let file = lab.share().join(format!("request-{call}"));
        let doing = || format!("ask {}", guest.name());
        let bytes = serde_json::to_vec(request).map_err(std::io::Error::from).doing(doing)?;
        std::fs::write(&file, bytes).doing(doing)?;
        let (sender, frames) = channel();
        lock(&line.calls).insert(call, sender);
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let running = Self { guest: guest.clone(), line, call, text, heard: Arc::clone(&heard) };
        if running.put(Kind::Ask, file.display().to_string().as_bytes()).is_err() {
            let _ = std::fs::remove_file(&file);
            return Err(guest.gone(running.text.clone()));
        }
        thread::spawn(move || {
            let mut end = End::Gone;
            for frame in frames {
                let mut heard = lock(&heard.0);
                match frame.kind {
                    Kind::Output => heard.stdout.extend_from_slice(&frame.data),
                    Kind::Errors => heard.stderr.extend_from_slice(&frame.data),
                    _ => {
                        let status = frame.data.as_slice().try_into().map(i32::from_le_bytes);
                        end = End::Status(status.unwrap_or(126));
                        break;
                    }
                }
            }
            lock(&heard.0).end = Some(end);
            heard.1.notify_all();
        });
        Ok(running)
    }

    fn put(&self, kind: Kind, data: &[u8]) -> std::io::Result<()> {
        self.line.put(kind, self.call, data)
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<i32> {
        match lock(&self.heard.0).end {
            Some(End::Status(status)) => Some(status),
            _ => None,
        }
    }

    /// What it has printed so far.
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&lock(&self.heard.0).stdout).into_owned()
    }

    /// Ends it and its process group. One that hangs in the kernel ends when that lets it go.
    pub fn kill(&self) {
        let _ = self.put(Kind::End, &[]);
    }

    /// Waits for its end. After the deadline it is killed.
    pub fn wait(self, deadline: Duration) -> Result<Output> {
        let end = Instant::now() + deadline;
        let mut heard = lock(&self.heard.0);
        while heard.end.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let said = said(&heard.stdout, &heard.stderr);
                drop(heard);
                return Err(self.guest.late(self.text.clone(), deadline, said));
            }
            let waited = self.heard.1.wait_timeout(heard, left);
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(End::Status(status)) = heard.end else {
            drop(heard);
            return Err(self.guest.gone(self.text.clone()));
        };
        Ok(Output {
            status,
            stdout: std::mem::take(&mut heard.stdout),
            stderr: std::mem::take(&mut heard.stderr),
            guest: self.guest.name().to_owned(),
            command: self.text.clone(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let over = lock(&self.heard.0).end.is_some();
        if !over {
            self.kill();
        }
        lock(&self.line.calls).remove(&self.call);
    }
}
