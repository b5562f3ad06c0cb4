//! A disk that is served by a process of its own, and what that can be told.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

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
