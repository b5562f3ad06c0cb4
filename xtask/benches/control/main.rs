//! What the control path costs: whole commands, one call, a scan, a load.
//!
//! Run by `cargo xtask bench control`, which builds everything for release first. Every figure is
//! a median; a peer is measured in the same run, in turns with ours, so that both see the same
//! machine. Figures that were recorded elsewhere stand in the notes and are compared with nothing.

mod calls;
mod commands;
mod cost;
mod load;
mod machine;
mod scan;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sm_core::Placement;

use table::Table;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is measured, where, and how often.
pub(crate) struct Setting {
    /// The folder of `smctl`, `sm-driver-host` and the drivers.
    product: PathBuf,
    /// A folder for images, on a real file system.
    work: PathBuf,
    /// A tenth of the work, to see whether it runs.
    quick: bool,
    /// This part and no other.
    only: Option<String>,
}

impl Setting {
    pub(crate) fn smctl(&self) -> PathBuf {
        self.product.join("smctl")
    }

    pub(crate) fn driver_host(&self) -> PathBuf {
        self.product.join("sm-driver-host")
    }

    pub(crate) fn file_driver(&self) -> PathBuf {
        self.product.join("libsm_driver_file.so")
    }

    pub(crate) fn noop_driver(&self) -> PathBuf {
        self.product.join("examples/libnoop.so")
    }

    pub(crate) fn often(&self, times: usize) -> usize {
        if self.quick { times.div_ceil(10) } else { times }
    }

    /// A folder of this run.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.work.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }
}

/// Where a driver runs, in a word for the table.
pub(crate) fn placed(placement: Placement) -> &'static str {
    match placement {
        Placement::InProcess => "in process",
        Placement::Child => "child",
    }
}

pub(crate) const PLACEMENTS: [Placement; 2] = [Placement::InProcess, Placement::Child];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench control: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|word| word == name)?;
        arguments.get(at + 1).map(PathBuf::from)
    };
    if let Some(driver) = value("--load-once") {
        return load::once(&driver, &value("--state").ok_or("--state is missing")?).map(|()| true);
    }
    let Some(product) = value("--product") else {
        // `cargo bench` and `cargo test --benches` come here: there is nothing built to measure.
        println!("run it with: cargo xtask bench control");
        return Ok(true);
    };
    // Beside what is measured: a temporary directory can be memory, which no SR is.
    let work = product.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir(&work)?;
    let quick = arguments.iter().any(|word| word == "--quick");
    let only = value("--only").map(|part| part.display().to_string());
    let setting = Setting { product, work, quick, only };
    if let Some(cores) = value("--calls") {
        let outcome = calls::part(&setting, &cores);
        std::fs::remove_dir_all(&setting.work)?;
        return outcome.map(|()| true);
    }
    let outcome = measure(&setting);
    std::fs::remove_dir_all(&setting.work)?;
    let table = outcome?;
    if arguments.iter().any(|word| word == "--json") {
        println!("{}", table.json());
    } else {
        println!("{}\n", machine::describe(&setting.product));
        print!("{}", table.text());
    }
    Ok(table.all_ok())
}

fn measure(setting: &Setting) -> Result<Table> {
    // Children of children that outlive them come to us, so that their time is counted.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut table = Table::default();
    let chosen = |what: &str| {
        let chosen = setting.only.as_deref().is_none_or(|only| only == what);
        if chosen {
            eprintln!("measuring {what}");
        }
        chosen
    };
    if chosen("commands") {
        commands::measure(setting, &mut table)?;
    }
    if chosen("calls") {
        calls::measure(setting, &mut table)?;
    }
    // Making the images takes longest.
    if chosen("scan") {
        runtime.block_on(scan::measure(setting, &mut table))?;
    }
    if chosen("load") {
        runtime.block_on(load::measure(setting, &mut table))?;
    }
    Ok(table)
}

/// A path in the form the engine takes.
pub(crate) fn utf8(path: &Path) -> Result<&camino::Utf8Path> {
    Ok(camino::Utf8Path::from_path(path).ok_or("a path is not UTF-8")?)
}
