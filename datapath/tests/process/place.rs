//! A directory with images and a process.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use datapath::control::protocol::{State, Status};
use datapath::control::{self, Client, Place};
use datapath::disk::{Format, Layer, Plan};
use datapath::nbd;
use uuid::Uuid;
use vhd::tree::{Snapshot, Tree};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sm-datapath");

/// Longest wait for anything that must happen.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 16 << 20;

/// Waits for a condition; fails after [`LONG`].
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A store with one disk, and the run directory of its process. Whatever a test leaves running is
/// ended.
pub(crate) struct Site {
    pub folder: tempfile::TempDir,
    pub tree: Tree,
    pub disk: Uuid,
    pub place: Place,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("dp").tempdir().unwrap();
        let images = folder.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let tree = Tree::init(&images).unwrap();
        let disk = Uuid::new_v4();
        let guard = tree.lock(Instant::now() + LONG).unwrap();
        let none = serde_json::Value::Null;
        tree.create(&guard, disk, vhd::tree::Format::Vhd, SIZE, &none).unwrap();
        drop(guard);
        let place = Place::at(folder.path().join("run").join("i").join(disk.to_string()));
        Self { folder, tree, disk, place }
    }

    pub(crate) fn start(&self) -> Client {
        control::start(&self.place, Path::new(PROGRAM)).unwrap()
    }

    /// Started, and serving.
    pub(crate) fn serve(&self) -> Client {
        let mut client = self.start();
        client.activate(self.plan(), 7, LONG).unwrap();
        client
    }

    pub(crate) fn plan(&self) -> Plan {
        let layer = |path| Layer { path, format: Format::Vhd };
        let mut layers = self.tree.chain(self.disk).unwrap().into_iter().map(layer);
        Plan { leaf: layers.next().unwrap(), backing: layers.collect(), read_only: false }
    }

    pub(crate) fn leaf(&self) -> PathBuf {
        self.plan().leaf.path
    }

    /// The lock of whoever changes images, as the store documents it.
    pub(crate) fn lock(&self) -> PathBuf {
        self.tree.path().join(".sm/lock")
    }

    /// A snapshot, made without telling the process.
    pub(crate) fn snapshot(&self) -> Uuid {
        let new = Uuid::new_v4();
        let guard = self.tree.lock(Instant::now() + LONG).unwrap();
        let request = Snapshot {
            op: Uuid::new_v4(),
            source: self.disk,
            new,
            new_metadata: &serde_json::Value::Null,
            allow_copy: false,
        };
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        self.tree.snapshot(&guard, &request, &mut go_on).unwrap();
        new
    }

    /// A client of the disk.
    pub(crate) fn connect(&self) -> nbd::Client {
        let uri = self.place.uri().parse().unwrap();
        nbd::Client::connect(&uri, &nbd::client::Options::default()).unwrap()
    }

    pub(crate) fn status(&self) -> Status {
        control::find(&self.place).unwrap().unwrap().status(LONG).unwrap()
    }

    pub(crate) fn state(&self) -> State {
        self.status().state
    }

    /// Waits until the process has looked again whether it can go on, at what is there now.
    pub(crate) fn looks_again(&self) {
        let before = self.status().looks;
        // The first of them may have begun already.
        until("it to look again", || self.status().looks >= before + 2);
    }

    /// Has the process answer many others: one that did not wait would have its answer by then.
    pub(crate) fn answers_others(&self) {
        let mut client = control::find(&self.place).unwrap().unwrap();
        for _ in 0..500 {
            client.status(LONG).unwrap();
        }
    }

    /// A byte of the disk, read from the images after the process has ended.
    pub(crate) fn byte(&self, disk: Uuid, offset: u64) -> u8 {
        let mut byte = [0];
        let disk = self.tree.open_disk(disk, vhd::Mode::Read).unwrap();
        vhd::Disk::read_at(&disk, offset, &mut byte).unwrap();
        byte[0]
    }

    /// Says lines to the control socket and answers what comes back.
    pub(crate) fn say(&self, lines: &[u8]) -> Vec<String> {
        let mut stream = UnixStream::connect(self.place.control()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // A line that is too long is not read to its end.
        let _ = stream.write_all(lines);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        BufReader::new(stream).lines().map_while(Result::ok).collect()
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.place.process().unwrap().pid.to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// The images are sound.
    pub(crate) fn check(&self) {
        let paths = self.tree.chain(self.disk).unwrap();
        let layers: Vec<vhd::Layer<'_>> = paths.iter().map(|path| vhd::Layer::Vhd(path)).collect();
        let findings = vhd::check::check_chain(&layers);
        let wrong =
            findings.iter().filter(|finding| finding.severity == vhd::check::Severity::Error);
        assert_eq!(wrong.count(), 0, "{findings:?}");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(process) = self.place.process().filter(|process| process.is_alive()) {
            let _ = Command::new("kill").args(["-9", &process.pid.to_string()]).status();
        }
    }
}
