//! The disk of a process: attached, active, paused.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::merging::Merge;
use super::mirroring::Mirroring;
use super::pausing::{Pause, refuse_other_pause};
use super::protocol::{
    Command, Failure, FailureKind, State, Statistics, Status, Tracking, VERSION,
};
use super::remote::Remote;
use super::run::Place;
use super::server::Handler;
use super::tracking::{Log, bitmaps};
use crate::change::{Named, WithBitmaps};
use crate::disk::{Drive, Limits, Options, Plan};
use crate::error::{Errno, Error};
use crate::export::{Export, Exports};
use crate::nbd::{self, Listener, Server};
use crate::sync::Left;

/// How long requests may take to end when the disk is closed or its images are exchanged.
const DRAIN: Duration = Duration::from_secs(30);

/// How long clients may take to leave.
pub(super) const LEAVE: Duration = Duration::from_secs(10);

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
    /// Itself, for more servers.
    pub(super) me: OnceLock<Weak<Self>>,
    /// How many times it was looked whether a deserted pause can end.
    pub(super) looks: AtomicU64,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) active: Option<Active>,
}

pub(super) struct Active {
    pub(super) drive: Arc<Drive>,
    pub(super) pause: Option<Pause>,
    pub(super) log: Log,
    pub(super) merge: Option<Merge>,
    /// Of a merge that was given up.
    pub(super) left: Option<Left>,
}

impl Active {
    /// Ends a pause.
    pub(super) fn go_on(&mut self) -> Done<()> {
        if let Some(pause) = &self.pause {
            self.log.open(&pause.paused).map_err(|error| failure(&error))?;
        }
        self.pause = None;
        Ok(())
    }
}

pub(super) struct View {
    pub(super) state: State,
    pub(super) epoch: u64,
    pub(super) drive: Option<Arc<Drive>>,
    pub(super) changes: Option<PathBuf>,
    pub(super) tracked: bool,
    pub(super) bitmaps: Vec<Named>,
}

impl View {
    /// Of a disk that nobody is served.
    pub(super) fn idle(state: State) -> Self {
        Self { state, epoch: 0, drive: None, changes: None, tracked: false, bitmaps: Vec::new() }
    }
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
            view: Mutex::new(View::idle(state)),
            end: (Mutex::new(false), Condvar::new()),
            mirroring,
            remote: Remote::default(),
            me: OnceLock::new(),
            looks: AtomicU64::new(0),
        });
        let _ = served.me.set(Arc::downgrade(&served));
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

    /// Whoever shows a state holds the lock of what it is the state of: states are shown in the order
    /// in which they come to be.
    pub(super) fn show(&self, state: State) {
        self.view().state = state;
    }

    fn status(&self) -> Status {
        let (state, epoch, drive, changes, tracked, bitmaps) = {
            let view = self.view();
            let bitmaps = view.bitmaps.iter().map(|named| named.name.clone()).collect();
            let (changes, tracked) = (view.changes.clone(), view.tracked);
            (view.state, view.epoch, view.drive.clone(), changes, tracked, bitmaps)
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
            changes,
            tracked,
            bitmaps,
            connections: near + remote.as_ref().map_or(0, |remote| remote.connections),
            statistics: drive
                .as_ref()
                .map(|drive| Statistics::from(&drive.stats()))
                .unwrap_or_default(),
            limits,
            mirror: self.mirroring.status(),
            moved: self.mirroring.moved(),
            remote,
            looks: self.looks.load(Ordering::Relaxed),
        }
    }

    /// Opens the images of a plan and serves them.
    pub fn activate(&self, plan: &Plan, epoch: u64) -> Result<(), Failure> {
        self.activate_tracked(plan, epoch, Tracking::default())
    }

    /// As [`Served::activate`], of a disk whose changes are noted or shown.
    pub fn activate_tracked(
        &self,
        plan: &Plan,
        epoch: u64,
        tracking: Tracking,
    ) -> Result<(), Failure> {
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
            if let Some(active) = inner.active.as_mut() {
                if waits {
                    // Whoever tells us what to serve has brought the images in order.
                    active.go_on()?;
                    self.show(State::Active);
                }
                self.track(active, tracking)?;
            }
            self.view().epoch = epoch;
            return Ok(());
        }
        let options = Options {
            pending: (!plan.read_only).then(|| self.place.pending()),
            direct: self.how.direct,
            shut_out: tracking.shut_out,
            ..Options::default()
        };
        let drive = Drive::open(plan, options).map_err(|error| failure(&error))?;
        // Before any client can come.
        let begun = bitmaps(&tracking.bitmaps, drive.size()).and_then(|bitmaps| {
            Ok((bitmaps, Log::begin(tracking.changes, &drive, Instant::now() + DRAIN)?))
        });
        let (bitmaps, log) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                let _ = drive.close(Instant::now() + DRAIN);
                return Err(failure(&error));
            }
        };
        self.write_plan(plan);
        *self.view() = View {
            state: State::Active,
            epoch,
            drive: Some(Arc::clone(&drive)),
            changes: log.path().cloned(),
            tracked: log.is_open(),
            bitmaps,
        };
        inner.active = Some(Active { drive, pause: None, log, merge: None, left: None });
        Ok(())
    }

    /// Takes over what a disk that is served already is told of changes. Clients that are there
    /// keep the bitmaps that they know.
    fn track(&self, active: &mut Active, tracking: Tracking) -> Done<()> {
        if !tracking.bitmaps.is_empty() {
            let named = bitmaps(&tracking.bitmaps, active.drive.size());
            self.view().bitmaps = named.map_err(|error| failure(&error))?;
        }
        if let Some(path) = tracking.changes
            && active.log.path() != Some(&path)
        {
            // Whoever activated it was of an older release.
            active.log.set_path(path);
            if active.pause.is_none() {
                let until = Instant::now() + DRAIN;
                let paused = active.drive.pause(until).map_err(|error| failure(&error))?;
                active.log.close(&paused);
                active.log.open(&paused).map_err(|error| failure(&error))?;
            }
        }
        self.show_log(active);
        Ok(())
    }

    pub(super) fn show_log(&self, active: &Active) {
        let mut view = self.view();
        (view.changes, view.tracked) = (active.log.path().cloned(), active.log.is_open());
    }

    fn deactivate(&self, inner: &mut Inner) -> Done<()> {
        let Some(mut active) = inner.active.take() else { return Ok(()) };
        // New clients are sent away from here on.
        *self.view() = View::idle(State::Attached);
        if let Err(failure) = active.end_merge() {
            tracing::warn!(%failure, "a merge is left as it is");
        }
        // A client whose request waits in a pause would never leave.
        if let Err(failure) = active.go_on() {
            // It must not be written any more.
            let Some(pause) = active.pause.take() else { return Err(failure) };
            tracing::error!(%failure, "the log of changes cannot be opened; the disk is closed");
            return pause.paused.end().map_err(|error| self::failure(&error));
        }
        active.drive.set_limits(Limits::default());
        self.mirroring.end();
        self.send_away(LEAVE);
        active.drive.close(Instant::now() + DRAIN).map_err(|error| failure(&error))?;
        if active.drive.is_given_up() {
            // It is another host's by now.
            active.log.leave();
        } else {
            active.log.end();
        }
        Ok(())
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
}

impl Exports for Served {
    fn names(&self) -> Vec<String> {
        let active = self.view().drive.is_some();
        if active { vec![self.place.name()] } else { Vec::new() }
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        let (drive, bitmaps) = {
            let view = self.view();
            (view.drive.clone()?, view.bitmaps.clone())
        };
        if !name.is_empty() && name != self.place.name() {
            return None;
        }
        if bitmaps.is_empty() {
            return Some(drive);
        }
        Some(Arc::new(WithBitmaps::new(drive, bitmaps)))
    }
}

impl Handler for Served {
    fn handle(&self, connection: u64, command: Command) -> Done {
        match command {
            Command::Status => value(&self.status()),
            Command::Activate { plan, epoch, tracking } => {
                self.activate_tracked(&plan, epoch, tracking).map(nothing)
            }
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
            Command::Changes => value(&self.changes()?),
            Command::Pause { milliseconds, lock, close } => {
                let patience = Duration::from_millis(milliseconds);
                self.wait_for_the_dead(connection);
                let mut inner = self.inner();
                let paused = Self::pause(&mut inner, connection, patience, lock, close)?;
                self.show(State::Paused);
                value(&paused)
            }
            Command::Refresh { plan } => {
                self.refresh(&mut self.inner(), Some(connection), &plan).map(nothing)
            }
            Command::Resume => {
                let mut inner = self.inner();
                let active = inner.active.as_mut().ok_or_else(not_active)?;
                match &mut active.pause {
                    Some(pause) if pause.owner == Some(connection) => {
                        if pause.paused.is_closed() {
                            let plan = active.drive.plan();
                            active.exchange(&plan)?;
                        }
                        active.go_on()?;
                        self.show_log(active);
                    }
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
            Command::Merge { pace, parent } => {
                self.wait_for_going_on();
                self.merge(connection, pace, parent.as_deref()).map(nothing)
            }
            Command::Merging => value(&self.merging(connection)?),
            Command::Converge { milliseconds, lock } => {
                value(&self.converge(connection, Duration::from_millis(milliseconds), lock)?)
            }
            Command::CancelMerge => self.cancel_merge(connection).map(nothing),
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
                    self.place
                        .forget_moved()
                        .map_err(|error| Failure::new(FailureKind::Storage, error.to_string()))?;
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
        if let Err(failure) = self.cancel_merge(connection) {
            tracing::warn!(%failure, "a merge is left as it is");
        }
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
