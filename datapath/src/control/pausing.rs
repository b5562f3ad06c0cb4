//! Pauses: who has stopped the disk, what he may do meanwhile, and what happens when he is gone.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::look::{Known, image_of, look, try_lock};
use super::protocol::{Failure, FailureKind, Paused as PausedReply, State};
use super::served::{Active, Inner, Served, failure, not_active, paused_by_another};
use crate::disk::{Paused, Plan};
use crate::export::Export;

/// How often it is looked whether the images are a whole again.
const LOOK: Duration = Duration::from_millis(100);

/// How long requests may take to end when the images are exchanged.
const DRAIN: Duration = Duration::from_secs(30);

/// How long it may take to see that a connection has ended.
const BURIAL: Duration = Duration::from_secs(1);

/// How long something that is not urgent waits for a pause to end.
const CALM: Duration = Duration::from_secs(5);

type Done<T> = Result<T, Failure>;

pub(super) struct Pause {
    /// The connection; none when it has ended.
    pub(super) owner: Option<u64>,
    lock: Option<PathBuf>,
    pub(super) paused: Paused,
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

impl Active {
    /// Goes over to the images of a plan in the pause that there is.
    pub(super) fn exchange(&mut self, plan: &Plan) -> Done<()> {
        let Some(mut pause) = self.pause.take() else { return Ok(()) };
        let closed = pause.paused.is_closed();
        let exchanged = pause.exchange(plan);
        if exchanged.is_ok() {
            self.forget_merge(&pause.paused, closed);
        }
        self.pause = Some(pause);
        exchanged
    }
}

impl Served {
    pub(super) fn pause(
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
            let drive = active.drive.as_ref();
            drive.flush_until_short(start + patience / 2).map_err(|error| failure(&error))?;
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
    pub(super) fn wait_for_the_dead(&self, connection: u64) {
        let until = Instant::now() + BURIAL;
        while refuse_other_pause(&self.inner(), connection).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the end of a pause, which is short, or whose owner is gone: then it ends when
    /// those who were with the owner have ended, too, and let go of the lock.
    pub(super) fn wait_for_going_on(&self) {
        let until = Instant::now() + CALM;
        loop {
            {
                let mut inner = self.inner();
                // Why it cannot is told by who settles it.
                let _ = self.try_to_go_on(&mut inner);
                if inner.active.as_ref().is_none_or(|active| active.pause.is_none()) {
                    return;
                }
            }
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Goes over to the images of a plan, within the pause of a connection or with one of its own.
    pub(super) fn refresh(
        &self,
        inner: &mut Inner,
        connection: Option<u64>,
        plan: &Plan,
    ) -> Done<()> {
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        match &mut active.pause {
            Some(pause) if pause.owner.is_some() && pause.owner != connection => {
                return Err(paused_by_another());
            }
            Some(pause) => {
                // Whoever tells a disk what to serve that waits for nobody holds the lock that it
                // would have to wait for; nobody else would end the pause.
                let deserted = pause.owner.is_none() && connection.is_some();
                active.exchange(plan)?;
                if deserted {
                    active.go_on()?;
                    self.show_log(active);
                    self.show(State::Active);
                }
            }
            None => {
                active.end_merge()?;
                let paused =
                    active.drive.pause(Instant::now() + DRAIN).map_err(|error| failure(&error))?;
                // Its size may change.
                active.log.close(&paused);
                let exchanged = exchange(&paused, plan);
                active.forget_merge(&paused, false);
                active.log.open(&paused).map_err(|error| failure(&error))?;
                self.show_log(active);
                exchanged?;
            }
        }
        self.write_plan(plan);
        Ok(())
    }

    /// For people, and for whoever looks after a crash; nothing depends on it.
    pub(super) fn write_plan(&self, plan: &Plan) {
        let text = serde_json::to_vec_pretty(plan).unwrap_or_default();
        let _ = std::fs::write(self.place.plan(), text);
    }

    /// Whoever paused is gone. Waits for the lock of those who change the images, looks, and goes
    /// on. Runs on the thread of the connection that has ended.
    pub(super) fn settle(&self) {
        let mut said = String::new();
        loop {
            let why = {
                // Not held while it sleeps or logs. What it shows is shown within: whoever takes the
                // pause over right after has the last word on the state.
                let mut inner = self.inner();
                let gone_on = self.try_to_go_on(&mut inner);
                self.looks.fetch_add(1, Ordering::Relaxed);
                let Err(why) = gone_on else { return };
                if why != said {
                    self.show(State::Waiting);
                }
                why
            };
            if why != said {
                tracing::warn!(why, "whoever paused the disk is gone; it waits");
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
        active.exchange(&plan).map_err(|failure| failure.message)?;
        let leaf = plan.leaf.path.display();
        active.go_on().map_err(|failure| failure.message)?;
        tracing::warn!(%leaf, "whoever paused the disk is gone; it goes on");
        self.write_plan(&plan);
        self.show_log(active);
        self.show(State::Active);
        Ok(())
    }
}

fn exchange(paused: &Paused, plan: &Plan) -> Done<()> {
    // Also the same files again: they may have been changed.
    let prepared = paused.drive().prepare(plan).map_err(|error| failure(&error))?;
    paused.replace(prepared).map_err(|error| failure(&error))
}

/// A disk that is paused by a connection that is there is that connection's.
pub(super) fn refuse_other_pause(inner: &Inner, connection: u64) -> Done<()> {
    let pause = inner.active.as_ref().and_then(|active| active.pause.as_ref());
    match pause.and_then(|pause| pause.owner) {
        Some(owner) if owner != connection => Err(paused_by_another()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use std::io::Write;
    use std::sync::Arc;

    use rustix::fs::{FlockOperation, flock};

    use super::super::protocol::{Command, Tracking};
    use super::super::run::Place;
    use super::super::served::How;
    use super::super::server::Handler;
    use super::*;
    use crate::disk::{Format, Layer};

    /// A log whose line is written when somebody else has paused the disk meanwhile.
    struct Slow {
        served: Arc<Served>,
        lock: PathBuf,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            if line.windows(8).any(|part| part == b"it waits") {
                self.served.handle(2, pause(&self.lock)).unwrap();
            }
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn pause(lock: &std::path::Path) -> Command {
        Command::Pause { milliseconds: 30_000, lock: Some(lock.to_owned()), close: false }
    }

    #[test]
    fn whoever_takes_a_pause_over_has_the_last_word_on_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path().join("i").join("disk"));
        place.make().unwrap();
        let (leaf, lock) = (folder.path().join("leaf.vhd"), folder.path().join("lock"));
        let image =
            vhd::image::NewImage { uuid: uuid::Uuid::new_v4(), size: 4 << 20, parent: None };
        vhd::image::create(&leaf, &image).unwrap();
        let held = std::fs::File::create(&lock).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        let served = Served::new(place, How::default());
        let leaf = Layer { path: leaf, format: Format::Vhd };
        let plan = Plan { leaf, backing: Vec::new(), read_only: false };
        served
            .handle(1, Command::Activate { plan, epoch: 1, tracking: Tracking::default() })
            .unwrap();
        served.handle(1, pause(&lock)).unwrap();
        let log = {
            let served = Arc::clone(&served);
            move || Slow { served: Arc::clone(&served), lock: lock.clone() }
        };
        let log = tracing_subscriber::fmt().with_writer(log).finish();
        tracing::subscriber::with_default(log, || served.gone(1));
        assert_eq!(served.view().state, State::Paused);
        served.handle(2, Command::Resume).unwrap();
        assert_eq!(served.view().state, State::Active);
        served.stop();
    }
}
