//! A state directory and an SR that can be put back to where they were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use conformance::built;
use object::{Object, ObjectSection};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use vhd::{Disk, ExtentKind, Extents, Mode, Tree};

/// The SR of every place.
pub(crate) const SR: &str = "5c000000-0000-4000-8000-000000000001";

/// The operation id of the command under test.
const OPERATION: &str = "0be70000-0000-4000-8000-000000000007";

/// Exit status of smctl for an object that is not there.
const NOT_FOUND: i32 = 3;

/// Exit status of smctl for an outcome that is not known.
const UNKNOWN: i32 = 17;

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Ok,
    /// It, or the driver's process, was killed.
    Killed,
}

/// What one sees of a place: SRs, disks with their content, attachments, and files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub srs: Vec<String>,
    pub disks: BTreeMap<String, String>,
    pub attached: Vec<String>,
    /// How many files of each kind there are: base copies have random names.
    pub files: BTreeMap<String, usize>,
}

impl State {
    /// The lines in which two states differ.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let lines = |state: &Self| -> Vec<String> {
            format!("{state:#?}").lines().map(str::to_owned).collect()
        };
        let (ours, theirs) = (lines(self), lines(other));
        let mut text = String::new();
        for line in ours.iter().filter(|line| !theirs.contains(line)) {
            text += &format!("\n + {}", line.trim());
        }
        for line in theirs.iter().filter(|line| !ours.contains(line)) {
            text += &format!("\n - {}", line.trim());
        }
        text
    }
}

pub(crate) struct Place {
    folder: PathBuf,
    isolation: &'static str,
}

impl Place {
    /// Makes the starting point: an SR with a disk that has a snapshot and more data since, a
    /// clone, a raw disk, and an image that waits to be introduced.
    pub(crate) fn new(folder: &Path, isolation: &'static str) -> Self {
        let place = Self { folder: folder.to_owned(), isolation };
        fs::create_dir_all(place.images()).unwrap();
        place.make_pattern();
        let images = format!("location={}", place.images().display());
        place.must(&["sr", "create", "--driver", "file", "--uuid", SR, "--name", "sr", &images]);
        let raw = place.file("pattern.raw").display().to_string();
        place.must(&["vdi", "import", &raw, "--name", "disk", "--uuid", DISK]);
        place.must(&["vdi", "import", &raw, "--name", "raw", "--uuid", RAW, "--key", "a=b"]);
        let empty = place.must(&[
            "vdi", "create", "--name", "flat", "--size", "4MiB", "--format", "raw", "--uuid", FLAT,
        ]);
        assert_eq!(empty.trim(), FLAT);
        place.write(FLAT, 1 << 20, 2);
        place.must(&["vdi", "snapshot", DISK, "--name", "snapshot"]);
        place.write(DISK, 3 << 20, 3);
        // The snapshot's UUID follows from a random operation id: make it known.
        let listing = place.json(&["vdi", "list"]);
        let snapshot =
            listing["vdis"].as_array().unwrap().iter().find(|vdi| vdi["name"] == "snapshot");
        fs::write(place.file("snapshot"), snapshot.unwrap()["uuid"].as_str().unwrap()).unwrap();
        place.must(&["vdi", "clone", DISK, "--name", "clone"]);
        copy_state(&place.file("state"), &place.file("start.state"));
        copy(&place.images(), &place.file("start.images"));
        place
    }

    /// A disk with a little data in each block: it is copied for every crash.
    fn make_pattern(&self) {
        let file = File::create(self.file("pattern.raw")).unwrap();
        file.set_len(6 << 20).unwrap();
        for (seed, at) in [(1, 0), (2, 2 << 20), (3, (6 << 20) - (16 << 10))] {
            file.write_all_at(&pattern(16 << 10, seed), at).unwrap();
        }
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.file("images")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// UUID of the snapshot of [`DISK`].
    pub(crate) fn snapshot(&self) -> String {
        fs::read_to_string(self.file("snapshot")).unwrap()
    }

    fn sr_folder(&self) -> PathBuf {
        self.images().join(SR)
    }

    /// Puts everything back to the starting point.
    pub(crate) fn reset(&self) {
        self.restore("start");
    }

    /// Remembers what is, for [`Self::back`].
    pub(crate) fn keep(&self) {
        copy_state(&self.file("state"), &self.file("kept.state"));
        copy(&self.images(), &self.file("kept.images"));
    }

    pub(crate) fn back(&self) {
        self.restore("kept");
    }

    fn restore(&self, name: &str) {
        self.kill_datapaths();
        copy_state(&self.file(&format!("{name}.state")), &self.file("state"));
        copy(&self.file(&format!("{name}.images")), &self.images());
        let _ = fs::remove_dir_all(self.file("out"));
        fs::create_dir_all(self.file("out")).unwrap();
    }

    /// The images are about to be others: no process may have the old ones open.
    fn kill_datapaths(&self) {
        for place in self.datapaths() {
            if let Some(process) = place.process().filter(|process| process.is_alive()) {
                let pid = process.pid.to_string();
                assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
            }
            let until = Instant::now() + Duration::from_secs(60);
            while place.exists() && place.lock().unwrap().is_none() {
                assert!(Instant::now() < until, "{place:?} does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = fs::remove_dir_all(self.file("run"));
    }

    fn datapaths(&self) -> Vec<datapath::control::Place> {
        let installations = fs::read_dir(self.file("run")).into_iter().flatten();
        let disks = installations.flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap());
        disks.map(|entry| datapath::control::Place::at(entry.unwrap().path())).collect()
    }

    /// Runs the command under test, killed at a step if one is armed.
    pub(crate) fn run(&self, arguments: &[String], armed: Option<&str>) -> End {
        let mut command = self.smctl();
        command.args(["--operation-id", OPERATION]).args(arguments);
        if let Some(armed) = armed {
            command.env("SM_STEP_KILL", armed);
        }
        self.end(&mut command, armed.is_some())
    }

    /// Runs the command under test and answers how often it comes by each step.
    pub(crate) fn run_logged(&self, arguments: &[String]) -> BTreeMap<String, usize> {
        let log = self.file("steps");
        let _ = fs::remove_file(&log);
        let mut command = self.smctl();
        command.args(["--operation-id", OPERATION]).args(arguments).env(sm_step::LOG, &log);
        assert_eq!(self.end(&mut command, false), End::Ok);
        visits(&log)
    }

    /// Scans every SR, as a toolstack does now and then; answers the steps it came by.
    pub(crate) fn scan(&self) -> BTreeMap<String, usize> {
        let log = self.file("steps");
        let _ = fs::remove_file(&log);
        for sr in self.srs() {
            if sr == SR {
                let mut command = self.smctl();
                command.args(["sr", "scan", &sr]).env(sm_step::LOG, &log);
                assert_eq!(self.end(&mut command, false), End::Ok);
                continue;
            }
            // An SR whose destruction was cut is gone from the backend, or on its way: a retry
            // of the destruction is what helps.
            let status = self.smctl().args(["sr", "scan", &sr]).output().unwrap().status;
            assert!(matches!(status.code(), Some(0 | NOT_FOUND)), "{status}");
        }
        visits(&log)
    }

    /// What a scan has to recover, in words; empty when all is well.
    pub(crate) fn scan_recovers(&self) -> String {
        let mut text = String::new();
        let scan = self.json(&["sr", "scan", SR]);
        for what in ["completed", "undone", "removed"] {
            let list = scan["recovered"][what].as_array().unwrap();
            if !list.is_empty() {
                text += &format!("{what}: {list:?} ");
            }
        }
        text
    }

    pub(crate) fn scan_killed_at(&self, step: &str) -> End {
        let mut command = self.smctl();
        command.args(["sr", "scan", SR]).env("SM_STEP_KILL", step);
        self.end(&mut command, true)
    }

    /// Must succeed; answers what it printed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.smctl().args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "smctl {arguments:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        serde_json::from_str(&self.must(&arguments)).unwrap()
    }

    /// Writes a pattern into a disk, as its VM would.
    pub(crate) fn write(&self, vdi: &str, offset: u64, seed: u64) {
        self.write_bytes(vdi, offset, &pattern(16 << 10, seed));
    }

    /// Writes zeros into a disk, which take space.
    pub(crate) fn write_zeros(&self, vdi: &str, offset: u64) {
        self.write_bytes(vdi, offset, &[0; 16 << 10]);
    }

    fn write_bytes(&self, vdi: &str, offset: u64, bytes: &[u8]) {
        let tree = Tree::open(&self.sr_folder()).unwrap();
        let disk = tree.open_disk(vdi.parse().unwrap(), Mode::Write).unwrap();
        disk.write_at(offset, bytes).unwrap();
        disk.flush().unwrap();
    }

    /// What this host is called.
    fn host() -> String {
        let host = Command::new("uname").arg("-n").output().unwrap().stdout;
        String::from_utf8(host).unwrap().trim().to_owned()
    }

    /// Claims a disk as this host did before it was booted.
    pub(crate) fn claim_before_boot(&self, vdi: &str) {
        self.claim_by(&Self::host(), vdi);
    }

    /// Shuts this host out, with nothing in use on it.
    pub(crate) fn shut_out(&self) {
        let folder = self.sr_folder().join(".sm/fenced");
        fs::create_dir(&folder).unwrap();
        let mark =
            serde_json::json!({"version": 1, "host": Self::host(), "by": "other", "epoch": 7});
        let name = format!("{}.json", vhd::tree::name_part(&Self::host()));
        fs::write(folder.join(name), mark.to_string()).unwrap();
    }

    /// Claims a disk as a boot of a host did that is not this one.
    pub(crate) fn claim_by(&self, host: &str, vdi: &str) {
        let holder = format!("{host}, boot 11111111-2222-4333-8444-555555555555");
        let tree = Tree::open(&self.sr_folder()).unwrap();
        let guard = tree.lock(Instant::now() + Duration::from_secs(60)).unwrap();
        tree.claim(&guard, vdi.parse().unwrap(), &holder).unwrap();
    }

    pub(crate) fn state(&self) -> State {
        let srs = self.srs();
        let mut disks = BTreeMap::new();
        let mut attached = Vec::new();
        for sr in &srs {
            if !self.images().join(sr).join(".sm").exists() {
                continue;
            }
            let listing = self.json(&["vdi", "list", "--sr", sr]);
            let tree = Tree::open(&self.images().join(sr)).unwrap();
            for vdi in listing["vdis"].as_array().unwrap() {
                let uuid = vdi["uuid"].as_str().unwrap();
                let mut told = vdi.clone();
                // Space depends on what a crash has left allocated, time on the clock.
                for key in ["physical_utilisation", "exclusive", "snapshot_time"] {
                    told.as_object_mut().unwrap().remove(key);
                }
                let content = content(&tree, uuid.parse().unwrap());
                disks.insert(uuid.to_owned(), format!("{told} {content}"));
            }
            let list = self.json(&["vdi", "list", "--sr", sr, "--attached"]);
            for record in list["vdis"].as_array().unwrap() {
                attached.push(record["uuid"].to_string());
            }
        }
        let mut files = BTreeMap::new();
        let roots = ["images", "out", "run", "state/locks"];
        for root in roots.map(|root| self.file(root)) {
            count(&root, &self.folder, &mut files);
        }
        State { srs, disks, attached, files }
    }

    pub(crate) fn must_be(&self, wanted: &State, context: impl Fn() -> String) {
        let now = self.state();
        assert!(now == *wanted, "{}: it differs by{}", context(), now.difference(wanted));
    }

    fn srs(&self) -> Vec<String> {
        let listing = self.json(&["sr", "list"]);
        let list = listing["srs"].as_array().unwrap().iter();
        list.map(|sr| sr["uuid"].as_str().unwrap().to_owned()).collect()
    }

    fn smctl(&self) -> Command {
        let mut command = Command::new(built::artefact("smctl"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SMCTL_STATE_DIR", self.file("state"))
            .env("SM_RUN_DIR", self.file("run"))
            .env("SMCTL_ISOLATION", self.isolation)
            .env("SMCTL_SR", SR)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    fn end(&self, command: &mut Command, armed: bool) -> End {
        let output = command.output().unwrap();
        let killed = output.status.signal() == Some(9)
            || (self.isolation == "child" && output.status.code() == Some(UNKNOWN))
            // The driver died while it was asked something that changes nothing.
            || (armed && self.isolation == "child" && output.status.code() == Some(11));
        if armed && killed {
            return End::Killed;
        }
        assert!(
            output.status.success(),
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        End::Ok
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill_datapaths();
    }
}

pub(crate) const DISK: &str = "d15c0000-0000-4000-8000-000000000001";
pub(crate) const RAW: &str = "d15c0000-0000-4000-8000-000000000002";
pub(crate) const FLAT: &str = "d15c0000-0000-4000-8000-000000000003";

/// The names of the steps in a program or library.
pub(crate) fn steps(file: &Path) -> Vec<String> {
    let data = fs::read(file).unwrap();
    let elf = object::File::parse(&*data).unwrap();
    let section = elf.section_by_name(sm_step::SECTION).expect("it has no steps");
    sm_step::names(section.data().unwrap())
}

/// How often a log names each step; no log is no step.
fn visits(log: &Path) -> BTreeMap<String, usize> {
    let mut visits = BTreeMap::new();
    for name in fs::read_to_string(log).unwrap_or_default().lines() {
        *visits.entry(name.to_owned()).or_default() += 1;
    }
    visits
}

/// Bytes that say where they belong.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64 / 8)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes())
        .collect()
}

/// The data of a disk: zeros and holes are the same.
fn content(tree: &Tree, uuid: Uuid) -> String {
    let disk = tree.open_disk(uuid, Mode::Read).unwrap_or_else(|error| panic!("{uuid}: {error}"));
    let mut hash = Sha256::new();
    let mut piece = vec![0; 4096];
    for extent in Extents::new(&disk, 0, disk.size()) {
        let extent = extent.unwrap();
        if extent.kind == ExtentKind::Zero {
            continue;
        }
        let mut at = extent.offset / 4096 * 4096;
        while at < extent.offset + extent.length {
            let length = (disk.size() - at).min(4096) as usize;
            disk.read_at(at, &mut piece[..length]).unwrap();
            if piece[..length].iter().any(|byte| *byte != 0) {
                hash.update(at.to_le_bytes());
                hash.update(&piece[..length]);
            }
            at += 4096;
        }
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes, {digest}", disk.size())
}

fn count(folder: &Path, root: &Path, files: &mut BTreeMap<String, usize>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count(&path, root, files);
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = match name.rsplit_once('.') {
            // Since when depends on the clock.
            Some((_, who)) if who.contains("writing") => "writer".to_owned(),
            Some((stem, extension)) if stem.parse::<Uuid>().is_ok() => {
                format!("<uuid>.{extension}")
            }
            // Only the lock of an SR is kept between commands.
            _ if name.starts_with("sr-") => continue,
            // Its presence depends on what was written, and when.
            _ if name.starts_with("pending") => continue,

            _ => name.to_owned(),
        };
        let parent = path.parent().unwrap().strip_prefix(root).unwrap().display();
        *files.entry(format!("{parent}/{kind}")).or_default() += 1;
    }
}

/// Makes the state directory `to` a copy of `from`, but for the drivers that were loaded: nothing
/// changes these, and they are 24 MiB each.
fn copy_state(from: &Path, to: &Path) {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| !path.ends_with("drivers")).collect()
    };
    for path in entries(to) {
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
    }
    fs::create_dir_all(to).unwrap();
    for path in entries(from) {
        let copied = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_state(&path, &copied);
            fs::set_permissions(&copied, fs::metadata(&path).unwrap().permissions()).unwrap();
        } else {
            fs::copy(&path, &copied).unwrap();
        }
    }
}

/// Makes `to` a copy of `from`, holes and all.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status =
        Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
