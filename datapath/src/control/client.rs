//! The control plane's side: finding, starting and telling the process of a disk.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protocol::{
    Changes, Command, Failure, FailureKind, LONGEST_LINE, MergePace, Merging, Outcome, Paused,
    Reply, Request, Status, VERSION,
};
use super::protocol::{
    Listen, MirrorStart, MirrorStatus, MirrorSwitch, Moved, RemoteStatus, Tracking,
};
use super::run::{self, Place, Process};
use crate::disk::{Limits, Plan};

/// Name of the program.
const PROGRAM: &str = "sm-datapath";

/// Names the program's path where it is not beside this one.
pub const VARIABLE: &str = "SM_DATAPATH";

/// How long a process that is there may take until it answers its first call.
const BIRTH: Duration = Duration::from_secs(10);

/// Until it is asked again whether a process that is being born, or dies, is there.
const NAP: Duration = Duration::from_millis(1);

/// Why a data path cannot be told something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was told, and said no.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// The program that serves disks is not where it is looked for.
    #[error("the program {PROGRAM} is not at {}", .searched.join(" or "))]
    NoProgram {
        /// Where it was looked for.
        searched: Vec<String>,
    },
    /// The program does not start.
    #[error("{program} does not start: {why}")]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// Its own words, or the system's.
        why: String,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// The process does not answer.
    #[error("the data path at {socket} does not answer: {why}")]
    Silent {
        /// Its control socket.
        socket: PathBuf,
        /// The system's words.
        why: String,
    },
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// What kind of failure the process told, if it did.
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            Self::Refused(failure) => Some(failure.kind),
            _ => None,
        }
    }
}

/// A connection to the process of a disk.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
    next: u64,
}

/// Finds the program: what was given, else `SM_DATAPATH`, else beside this program or in the
/// directory above (where cargo puts programs, seen from a test).
pub fn locate(given: Option<&Path>) -> Result<PathBuf> {
    find_program(PROGRAM, VARIABLE, given).map_err(|searched| Error::NoProgram { searched })
}

/// Finds a program of this product as [`locate`] does; an error says where it was looked for.
pub fn find_program(
    name: &str,
    variable: &str,
    given: Option<&Path>,
) -> Result<PathBuf, Vec<String>> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Some(path) = given {
        candidates.push(path.to_owned());
    } else if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        candidates.push(path.into());
    } else if let Ok(executable) = std::env::current_exe() {
        candidates.extend(executable.ancestors().skip(1).take(2).map(|place| place.join(name)));
    }
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    Err(candidates.iter().map(|path| path.display().to_string()).collect())
}

/// The process of a disk, if one runs.
pub fn find(place: &Place) -> Result<Option<Client>> {
    let deadline = Instant::now() + BIRTH;
    loop {
        match Client::connect(&place.control()) {
            Ok(client) => return Ok(Some(client)),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        // None answers. It is there if it holds its lock: being born, or dying.
        if !place.exists() || place.lock()?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(NAP);
    }
}

/// Finds the process of a disk, or starts it. Of several that start one, one has its way, and all
/// get a connection to the same process.
pub fn start(place: &Place, program: &Path) -> Result<Client> {
    let deadline = Instant::now() + BIRTH;
    loop {
        if let Some(client) = find(place)? {
            return Ok(client);
        }
        place.make()?;
        match spawn(place, program)? {
            None => return Client::connect(&place.control()),
            // Somebody else's was first, or has just cleared the directory away.
            Some(why) if Instant::now() >= deadline => {
                return Err(Error::NotStarted { program: program.to_owned(), why });
            }
            Some(_) => std::thread::sleep(NAP),
        }
    }
}

/// Ends the process of a disk and removes its directory, whatever state it is in. What a process
/// that was killed has left to redo is lost.
pub fn end(place: &Place, patience: Duration) -> Result<()> {
    if !place.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + patience;
    let before = place.process();
    let mut gone = false;
    match find(place) {
        Ok(Some(mut client)) => match client.end(patience) {
            // It has removed the directory by itself, unless it was killed in the middle of that.
            Ok(()) => gone = true,
            Err(error @ Error::Refused(_)) => return Err(error),
            Err(_) => kill(place),
        },
        Ok(None) => {}
        Err(_) => kill(place),
    }
    loop {
        if !place.exists() {
            return Ok(());
        }
        if gone && place.process().is_some_and(|process| Some(process) != before) {
            // Somebody else has started another one.
            return Ok(());
        }
        if let Some(_lock) = place.lock()? {
            return Ok(place.remove()?);
        }
        if Instant::now() >= deadline {
            let why = "it holds its lock although it was ended".to_owned();
            return Err(Error::Silent { socket: place.control(), why });
        }
        std::thread::sleep(NAP);
    }
}

/// Ends a process that does not answer, if it is the one that was started.
fn kill(place: &Place) {
    let Some(process) = place.process() else { return };
    let Some(pid) = i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return;
    };
    // The descriptor first: what it means cannot become another process behind the look.
    let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return;
    };
    if process.is_alive() {
        let _ = rustix::process::pidfd_send_signal(handle, rustix::process::Signal::KILL);
    }
}

/// Who serves a disk, if somebody does.
pub fn process(place: &Place) -> Option<Process> {
    place.process().filter(|process| process.is_alive())
}

/// Starts the program. Answers its words when it ended because another one is there.
fn spawn(place: &Place, program: &Path) -> Result<Option<String>> {
    let failed = |error: io::Error| Error::NotStarted {
        program: program.to_owned(),
        why: error.to_string(),
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(BIRTH)).map_err(failed)?;
    let log = File::options().create(true).append(true).open(place.log()).map_err(failed)?;
    let mut child = Program::new(program)
        .arg("serve")
        .arg("--run-dir")
        .arg(place.path())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    // It says one line when it can be told something, and nothing else ever.
    let mut word = String::new();
    let told = ours.take(4096).read_to_string(&mut word);
    if word.starts_with("ready") {
        // Whoever lives long must not keep a zombie when the process ends one day.
        let waiting = std::thread::Builder::new().name("datapath-wait".into()).stack_size(64 << 10);
        let _ = waiting.spawn(move || drop(child.wait()));
        return Ok(None);
    }
    if let Err(error) = told {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(error));
    }
    let ended = child.wait().map_err(failed)?;
    if word.starts_with("taken") {
        return Ok(Some(word.trim().to_owned()));
    }
    let log = std::fs::read_to_string(place.log()).unwrap_or_default();
    let last = log.lines().next_back().unwrap_or("it says nothing").to_owned();
    Err(Error::NotStarted { program: program.to_owned(), why: format!("{ended}; {last}") })
}

impl Client {
    /// Connects to a control socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .map_err(|error| Error::Silent { socket: socket.to_owned(), why: error.to_string() })?;
        Ok(Self { stream: BufReader::new(stream), socket: socket.to_owned(), next: 1 })
    }

    /// How it is.
    pub fn status(&mut self, patience: Duration) -> Result<Status> {
        self.call(Command::Status, patience)
    }

    /// See [`Command::Activate`].
    pub fn activate(&mut self, plan: Plan, epoch: u64, patience: Duration) -> Result<()> {
        self.activate_tracked(plan, epoch, Tracking::default(), patience)
    }

    /// As [`Client::activate`], of a disk whose changes are noted or shown.
    pub fn activate_tracked(
        &mut self,
        plan: Plan,
        epoch: u64,
        tracking: Tracking,
        patience: Duration,
    ) -> Result<()> {
        self.call::<Value>(Command::Activate { plan, epoch, tracking }, patience).map(drop)
    }

    /// See [`Command::Deactivate`].
    pub fn deactivate(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Deactivate, patience).map(drop)
    }

    /// See [`Command::Flush`].
    pub fn flush(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Flush, patience).map(drop)
    }

    /// See [`Command::Changes`].
    pub fn changes(&mut self, patience: Duration) -> Result<Changes> {
        self.call(Command::Changes, patience)
    }

    /// See [`Command::Pause`].
    pub fn pause(&mut self, lock: Option<PathBuf>, patience: Duration) -> Result<Paused> {
        self.pause_and(lock, false, patience)
    }

    /// As [`Client::pause`], and the images are closed. A process of a release that cannot do that
    /// is an `unsupported` error; it is paused then, until this connection ends.
    pub fn pause_closed(&mut self, lock: Option<PathBuf>, patience: Duration) -> Result<Paused> {
        let paused = self.pause_and(lock, true, patience)?;
        if !paused.closed {
            let text =
                "the process is of an earlier release and cannot close its images in a pause";
            return Err(Failure::new(FailureKind::Unsupported, text).into());
        }
        Ok(paused)
    }

    fn pause_and(
        &mut self,
        lock: Option<PathBuf>,
        close: bool,
        patience: Duration,
    ) -> Result<Paused> {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        // It is told how long it may take, and has a second to say so.
        let patience = patience + Duration::from_secs(1);
        self.call(Command::Pause { milliseconds, lock, close }, patience)
    }

    /// See [`Command::Merge`].
    pub fn merge(
        &mut self,
        pace: MergePace,
        parent: Option<PathBuf>,
        patience: Duration,
    ) -> Result<()> {
        self.call::<Value>(Command::Merge { pace, parent }, patience).map(drop)
    }

    /// See [`Command::Merging`].
    pub fn merging(&mut self, patience: Duration) -> Result<Merging> {
        self.call(Command::Merging, patience)
    }

    /// See [`Command::Converge`].
    pub fn converge(&mut self, lock: Option<PathBuf>, patience: Duration) -> Result<Paused> {
        let milliseconds = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let patience = patience + Duration::from_secs(1);
        self.call(Command::Converge { milliseconds, lock }, patience)
    }

    /// See [`Command::CancelMerge`].
    pub fn cancel_merge(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::CancelMerge, patience).map(drop)
    }

    /// See [`Command::Refresh`].
    pub fn refresh(&mut self, plan: Plan, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Refresh { plan }, patience).map(drop)
    }

    /// See [`Command::Resume`].
    pub fn resume(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Resume, patience).map(drop)
    }

    /// See [`Command::Limit`].
    pub fn limit(&mut self, limits: Limits, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Limit(limits), patience).map(drop)
    }

    /// See [`Command::MirrorStart`].
    pub fn mirror_start(&mut self, asked: MirrorStart, patience: Duration) -> Result<MirrorStatus> {
        self.call(Command::MirrorStart(asked), patience)
    }

    /// See [`Command::MirrorRate`].
    pub fn mirror_rate(&mut self, rate: Option<u64>, patience: Duration) -> Result<MirrorStatus> {
        self.call(Command::MirrorRate { rate }, patience)
    }

    /// See [`Command::MirrorSwitch`].
    pub fn mirror_switch(&mut self, asked: MirrorSwitch, patience: Duration) -> Result<Moved> {
        self.call(Command::MirrorSwitch(asked), patience)
    }

    /// See [`Command::MirrorCancel`].
    pub fn mirror_cancel(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::MirrorCancel, patience).map(drop)
    }

    /// See [`Command::Listen`].
    pub fn listen(&mut self, asked: Listen, patience: Duration) -> Result<RemoteStatus> {
        self.call(Command::Listen(asked), patience)
    }

    /// See [`Command::Unlisten`].
    pub fn unlisten(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::Unlisten, patience).map(drop)
    }

    /// See [`Command::End`]: when it answers, the process is gone.
    pub fn end(&mut self, patience: Duration) -> Result<()> {
        self.call::<Value>(Command::End, patience)?;
        // The kernel closes the connection with the process.
        self.deadline(patience)?;
        let mut rest = [0];
        match self.stream.read(&mut rest) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Ok(_) => Err(self.silent("it goes on although it has said that it ends")),
            Err(error) => Err(self.silent(&error.to_string())),
        }
    }

    /// Any command.
    pub fn call<T: DeserializeOwned>(&mut self, command: Command, patience: Duration) -> Result<T> {
        let id = self.next;
        self.next += 1;
        let request = Request { version: VERSION, id, command };
        let mut line =
            serde_json::to_vec(&request).map_err(|error| self.silent(&error.to_string()))?;
        line.push(b'\n');
        self.deadline(patience)?;
        if let Err(error) = self.stream.get_mut().write_all(&line) {
            return Err(self.silent(&error.to_string()));
        }
        let mut answer = Vec::new();
        let limit = LONGEST_LINE as u64;
        match self.stream.by_ref().take(limit).read_until(b'\n', &mut answer) {
            Err(error) => return Err(self.silent(&error.to_string())),
            Ok(_) if answer.last() != Some(&b'\n') => {
                return Err(self.silent("the connection ended without an answer"));
            }
            Ok(_) => {}
        }
        let unclear = |error: serde_json::Error| Error::Silent {
            socket: self.socket.clone(),
            why: format!("its answer cannot be read: {error}"),
        };
        let reply: Reply = serde_json::from_slice(&answer).map_err(unclear)?;
        match reply.outcome {
            Outcome::Error(failure) => Err(failure.into()),
            Outcome::Done(_) if reply.id != id => {
                Err(self.silent(&format!("it answered request {} instead of {id}", reply.id)))
            }
            Outcome::Done(value) => serde_json::from_value(value).map_err(unclear),
        }
    }

    fn deadline(&self, patience: Duration) -> Result<()> {
        let stream = self.stream.get_ref();
        // Zero would mean for ever.
        let patience = Some(patience.max(Duration::from_millis(1)));
        stream
            .set_read_timeout(patience)
            .and_then(|()| stream.set_write_timeout(patience))
            .map_err(|error| self.silent(&error.to_string()))
    }

    fn silent(&self, why: &str) -> Error {
        Error::Silent { socket: self.socket.clone(), why: why.to_owned() }
    }
}
