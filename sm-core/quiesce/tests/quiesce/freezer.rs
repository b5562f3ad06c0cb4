//! The process: a guest goes on whatever happens to anybody else.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use sm_model::{Kind, VdiUuid};
use sm_quiesce::freezer::{Cause, Files, Start};
use sm_quiesce::{Freezer, Limits, Method, Outcome, Report};
use uuid::Uuid;

use crate::fake::{Fake, Say};

struct World {
    folder: tempfile::TempDir,
    fake: Fake,
    limits: Limits,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new(folder.path());
        Self { folder, fake, limits: Limits::default() }
    }

    fn start(&self) -> Freezer {
        let method = Method::Agent { socket: self.fake.socket.clone(), mounts: Vec::new() };
        let folder = self.folder.path().join("reports");
        let start = Start { method, set: Uuid::nil(), limits: self.limits, folder };
        Freezer::start(Path::new(env!("CARGO_BIN_EXE_sm-freezer")), start).unwrap()
    }

    /// One whose guest is at rest.
    fn frozen(&self) -> Freezer {
        let mut freezer = self.start();
        freezer.prepare().unwrap();
        assert_eq!(freezer.freeze(&[]).unwrap().unwrap().count, 2);
        assert_eq!(self.fake.guest().frozen, 2);
        freezer
    }

    fn goes_on(&self) {
        self.fake.wait("the guest is still frozen", |guest| guest.frozen == 0);
    }

    /// What the process has written at its end.
    fn report(&self) -> Report {
        let files = Files::new(&self.folder.path().join("reports"), Uuid::nil());
        files.ended(Instant::now() + Duration::from_secs(20)).unwrap();
        files.report().unwrap()
    }
}

fn taken() -> Outcome {
    Outcome::Taken(Vec::new())
}

#[test]
fn a_guest_that_is_told_in_time_was_at_rest() {
    let world = World::new();
    let report = world.frozen().thaw(taken()).unwrap();
    assert_eq!((report.cause, report.frozen, report.goes_on), (Cause::Told, Some(2), true));
    assert_eq!(report.held(world.limits.window), Ok(()));
    assert_eq!(world.report(), report);
    assert_eq!(world.fake.guest().frozen, 0);
}

#[test]
fn the_window_ends_whatever_its_owner_does() {
    let mut world = World::new();
    world.limits.window = Duration::from_millis(200);
    let mut freezer = world.frozen();
    world.goes_on();
    let report = freezer.thaw(taken()).unwrap();
    assert_eq!(report.cause, Cause::Window);
    let error = report.held(world.limits.window).unwrap_err();
    assert_eq!(error.kind, Kind::DeadlineExceeded);
    assert_eq!(error.hint.as_deref(), Some("it may stay at rest for 200 ms"));
}

#[test]
fn a_guest_goes_on_when_its_owner_is_gone() {
    let world = World::new();
    drop(world.frozen());
    world.goes_on();
    let report = world.report();
    assert_eq!((report.cause, report.goes_on), (Cause::Orphaned, true));
}

#[test]
fn an_owner_that_goes_while_the_guest_is_being_frozen_leaves_it_thawed() {
    let mut world = World::new();
    world.limits.freeze = Duration::from_millis(300);
    let mut freezer = world.start();
    freezer.prepare().unwrap();
    // The agent freezes and does not say so.
    world.fake.instead("guest-fsfreeze-freeze", Say::Nothing);
    world.fake.guest().frozen = 2;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let report = freezer.freeze(&[]).unwrap().unwrap_err();
            assert_eq!(report.cause, Cause::NotFrozen);
            assert_eq!(report.refused.unwrap().kind, Kind::DeadlineExceeded);
        });
    });
    world.goes_on();
    let last = world.fake.log().pop();
    assert_eq!(last.as_deref(), Some("guest-fsfreeze-thaw"));
}

#[test]
fn a_signal_lets_the_guest_go_on_first() {
    let world = World::new();
    let mut freezer = world.frozen();
    let pid = i32::try_from(freezer.process().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // Not of our session: what ends this one does not end it.
    let session = rustix::process::getsid(Some(pid)).unwrap();
    assert_eq!(session, pid);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    world.goes_on();
    let report = freezer.thaw(taken()).unwrap();
    assert_eq!(report.cause, Cause::Signal);
    let error = report.held(world.limits.window).unwrap_err();
    assert_eq!(error.message, "the process that held the guest was told to end");
}

#[test]
fn a_process_that_was_killed_is_followed_by_one_that_looks() {
    let world = World::new();
    let mut freezer = world.frozen();
    let pid = i32::try_from(freezer.process().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let error = freezer.thaw(taken()).unwrap_err();
    assert_eq!(error.message, "the process that holds the guest has ended");
    assert_eq!(world.fake.guest().frozen, 2, "nobody was left to do it");
    let report = world.start().rescue().unwrap();
    assert_eq!((report.cause, report.goes_on), (Cause::Rescued, true));
    assert!(report.held(world.limits.window).is_err());
    assert_eq!(world.fake.guest().frozen, 0);
}

#[test]
fn an_agent_that_dies_while_its_guest_is_frozen_is_asked_again() {
    let world = World::new();
    let mut freezer = world.frozen();
    // The next one comes up in the same state, as the real one does.
    world.fake.instead("guest-fsfreeze-thaw", Say::HangUp);
    let report = freezer.thaw(taken()).unwrap();
    assert!(report.goes_on);
    let error = report.held(world.limits.window).unwrap_err();
    let name = world.fake.socket.display();
    assert_eq!(error.message, format!("the guest agent at {name} has gone away"));
    assert_eq!(world.fake.guest().frozen, 0);
}

#[test]
fn a_writer_that_refuses_is_told_in_its_words() {
    let world = World::new();
    let mut freezer = world.start();
    freezer.prepare().unwrap();
    let words = "failed to add C:\\ to snapshot set: writer SqlServerWriter vetoed";
    world.fake.instead("guest-fsfreeze-freeze", Say::Error("GenericError", words));
    let report = freezer.freeze(&[VdiUuid::random()]).unwrap().unwrap_err();
    let error = report.held(world.limits.window).unwrap_err();
    assert_eq!(error.backend.as_deref(), Some(words));
    assert_eq!(world.fake.log().pop().as_deref(), Some("guest-fsfreeze-thaw"));
}

#[test]
fn what_windows_says_at_the_thaw_is_what_counts() {
    let world = World::new();
    let mut freezer = world.frozen();
    let words = "couldn't hold writes: fsfreeze is limited up to 10 seconds: ";
    world.fake.instead("guest-fsfreeze-thaw", Say::Error("GenericError", words));
    let report = freezer.thaw(taken()).unwrap();
    let error = report.held(world.limits.window).unwrap_err();
    assert_eq!(error.backend.as_deref(), Some(words));
    assert!(report.goes_on);
}

#[test]
fn a_guest_that_never_answers_again_is_not_said_to_go_on() {
    let mut world = World::new();
    world.limits.thaw = Duration::from_millis(100);
    world.limits.rescue = Duration::from_millis(300);
    let mut freezer = world.frozen();
    for _ in 0..40 {
        world.fake.instead("guest-fsfreeze-thaw", Say::Nothing);
        world.fake.instead("guest-fsfreeze-status", Say::Nothing);
    }
    let report = freezer.thaw(taken()).unwrap();
    assert!(!report.goes_on);
    let error = report.held(world.limits.window).unwrap_err();
    assert_eq!(
        error.hint.as_deref(),
        Some("the guest may still be frozen: it does not answer; look at it")
    );
    assert!(report.failed.is_some() && report.thawed.is_none());
    let _ = json!(report);
}
