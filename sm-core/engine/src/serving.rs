//! The processes that serve attached disks: one for each VDI whose content is not the bytes of a
//! file or device.
//!
//! A process outlives this one. It is found again by its directory, which follows from the state
//! directory and the VDI, and what it does is asked of it, not remembered here.
//!
//! Every function blocks for as long as a process may take, so all run on threads for that.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use datapath::control::client::{self, Error as Said};
use datapath::control::protocol::{FailureKind, State, Status, Tracking};
use datapath::control::{Client, Place, Run};
use datapath::disk::{Format, Layer, Limits, Plan};
use sm_model::{Access, AttachMode, Error, ImageFormat, Kind, OperationId, Result, VdiUuid};
use sm_step::step;

/// How long a process may take for what does not depend on storage.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How long it may take to open, to close, or to make durable what was written.
pub(crate) const STORAGE: Duration = Duration::from_secs(60);

/// How long the requests of a guest may take to end before a pause is given up.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// The data paths of one installation.
pub(crate) struct Datapaths {
    run: Run,
    program: Option<PathBuf>,
    /// The disks that are paused, each by its connection.
    paused: Mutex<HashMap<VdiUuid, Held>>,
    /// Those whose leaf is being merged.
    pub(crate) merging: Mutex<HashMap<VdiUuid, Held>>,
}

/// A connection whose end would end something.
pub(crate) struct Held {
    pub(crate) client: Client,
    /// The operation that it is for, where that is known.
    pub(crate) operation: Option<OperationId>,
}

/// The images of a disk, for a process that puts into them what one that was killed has left.
#[derive(Clone)]
pub(crate) struct Left {
    pub(crate) plan: Plan,
    pub(crate) shut_out: Option<PathBuf>,
}

/// What a process has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wanted {
    /// There shall be none.
    Nothing,
    /// It shall be there, with no image open.
    Attached,
    /// It shall serve.
    Active,
}

impl Datapaths {
    pub(crate) fn new(state: &std::path::Path, program: Option<Utf8PathBuf>) -> Self {
        Self {
            run: Run::of_installation(state),
            program: program.map(Into::into),
            paused: Mutex::default(),
            merging: Mutex::default(),
        }
    }

    /// The name of the installation, as drivers are told it.
    pub(crate) fn installation(&self) -> String {
        self.run.installation()
    }

    /// The directory of a VDI's process.
    pub(crate) fn place(&self, vdi: VdiUuid) -> Place {
        self.run.disk(&vdi.to_string())
    }

    /// The VDIs for which there is a directory.
    pub(crate) fn all(&self) -> Result<Vec<VdiUuid>> {
        let places = self.run.disks().map_err(|error| run_error(&error))?;
        Ok(places.iter().filter_map(|place| place.name().parse().ok()).collect())
    }

    /// What the process of a VDI does; none without one.
    pub(crate) fn status(&self, vdi: VdiUuid) -> Result<Option<Status>> {
        let Some(mut client) = self.find(vdi)? else { return Ok(None) };
        client.status(SOON).map(Some).map_err(|error| told(vdi, &error))
    }

    /// The process of a VDI that must have one.
    pub(crate) fn must_find(&self, vdi: VdiUuid) -> Result<Client> {
        self.find(vdi)?.ok_or_else(|| {
            Error::new(Kind::Unreachable, format!("the data path of VDI {vdi} is gone"))
                .context("vdi", vdi)
                .hint("the next operation on the VDI, or a scan of its SR, starts it again")
        })
    }

    pub(crate) fn find(&self, vdi: VdiUuid) -> Result<Option<Client>> {
        let place = self.place(vdi);
        if !place.exists() {
            return Ok(None);
        }
        client::find(&place).map_err(|error| told(vdi, &error))
    }

    /// Starts the process of a VDI unless it is there. Answers how clients find the disk, and a
    /// connection to it.
    fn start(&self, vdi: VdiUuid) -> Result<(Access, Client)> {
        let place = self.place(vdi);
        let program = client::locate(self.program.as_deref()).map_err(|error| told(vdi, &error))?;
        let client = client::start(&place, &program).map_err(|error| told(vdi, &error))?;
        step!("core.datapath_started");
        Ok((Access::Nbd { uri: place.uri() }, client))
    }

    /// As [`Datapaths::start`], and what it does. One that is being killed takes connections until
    /// its last thread has ended, which may wait for storage: then another one is started.
    pub(crate) fn start_and_ask(&self, vdi: VdiUuid) -> Result<(Access, Status)> {
        let until = Instant::now() + SOON;
        loop {
            let (access, mut client) = self.start(vdi)?;
            match client.status(SOON) {
                Err(error) if Instant::now() < until => {
                    tracing::debug!(%vdi, %error, "a data path that was found does not answer");
                    std::thread::sleep(Duration::from_millis(5));
                }
                other => return Ok((access, other.map_err(|error| told(vdi, &error))?)),
            }
        }
    }

    /// Has the process of a VDI serve its images.
    pub(crate) fn activate(
        &self,
        vdi: VdiUuid,
        plan: Plan,
        tracking: Tracking,
        epoch: u64,
        limits: Limits,
    ) -> Result<()> {
        let Some(mut client) = self.find(vdi)? else {
            let text = format!("the data path of VDI {vdi} ended just after it was started");
            return Err(Error::internal(text).hint(log_hint(&self.place(vdi))));
        };
        let log = tracking.changes.clone().filter(|log| !plan.read_only && log.exists());
        let activated = client.activate_tracked(plan, epoch, tracking, STORAGE).and_then(|()| {
            if limits == Limits::default() { Ok(()) } else { client.limit(limits, SOON) }
        });
        activated.map_err(|error| told(vdi, &error))?;
        if log.is_some() {
            let status = client.status(SOON).map_err(|error| told(vdi, &error))?;
            if let Err(error) = refuse_untracked(vdi, &status) {
                client.deactivate(STORAGE).map_err(|error| told(vdi, &error))?;
                return Err(error);
            }
        }
        step!("core.datapath_activated");
        Ok(())
    }

    /// Has the process of a VDI close its images; what was written is on the storage then. One
    /// that was killed has left what it had answered: `revive` opens the images once more, to have
    /// that on the storage too.
    ///
    /// One that dies meanwhile is one that was killed: a process takes connections until its last
    /// thread has ended, so what answers to `find` may never answer again. One that is paused is
    /// waited for: maintenance, which may be that of another process and takes no VDI's lock, does so
    /// while it exchanges the images.
    pub(crate) fn deactivate(&self, vdi: VdiUuid, revive: Option<&Left>) -> Result<()> {
        let until = Instant::now() + STORAGE;
        loop {
            let found = match self.find(vdi)? {
                None => self.redo(vdi, revive.cloned()),
                found => Ok(found),
            };
            let done = found.and_then(|client| match client {
                Some(mut client) => client.deactivate(STORAGE),
                None => Ok(()),
            });
            match done {
                Err(error @ Said::Silent { .. }) if Instant::now() < until => {
                    tracing::debug!(%vdi, %error, "a data path has ended while it was to close");
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) if error.kind() == Some(FailureKind::Busy) && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                done => {
                    done.map_err(|error| told(vdi, &error))?;
                    step!("core.datapath_deactivated");
                    return Ok(());
                }
            }
        }
    }

    /// Ends the process of a VDI and removes its directory. Nothing to do is success.
    pub(crate) fn end(&self, vdi: VdiUuid, revive: Option<&Left>) -> Result<()> {
        let place = self.place(vdi);
        if !place.exists() {
            return Ok(());
        }
        self.deactivate(vdi, revive)?;
        client::end(&place, SOON).map_err(|error| told(vdi, &error))?;
        step!("core.datapath_ended");
        Ok(())
    }

    /// A process with the images of one that was killed, if that one has left something to redo.
    /// An error is to be tried again: that process has died, too.
    fn redo(&self, vdi: VdiUuid, left: Option<Left>) -> Result<Option<Client>, Said> {
        let place = self.place(vdi);
        let open = place.has_pending() && place.moved().is_none();
        let Some(left) = left.filter(|left| !left.plan.read_only && open) else { return Ok(None) };
        let tracking = Tracking { shut_out: left.shut_out, ..Tracking::default() };
        let redone = client::locate(self.program.as_deref())
            .and_then(|program| client::start(&place, &program))
            .and_then(|mut client| {
                client.activate_tracked(left.plan, 0, tracking, STORAGE).map(|()| client)
            });
        match redone {
            Ok(client) => Ok(Some(client)),
            Err(error @ Said::Silent { .. }) => Err(error),
            Err(error) => {
                // The guest is gone, and what it has flushed is on the storage in any case.
                tracing::warn!(%vdi, %error,
                    "what a killed data path had not yet put on the storage is lost");
                Ok(None)
            }
        }
    }

    /// Sets the limits of a VDI that is served.
    pub(crate) fn limit(&self, vdi: VdiUuid, limits: Limits) -> Result<()> {
        let Some(mut client) = self.find(vdi)? else { return Ok(()) };
        match client.limit(limits, SOON) {
            // They are set when it is activated.
            Err(error) if error.kind() == Some(FailureKind::NotActive) => Ok(()),
            other => other.map_err(|error| told(vdi, &error)),
        }
    }

    // What drivers ask for -------------------------------------------------------------------------

    pub(crate) fn paused(&self) -> MutexGuard<'_, HashMap<VdiUuid, Held>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pauses VDIs, all at once. After an error none of them is.
    pub(crate) fn pause(
        &self,
        vdis: &[VdiUuid],
        lock: Option<&str>,
        close: bool,
        operation: Option<OperationId>,
    ) -> Result<()> {
        let until = Instant::now() + DRAIN;
        let one = |vdi: VdiUuid| self.pause_one(vdi, lock, close, until);
        // All at the same time: the first does not wait for what the last has to make durable.
        let paused: Vec<Result<Option<Client>>> = match vdis {
            [vdi] => vec![one(*vdi)],
            all => std::thread::scope(|scope| {
                let threads: Vec<_> =
                    all.iter().map(|vdi| scope.spawn(move || one(*vdi))).collect();
                let panicked = |_| Err(Error::internal("a thread that pauses a VDI panicked"));
                threads.into_iter().map(|it| it.join().unwrap_or_else(panicked)).collect()
            }),
        };
        let mut got = Vec::new();
        for (vdi, client) in vdis.iter().zip(paused) {
            // After an error those that are paused go on: their connections end here.
            got.extend(client?.map(|client| (*vdi, Held { client, operation })));
        }
        self.paused().extend(got);
        step!("core.datapath_paused");
        Ok(())
    }

    /// Pauses one VDI; none if it is not served just now.
    fn pause_one(
        &self,
        vdi: VdiUuid,
        lock: Option<&str>,
        close: bool,
        until: Instant,
    ) -> Result<Option<Client>> {
        // Once more by the same connection is the same pause.
        let held = self.paused().remove(&vdi).map(|held| held.client);
        let Some(mut client) = held.map_or_else(|| self.find(vdi), |held| Ok(Some(held)))? else {
            return Err(Error::new(
                Kind::InUse,
                format!("VDI {vdi} has no data path that could be paused"),
            )
            .legacy(24));
        };
        let left = until.saturating_duration_since(Instant::now());
        let lock = lock.map(PathBuf::from);
        let paused = if close { client.pause_closed(lock, left) } else { client.pause(lock, left) };
        match paused {
            Ok(_) => Ok(Some(client)),
            Err(error) if error.kind() == Some(FailureKind::NotActive) => Ok(None),
            Err(error) => Err(told(vdi, &error)),
        }
    }

    /// Has a VDI that is served go over to other images, and go on.
    ///
    /// One that is being activated is waited for: the images that it was told may be those of before.
    /// One that is activated later with such images finds that they are no chain any more.
    pub(crate) fn refresh(&self, vdi: VdiUuid, access: &[Access]) -> Result<()> {
        let held = self.paused().remove(&vdi).map(|held| held.client);
        let mut paused = held.is_some();
        let Some(mut client) = held.map_or_else(|| self.find(vdi), |client| Ok(Some(client)))?
        else {
            return Ok(());
        };
        let mut status = client.status(SOON).map_err(|error| told(vdi, &error))?;
        if status.plan.is_none() {
            // A status waits for nobody, a pause does.
            match client.pause(None, DRAIN) {
                Err(error) if error.kind() == Some(FailureKind::NotActive) => return Ok(()),
                waited => waited.map_err(|error| told(vdi, &error))?,
            };
            paused = true;
            status = client.status(SOON).map_err(|error| told(vdi, &error))?;
        }
        if crate::changed::log_of(access).is_some_and(|log| log.exists()) {
            refuse_untracked(vdi, &status)?;
        }
        let Some(served) = status.plan else { return Ok(()) };
        let Some(plan) = plan_of(access, served.read_only) else {
            return Err(Error::internal(format!("VDI {vdi} is no image any more")));
        };
        client.refresh(plan, STORAGE).map_err(|error| told(vdi, &error))?;
        if paused {
            client.resume(SOON).map_err(|error| told(vdi, &error))?;
        }
        step!("core.datapath_refreshed");
        Ok(())
    }

    /// When this is dropped, nothing is paused or merged by a call of an operation any more: whoever
    /// still is looks by himself. A driver of an earlier release does not say for which operation
    /// it pauses: then it is for that on `vdis`.
    pub(crate) fn let_go<'a>(&'a self, operation: OperationId, vdis: &[VdiUuid]) -> LetGo<'a> {
        LetGo { datapaths: self, operation, vdis: vdis.to_vec() }
    }
}

/// Lets go of what is still paused when dropped.
pub(crate) struct LetGo<'a> {
    datapaths: &'a Datapaths,
    operation: OperationId,
    vdis: Vec<VdiUuid>,
}

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        let stays = |vdi: &VdiUuid, held: &mut Held| match held.operation {
            Some(operation) => operation != self.operation,
            None => !self.vdis.contains(vdi),
        };
        self.datapaths.paused().retain(stays);
        self.datapaths.merging().retain(stays);
    }
}

/// A process of an earlier release would write past the log of changed blocks.
fn refuse_untracked(vdi: VdiUuid, status: &Status) -> Result<()> {
    let reading = status.plan.as_ref().is_none_or(|plan| plan.read_only);
    if reading || status.changes.is_some() {
        return Ok(());
    }
    let release = &status.release;
    Err(Error::unsupported(format!(
        "the data path of VDI {vdi} is of release {release} and does not track changes"
    ))
    .context("vdi", vdi)
    .hint("detach the VDI and attach it again, with the sm-datapath of this release"))
}

/// Whether a status is that of a disk that is served.
pub(crate) fn is_active(status: &Status) -> bool {
    status.state != State::Attached
}

/// The images of a disk that is not the bytes of its file; none for one that is.
pub(crate) fn plan_of(access: &[Access], read_only: bool) -> Option<Plan> {
    let Some(Access::File { path, format: ImageFormat::Vhd, backing, .. }) = access.first() else {
        return None;
    };
    let backing = backing.iter().map(|image| Layer {
        path: image.path.clone().into(),
        format: match image.format {
            ImageFormat::Vhd => Format::Vhd,
            ImageFormat::Raw => Format::Raw,
        },
    });
    let leaf = Layer { path: path.clone().into(), format: Format::Vhd };
    Some(Plan { leaf, backing: backing.collect(), read_only })
}

/// For writing or only for reading, as plans say it.
pub(crate) fn is_read_only(mode: AttachMode) -> bool {
    mode == AttachMode::ReadOnly
}

fn log_hint(place: &Place) -> String {
    format!("its log is {}", place.log().display())
}

fn run_error(error: &datapath::control::run::Error) -> Error {
    Error::internal(error.to_string())
        .hint("SM_RUN_DIR names a directory for sockets, which must be short")
}

/// What a data path said, or that it says nothing, in the words of the model.
pub(crate) fn told(vdi: VdiUuid, error: &Said) -> Error {
    let error = match error {
        Said::Refused(failure) => {
            let kind = match failure.kind {
                FailureKind::Busy | FailureKind::NotReady => Kind::Busy { retry_after_ms: None },
                FailureKind::InUse => Kind::InUse,
                FailureKind::NotFound => Kind::NotFound,
                FailureKind::Corrupt | FailureKind::Differs => Kind::Corrupt,
                FailureKind::NoSpace => Kind::NoSpace,
                FailureKind::Unsupported | FailureKind::Refused => Kind::Unsupported,
                FailureKind::Invalid => {
                    Kind::Config { missing: Vec::new(), candidates: Vec::new() }
                }
                FailureKind::Unreachable => Kind::Unreachable,
                FailureKind::TooSmall => Kind::Limit,
                FailureKind::Moved => Kind::Fenced,
                _ => Kind::Internal,
            };
            let text = format!("the data path of VDI {vdi}: {}", failure.message);
            let error = Error::new(kind, text);
            if failure.kind == FailureKind::InUse { error.legacy(24) } else { error }
        }
        Said::NoProgram { .. } => {
            Error::config(format!("VDI {vdi} needs a data path, and {error}"))
                .hint("install sm-datapath beside this program, or name it in SM_DATAPATH")
        }
        Said::Run(error) => run_error(error),
        Said::NotStarted { .. } | Said::Silent { .. } => {
            Error::internal(format!("VDI {vdi}: {error}"))
        }
    };
    error.context("vdi", vdi)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// It takes the request, and dies without an answer: its connections end before its lock does.
    #[test]
    fn a_process_that_dies_of_its_deactivation_is_deactivated() {
        let state = tempfile::tempdir().unwrap();
        let datapaths = Datapaths::new(state.path(), None);
        let vdi = VdiUuid::from(uuid::Uuid::from_u128(7));
        let place = datapaths.place(vdi);
        place.make().unwrap();
        let lock = place.lock().unwrap().unwrap();
        let control = UnixListener::bind(place.control()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut asked = Vec::new();
                // It takes connections until its last thread has ended.
                for _ in 0..3 {
                    let mut stream = BufReader::new(control.accept().unwrap().0);
                    let mut line = String::new();
                    stream.read_line(&mut line).unwrap();
                    asked.push(line);
                }
                assert!(asked.iter().all(|line| line.contains("\"deactivate\"")), "{asked:?}");
                drop(control);
                drop(lock);
            });
            datapaths.end(vdi, None).unwrap();
        });
        assert!(!place.exists());
        assert_eq!(datapaths.all().unwrap(), []);
    }
}
