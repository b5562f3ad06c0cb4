//! What it costs to serve a disk, and to change it underneath while it runs.
//!
//! Run by `cargo xtask bench datapath`, which builds the product and this for release first. All
//! load comes from `fio` through its NBD engine, over a Unix socket; the servers are programs, ours
//! as every other. Of each load all servers have their turn one right after the other, and that
//! five times: the machine's mood hits all alike. Every figure is a median.

mod attach;
mod disk;
mod fio;
mod images;
mod live;
#[path = "../control/machine.rs"]
mod machine;
mod memory;
mod mirror;
mod ours;
mod peers;
mod process;
mod qmp;
mod rounds;
mod snapshot;
#[path = "../vhd/table.rs"]
mod table;
mod told;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use process::Scheduling;
use table::Table;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where the storage is memory.
const MEMORY: &str = "/dev/shm";

/// Bytes of memory that the images may take.
const NEEDED: u64 = 10 << 30;

/// Folders of this program; the number of its process follows.
const PREFIX: &str = "bench-datapath-";

/// What is measured, where, and how much.
pub(crate) struct Setting {
    /// Where the programs are.
    product: PathBuf,
    /// A folder on a real file system.
    disk: PathBuf,
    /// A folder in memory.
    memory: PathBuf,
    scheduling: Scheduling,
    /// A part of the work, to see whether it runs.
    quick: bool,
    /// This part and no other.
    only: Option<String>,
    noise: fio::Noise,
}

impl Setting {
    pub(crate) fn rounds(&self, rounds: usize) -> usize {
        if self.quick { 1 } else { rounds }
    }

    /// How long a load runs.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_millis(if self.quick { 300 } else { 800 })
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench datapath: {error}");
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
    let Some(product) = value("--product").map(PathBuf::from) else {
        // `cargo bench` and `cargo test --benches` come here.
        println!("run it with: cargo xtask bench datapath");
        return Ok(true);
    };
    for place in [&product, Path::new(MEMORY)] {
        sweep(place)?;
    }
    let room = rustix::fs::statvfs(MEMORY)?;
    if room.f_bavail * room.f_frsize < NEEDED {
        return Err(format!("{MEMORY} has less than {NEEDED} bytes free").into());
    }
    // Removed when dropped, however the run ends; and by the next run, should this be killed.
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let disk = tempfile::Builder::new().prefix(&prefix).tempdir_in(&product)?;
    let memory = tempfile::Builder::new().prefix(&prefix).tempdir_in(MEMORY)?;
    let setting = Setting {
        product,
        disk: disk.path().to_owned(),
        memory: memory.path().to_owned(),
        scheduling: Scheduling::find()?,
        quick: arguments.iter().any(|word| word == "--quick"),
        only: value("--only"),
        noise: fio::Noise::default(),
    };
    let table = measure(&setting)?;
    let json = arguments.iter().any(|word| word == "--json");
    let noise = setting.noise.describe(setting.scheduling);
    if json {
        eprintln!("{noise}");
        println!("{}", table.json());
    } else {
        println!("{}\n{noise}\n", machine::describe(&setting.disk));
        print!("{}", table.text());
    }
    Ok(table.all_ok())
}

type Part = fn(&Setting, &mut Table) -> Result<()>;

fn measure(setting: &Setting) -> Result<Table> {
    let parts: [(&str, Part); 11] = [
        ("random", memory::random),
        ("sequential", memory::sequential),
        ("mixed", memory::mixed),
        ("first", memory::first),
        ("chain", memory::chain),
        ("disk", disk::measure),
        ("attach", attach::attach),
        ("memory", attach::memory),
        ("snapshot", snapshot::snapshot),
        ("coalesce", snapshot::coalesce),
        ("mirror", mirror::measure),
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

/// Removes the folders of runs that were killed, and ends the processes that serve disks there:
/// those outlive whoever started them.
fn sweep(place: &Path) -> Result<()> {
    for entry in std::fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        let Some(owner) = owner else { continue };
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        for (_, process) in ours::processes(&entry.path().join(ours::RUN)).unwrap_or_default() {
            process::kill_of(process, &entry.path())?;
        }
        std::fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}
