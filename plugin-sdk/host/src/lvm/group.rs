//! Snapshots of several thin volumes at one instant: all of them, or none.
//!
//! ```text
//! ahead  1  lvcreate --snapshot   of each, marked as being made: no VDI yet; LVM chooses its number
//!        2  message delete        of each number: what LVM has caught just now is of different instants
//! then   3  suspend               of all origins that are active, by one command
//!        4  message create_snap   of each number again, of its origin
//!        5  resume                of all
//!        6  lvchange              the marks go, and the time comes, by one command
//! ```
//!
//! To LVM each is a volume like any other, from the first step on: its metadata and those of the pool
//! name the same devices at each point, but that a device is missing between 2 and 4, of a volume that is
//! none yet. Such a one is removed by a recovery, as is each of a group whose marks are all there. If one
//! has lost its mark, all are caught, and the rest lose theirs.
//!
//! Guests wait from 3 to 5. If this process dies there, `flock` sees it, because the kernel takes the
//! lock back, and resumes what is suspended: nobody has to be told.
//!
//! # Why not ...
//!
//! - **`lvcreate` while the origins are suspended**: LVM 2.03.16 takes one that is suspended for one
//!   that it has suspended itself, and never tells the pool.
//! - **numbers of our own for the snapshots of step 4, exchanged later**: a cut would leave devices in the
//!   pool that LVM knows nothing of.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use plugin_sdk::model::vdi::{
    SnapshotSpec, VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdisDone,
};
use plugin_sdk::model::{Changed, Kind, OperationId, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step, tokio};

use crate::lvm::attach::mapped_name;
use crate::lvm::lock::{self, Held};
use crate::lvm::metadata::Metadata;
use crate::lvm::names::Names;
use crate::lvm::pool;
use crate::lvm::report::{Group, Volume};
use crate::lvm::sr::Sr;
use crate::lvm::thin::{self, MARK};
use crate::lvm::vdis::{find, sharable_blocks};

/// How long guests may wait. What is not suspended by then is not.
const WINDOW: Duration = Duration::from_secs(5);

/// A snapshot to take.
struct Part {
    /// The name of its origin for device-mapper.
    of: String,
    active: bool,
    /// The number of its origin in the pool.
    origin: u64,
    number: u64,
}

pub(crate) async fn prepare(
    sr: &Sr,
    cx: &Cx,
    request: &VdiSnapshotPrepare,
) -> Result<VdiSnapshotPrepared> {
    let specs = &request.snapshots;
    if specs.len() < 2 {
        return Ok(VdiSnapshotPrepared::default());
    }
    let (_held, group) = settled(sr, cx, specs).await?;
    if request.abandon {
        give_up(sr, cx, specs).await?;
        return Ok(VdiSnapshotPrepared::default());
    }
    make(sr, cx, &group, specs).await?;
    Ok(VdiSnapshotPrepared::default())
}

pub(crate) async fn snapshot(sr: &Sr, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
    let specs = &request.snapshots;
    let (_held, group) = settled(sr, cx, specs).await?;
    if caught(sr, &group, specs, cx.operation_id()) {
        let made = specs.iter().any(|spec| is_begun(sr, &group, spec.uuid));
        if made {
            settle(sr, cx, specs, request.time).await?;
        }
        let group = sr.group(&cx.shielded()).await?;
        return done(&group, specs, if made { Changed::Created } else { Changed::Already });
    }
    make(sr, cx, &group, specs).await?;
    // From here on it is finished or undone, whoever waits for it.
    let cx = &cx.shielded();
    match catch(sr, cx, specs).await {
        Ok(()) => {
            step!("vdi_group.caught");
            settle(sr, cx, specs, request.time).await?;
            done(&sr.group(cx).await?, specs, Changed::Created)
        }
        Err(error) => {
            give_up(sr, cx, specs).await?;
            Err(error)
        }
    }
}

async fn settled(sr: &Sr, cx: &Cx, specs: &[SnapshotSpec]) -> Result<(Held, Group)> {
    let (held, mut group) = sr.changing(cx).await?;
    for spec in specs {
        group = thin::settled(sr, cx, group, &sr.names.volume(spec.uuid)).await?;
    }
    Ok((held, group))
}

/// Whether the snapshots of an operation are all there, and one of them is no longer marked.
fn caught(sr: &Sr, group: &Group, specs: &[SnapshotSpec], by: OperationId) -> bool {
    let of = |spec: &SnapshotSpec| group.volume(&sr.names.volume(spec.uuid)).map(Metadata::of);
    let ours = |spec: &SnapshotSpec| matches!(of(spec), Some(Ok(m)) if m.made_by == Some(by));
    specs.iter().all(ours) && specs.iter().any(|spec| !is_begun(sr, group, spec.uuid))
}

fn is_begun(sr: &Sr, group: &Group, vdi: VdiUuid) -> bool {
    let volume = group.volume(&sr.names.volume(vdi)).map(Metadata::of);
    matches!(volume, Some(Ok(metadata)) if metadata.zeroed_to == Some(0))
}

/// Makes the volumes that are not there yet.
async fn make(sr: &Sr, cx: &Cx, group: &Group, specs: &[SnapshotSpec]) -> Result<()> {
    pool::room(group)?;
    let mut new = Vec::new();
    for spec in specs {
        let source = sharable_blocks(group, spec.vdi)?;
        if let Some(there) = group.volume(&sr.names.volume(spec.uuid)) {
            let ours = Metadata::of(there)?.made_by == Some(cx.operation_id());
            if ours && is_begun(sr, group, spec.uuid) {
                continue;
            }
            let text = format!("VDI {} exists already", spec.uuid);
            return Err(Error::new(Kind::Exists, text).legacy(43));
        }
        let metadata = Metadata {
            name: spec.name.clone(),
            description: spec.description.clone(),
            is_a_snapshot: true,
            read_only: true,
            snapshot_of: Some(spec.vdi),
            used: source.used(),
            made_by: Some(cx.operation_id()),
            changed_by: Vec::new(),
            zeroed_to: Some(0),
            ..source.metadata.clone()?
        };
        metadata.tags()?;
        new.push((source.volume, sr.names.volume(spec.uuid), metadata));
    }
    let cx = &cx.shielded();
    for (source, name, metadata) in new {
        if let Err(error) = thin::share(sr, cx, source, &name, &metadata).await {
            give_up(sr, cx, specs).await?;
            return Err(error);
        }
        step!("vdi_group.volume_made");
    }
    Ok(())
}

/// Catches all of them.
async fn catch(sr: &Sr, cx: &Cx, specs: &[SnapshotSpec]) -> Result<()> {
    let group = sr.group(cx).await?;
    let number = |name: &str| {
        let known = group.volume(name).and_then(|volume| volume.number);
        known.ok_or_else(|| Error::internal(format!("LVM does not tell the number of {name}")))
    };
    let mut parts = Vec::new();
    for spec in specs {
        let (of, new) = (sr.names.volume(spec.vdi), sr.names.volume(spec.uuid));
        let active = group.volume(&of).is_some_and(|volume| volume.active);
        let (origin, number) = (number(&of)?, number(&new)?);
        parts.push(Part { of: mapped_name(sr, &of), active, origin, number });
    }
    let pool = thin::device(sr);
    for part in &parts {
        // One of an earlier try may be gone already.
        let _ = message(cx, &pool, &format!("delete {}", part.number)).await;
    }
    step!("vdi_group.numbers_free");
    let active: Vec<&str> =
        parts.iter().filter(|part| part.active).map(|part| part.of.as_str()).collect();
    if active.is_empty() {
        return create(cx, &pool, &parts).await;
    }
    // Held until here is resumed. With this process it goes, and flock goes on.
    let place = lock::place(&format!("{}.suspended", sr.name()))?;
    let held = take(&place)?;
    let resume = ["dmsetup", "resume", "--noudevsync"];
    let mut watcher = Box::pin(cx.command("flock").arg(&place).args(resume).args(&active).output());
    tokio::select! {
        biased;
        ended = &mut watcher => {
            ended?;
            return Err(Error::internal("flock does not wait for its lock"));
        }
        () = std::future::ready(()) => {}
    }
    let window = &cx.within(WINDOW);
    let suspended = dmsetup(window, "suspend", &active).await;
    step!("vdi_group.suspended");
    let taken = match suspended {
        Ok(()) => create(window, &pool, &parts).await,
        Err(error) => Err(error),
    };
    // Whatever has become of it, and also what was not suspended: that is no error.
    let resumed = dmsetup(cx, "resume", &active).await;
    drop(held);
    let watched = watcher.await.map(drop);
    taken.and(resumed.or(watched))
}

async fn create(cx: &Cx, pool: &str, parts: &[Part]) -> Result<()> {
    for part in parts {
        let (new, of) = (part.number, part.origin);
        message(cx, pool, &format!("create_snap {new} {of}")).await?;
    }
    Ok(())
}

/// Says of all that they are VDIs, and when they were taken.
async fn settle(sr: &Sr, cx: &Cx, specs: &[SnapshotSpec], time: u64) -> Result<()> {
    let time = format!("sm:time={time}");
    let mut words = vec!["--deltag".to_owned(), MARK.to_owned()];
    words.extend(["--addtag".to_owned(), time]);
    words.extend(specs.iter().map(|spec| sr.path(&sr.names.volume(spec.uuid))));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    sr.lvm.change(&cx.shielded(), "lvchange", &words).await?;
    step!("vdi_group.settled");
    Ok(())
}

/// Removes what there is of a group that is not caught.
async fn give_up(sr: &Sr, cx: &Cx, specs: &[SnapshotSpec]) -> Result<()> {
    let cx = &cx.shielded();
    let group = sr.group(cx).await?;
    for spec in specs {
        let begun = is_begun(sr, &group, spec.uuid);
        if let Some(volume) = group.volume(&sr.names.volume(spec.uuid)).filter(|_| begun) {
            let ours = Metadata::of(volume)?.made_by == Some(cx.operation_id());
            if ours {
                sr.remove(cx, volume).await?;
                step!("vdi_group.given_up");
            }
        }
    }
    Ok(())
}

/// Whether a volume that is marked belongs to a group that was caught: then the mark is all that is
/// left to do. It has the time of the one that has lost its mark.
pub(crate) fn of_caught(group: &Group, names: Names, volume: &Volume) -> Option<u64> {
    let begun = Metadata::of(volume).ok()?;
    let by = begun.made_by.filter(|_| begun.is_a_snapshot && begun.zeroed_to == Some(0))?;
    let others = group.volumes.iter().filter(|one| names.vdi_of(&one.name).is_some());
    let mut others = others.filter_map(|other| Metadata::of(other).ok());
    let other = others.find(|other| {
        other.made_by == Some(by) && other.is_a_snapshot && other.zeroed_to.is_none()
    })?;
    other.snapshot_time
}

/// Finishes a volume of [`of_caught`].
pub(crate) async fn finish(sr: &Sr, cx: &Cx, volume: &Volume, time: u64) -> Result<()> {
    let time = format!("sm:time={time}");
    let path = sr.path(&volume.name);
    let words = ["--deltag", MARK, "--addtag", &time, &path];
    sr.lvm.change(&cx.shielded(), "lvchange", &words).await
}

fn done(group: &Group, specs: &[SnapshotSpec], changed: Changed) -> Result<VdisDone> {
    let info = |spec: &SnapshotSpec| find(group, spec.uuid).map(|vdi| vdi.info(group));
    Ok(VdisDone { changed, vdis: specs.iter().map(info).collect::<Result<_>>()? })
}

fn take(place: &Path) -> Result<File> {
    let failed = |error: std::io::Error| {
        Error::internal(format!("the lock {} cannot be taken", place.display())).source(&error)
    };
    let file = File::options().create(true).truncate(false).write(true).open(place);
    let file = file.map_err(failed)?;
    file.try_lock().map_err(|error| failed(error.into()))?;
    Ok(file)
}

async fn message(cx: &Cx, pool: &str, text: &str) -> Result<()> {
    cx.command("dmsetup").args(["message", pool, "0", text]).run().await.map(drop)
}

async fn dmsetup(cx: &Cx, what: &str, devices: &[&str]) -> Result<()> {
    cx.command("dmsetup").args([what, "--noudevsync"]).args(devices).run().await.map(drop)
}
