//! The disk of a process: attached, active, paused.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::look::{Known, image_of, look, try_lock};
use super::merging::Merge;
use super::mirroring::Mirroring;
use super::protocol::{
    Command, Failure, FailureKind, Paused as PausedReply, State, Statistics, Status, Tracking,
    VERSION,
};
use super::remote::Remote;
use super::run::Place;
use super::server::Handler;
use super::tracking::{Log, bitmaps};
use crate::change::{Named, WithBitmaps};
use crate::disk::{Drive, Limits, Options, Paused, Plan};
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

pub(super) struct Pause {
    /// The connection; none when it has ended.
    pub(super) owner: Option<u64>,
    lock: Option<PathBuf>,
    paused: Paused,
    /// Footer UUID of the leaf, when the images are closed.
    image: Option<uuid::Uuid>,
    /// The parent, when it has all that the leaf has.
    merged: Option<(u64, u64)>,
}

impl Pause {
    pub(super) fn of(
        owner: u64,
        lock: Option<PathBuf>,
        paused: Paused,
        merged: Option<(u64, u64)>,
    ) -> Self {
        Self { owner: Some(owner), lock, paused, image: None, merged }
    }

    fn close_images(&mut self) -> Done<()> {
        if !self.paused.is_closed() {
            self.image = image_of(&self.paused.drive().plan().leaf);
            self.paused.close_files().map_err(|error| failure(&error))?;
        }
        Ok(())
    }

    /// Goes over to the images of a plan; the same ones again are opened anew.
    fn exchange(&mut self, plan: &Plan) -> Done<()> {
        exchange(&self.paused, plan)?;
        (self.image, self.merged) = (None, None);
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
        inner.active = Some(Active { drive, pause: None, log, merge: None });
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
        active.log.end();
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

    fn pause(
        inner: &mut Inner,
        connection: u64,
        patience: Duration,
        lock: Option<PathBuf>,
        close: bool,
    ) -> Done<PausedReply> {
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        match &mut active.pause {
            Some(pause) if pause.owner.is_none_or(|owner| owner == connection) => {
                // One whose owner is gone is taken over: whoever pauses holds the lock that we
                // would have to wait for, and says what the images are when he is done.
                pause.owner = Some(connection);
                pause.lock = lock;
                if close {
                    pause.close_images()?;
                }
                return Ok(PausedReply { milliseconds: 0, closed: pause.paused.is_closed() });
            }
            Some(_) => return Err(paused_by_another()),
            None => {}
        }
        active.end_merge()?;
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
        active.log.close(&paused);
        let pause = active.pause.insert(Pause::of(connection, lock, paused, None));
        if close && let Err(failure) = pause.close_images() {
            active.go_on()?;
            return Err(failure);
        }
        let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(PausedReply { milliseconds, closed: close })
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
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        match &mut active.pause {
            Some(pause) if pause.owner != connection => return Err(paused_by_another()),
            Some(pause) => pause.exchange(plan)?,
            None => {
                active.end_merge()?;
                let paused =
                    active.drive.pause(Instant::now() + DRAIN).map_err(|error| failure(&error))?;
                // Its size may change.
                active.log.close(&paused);
                let exchanged = exchange(&paused, plan);
                active.log.open(&paused).map_err(|error| failure(&error))?;
                self.show_log(active);
                exchanged?;
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
        let Some(pause) = active.pause.as_mut().filter(|pause| pause.owner.is_none()) else {
            return Ok(());
        };
        // Held until the end: nobody begins a change in between.
        let _held = pause.lock.as_deref().map(try_lock).transpose()?;
        let known =
            Known { leaf: active.drive.leaf_id(), image: pause.image, merged: pause.merged };
        let plan = look(&active.drive.plan(), known)?;
        pause.exchange(&plan).map_err(|failure| failure.message)?;
        let leaf = plan.leaf.path.display();
        active.go_on().map_err(|failure| failure.message)?;
        tracing::warn!(%leaf, "whoever paused the disk is gone; it goes on");
        self.write_plan(&plan);
        self.show_log(active);
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
            Command::Pause { milliseconds, lock, close } => {
                let patience = Duration::from_millis(milliseconds);
                self.wait_for_the_dead(connection);
                let paused = Self::pause(&mut self.inner(), connection, patience, lock, close)?;
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
                            pause.exchange(&active.drive.plan())?;
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
            Command::Merge { rate } => self.merge(connection, rate).map(nothing),
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

fn exchange(paused: &Paused, plan: &Plan) -> Done<()> {
    // Also the same files again: they may have been changed.
    let prepared = paused.drive().prepare(plan).map_err(|error| failure(&error))?;
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
