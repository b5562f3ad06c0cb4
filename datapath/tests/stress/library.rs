//! A disk that is served by this program, and what the library can do to it.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Options, Plan};
use datapath::export::{Export, Exports};
use datapath::nbd::client::Options as ClientOptions;
use datapath::nbd::{Limits, Listener, Server};
use datapath::sync::{LeafMerge, Left, Mirror, NbdTarget, Options as CopyOptions};

use crate::images::{self, LONGEST, PATIENCE};
use crate::{Operation, Random};

pub(crate) struct Disk {
    folder: tempfile::TempDir,
    drive: Arc<Drive>,
    server: Server,
    /// Of a merge that was given up.
    left: Option<Left>,
}

/// What is done to it. A new operation is a new row.
pub(crate) const ALL: &[Operation<Disk>] = &[
    ("snapshot", snapshot),
    ("merge", merge),
    ("mirror", mirror),
    ("flush", |disk, _| disk.drive.flush().unwrap()),
    ("given up merge", |disk, random| {
        if disk.drive.plan().backing.is_empty() || random.below(2) == 0 {
            snapshot(disk, random);
        }
        let merge = begin_merge(disk);
        std::thread::sleep(Duration::from_millis(random.below(20)));
        disk.left = merge.suspend(soon()).unwrap();
    }),
];

/// One disk, whatever it is called.
struct Only(Arc<Drive>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _name: &str) -> Option<Arc<dyn Export>> {
        Some(self.0.clone())
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Serves a disk at a socket in a folder.
fn served(folder: &std::path::Path, plan: &Plan) -> (Arc<Drive>, Server) {
    let options = Options { pending: Some(folder.join("pending")), ..Options::default() };
    let drive = Drive::open(plan, options).unwrap();
    let server = Server::new(Arc::new(Only(drive.clone())), Limits::default());
    let listener = UnixListener::bind(folder.join("socket")).unwrap();
    server.serve(Listener::Unix(listener)).unwrap();
    (drive, server)
}

fn uri(folder: &std::path::Path) -> String {
    format!("nbd+unix:///?socket={}", folder.join("socket").display())
}

impl Disk {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("stress-").tempdir().unwrap();
        let (drive, server) = served(folder.path(), &images::empty(folder.path()));
        Self { folder, drive, server, left: None }
    }

    pub(crate) fn uri(&self) -> String {
        uri(self.folder.path())
    }

    pub(crate) fn compare(self) {
        let seen = images::seen(&self.uri(), self.folder.path());
        self.server.stop(PATIENCE);
        self.drive.close(soon()).unwrap();
        images::compare(&self.drive.plan(), &seen);
    }
}

fn snapshot(disk: &mut Disk, _: &mut Random) {
    let plan = disk.drive.plan();
    if plan.layers().count() >= LONGEST {
        return;
    }
    let plan = images::overlay(disk.folder.path(), &plan);
    let paused = disk.drive.pause(soon()).unwrap();
    paused.replace(disk.drive.prepare(&plan).unwrap()).unwrap();
}

/// It goes on where one was given up before, if that was of the same leaf.
fn begin_merge(disk: &mut Disk) -> LeafMerge {
    let (options, copy, left) = (Options::default(), CopyOptions::default(), disk.left.take());
    LeafMerge::go_on(&disk.drive, &options, copy, left, soon()).unwrap()
}

/// The leaf into its parent, which takes its name.
fn merge(disk: &mut Disk, random: &mut Random) {
    if disk.drive.plan().backing.is_empty() {
        snapshot(disk, random);
    }
    let merge = begin_merge(disk);
    merge.wait_ready(soon()).unwrap();
    let mut plan = disk.drive.plan();
    let mut converged = merge.converge(soon()).unwrap();
    let parent = plan.backing.remove(0);
    std::fs::rename(&parent.path, &plan.leaf.path).unwrap();
    converged.switch(&plan).unwrap();
}

/// To a disk of another server, which is compared with ours when it has everything.
fn mirror(disk: &mut Disk, _: &mut Random) {
    let folder = tempfile::Builder::new().prefix("stress-mirror-").tempdir().unwrap();
    let (drive, server) = served(folder.path(), &images::empty(folder.path()));
    let there = uri(folder.path()).parse().unwrap();
    let target = NbdTarget::connect(there, ClientOptions::default(), true).unwrap();
    let mirror =
        Mirror::start(&disk.drive, Arc::new(target), CopyOptions::default(), soon()).unwrap();
    mirror.wait_ready(soon()).unwrap();
    let switched = mirror.switch(soon()).unwrap();
    assert_eq!(switched.verify().unwrap(), None, "first byte that differs from the mirror");
    switched.back();
    drop(mirror);
    server.stop(PATIENCE);
    drive.close(soon()).unwrap();
}
