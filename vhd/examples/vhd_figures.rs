//! Prints how long the operations of a store take on this machine.
//!
//! ```text
//! cargo run --release -p vhd --example vhd_figures -- [directory]
//! ```
//!
//! Each figure is the median of several runs; the slowest is beside it, because one slow sync says
//! more about a disk than the median does.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};
use vhd::tree::{Format, Snapshot};
use vhd::{Chain, Disk, Layer, Mode, Raw, Tree};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("vhd-figures-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    println!("in {}", dir.display());
    println!("{:<44}{:>12}{:>12}", "", "median", "slowest");
    let result = run(&dir);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn run(dir: &Path) -> Result<()> {
    operations(&dir.join("operations"))?;
    transfers(dir)?;
    listings(&dir.join("listing"))
}

fn line(name: &str, runs: usize, mut each: impl FnMut() -> Result<()>) -> Result<()> {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        each()?;
        times.push(start.elapsed());
    }
    show(name, times);
    Ok(())
}

fn show(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    println!("{name:<44}{:>12.1?}{:>12.1?}", at(times.len() / 2), at(times.len() - 1));
}

fn go(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn operations(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir)?;
    let tree = Tree::init(dir)?;
    let guard = tree.lock(Instant::now() + Duration::from_secs(1))?;
    let metadata = json!({ "name_label": "a disk", "name_description": "", "user": "vm-1" });
    let mut disks = Vec::new();
    line("create a VHD disk of 8 GiB", 30, || {
        disks.push(Uuid::new_v4());
        let uuid = disks.last().copied().unwrap_or_default();
        tree.create(&guard, uuid, Format::Vhd, 8 << 30, &metadata)?;
        Ok(())
    })?;
    let mut snapshots = Vec::new();
    let mut empty = Vec::new();
    let mut full = Vec::new();
    for disk in &disks {
        for data in [true, false] {
            if data {
                let open = tree.open_disk(*disk, Mode::Write)?;
                open.write_at(0, &[1; 4096])?;
                open.flush()?;
            }
            let new = Uuid::new_v4();
            let request = Snapshot {
                op: Uuid::new_v4(),
                source: *disk,
                new,
                new_metadata: &metadata,
                allow_copy: false,
            };
            let start = Instant::now();
            tree.snapshot(&guard, &request, &mut go)?;
            if data { &mut full } else { &mut empty }.push(start.elapsed());
            snapshots.push(new);
        }
    }
    show("snapshot of a disk with data", full);
    show("snapshot of a disk without", empty);
    let mut each = snapshots.iter();
    line("delete a snapshot", snapshots.len(), || {
        if let Some(uuid) = each.next() {
            tree.delete(&guard, *uuid)?;
        }
        Ok(())
    })?;
    let mut size = 8 << 30;
    line("resize", 10, || {
        size += 2 * MIB;
        let uuid = disks.first().copied().unwrap_or_default();
        tree.resize(&guard, Uuid::new_v4(), uuid, size, &metadata)?;
        Ok(())
    })?;
    let mut version = 0;
    line("change metadata", 30, || {
        version += 1;
        let uuid = disks.first().copied().unwrap_or_default();
        tree.set_metadata(&guard, uuid, &json!({ "version": version }))?;
        Ok(())
    })?;
    line("recover with nothing to do", 100, || Ok(tree.recover(&guard).map(drop)?))
}

fn transfers(dir: &Path) -> Result<()> {
    let raw = dir.join("x.raw");
    let flat = dir.join("x.vhd");
    let out = dir.join("y.raw");
    let size = 512 * MIB;
    let source = Raw::create(&raw, size)?;
    let mut block = vec![0; 1 << 20];
    for (index, byte) in block.iter_mut().enumerate() {
        *byte = (index % 251) as u8 | 1;
    }
    for index in 0..size / MIB {
        source.write_at(index * MIB, &block)?;
    }
    source.flush()?;
    line("raw 512 MiB to VHD, synced", 3, || {
        let _ = std::fs::remove_file(&flat);
        vhd::copy::flatten(&source, &flat, Uuid::new_v4(), &mut go)?;
        Ok(())
    })?;
    let chain = Chain::open(&[Layer::Vhd(&flat)], Mode::Read)?;
    line("read 512 MiB through the chain", 3, || {
        let mut buf = vec![0; 4 << 20];
        for at in (0..size).step_by(buf.len()) {
            chain.read_at(at, &mut buf)?;
        }
        Ok(())
    })?;
    line("VHD to raw, synced", 3, || {
        let _ = std::fs::remove_file(&out);
        let target = Raw::create(&out, size)?;
        vhd::copy::copy(&chain, &target, &mut go)?;
        Ok(())
    })?;
    for path in [raw, flat, out] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Chains of four, each leaf described: what a scan of a store with many disks sees.
fn listings(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir)?;
    let tree = Tree::init(dir)?;
    let metadata = json!({
        "name_label": "disk of a virtual machine", "name_description": "made by figures",
        "type": "user", "sm_config": { "vhd-parent": Uuid::new_v4() }, "tags": ["a", "b"],
    });
    let doc = json!({ "sm": 1, "format": "vhd", "metadata": metadata });
    let mut count = 0;
    let mut last = PathBuf::new();
    for total in [1_000, 20_000] {
        while count < total {
            let mut parent = None;
            for level in 0..4 {
                let uuid = Uuid::new_v4();
                let name = format!("{uuid}.vhd");
                last = dir.join(&name);
                let image = Uuid::new_v4();
                create(&last, &NewImage { uuid: image, size: 8 << 30, parent })?;
                if level == 3 {
                    let path = dir.join(".sm/vdi").join(format!("{uuid}.json"));
                    std::fs::write(path, serde_json::to_vec(&doc)?)?;
                }
                parent = Some(ParentLink { uuid: image, name });
                count += 1;
            }
        }
        line(&format!("list {total} images in chains of 4"), 7, || {
            let listing = tree.list()?;
            let sound = listing.nodes.iter().filter(|node| node.is_ok()).count();
            if sound != total {
                return Err(format!("{sound} of {total} are sound").into());
            }
            Ok(())
        })?;
    }
    line("probe one image", 1000, || Ok(vhd::image::probe(&last).map(drop)?))
}
