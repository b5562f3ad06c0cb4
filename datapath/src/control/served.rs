//! The disk of a process: attached, active, paused.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde_json::{Value, json};

use super::mirroring::Mirroring;
use super::protocol::{
    Command, Failure, FailureKind, Paused as PausedReply, State, Statistics, Status, VERSION,
};
use super::remote::Remote;
use super::run::Place;
use super::server::Handler;
use crate::disk::{Drive, Format, Layer, Limits, Options, Paused, Plan};
use crate::error::{Errno, Error};
use crate::export::{Export, Exports};
use crate::nbd::{self, Listener, Server};

/// How often it is looked whether the images are a whole again.
const LOOK: Duration = Duration::from_millis(100);

/// How long requests may take to end when the disk is closed or its images are exchanged.
const DRAIN: Duration = Duration::from_secs(30);

/// How long it may take to see that a connection has ended.
const BURIAL: Duration = Duration::from_secs(1);

/// How long clients may take to leave.
pub(super) const LEAVE: Duration = Duration::from_secs(10);

/// Most images of a chain; as [`vhd::tree::MAX_DEPTH`].
const MOST_IMAGES: usize = vhd::tree::MAX_DEPTH;

type Done<T = Value> = Result<T, Failure>;

/// How the images are opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Past the page cache, where the storage takes that.
    pub direct: bool,
}

/// The disk of a process.
pub struct Served {
    pub(super) place: Place,
    how: How,
    /// Who has the clients; there before anybody can come.
    server: OnceLock<Server>,
    /// One command at a time changes anything.
    inner: Mutex<Inner>,
    /// What a status shows; never held for long.
    view: Mutex<View>,
    /// Told when [`Handler::ended`] was called.
    end: (Mutex<bool>, Condvar),
    pub(super) mirroring: Mirroring,
    pub(super) remote: Remote,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) active: Option<Active>,
}

pub(super) struct Active {
    pub(super) drive: Arc<Drive>,
    pub(super) pause: Option<Pause>,
}

pub(super) struct Pause {
    /// The connection; none when it has ended.
    pub(super) owner: Option<u64>,
    lock: Option<PathBuf>,
    paused: Paused,
}

pub(super) struct View {
    pub(super) state: State,
    pub(super) epoch: u64,
    pub(super) drive: Option<Arc<Drive>>,
}

impl Served {
    /// A disk that is attached, in a place whose lock is held.
    pub fn new(place: Place, how: How) -> Arc<Self> {
        let mirroring = Mirroring::of(&place);
        let state = if mirroring.moved().is_some() { State::Moved } else { State::Attached };
        let served = Arc::new(Self {
            place,
            how,
            server: OnceLock::new(),
            inner: Mutex::default(),
            view: Mutex::new(View { state, epoch: 0, drive: None }),
            end: (Mutex::new(false), Condvar::new()),
            mirroring,
            remote: Remote::default(),
        });
        let exports = Arc::clone(&served) as Arc<dyn Exports>;
        let _ = served.server.set(Server::new(exports, nbd::Limits::default()));
        served
    }

    /// Lets clients come; those that come before it is active are sent away.
    pub fn listen(&self, listener: UnixListener) -> std::io::Result<()> {
        self.server.get().map_or(Ok(()), |server| server.serve(Listener::Unix(listener)))
    }

    /// Waits until it was told to end.
    pub fn wait_for_end(&self) {
        let mut ended = self.end.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = self.end.1.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Deactivates, whatever is going on, and has [`Served::wait_for_end`] return.
    pub fn stop(&self) {
        if let Err(failure) = self.deactivate(&mut self.inner()) {
            tracing::error!(%failure, "the disk could not be closed");
        }
        self.set_end();
    }

    fn set_end(&self) {
        *self.end.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.1.notify_all();
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn show(&self, state: State) {
        self.view().state = state;
    }

    fn status(&self) -> Status {
        let (state, epoch, drive) = {
            let view = self.view();
            (view.state, view.epoch, view.drive.clone())
        };
        let limits = drive.as_ref().map(|drive| drive.limits()).unwrap_or_default();
        let remote = self.remote.status(&self.place.name());
        let near = self.server.get().map_or(0, |server| server.connections().len() as u64);
        Status {
            protocol: VERSION,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            name: self.place.name(),
            uri: self.place.uri(),
            state,
            plan: drive.as_ref().map(|drive| drive.plan()),
            size: drive.as_ref().map_or(0, |drive| drive.size()),
            epoch,
            connections: near + remote.as_ref().map_or(0, |remote| remote.connections),
            statistics: drive
                .as_ref()
                .map(|drive| Statistics::from(&drive.stats()))
                .unwrap_or_default(),
            limits,
            mirror: self.mirroring.status(),
            moved: self.mirroring.moved(),
            remote,
        }
    }

    /// Opens the images of a plan and serves them.
    pub fn activate(&self, plan: &Plan, epoch: u64) -> Result<(), Failure> {
        self.mirroring.refuse_moved()?;
        let mut inner = self.inner();
        if let Some(active) = &inner.active {
            let served = active.drive.plan();
            if served.leaf != plan.leaf || served.read_only != plan.read_only {
                return Err(Failure::new(
                    FailureKind::InUse,
                    format!("{} is being served", served.leaf.path.display()),
                ));
            }
            let waits = active.pause.as_ref().is_some_and(|pause| pause.owner.is_none());
            if served != *plan || waits {
                self.refresh(&mut inner, None, plan)?;
            }
            if let Some(active) = inner.active.as_mut().filter(|_| waits) {
                // Whoever tells us what to serve has brought the images in order.
                active.pause = None;
                self.show(State::Active);
            }
            self.view().epoch = epoch;
            return Ok(());
        }
        let options = Options {
            pending: (!plan.read_only).then(|| self.place.pending()),
            direct: self.how.direct,
            ..Options::default()
        };
        let drive = Drive::open(plan, options).map_err(|error| failure(&error))?;
        self.write_plan(plan);
        *self.view() = View { state: State::Active, epoch, drive: Some(Arc::clone(&drive)) };
        inner.active = Some(Active { drive, pause: None });
        Ok(())
    }

    fn deactivate(&self, inner: &mut Inner) -> Done<()> {
        let Some(mut active) = inner.active.take() else { return Ok(()) };
        // New clients are sent away from here on.
        *self.view() = View { state: State::Attached, epoch: 0, drive: None };
        // A client whose request waits in a pause would never leave.
        active.pause = None;
        active.drive.set_limits(Limits::default());
        self.mirroring.end();
        self.send_away(LEAVE);
        active.drive.close(Instant::now() + DRAIN).map_err(|error| failure(&error))
    }

    /// Ends the connections of clients. One that does not leave finds the disk closed.
    pub(super) fn send_away(&self, patience: Duration) {
        for server in self.server.get().cloned().into_iter().chain(self.remote.server()) {
            // By either of its names.
            for name in [self.place.name().as_str(), ""] {
                if !server.close_export(name, patience) && !patience.is_zero() {
                    tracing::warn!("a client does not leave");
                }
            }
        }
    }

    fn pause(
        inner: &mut Inner,
        connection: u64,
        patience: Duration,
        lock: Option<PathBuf>,
    ) -> Done<PausedReply> {
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        match &mut active.pause {
            Some(pause) if pause.owner.is_none_or(|owner| owner == connection) => {
                // One whose owner is gone is taken over: whoever pauses holds the lock that we
                // would have to wait for, and says what the images are when he is done.
                pause.owner = Some(connection);
                pause.lock = lock;
                return Ok(PausedReply::default());
            }
            Some(_) => return Err(paused_by_another()),
            None => {}
        }
        let start = Instant::now();
        // What can be made durable before is not waited for in the pause.
        if !active.drive.read_only() {
            Export::flush(active.drive.as_ref()).map_err(|error| failure(&error))?;
        }
        let paused = active.drive.pause(start + patience).map_err(|error| {
            let kind = match failure(&error).kind {
                FailureKind::Storage => FailureKind::Busy,
                other => other,
            };
            Failure::new(kind, error.what)
        })?;
        active.pause = Some(Pause { owner: Some(connection), lock, paused });
        let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(PausedReply { milliseconds })
    }

    /// Whoever paused may have been killed just now, and the thread of his connection not know it
    /// yet.
    fn wait_for_the_dead(&self, connection: u64) {
        let until = Instant::now() + BURIAL;
        while refuse_other_pause(&self.inner(), connection).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Goes over to the images of a plan, within the pause of a connection or with one of its own.
    fn refresh(&self, inner: &mut Inner, connection: Option<u64>, plan: &Plan) -> Done<()> {
        let active = inner.active.as_ref().ok_or_else(not_active)?;
        match &active.pause {
            Some(pause) if pause.owner != connection => return Err(paused_by_another()),
            Some(pause) => exchange(&active.drive, &pause.paused, plan)?,
            None => {
                let paused =
                    active.drive.pause(Instant::now() + DRAIN).map_err(|error| failure(&error))?;
                exchange(&active.drive, &paused, plan)?;
            }
        }
        self.write_plan(plan);
        Ok(())
    }

    /// For people, and for whoever looks after a crash; nothing depends on it.
    fn write_plan(&self, plan: &Plan) {
        let text = serde_json::to_vec_pretty(plan).unwrap_or_default();
        let _ = std::fs::write(self.place.plan(), text);
    }

    /// Whoever paused is gone. Waits for the lock of those who change the images, looks, and goes
    /// on. Runs on the thread of the connection that has ended.
    fn settle(&self) {
        let mut said = String::new();
        loop {
            // A statement of its own: the lock is not held while it sleeps.
            let gone_on = self.try_to_go_on(&mut self.inner());
            let Err(why) = gone_on else { return };
            if why != said {
                tracing::warn!(why, "whoever paused the disk is gone; it waits");
                self.show(State::Waiting);
                said = why;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends a pause that belongs to nobody, or says why it must not end yet.
    fn try_to_go_on(&self, inner: &mut Inner) -> Result<(), String> {
        let Some(active) = &mut inner.active else { return Ok(()) };
        let Some(pause) = active.pause.as_ref().filter(|pause| pause.owner.is_none()) else {
            return Ok(());
        };
        // Held until the end: nobody begins a change in between.
        let _held = pause.lock.as_deref().map(try_lock).transpose()?;
        let plan = look(&active.drive.plan(), active.drive.leaf_id())?;
        exchange(&active.drive, &pause.paused, &plan).map_err(|failure| failure.message)?;
        let leaf = plan.leaf.path.display();
        tracing::warn!(%leaf, "whoever paused the disk is gone; it goes on");
        self.write_plan(&plan);
        active.pause = None;
        self.show(State::Active);
        Ok(())
    }
}

impl Exports for Served {
    fn names(&self) -> Vec<String> {
        let active = self.view().drive.is_some();
        if active { vec![self.place.name()] } else { Vec::new() }
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        let drive = self.view().drive.clone()?;
        (name.is_empty() || name == self.place.name()).then_some(drive as Arc<dyn Export>)
    }
}

impl Handler for Served {
    fn handle(&self, connection: u64, command: Command) -> Done {
        match command {
            Command::Status => value(&self.status()),
            Command::Activate { plan, epoch } => self.activate(&plan, epoch).map(nothing),
            Command::Flush => {
                let drive = self.view().drive.clone().ok_or_else(not_active)?;
                if self.inner().active.as_ref().is_some_and(|active| active.pause.is_some()) {
                    // All that was answered is durable since the pause.
                    return Ok(nothing(()));
                }
                if !drive.read_only() {
                    Export::flush(drive.as_ref()).map_err(|error| failure(&error))?;
                }
                Ok(nothing(()))
            }
            Command::Pause { milliseconds, lock } => {
                let patience = Duration::from_millis(milliseconds);
                self.wait_for_the_dead(connection);
                let paused = Self::pause(&mut self.inner(), connection, patience, lock)?;
                self.show(State::Paused);
                value(&paused)
            }
            Command::Refresh { plan } => {
                self.refresh(&mut self.inner(), Some(connection), &plan).map(nothing)
            }
            Command::Resume => {
                let mut inner = self.inner();
                let active = inner.active.as_mut().ok_or_else(not_active)?;
                match &active.pause {
                    Some(pause) if pause.owner == Some(connection) => active.pause = None,
                    _ => {
                        let text = "this connection has not paused the disk";
                        return Err(Failure::new(FailureKind::NotPaused, text));
                    }
                }
                self.show(State::Active);
                Ok(nothing(()))
            }
            Command::Limit(limits) => {
                let drive = self.view().drive.clone().ok_or_else(not_active)?;
                drive.set_limits(limits);
                Ok(nothing(()))
            }
            Command::MirrorStart(asked) => value(&self.mirror_start(&asked)?),
            Command::MirrorRate { rate } => value(&self.mirror_rate(rate)?),
            Command::MirrorSwitch(asked) => value(&self.mirror_switch(asked)?),
            Command::MirrorCancel => {
                let cancelled = self.mirror_cancel(connection)?;
                Ok(json!({"cancelled": cancelled}))
            }
            Command::Listen(asked) => value(&self.serve_others(&asked)?),
            Command::Unlisten => {
                self.remote.end();
                Ok(nothing(()))
            }
            // After the second the server ends this process.
            Command::Deactivate | Command::End => {
                let mut inner = self.inner();
                refuse_other_pause(&inner, connection)?;
                self.deactivate(&mut inner)?;
                if command == Command::End {
                    self.remote.end();
                    // Whoever ends it has been told where the disk went; a signal tells nobody.
                    self.place.forget_moved().map_err(|error| {
                        Failure::new(FailureKind::Storage, error.to_string())
                    })?;
                }
                Ok(nothing(()))
            }
            Command::Unknown => Err(Failure::new(
                FailureKind::Unsupported,
                "this release does not know the command",
            )),
        }
    }

    fn gone(&self, connection: u64) {
        {
            let mut inner = self.inner();
            let Some(active) = &mut inner.active else { return };
            let Some(pause) = &mut active.pause else { return };
            if pause.owner != Some(connection) {
                return;
            }
            pause.owner = None;
        }
        self.settle();
    }

    fn ended(&self) {
        self.set_end();
    }
}

fn exchange(drive: &Arc<Drive>, paused: &Paused, plan: &Plan) -> Done<()> {
    // Also the same files again: they may have been changed.
    let prepared = drive.prepare(plan).map_err(|error| failure(&error))?;
    paused.replace(prepared).map_err(|error| failure(&error))
}

/// A disk that is paused by a connection that is there is that connection's.
fn refuse_other_pause(inner: &Inner, connection: u64) -> Done<()> {
    let pause = inner.active.as_ref().and_then(|active| active.pause.as_ref());
    match pause.and_then(|pause| pause.owner) {
        Some(owner) if owner != connection => Err(paused_by_another()),
        _ => Ok(()),
    }
}

/// Takes the lock of those who change the images, or says why not.
fn try_lock(path: &Path) -> Result<Option<File>, String> {
    match File::open(path) {
        // There is nobody any more who could hold it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
        Ok(file) => match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(errno) => Err(format!("{} is locked: {errno}", path.display())),
        },
    }
}

/// Which images the disk has now, by the path of its leaf: ours, or a leaf that was put upon ours.
fn look(plan: &Plan, ours: (u64, u64)) -> Result<Plan, String> {
    let id =
        |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    if id(&plan.leaf.path) == Some(ours) {
        return Ok(plan.clone());
    }
    if plan.leaf.format != Format::Vhd {
        return Err(format!("{} is another file", plan.leaf.path.display()));
    }
    let mut above = VecDeque::new();
    let mut path = plan.leaf.path.clone();
    while above.len() + plan.backing.len() < MOST_IMAGES {
        let info = vhd::image::probe(&path).map_err(|error| error.to_string())?;
        above.push_back(Layer { path: path.clone(), format: Format::Vhd });
        // A parent lies beside its child, or it is not one that our side has made.
        let Some(name) = info.parent.as_ref().and_then(|parent| parent.sibling()) else { break };
        path = path.with_file_name(name);
        if id(&path) == Some(ours) {
            above.push_back(Layer { path, format: Format::Vhd });
            above.extend(plan.backing.iter().cloned());
            let Some(leaf) = above.pop_front() else { break };
            sync_folder_of(&leaf.path);
            let backing = above.into();
            return Ok(Plan { leaf, backing, read_only: plan.read_only });
        }
    }
    Err(format!("{} is another disk", plan.leaf.path.display()))
}

/// What is written from now on lies in a file that must be found again after a power cut. If it
/// cannot be made sure of, nothing better can be done than to go on.
fn sync_folder_of(path: &Path) {
    if let Some(folder) = path.parent() {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

pub(super) fn failure(error: &Error) -> Failure {
    let kind = match error.errno {
        Errno::NoSpace => FailureKind::NoSpace,
        Errno::NotPermitted => FailureKind::InUse,
        _ => FailureKind::Storage,
    };
    Failure::new(kind, &error.what)
}

pub(super) fn not_active() -> Failure {
    Failure::new(FailureKind::NotActive, "the disk is not active")
}

pub(super) fn paused_by_another() -> Failure {
    Failure::new(FailureKind::Busy, "the disk is paused by somebody else")
}

fn value(of: &impl Serialize) -> Done {
    serde_json::to_value(of)
        .map_err(|error| Failure::new(FailureKind::Other, format!("no answer: {error}")))
}

fn nothing((): ()) -> Value {
    json!({})
}
