//! A mirror of the disk of this process: begun, looked at, switched to, ended.
//!
//! It belongs to the process, not to whoever asked for it: that program may end, and another one
//! asks how far it is. A pause and a refresh of the images leave it alone, since it copies what the
//! disk reads as. It ends with the disk's activation.
//!
//! # Which of the two is the disk
//!
//! Until the record of the move stands in the run directory, the source is; from then on the target
//! is. The record comes after the target has everything, durably, and while no request is under
//! way; it comes before the first request is refused and before the switch is answered. So whoever
//! kills this process at any moment leaves one disk:
//!
//! | killed | the record | the disk |
//! |---|---|---|
//! | before it is there | is not | the source: it has all that was answered, and the target is of no use |
//! | after it is there | is | the target: the source never answered anything that it lacks |
//!
//! A process that finds the record serves nobody, and refuses to be activated.

use std::net::ToSocketAddrs as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::protocol::{Failure, FailureKind, State};
use super::remote::Credentials;
use super::run::Place;
use super::served::{Inner, LEAVE, Served, View, failure, not_active, paused_by_another};
use crate::error::Errno;
use crate::export::Export as _;
use crate::nbd::client::Options as ClientOptions;
use crate::nbd::uri::{Address, Uri};
use crate::sync::{Failure as TargetFailure, Mirror, NbdTarget, Options, Phase, Switched};

/// How long the target may take for one request, and for the handshake.
const ANSWER: Duration = Duration::from_secs(20);

/// How long requests may take to end when a mirror begins or ends.
const DRAIN: Duration = Duration::from_secs(30);

/// How often a switch is tried, and how long it is waited for in between.
const TRIES: u32 = 5;
const SOON: Duration = Duration::from_millis(300);

/// What a [`mirror_start`](super::protocol::Command::MirrorStart) says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorStart {
    /// Where the content goes: the address of an NBD export that can be written.
    pub target: String,
    /// For an address with TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// The name in the server's certificate, where it is not the host of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Bytes per second of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// What a [`mirror_switch`](super::protocol::Command::MirrorSwitch) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorSwitch {
    /// Every byte of both is compared first. Requests wait for so long.
    #[serde(default)]
    pub verify: bool,
    /// How long to wait for requests that are under way, and for the target.
    pub milliseconds: u64,
}

/// Where a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorPhase {
    /// Something is still to be copied.
    Copying,
    /// It can be switched to.
    Ready,
    /// The target failed and is tried again; the disk does not notice.
    Retrying,
    /// It is being switched to.
    Switching,
    /// It is over; the disk is as if there had been none.
    Failed,
    /// Any phase of a later release.
    #[serde(other)]
    Other,
}

/// How far a mirror is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorStatus {
    /// The address of the target.
    pub target: String,
    /// Where it is.
    pub phase: MirrorPhase,
    /// Why it is tried again, or has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that there were to copy at the start, as far as they have been counted.
    pub total: u64,
    /// Bytes copied, those that were copied again included.
    pub copied: u64,
    /// Bytes still to be copied.
    pub dirty: u64,
    /// Writes of clients that the target got at once.
    pub forwarded: u64,
    /// Times that the target failed.
    pub retries: u64,
    /// Bytes per second that the copy is held to.
    #[serde(default)]
    pub rate: Option<u64>,
}

/// Where a disk went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The address of the disk from now on.
    pub target: String,
    /// Whether every byte was compared.
    #[serde(default)]
    pub verified: bool,
    /// When, in seconds since 1970-01-01 UTC.
    #[serde(default)]
    pub time: u64,
    /// How long the switch took, milliseconds: no request waited longer.
    #[serde(default)]
    pub milliseconds: u64,
}

/// The mirror of a process, if there is one, and where its disk went.
#[derive(Default)]
pub(super) struct Mirroring {
    running: Mutex<Option<Arc<Running>>>,
    moved: Mutex<Option<Moved>>,
    /// One after the other connects.
    starting: Mutex<()>,
}

struct Running {
    target: Uri,
    /// Bytes of the disk at the start.
    size: u64,
    mirror: Mirror,
    switching: AtomicBool,
}

impl Mirroring {
    /// With what an earlier process of the same disk has left.
    pub(super) fn of(place: &Place) -> Self {
        Self { moved: Mutex::new(place.moved()), ..Self::default() }
    }

    fn running(&self) -> MutexGuard<'_, Option<Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the disk went.
    pub(super) fn moved(&self) -> Option<Moved> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A disk that went elsewhere is not opened here any more.
    pub(super) fn refuse_moved(&self) -> Result<(), Failure> {
        match self.moved() {
            None => Ok(()),
            Some(moved) => {
                let text = format!("the disk was moved to {}", moved.target);
                Err(Failure::new(FailureKind::Moved, text))
            }
        }
    }

    /// How far the mirror is.
    pub(super) fn status(&self) -> Option<MirrorStatus> {
        let running = self.running().clone()?;
        let progress = running.mirror.progress();
        let (phase, reason) = match progress.phase {
            _ if running.switching.load(Ordering::SeqCst) => (MirrorPhase::Switching, None),
            Phase::Copying => (MirrorPhase::Copying, None),
            Phase::Ready => (MirrorPhase::Ready, None),
            Phase::Retrying(why) => (MirrorPhase::Retrying, Some(why)),
            Phase::Failed(why) => (MirrorPhase::Failed, Some(why)),
            // It is about to be taken away.
            Phase::Ended => return None,
        };
        Some(MirrorStatus {
            target: running.target.to_string(),
            phase,
            reason,
            total: progress.total,
            copied: progress.copied,
            dirty: progress.dirty + progress.copying,
            forwarded: progress.forwarded,
            retries: progress.retries,
            rate: progress.rate,
        })
    }

    /// Ends the mirror of a disk that is about to be closed.
    pub(super) fn end(&self) {
        let Some(running) = self.running().take() else { return };
        tracing::info!(target = %running.target, "the mirror ends with the disk's activation");
        if let Err(error) = running.mirror.cancel(Instant::now() + DRAIN) {
            tracing::warn!(%error, "the mirror did not end in time");
        }
    }
}

impl Served {
    /// Begins a mirror.
    pub(super) fn mirror_start(&self, asked: &MirrorStart) -> Result<MirrorStatus, Failure> {
        let mirroring = &self.mirroring;
        let _one = mirroring.starting.lock().unwrap_or_else(PoisonError::into_inner);
        mirroring.refuse_moved()?;
        if let Some(status) = mirroring.status()
            && status.phase != MirrorPhase::Failed
        {
            if status.target == asked.target {
                return Ok(status);
            }
            let text = format!("the disk is mirrored to {} already", status.target);
            return Err(Failure::new(FailureKind::InUse, text));
        }
        if self.view().drive.is_none() {
            return Err(not_active());
        }
        let target: Uri = asked.target.parse().map_err(|error: crate::nbd::uri::BadUri| {
            Failure::new(FailureKind::Invalid, error.to_string())
        })?;
        self.refuse_itself(&target)?;
        // A connection takes its time; the disk goes on meanwhile, with commands of others.
        let connected = connect(&target, asked)?;
        let mut inner = self.inner();
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        if active.pause.is_some() {
            return Err(paused_by_another());
        }
        // One that has failed.
        mirroring.end();
        let options = Options { rate: asked.rate, ..Options::default() };
        let (drive, deadline) = (&active.drive, Instant::now() + DRAIN);
        let mirror = Mirror::start(drive, Arc::new(connected), options, deadline);
        let mirror = mirror.map_err(|error| match error.errno {
            Errno::Invalid => Failure::new(FailureKind::TooSmall, error.what),
            _ => failure(&error),
        })?;
        tracing::info!(%target, "a mirror begins");
        let size = drive.size();
        let running = Running { target, size, mirror, switching: AtomicBool::new(false) };
        *mirroring.running() = Some(Arc::new(running));
        drop(inner);
        mirroring.status().ok_or_else(no_mirror)
    }

    /// A disk that is copied to itself would wait for itself.
    fn refuse_itself(&self, target: &Uri) -> Result<(), Failure> {
        let itself = match &target.address {
            Address::Unix(path) => is_same_file(path, &self.place.nbd()),
            Address::Tcp(host, port) => {
                let found = (host.as_str(), *port).to_socket_addrs().map_err(|error| {
                    Failure::new(FailureKind::Unreachable, format!("{target}: {error}"))
                })?;
                found.into_iter().any(|address| self.remote.is_at(address))
            }
        };
        if itself {
            let text = format!("{target} is this disk itself");
            return Err(Failure::new(FailureKind::Refused, text));
        }
        Ok(())
    }

    /// Another limit for the copy.
    pub(super) fn mirror_rate(&self, rate: Option<u64>) -> Result<MirrorStatus, Failure> {
        let running = self.mirroring.running().clone().ok_or_else(no_mirror)?;
        running.mirror.set_rate(rate);
        self.mirroring.status().ok_or_else(no_mirror)
    }

    /// Ends the mirror; the disk is as if there had been none. None there is no failure: answers
    /// whether there was one.
    pub(super) fn mirror_cancel(&self, connection: u64) -> Result<bool, Failure> {
        let mut inner = self.inner();
        // A watcher cannot be taken away while somebody else has stopped the requests.
        let pause = inner.active.as_mut().and_then(|active| active.pause.as_ref());
        if pause.is_some_and(|pause| pause.owner != Some(connection)) {
            return Err(paused_by_another());
        }
        let Some(running) = self.mirroring.running().clone() else { return Ok(false) };
        if pause.is_some() {
            let text = "this connection has paused the disk: resume it first";
            return Err(Failure::new(FailureKind::Busy, text));
        }
        let cancelled = running.mirror.cancel(Instant::now() + DRAIN);
        cancelled.map_err(|error| failure(&error))?;
        *self.mirroring.running() = None;
        Ok(true)
    }

    /// Has the target be the disk.
    pub(super) fn mirror_switch(&self, asked: MirrorSwitch) -> Result<Moved, Failure> {
        let mut inner = self.inner();
        if let Some(moved) = self.mirroring.moved() {
            return Ok(moved);
        }
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        if active.pause.is_some() {
            return Err(paused_by_another());
        }
        let running = self.mirroring.running().clone().ok_or_else(no_mirror)?;
        active.end_merge()?;
        if active.drive.size() != running.size {
            let text = format!(
                "the disk had {} bytes when the mirror began and has {} now",
                running.size,
                active.drive.size()
            );
            return Err(Failure::new(FailureKind::NotReady, text));
        }
        running.switching.store(true, Ordering::SeqCst);
        self.show(State::Paused);
        let done = self.switch(&mut inner, &running, asked);
        running.switching.store(false, Ordering::SeqCst);
        if done.is_err() {
            self.show(State::Active);
        }
        done
    }

    fn switch(
        &self,
        inner: &mut Inner,
        running: &Running,
        asked: MirrorSwitch,
    ) -> Result<Moved, Failure> {
        let begin = Instant::now();
        let deadline = begin + Duration::from_millis(asked.milliseconds);
        let switched = pause(&running.mirror, deadline)?;
        let moved = match self.record(&switched, running, asked.verify, begin) {
            Ok(moved) => moved,
            Err(failure) => {
                // The target has everything still, or what it lacks is copied again.
                switched.go_on(&running.mirror);
                return Err(failure);
            }
        };
        // From here on the target is the disk. Clients are sent away before their requests are
        // refused: to whoever connects again, nothing has failed.
        *self.view() = View::idle(State::Moved);
        self.send_away(Duration::ZERO);
        let active = inner.active.take();
        *self.mirroring.running() = None;
        if let Err(error) = switched.finish() {
            tracing::warn!(%error, "the disk has moved, and its files could not be closed");
        }
        if let Some(mut active) = active {
            active.log.end();
        }
        self.send_away(LEAVE);
        tracing::warn!(target = moved.target, "the disk has moved");
        Ok(moved)
    }

    /// Writes down that the target is the disk.
    fn record(
        &self,
        switched: &Switched,
        running: &Running,
        verify: bool,
        begin: Instant,
    ) -> Result<Moved, Failure> {
        if verify && let Some(found) = switched.verify().map_err(|error| failure(&error))? {
            let text = format!(
                "the target differs from the disk, first at byte {}: {} bytes are copied again, and \
                 the mirror goes on",
                found.first, found.bytes
            );
            return Err(Failure::new(FailureKind::Differs, text));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let moved = Moved {
            target: running.target.to_string(),
            verified: verify,
            time: now.as_secs(),
            milliseconds: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.place.write_moved(&moved).map_err(|error| {
            Failure::new(FailureKind::Storage, format!("the move cannot be recorded: {error}"))
        })?;
        *self.mirroring.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(moved.clone());
        Ok(moved)
    }
}

/// Pauses the disk with nothing that the target lacks. Clients that write make something to be
/// copied again now and then, which is soon done.
fn pause(mirror: &Mirror, deadline: Instant) -> Result<Switched, Failure> {
    let mut tries = 0;
    loop {
        let error = match mirror.switch(deadline) {
            Ok(switched) => return Ok(switched),
            Err(error) => error,
        };
        tries += 1;
        let now = Instant::now();
        if tries == TRIES || now >= deadline {
            return Err(Failure::new(FailureKind::NotReady, error.what));
        }
        // Whether it is, the next try says.
        let _ = mirror.wait_ready(deadline.min(now + SOON));
    }
}

fn connect(target: &Uri, asked: &MirrorStart) -> Result<NbdTarget, Failure> {
    let tls = asked.credentials.as_ref().map(Credentials::client).transpose()?;
    if target.tls && tls.is_none() {
        let text = format!("{target} needs a certificate, its key and an authority");
        return Err(Failure::new(FailureKind::Invalid, text));
    }
    let options = ClientOptions {
        timeout: ANSWER,
        tls,
        tls_name: asked.server_name.clone(),
        ..ClientOptions::default()
    };
    NbdTarget::connect(target.clone(), options, false).map_err(
        |TargetFailure { what, permanent, .. }| {
            let kind = if permanent { FailureKind::Refused } else { FailureKind::Unreachable };
            Failure::new(kind, what)
        },
    )
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    id(a).is_some_and(|a| Some(a) == id(b))
}

fn no_mirror() -> Failure {
    Failure::new(FailureKind::NotReady, "the disk is not mirrored")
}
