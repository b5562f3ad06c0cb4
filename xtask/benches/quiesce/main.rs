//! How long a guest is at rest for a snapshot of its disks: from its word that it is, until it is
//! told to go on.
//!
//! Run by `cargo xtask bench quiesce`, which builds everything for release first. The arrays are
//! simulated ones of this repository, in this process, with 5 ms added to each request. The guest is
//! two programs that do nothing, so the figures are those of the storage manager and its storage:
//! what a real guest takes to come to rest, and to hear that it may go on, comes on top.

#[path = "../control/machine.rs"]
mod machine;
#[expect(dead_code, reason = "there is no peer here, so no bar is a ratio")]
#[path = "../vhd/table.rs"]
mod table;
#[expect(dead_code, reason = "its other users time what this one does not do")]
#[path = "../arrays/world.rs"]
mod world;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use sm_core::model::{AttachMode, Bytes};
use sm_core::quiesce::Method;
use sm_core::{DiskOf, NewSr, NewVdi, Op, Placement, Sr, StorageManager, VmSnapshot};
use table::{Bar, Row, Table};
use world::{Vendor, World};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Milliseconds that each request takes at the array at least.
const LATENCY: u64 = 5;

/// Disks of the guest.
const DISKS: usize = 8;

/// Holder of the disks that data paths serve.
const VM: &str = "bench";

/// What is measured, where, and how much.
pub(crate) struct Setting {
    /// The folder of the drivers and programs.
    pub(crate) product: PathBuf,
    /// A folder of this run, on a real file system.
    pub(crate) work: PathBuf,
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
            eprintln!("bench quiesce: {error}");
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
        println!("run it with: cargo xtask bench quiesce");
        return Ok(true);
    };
    // Removed when dropped, however the run ends.
    let work = tempfile::Builder::new().prefix("bench-quiesce-").tempdir_in(&product)?;
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
    if chosen("group") {
        array(setting, Vendor::TrueNas, "one call for all", 50.0, &mut table).await?;
    }
    if chosen("single") {
        array(setting, Vendor::EqualLogic, "one call each", 200.0, &mut table).await?;
    }
    if chosen("vhd") {
        Box::pin(vhd(setting, &mut table)).await?;
    }
    Ok(table)
}

fn rounds(setting: &Setting) -> usize {
    if setting.quick { 3 } else { 15 }
}

/// Disks of a simulated array.
async fn array(
    setting: &Setting,
    vendor: Vendor,
    how: &str,
    bar: f64,
    table: &mut Table,
) -> Result<()> {
    let world = World::new(setting, vendor, "quiesce").await?;
    world.latency(LATENCY)?;
    let mut disks = Vec::new();
    for n in 0..DISKS {
        let vdi = world.create(&format!("disk {n}"), (n as u64 + 1) << 30).await?.uuid;
        disks.push(DiskOf { sr: world.sr.uuid(), vdi });
    }
    let windows = windows(&world.manager, &disks, rounds(setting)).await?;
    push(table, &format!("{}, {DISKS} disks, {how}", vendor.name()), windows, bar);
    world.close().await;
    Ok(())
}

/// VHDs that data paths serve.
async fn vhd(setting: &Setting, table: &mut Table) -> Result<()> {
    let utf8 = |path: PathBuf| Utf8PathBuf::from_path_buf(path).map_err(|_| "a path is not UTF-8");
    let folder = utf8(setting.work.join("vhd"))?;
    std::fs::create_dir_all(folder.join("images"))?;
    let manager = StorageManager::builder(folder.join("state"))
        .driver(utf8(setting.product.join("libsm_driver_file.so"))?)
        .placement(Placement::InProcess)
        .open()
        .await?;
    let config = [("location".to_owned(), folder.join("images").into_string())].into();
    let new = NewSr { driver: "file".into(), device_config: config, ..NewSr::default() };
    let record = manager.sr_create(&Op::new(), new).await?;
    let sr = manager.sr(&record.uuid.to_string())?;
    let mut disks = Vec::new();
    for n in 0..DISKS {
        let name = format!("disk {n}");
        let new = NewVdi { name, virtual_size: Bytes::gib(1), ..NewVdi::default() };
        let vdi = sr.vdi_create(&Op::new(), new).await?.vdi.uuid;
        disks.push(DiskOf { sr: sr.uuid(), vdi });
    }
    for disk in &disks {
        sr.vdi_attach(&Op::new(), disk.vdi, VM, AttachMode::ReadWrite).await?;
        sr.vdi_activate(&Op::new(), disk.vdi, VM).await?;
    }
    let windows = windows(&manager, &disks, rounds(setting)).await;
    // What is left attached would be served for ever.
    detach(&sr, &disks).await?;
    push(table, &format!("VHD, {DISKS} disks on data paths"), windows?, 20.0);
    manager.close().await;
    Ok(())
}

async fn detach(sr: &Sr, disks: &[DiskOf]) -> Result<()> {
    for disk in disks {
        sr.vdi_deactivate(&Op::new(), disk.vdi, VM).await?;
        sr.vdi_detach(&Op::new(), disk.vdi, VM).await?;
    }
    Ok(())
}

/// Milliseconds at rest, of each round but the first, which warms up.
async fn windows(manager: &StorageManager, disks: &[DiskOf], rounds: usize) -> Result<Vec<f64>> {
    let nothing = vec!["true".to_owned()];
    let request = VmSnapshot {
        disks: disks.to_vec(),
        method: Method::Exec { before: nothing.clone(), after: nothing },
        ..VmSnapshot::default()
    };
    let mut windows = Vec::new();
    for round in 0..=rounds {
        let set = manager.vm_snapshot(&Op::new(), &request).await?;
        let microseconds = set.frozen_microseconds.ok_or("nobody says how long it was")?;
        if round > 0 {
            windows.push(std::time::Duration::from_micros(microseconds).as_secs_f64() * 1e3);
        }
        manager.set_destroy(&Op::new(), &set).await?;
    }
    Ok(windows)
}

fn push(table: &mut Table, name: &str, ours: Vec<f64>, bar: f64) {
    let worst = ours.iter().copied().fold(0.0, f64::max);
    table.push(Row {
        name: format!("guest at rest: {name}"),
        unit: "ms",
        ours,
        peer: None,
        bar: Some(Bar::Most(bar)),
        note: format!("the longest {worst:.1} ms"),
    });
}
