//! A disk of ours as a toolstack has it: made and attached by `smctl`, served by a process that
//! `smctl` has started.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::images::Kind;
use crate::process::{Scheduling, cpu_of, succeed};
use crate::{Result, Setting};

/// Time for one command.
const COMMAND: Duration = Duration::from_secs(60);

/// Folder of the sockets, within the folder in memory.
pub(crate) const RUN: &str = "run";

/// A storage manager with one SR.
pub(crate) struct Installation {
    smctl: PathBuf,
    run: PathBuf,
    folder: PathBuf,
    scheduling: Scheduling,
}

impl Installation {
    /// Makes an SR in a new folder.
    pub(crate) fn new(setting: &Setting, folder: &Path) -> Result<Self> {
        let ours = Self {
            smctl: setting.product.join("smctl"),
            run: setting.memory.join(RUN),
            folder: folder.to_owned(),
            scheduling: setting.scheduling,
        };
        std::fs::create_dir(folder.join("sr"))?;
        let location = format!("location={}", folder.join("sr").display());
        ours.smctl(&["sr", "create", "--driver", "file", "--name", "bench", &location])?;
        Ok(ours)
    }

    /// Runs it; answers what it prints.
    pub(crate) fn smctl(&self, words: &[&str]) -> Result<String> {
        let mut command = self.scheduling.command(&self.smctl);
        command.env("SMCTL_STATE_DIR", self.folder.join("state")).env("SM_RUN_DIR", &self.run);
        succeed(command.args(words), COMMAND)
    }

    /// How long it takes, in milliseconds.
    pub(crate) fn timed(&self, words: &[&str]) -> Result<f64> {
        let begin = Instant::now();
        self.smctl(words)?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    }

    /// Makes an empty disk; answers its name.
    pub(crate) fn create(&self, size: u64) -> Result<String> {
        let words = ["vdi", "create", "--name", "disk", "--size", &format!("{size}B")];
        Ok(self.smctl(&words)?.lines().next().unwrap_or_default().to_owned())
    }

    /// Attaches a disk.
    pub(crate) fn attach(&self, disk: String) -> Result<Attached<'_>> {
        let printed = self.smctl(&["vdi", "attach", &disk])?;
        let uri = printed.split_whitespace().find(|word| word.starts_with("nbd+unix:"));
        let uri = uri.ok_or(format!("smctl vdi attach prints no address: {printed}"))?.to_owned();
        let process = processes(&self.run)?.into_iter().find(|(name, _)| *name == disk);
        let (_, process) = process.ok_or("no process serves the disk")?;
        Ok(Attached { by: self, disk, uri, process })
    }

    /// A disk with every byte of `folder`'s raw one written, and so many images; attached.
    pub(crate) fn full(&self, folder: &Path, size: u64, depth: u32) -> Result<Attached<'_>> {
        let attached = self.attach(self.create(size)?)?;
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-n", "-f", "raw", "-O", "raw"]);
        succeed(command.arg(Kind::Raw.path(folder)).arg(&attached.uri), COMMAND)?;
        attached.deepen(depth)?;
        Ok(attached)
    }
}

/// An attached disk; detached when dropped.
pub(crate) struct Attached<'a> {
    by: &'a Installation,
    pub(crate) disk: String,
    pub(crate) uri: String,
    process: u32,
}

impl Attached<'_> {
    /// Processor time of the process that serves it.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_of(self.process)
    }

    /// Takes snapshots until it has so many images.
    pub(crate) fn deepen(&self, depth: u32) -> Result<()> {
        for layer in 1..depth {
            // A leaf without data does not become a layer.
            let mut command = Command::new("qemu-io");
            command.args(["-f", "raw", "-c", &format!("write -P {layer} 0 1M"), &self.uri]);
            succeed(&mut command, COMMAND)?;
            self.snapshot()?;
        }
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Result<()> {
        self.by.smctl(&["vdi", "snapshot", &self.disk]).map(drop)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.by.smctl(&["vdi", "detach", &self.disk]) {
            eprintln!("bench datapath: {error}");
        }
    }
}

/// The disks that have a process in a folder of sockets, and its number.
pub(crate) fn processes(run: &Path) -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for installation in std::fs::read_dir(run)? {
        for disk in std::fs::read_dir(installation?.path())? {
            let disk = disk?;
            let Ok(text) = std::fs::read(disk.path().join("process")) else { continue };
            let process: Value = serde_json::from_slice(&text)?;
            let number = process.get("pid").and_then(Value::as_u64).ok_or("no process id")?;
            found.push((disk.file_name().to_string_lossy().into_owned(), u32::try_from(number)?));
        }
    }
    Ok(found)
}
