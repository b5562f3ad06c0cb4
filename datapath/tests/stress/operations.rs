//! What is done to a disk while it is written. A new operation is a row of [`ALL`].

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath::disk::{Limits, Rate};

use crate::disk::{Disk, PATIENCE};
use crate::{Random, ended};

/// Images of a chain; no snapshot is taken of a longer one.
const LONGEST: usize = 20;

type Operation = fn(&mut Disk, &mut Random);

/// All of them.
const ALL: &[(&str, Operation)] = &[
    ("snapshot", snapshot),
    ("pause", pause),
    ("flush", |disk, _| disk.client.flush(PATIENCE).unwrap()),
    // ("same images", |disk, _| disk.client.refresh(disk.plan.clone(), PATIENCE).unwrap()),
    ("limits", limits),
    ("map", map),
];

/// Does random ones, with short breaks, until it is told to stop, and at least one of each.
/// Answers their names.
pub(crate) fn some(disk: &mut Disk, random: &mut Random, stop: &AtomicBool) -> Vec<String> {
    let mut history = Vec::new();
    while history.len() < ALL.len() || !stop.load(Ordering::Relaxed) {
        let index = match ALL.get(history.len()) {
            Some(_) => history.len(),
            None => random.below(ALL.len() as u64) as usize,
        };
        let (name, operation) = ALL[index];
        operation(disk, random);
        history.push(name.to_owned());
        std::thread::sleep(Duration::from_millis(random.below(150)));
    }
    history
}

/// A new leaf, with the requests stopped only while the process goes over to it.
fn snapshot(disk: &mut Disk, random: &mut Random) {
    if disk.depth() >= LONGEST {
        return;
    }
    let plan = disk.overlay();
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
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
