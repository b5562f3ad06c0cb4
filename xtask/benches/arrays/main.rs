//! What drivers of storage arrays cost beside the array: requests, time, at once.
//!
//! Run by `cargo xtask bench arrays`, which builds everything for release first. The arrays are
//! simulated ones of this repository, in this process, with 5 ms added to each request, so the figures say
//! what the storage manager does and nothing of a real array. A figure of several rounds is a median.

mod clone;
mod list;
#[path = "../control/machine.rs"]
mod machine;
mod operations;
mod parallel;
#[expect(dead_code, reason = "there is no peer here, so no bar is a ratio")]
#[path = "../vhd/table.rs"]
mod table;
mod world;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use table::Table;
use world::Vendor;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Milliseconds that each request takes at the array at least.
pub(crate) const LATENCY: u64 = 5;

/// What is measured, where, and how much.
pub(crate) struct Setting {
    /// The folder of the drivers.
    product: PathBuf,
    /// A folder of this run, on a real file system.
    work: PathBuf,
    /// A part of the work, to see whether it runs.
    quick: bool,
    /// This part and no other.
    only: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench arrays: {error}");
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
        println!("run it with: cargo xtask bench arrays");
        return Ok(true);
    };
    // Removed when dropped, however the run ends.
    let work = tempfile::Builder::new().prefix("bench-arrays-").tempdir_in(&product)?;
    let setting = Setting {
        product,
        work: work.path().to_owned(),
        quick: arguments.iter().any(|word| word == "--quick"),
        only: value("--only"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let table = runtime.block_on(measure(&setting))?;
    if arguments.iter().any(|word| word == "--json") {
        println!("{}", table.json());
    } else {
        println!("{}\n", machine::describe(&setting.work));
        print!("{}", table.text());
    }
    Ok(table.all_ok())
}

async fn measure(setting: &Setting) -> Result<Table> {
    let mut table = Table::default();
    let chosen = |what: &str| setting.only.as_deref().is_none_or(|only| only == what);
    for vendor in Vendor::ALL {
        if chosen("operations") {
            eprintln!("measuring operations, {}", vendor.name());
            Box::pin(operations::measure(setting, vendor, &mut table)).await?;
        }
        if chosen("list") {
            eprintln!("measuring list, {}", vendor.name());
            list::measure(setting, vendor, &mut table).await?;
        }
        if chosen("clone") {
            eprintln!("measuring clone, {}", vendor.name());
            clone::measure(setting, vendor, &mut table).await?;
        }
        if chosen("parallel") {
            eprintln!("measuring parallel, {}", vendor.name());
            parallel::measure(setting, vendor, &mut table).await?;
        }
    }
    Ok(table)
}
