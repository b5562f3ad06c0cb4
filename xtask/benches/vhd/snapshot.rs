//! Snapshots and clones in a store on the disk, and what syncs have to do with it.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;
use vhd::store::Blob;
use vhd::tree::{Format, Guard, Snapshot};
use vhd::{Disk, Tree};

use crate::images::MIB;
use crate::table::{Bar, Row, Table, median};
use crate::{Result, Setting, seconds, utf8};

/// Disks in the store beside the one that is snapshot.
const OTHERS: usize = 20;

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let dir = setting.disk.join("store");
    std::fs::create_dir(&dir)?;
    let tree = Tree::init(&dir)?;
    let guard = tree.lock(Instant::now() + Duration::from_secs(10))?;
    for _ in 0..OTHERS {
        disk(&tree, &guard)?;
    }
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for _ in 0..if setting.quick { 10 } else { 60 } {
        let source = disk(&tree, &guard)?;
        let (time, snapshot) = taken(&tree, &guard, source)?;
        snapshots.push(time);
        clones.push(taken(&tree, &guard, snapshot)?.0);
    }
    drop((guard, tree));
    let folder = bare(&dir, if setting.quick { 20 } else { 100 })?;
    let peer =
        |figures: &Vec<f64>| Some((figures.clone(), "one new file and its name, both synced"));
    for (what, ours) in [("snapshot", &snapshots), ("clone of a snapshot", &clones)] {
        table.push(Row {
            name: format!("{what} in a store of files, all syncs included, disk"),
            unit: "ms",
            ours: ours.clone(),
            peer: peer(&folder),
            bar: Some(Bar::Most(2.0)),
            note: "vhd-util snapshot, by itself: 2.8 recorded elsewhere".to_owned(),
        });
    }
    let count = syncs(&dir)?;
    let each = median(&folder) / 2.0;
    table.push(Row {
        name: "of a snapshot: its syncs, each as long as one of the two for a new file".to_owned(),
        unit: "ms",
        ours: vec![count * each],
        peer: None,
        bar: None,
        note: format!("{count} syncs of {each:.2} ms"),
    });
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn disk(tree: &Tree, guard: &Guard) -> Result<Uuid> {
    let uuid = Uuid::new_v4();
    tree.create(guard, uuid, Format::Vhd, 1024 * MIB, &json!({}))?;
    let disk = tree.open_disk(uuid, vhd::Mode::Write)?;
    // What is empty has nothing to share.
    disk.write_at(0, &[1; 4096])?;
    disk.flush()?;
    Ok(uuid)
}

/// Milliseconds, and the new disk.
fn taken(tree: &Tree, guard: &Guard, source: Uuid) -> Result<(f64, Uuid)> {
    let (op, new, metadata) = (Uuid::new_v4(), Uuid::new_v4(), json!({}));
    let request = Snapshot { op, source, new, new_metadata: &metadata, allow_copy: false };
    let time = seconds(|| Ok(tree.snapshot(guard, &request, &mut |_| ControlFlow::Continue(()))?))?;
    Ok((1000.0 * time, new))
}

/// What the least takes that a change can be: a new file, its sync and that of its folder;
/// milliseconds.
fn bare(dir: &Path, rounds: usize) -> Result<Vec<f64>> {
    let folder = std::fs::File::open(dir)?;
    let round = |round| {
        let time = seconds(|| {
            let new = std::fs::File::create(dir.join(format!("new-{round}")))?;
            Blob::write_at(&new, &[1; 4096], 0)?;
            new.sync_data()?;
            Ok(folder.sync_all()?)
        })?;
        Ok(1000.0 * time)
    };
    (0..rounds).map(round).collect()
}

/// Syncs of one snapshot, as the system sees them.
fn syncs(dir: &Path) -> Result<f64> {
    let trace = dir.with_extension("trace");
    let mut counts = Vec::new();
    for what in ["", "--snapshot"] {
        let output = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", utf8(&trace)?])
            .arg(std::env::current_exe()?)
            .args(["--store", utf8(dir)?, what])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("strace cannot be run: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        counts.push(std::fs::read_to_string(&trace)?.matches("sync(").count());
    }
    std::fs::remove_file(&trace)?;
    let more = counts[1].saturating_sub(counts[0]);
    Ok(f64::from(u32::try_from(more)?))
}

/// What is traced: a new disk, and perhaps its snapshot.
pub(crate) fn once(dir: &Path, snapshot: bool) -> Result<()> {
    let tree = Tree::open(dir)?;
    let guard = tree.lock(Instant::now() + Duration::from_secs(10))?;
    let source = disk(&tree, &guard)?;
    if snapshot {
        taken(&tree, &guard, source)?;
    }
    Ok(())
}
