//! A disk that is served by a process of its own, and what that can be told.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use datapath::control::protocol::{MergePace, MergePhase, MirrorPhase, MirrorStart};
use datapath::control::{self, Client, Place};
use datapath::disk::{Limits, Plan, Rate};

use crate::images::{self, LONGEST, PATIENCE};
use crate::{Operation, Random, ended};

pub(crate) struct Disk {
    folder: tempfile::TempDir,
    place: Place,
    client: Client,
    plan: Plan,
}

/// What is done to it. A new operation is a new row.
pub(crate) const ALL: &[Operation<Disk>] = &[
    ("snapshot", snapshot),
    ("pause", pause),
    ("flush", |disk, _| disk.client.flush(PATIENCE).unwrap()),
    ("same images", |disk, _| disk.client.refresh(disk.plan.clone(), PATIENCE).unwrap()),
    ("limits", limits),
    ("map", map),
    ("merge", merge),
    ("mirror", mirror),
    ("given up merge", |disk, random| {
        begin_merge(disk, random);
        std::thread::sleep(Duration::from_millis(random.below(20)));
        disk.client.cancel_merge(PATIENCE).unwrap();
    }),
];

impl Disk {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("stress-").tempdir().unwrap();
        let plan = images::empty(folder.path());
        let place = Place::at(folder.path().join("run/disk"));
        let program = Path::new(env!("CARGO_BIN_EXE_sm-datapath"));
        let mut client = control::start(&place, program).unwrap();
        client.activate(plan.clone(), 1, PATIENCE).unwrap();
        Self { folder, place, client, plan }
    }

    pub(crate) fn uri(&self) -> String {
        self.place.uri()
    }

    pub(crate) fn compare(mut self) {
        let seen = images::seen(&self.uri(), self.folder.path());
        self.client.end(PATIENCE).unwrap();
        images::compare(&self.plan, &seen);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also when the test has failed: the process outlives whoever started it.
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.place.log());
            println!("the process said: {}", log.unwrap_or_default());
        }
        let _ = control::end(&self.place, PATIENCE);
    }
}

/// A new leaf, with the requests stopped only while the process goes over to it.
fn snapshot(disk: &mut Disk, random: &mut Random) {
    if disk.plan.layers().count() >= LONGEST {
        return;
    }
    let plan = images::overlay(disk.folder.path(), &disk.plan);
    if random.below(2) == 0 {
        disk.client.flush(PATIENCE).unwrap();
    }
    disk.client.pause(None, PATIENCE).unwrap();
    disk.client.refresh(plan.clone(), PATIENCE).unwrap();
    disk.client.resume(PATIENCE).unwrap();
    disk.plan = plan;
}

fn pause(disk: &mut Disk, random: &mut Random) {
    disk.client.pause(None, PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(random.below(30)));
    disk.client.resume(PATIENCE).unwrap();
}

/// Few requests for a moment.
fn limits(disk: &mut Disk, random: &mut Random) {
    let few = Rate { per_second: 200 + random.below(2000), burst: 1 + random.below(20) };
    let few = Limits { operations: Some(few), bytes: None };
    disk.client.limit(few, PATIENCE).unwrap();
    std::thread::sleep(Duration::from_millis(random.below(50)));
    disk.client.limit(Limits::default(), PATIENCE).unwrap();
}

/// Another client asks what is allocated.
fn map(disk: &mut Disk, _: &mut Random) {
    let mut command = Command::new("timeout");
    let output = ended(command.args(["--signal=KILL", "30", "nbdinfo", "--map"]).arg(disk.uri()));
    assert!(output.status.success(), "{output:?}");
}

/// It goes on where one was given up before, if that was of the same leaf.
fn begin_merge(disk: &mut Disk, random: &mut Random) {
    if disk.plan.backing.is_empty() {
        snapshot(disk, random);
    }
    disk.client.merge(MergePace::default(), None, PATIENCE).unwrap();
}

/// Asks again and again until the answer is there.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The leaf into its parent, which takes its name.
fn merge(disk: &mut Disk, random: &mut Random) {
    begin_merge(disk, random);
    let client = &mut disk.client;
    until("the end of a merge", || {
        let state = client.merging(PATIENCE).unwrap();
        let over = matches!(state.phase, MergePhase::None | MergePhase::Failed);
        assert!(!over, "{state:?}");
        // Refused when something has come in between.
        state.phase == MergePhase::Ready && client.converge(None, PATIENCE).is_ok()
    });
    let parent = disk.plan.backing.remove(0);
    std::fs::rename(&parent.path, &disk.plan.leaf.path).unwrap();
    client.refresh(disk.plan.clone(), PATIENCE).unwrap();
    client.resume(PATIENCE).unwrap();
}

/// To the disk of another process, until that has everything; and no further, or this disk would be
/// over.
fn mirror(disk: &mut Disk, _: &mut Random) {
    let target = Disk::start();
    let client = &mut disk.client;
    let (target, _there) = (target.uri(), target);
    let start = MirrorStart { target, credentials: None, server_name: None, rate: None };
    client.mirror_start(start, PATIENCE).unwrap();
    until("a mirror that has everything", || {
        let mirror = client.status(PATIENCE).unwrap().mirror.unwrap();
        assert_ne!(mirror.phase, MirrorPhase::Failed, "{mirror:?}");
        mirror.phase == MirrorPhase::Ready
    });
    client.mirror_cancel(PATIENCE).unwrap();
}
