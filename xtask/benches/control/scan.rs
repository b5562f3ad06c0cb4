//! Listing an SR with many images.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sm_core::{NewSr, Op, Placement, Sr, StorageManager};
use uuid::Uuid;
use vhd::tree::{Format, Guard, Snapshot, Tree};
use vhd::{Disk as _, Mode};

use crate::cost::{self, median, milliseconds, number};
use crate::table::{Row, Table};
use crate::{PLACEMENTS, Result, Setting, placed, utf8};

/// Images of the SRs that are listed.
const SIZES: [usize; 3] = [1_000, 5_000, 20_000];

/// Images from a disk to the root of its chain.
const DEPTH: usize = 4;

/// Chains that are made together.
const PART: usize = 20;

/// Listings of each SR.
const TIMES: usize = 21;

/// A listing of 1,000 images, in milliseconds.
const BAR: f64 = 50.0;

/// Images that the peer is asked about; it is a process for each, so a few tell enough.
const PEER: usize = 50;

pub(crate) async fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let location = setting.folder("scan")?;
    for images in SIZES {
        let images = setting.often(images);
        let folder = location.join(Uuid::from_u128(images as u128).to_string());
        build(&folder, images)?;
        // The peer runs its processes now, while no driver of ours is a child of this process.
        let peer = if images == setting.often(SIZES[0]) {
            Some(qemu_info(&folder, images)?)
        } else {
            None
        };
        for placement in PLACEMENTS {
            let (list, scan) = scan(setting, &location, images, placement).await?;
            let place = placed(placement);
            if let Some(peer) = peer {
                table.push(Row {
                    name: format!(
                        "list of {images} VHDs (chains of {DEPTH}), {place}, 0 processes"
                    ),
                    unit: "ms".to_owned(),
                    ours: list,
                    peer: Some((peer, "qemu-img info for each".to_owned())),
                    bar: Some(BAR),
                    note:
                        "SMAPIv1 3,600 ms in 1,002 processes, vhd-util 155 ms, recorded elsewhere"
                            .to_owned(),
                });
            } else {
                table.push(Row {
                    name: format!("list of {images} VHDs, per 1,000, {place}"),
                    unit: "ms".to_owned(),
                    ours: list * 1e3 / number(images),
                    bar: Some(BAR),
                    ..Row::default()
                });
            }
            table.push(Row {
                name: format!("scan of {images} VHDs, recovery included, per 1,000, {place}"),
                unit: "ms".to_owned(),
                ours: scan * 1e3 / number(images),
                ..Row::default()
            });
        }
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

/// Medians of a listing and of a scan of the SR, warm.
async fn scan(
    setting: &Setting,
    location: &Path,
    images: usize,
    placement: Placement,
) -> Result<(f64, f64)> {
    let sr = introduce(setting, location, images, placement).await?;
    let expected = images / DEPTH;
    let before = children_that_ended()?;
    let (mut lists, mut scans) = (Vec::new(), Vec::new());
    for _ in 0..setting.often(TIMES) {
        let start = Instant::now();
        let vdis = sr.vdis(&Op::new()).await?;
        lists.push(milliseconds(start.elapsed()));
        if vdis.len() != expected {
            return Err(format!("{} disks are listed, there are {expected}", vdis.len()).into());
        }
        let start = Instant::now();
        sr.scan(&Op::new().with_budget(Duration::from_secs(120))).await?;
        scans.push(milliseconds(start.elapsed()));
    }
    let after = children_that_ended()?;
    if before != after {
        return Err(format!("listing has started processes: {before:?}, then {after:?}").into());
    }
    sr.detach(&Op::new()).await?;
    Ok((median(lists), median(scans)))
}

async fn introduce(
    setting: &Setting,
    location: &Path,
    images: usize,
    placement: Placement,
) -> Result<Sr> {
    let state = setting.folder(&format!("scan {images} {}", placed(placement)))?;
    let manager = StorageManager::builder(utf8(&state)?)
        .driver(utf8(&setting.file_driver())?)
        .driver_host(utf8(&setting.driver_host())?)
        .placement(placement)
        .open()
        .await?;
    let new = NewSr {
        driver: "file".into(),
        uuid: Some(Uuid::from_u128(images as u128).into()),
        device_config: [("location".to_owned(), utf8(location)?.to_string())].into(),
        ..NewSr::default()
    };
    let record = manager.sr_introduce(&Op::new(), new).await?;
    Ok(manager.sr(&record.uuid.to_string())?)
}

/// For this process and its driver's: page faults of children that have ended, and the children
/// that live. No process ends without a page fault, so that what was started shows in either.
fn children_that_ended() -> Result<Vec<(String, String, String)>> {
    let own = std::process::id().to_string();
    let mut processes = vec![own.clone()];
    processes.extend(children(&own));
    let mut found = Vec::new();
    for process in processes {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the name, which may hold anything: state is field 3, cminflt is field 11.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let faults = fields.split_whitespace().nth(8).unwrap_or_default().to_owned();
        found.push((process.clone(), faults, children(&process).join(" ")));
    }
    Ok(found)
}

pub(crate) fn children(process: &str) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Makes the SR: chains of images, each a disk that was snapshotted, the snapshots gone.
///
/// In small trees that are then put together: a removal looks at all images of a tree, so that one
/// large tree would take hours. In memory, if there is such a place, because each step is made
/// durable; neither is what is measured here.
fn build(folder: &Path, images: usize) -> Result<()> {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { folder.parent().ok_or("no folder above")? };
    let part = parent.join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(folder)?;
    let chains: Vec<usize> = (0..images / DEPTH).collect();
    let built = chains.chunks(PART).try_for_each(|chains| {
        std::fs::create_dir(&part)?;
        fill(&part, chains)?;
        let from = part.join(".");
        let words = ["-a", "--sparse=always", utf8(&from)?.as_str(), utf8(folder)?.as_str()];
        cost::run(Path::new("cp"), &words, &[])?;
        Ok(std::fs::remove_dir_all(&part)?)
    });
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    built
}

fn fill(folder: &Path, chains: &[usize]) -> Result<()> {
    let tree = Tree::init(folder)?;
    let guard = tree.lock(Instant::now() + Duration::from_secs(10))?;
    chains.iter().try_for_each(|n| chain(&tree, &guard, *n as u128))
}

fn chain(tree: &Tree, guard: &Guard, n: u128) -> Result<()> {
    let uuid = |role: u128| Uuid::from_u128(0x4000_8000_0000_0000_0000 + (n << 8) + role);
    let metadata = serde_json::json!({"name": format!("disk {n}")});
    let disk = uuid(0);
    tree.create(guard, disk, Format::Vhd, 10 << 30, &metadata)?;
    for step in 1..DEPTH as u128 {
        // An image that holds nothing would not become a base copy.
        let image = tree.open_disk(disk, Mode::Write)?;
        image.write_at((step as u64) << 12, b"something")?;
        image.flush()?;
        drop(image);
        let request = Snapshot {
            op: uuid(0x10 + step),
            source: disk,
            new: uuid(step),
            new_metadata: &metadata,
            allow_copy: false,
        };
        tree.snapshot(guard, &request, &mut |_| ControlFlow::Continue(()))?;
        tree.delete(guard, uuid(step))?;
    }
    Ok(())
}

/// Asking the peer about some images, as much as for all of them.
fn qemu_info(folder: &Path, images: usize) -> Result<f64> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "vhd"))
        .collect();
    if files.len() != images {
        return Err(format!("{} images were made, not {images}", files.len()).into());
    }
    files.sort();
    let mut total = 0.0;
    for file in files.iter().take(PEER) {
        let words = ["info", "-f", "vpc", utf8(file)?.as_str()];
        total += cost::run(Path::new("qemu-img"), &words, &[])?.0.wall;
    }
    Ok(total * number(images) / number(files.len().min(PEER)))
}
