//! What work on images costs: merging, snapshots, checking, converting.
//!
//! Run by `cargo xtask bench vhd`, which builds it for release first. It needs the `vhd` crate and
//! nothing else of the product. Every figure is a median; a peer is measured in the same run, in
//! turns with ours, so that both see the same machine. Figures that were recorded elsewhere stand
//! in the notes.

mod check;
mod convert;
mod images;
#[path = "../control/machine.rs"]
mod machine;
mod merge;
mod snapshot;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use table::Table;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where the storage is memory.
const MEMORY: &str = "/dev/shm";

/// Bytes of memory that the parts in memory may take.
const NEEDED: u64 = 6 << 30;

/// What is measured, where, and how much.
pub(crate) struct Setting {
    /// A folder on a real file system.
    disk: PathBuf,
    /// A folder in memory.
    memory: PathBuf,
    /// A part of the work, to see whether it runs.
    quick: bool,
    /// This part and no other.
    only: Option<String>,
}

impl Setting {
    /// An eighth of the bytes when quick.
    pub(crate) fn bytes(&self, bytes: u64) -> u64 {
        if self.quick { bytes / 8 } else { bytes }
    }

    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        if self.quick { 2 } else { rounds }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench vhd: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|word| word == name)?;
        arguments.get(at + 1).cloned()
    };
    if let Some(store) = value("--store") {
        let snapshot = arguments.iter().any(|word| word == "--snapshot");
        return snapshot::once(Path::new(&store), snapshot).map(|()| true);
    }
    let Some(work) = value("--work") else {
        // `cargo bench` and `cargo test --benches` come here.
        println!("run it with: cargo xtask bench vhd");
        return Ok(true);
    };
    let room = rustix::fs::statvfs(MEMORY)?;
    if room.f_bavail * room.f_frsize < NEEDED {
        return Err(format!("{MEMORY} has less than {NEEDED} bytes free").into());
    }
    // Removed when dropped, however the run ends.
    let disk = tempfile::Builder::new().prefix("bench-vhd-").tempdir_in(work)?;
    let memory = tempfile::Builder::new().prefix("bench-vhd-").tempdir_in(MEMORY)?;
    let setting = Setting {
        disk: disk.path().to_owned(),
        memory: memory.path().to_owned(),
        quick: arguments.iter().any(|word| word == "--quick"),
        only: value("--only"),
    };
    let table = measure(&setting)?;
    if arguments.iter().any(|word| word == "--json") {
        println!("{}", table.json());
    } else {
        println!("{}\n", machine::describe(&setting.disk));
        print!("{}", table.text());
    }
    Ok(table.all_ok())
}

type Part = fn(&Setting, &mut Table) -> Result<()>;

fn measure(setting: &Setting) -> Result<Table> {
    let parts: [(&str, Part); 4] = [
        ("merge", merge::measure),
        ("snapshot", snapshot::measure),
        ("check", check::measure),
        ("convert", convert::measure),
    ];
    let mut table = Table::default();
    for (name, part) in parts {
        if setting.only.as_deref().is_none_or(|only| only == name) {
            eprintln!("measuring {name}");
            part(setting, &mut table)?;
        }
    }
    Ok(table)
}

/// Seconds that something takes.
pub(crate) fn seconds<T>(what: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    what()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Runs a peer to its end.
pub(crate) fn qemu_img(words: &[&str]) -> Result<()> {
    let output = Command::new("qemu-img").args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("qemu-img cannot be run: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("qemu-img {} failed: {said}", words.join(" ")).into());
    }
    Ok(())
}

pub(crate) fn utf8(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("a path is not UTF-8")?)
}
