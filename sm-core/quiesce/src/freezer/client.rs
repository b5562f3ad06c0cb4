//! The side of whoever takes the snapshots.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sm_model::{Error, Kind, Result, VdiUuid};

use super::report::{Files, Report};
use super::{Answer, Request, Start};
use crate::quiescer::{Frozen, Outcome, Ready, left};

/// Name of the program.
pub const PROGRAM: &str = "sm-freezer";

/// Names the program's path where it is not beside this one.
pub const VARIABLE: &str = "SM_FREEZER";

/// Beside what the guest may take.
const SPARE: Duration = Duration::from_secs(5);

/// A process that holds a guest. When this is dropped, the guest goes on.
#[derive(Debug)]
#[must_use = "when this is dropped the guest goes on"]
pub struct Freezer {
    stream: BufReader<UnixStream>,
    child: Option<Child>,
    start: Start,
}

impl Freezer {
    /// Starts the process; nothing is asked of the guest yet.
    pub fn start(program: &Path, start: Start) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let text = format!("the program {} does not start", program.display());
            Error::internal(text).source(&error)
        };
        std::fs::create_dir_all(&start.folder)
            .map_err(|error| Error::from(error).context("path", start.folder.display()))?;
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let input = theirs.try_clone().map_err(failed)?;
        let child = Command::new(program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(failed)?;
        Ok(Self { stream: BufReader::new(ours), child: Some(child), start })
    }

    /// Its process.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it writes what came of it.
    pub fn files(&self) -> Files {
        Files::new(&self.start.folder, self.start.set)
    }

    /// See [`Request::Prepare`].
    pub fn prepare(&mut self) -> Result<Ready> {
        self.ask(&Request::Prepare(self.start.clone()))?;
        match self.answer(self.start.limits.prepare + SPARE)? {
            Answer::Ready(ready) => Ok(ready),
            Answer::Failed { error } => Err(error),
            other => Err(odd(&other)),
        }
    }

    /// See [`Request::Freeze`]. An error says that the guest is not at rest, or that nobody knows:
    /// then the freezer takes care of it.
    pub fn freeze(&mut self, disks: &[VdiUuid]) -> Result<Result<Frozen, Report>> {
        self.ask(&Request::Freeze { disks: disks.to_vec() })?;
        let limits = self.start.limits;
        // After a freeze that failed the answer comes when the guest is known to go on.
        match self.answer(limits.freeze + limits.thaw + limits.rescue + SPARE)? {
            Answer::Frozen(frozen) => Ok(Ok(frozen)),
            Answer::Ended(report) => Ok(Err(report)),
            Answer::Failed { error } => Err(error),
            Answer::Ready(_) => Err(Error::internal("the freezer is ready twice")),
        }
    }

    /// See [`Request::Thaw`]. One that has let the guest go on already answers why.
    pub fn thaw(&mut self, outcome: Outcome) -> Result<Report> {
        // If it cannot be told, it has ended, and its last words are there to be read.
        let told = self.ask(&Request::Thaw { outcome });
        let limits = self.start.limits;
        match self.answer(limits.thaw + limits.rescue + SPARE) {
            Ok(Answer::Ended(report)) => Ok(report),
            Ok(other) => Err(odd(&other)),
            Err(error) => told.and(Err(error)),
        }
    }

    /// See [`Request::Rescue`]: for a guest whose freezer was killed.
    pub fn rescue(&mut self) -> Result<Report> {
        self.ask(&Request::Rescue(self.start.clone()))?;
        match self.answer(self.start.limits.rescue + SPARE)? {
            Answer::Ended(report) => Ok(report),
            other => Err(odd(&other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<()> {
        let mut text = serde_json::to_string(request)
            .map_err(|error| Error::internal("a request is no JSON").source(&error))?;
        text.push('\n');
        self.stream.get_mut().write_all(text.as_bytes()).map_err(|error| gone(Some(&error)))
    }

    fn answer(&mut self, patience: Duration) -> Result<Answer> {
        let until = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            let failed = |error: std::io::Error| gone(Some(&error));
            self.stream.get_ref().set_read_timeout(Some(left(until))).map_err(failed)?;
            match self.stream.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => return Err(gone(None)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    if Instant::now() >= until {
                        let text = "the process that holds the guest does not answer";
                        return Err(Error::new(Kind::Unknown, text));
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        serde_json::from_slice(&line)
            .map_err(|error| Error::internal("the freezer's answer is no JSON").source(&error))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // It sees the end of its input and ends by itself, when the guest goes on.
        let _ = self.stream.get_ref().shutdown(std::net::Shutdown::Write);
        let Some(mut child) = self.child.take() else { return };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Whoever lives long must not keep a zombie.
        let waiting = std::thread::Builder::new().name("freezer-wait".into()).stack_size(64 << 10);
        let _ = waiting.spawn(move || drop(child.wait()));
    }
}

fn gone(error: Option<&std::io::Error>) -> Error {
    let gone = Error::new(Kind::Unknown, "the process that holds the guest has ended");
    match error {
        Some(error) => gone.source(error),
        None => gone,
    }
}

fn odd(answer: &Answer) -> Error {
    match answer {
        Answer::Failed { error } => error.clone(),
        _ => Error::internal("the freezer answers something else than was asked"),
    }
}
