//! Operations on VDIs. Each is one report and one change, unless it says why not.
//!
//! A volume is made with all of its tags by the command that makes it, so there is no instant at
//! which it is there without them. What takes several commands can be cut between any two:
//! [`Sr::recover`] goes on from what is there.

use std::collections::HashMap;
use std::fs::File;

use plugin_sdk::model::sr::SrScanned;
use plugin_sdk::model::vdi::{
    Finding, Health, NodeKind, Severity, TreeNode, VdiChecked, VdiClone, VdiCreate, VdiDestroyed,
    VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiSnapshot, VdiUpdate,
    VdisDone,
};
use plugin_sdk::model::{Bytes, Changed, ImageFormat, Kind, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step};
use rustix::fs::FallocateFlags;

use crate::lvm::metadata::{Metadata, SrDocument, Vdi, difference, vdis};
use crate::lvm::names::Names;
use crate::lvm::pool;
use crate::lvm::report::{Group, Volume};
use crate::lvm::sr::Sr;
use crate::lvm::thin;

/// Bytes that are zeroed between two looks for a cancel.
const ZEROED_AT_ONCE: u64 = 64 << 20;

pub(crate) async fn scan(sr: &Sr, cx: &Cx) -> Result<SrScanned> {
    let group = sr.group(cx).await?;
    Ok(SrScanned { vdis: vdis(&group).iter().map(|vdi| vdi.info(&group)).collect(), next: None })
}

pub(crate) async fn stat(sr: &Sr, cx: &Cx, vdi: VdiUuid) -> Result<VdiInfo> {
    let group = sr.group(cx).await?;
    find(&group, vdi).map(|vdi| vdi.info(&group))
}

pub(crate) async fn create(sr: &Sr, cx: &Cx, request: &VdiCreate) -> Result<VdiDone> {
    if request.format.is_some_and(|format| format != ImageFormat::Raw) {
        return Err(
            Error::unsupported("an SR of volumes holds disks of format raw only").legacy(66)
        );
    }
    let (_held, group) = sr.changing(cx).await?;
    let size = size_of(&group, request.virtual_size)?;
    let metadata = Metadata {
        name: request.name.clone(),
        description: request.description.clone(),
        vdi_type: request.vdi_type,
        sharable: request.sharable,
        keys: request.keys.clone(),
        incomplete: request.incomplete,
        made_by: Some(cx.operation_id()),
        ..Metadata::default()
    };
    let volume = sr.names.volume(request.uuid);
    let group = thin::settled(sr, cx, group, &volume).await?;
    let existing = group.volume(&volume);
    let begun = existing.filter(|volume| is_being_made(volume));
    if let (Some(there), None) = (existing, begun) {
        if there.size != size {
            return Err(Error::new(
                Kind::Exists,
                format!("VDI {} exists with {} bytes", request.uuid, there.size),
            )
            .legacy(43));
        }
        return already(&group, request.uuid);
    }
    remove_begun(sr, cx, begun).await?;
    // A raw disk of XenServer's layout is linear, however its images are allocated.
    let thick = SrDocument::of(&group)?.is_some_and(|document| document.thick);
    if thick || sr.names == Names::XenServer {
        return create_thick(sr, cx, request.uuid, size, metadata).await;
    }
    pool::room(&group)?;
    thin::make(sr, cx, &volume, size, &metadata).await?;
    step!("vdi_create.volume_made");
    Ok(VdiDone { changed: Changed::Created, vdi: metadata.info(request.uuid, size, 0) })
}

/// Removes what a call that was cut has begun: of that size or another one, it has no content yet.
async fn remove_begun(sr: &Sr, cx: &Cx, begun: Option<&Volume>) -> Result<()> {
    if let Some(begun) = begun {
        sr.remove(cx, begun).await?;
        step!("vdi_create.removed_what_was_begun");
    }
    Ok(())
}

/// A thick volume holds what was there before, which may be another guest's: it is zeroed, and no
/// VDI until then.
async fn create_thick(
    sr: &Sr,
    cx: &Cx,
    vdi: VdiUuid,
    size: u64,
    metadata: Metadata,
) -> Result<VdiDone> {
    let name = sr.names.volume(vdi);
    let making = Metadata { zeroed_to: Some(0), ..metadata.clone() };
    let (size_word, tags, group) = (format!("{size}b"), making.tags()?, sr.name());
    let mut words = vec![
        "--type",
        "linear",
        "--size",
        &size_word,
        "--name",
        &name,
        "--setactivationskip",
        "y",
        "--ignoreactivationskip",
        "--activate",
        "y",
        "--wipesignatures",
        "n",
        "--zero",
        "n",
    ];
    words.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
    words.push(&group);
    sr.lvm.change(cx, "lvcreate", &words).await?;
    step!("vdi_create.thick_made");
    let made = sr.group(&cx.shielded()).await?;
    let volume = made.volume(&name).ok_or_else(|| missing(vdi))?;
    zero_range(sr, cx, &name, 0, size).await?;
    step!("vdi_create.thick_zeroed");
    settle(sr, cx, volume, &metadata).await?;
    Ok(VdiDone { changed: Changed::Created, vdi: metadata.info(vdi, size, size) })
}

pub(crate) async fn introduce(sr: &Sr, cx: &Cx, request: &VdiIntroduce) -> Result<VdiDone> {
    let (_held, group) = sr.changing(cx).await?;
    let vdi = usable(&group, request.uuid)?;
    if vdi.volume.tags.iter().any(|tag| crate::lvm::tags::is_ours(tag)) {
        return already(&group, request.uuid);
    }
    let metadata = Metadata {
        name: request.name.clone(),
        description: request.description.clone(),
        vdi_type: request.vdi_type,
        keys: request.keys.clone(),
        read_only: !vdi.volume.writable,
        ..Metadata::default()
    };
    write(sr, cx, vdi.volume, &metadata, &[]).await?;
    step!("vdi_introduce.written");
    let info = metadata.info(request.uuid, vdi.volume.size, vdi.used());
    Ok(VdiDone { changed: Changed::Modified, vdi: info })
}

pub(crate) async fn update(sr: &Sr, cx: &Cx, request: &VdiUpdate) -> Result<VdiDone> {
    let (_held, group) = sr.changing(cx).await?;
    let vdi = usable(&group, request.vdi)?;
    let mut metadata = vdi.metadata.clone()?;
    if let Some(name) = &request.name {
        metadata.name.clone_from(name);
    }
    if let Some(description) = &request.description {
        metadata.description.clone_from(description);
    }
    if let Some(vdi_type) = request.vdi_type {
        metadata.vdi_type = vdi_type;
    }
    if let Some(read_only) = request.read_only {
        if metadata.is_a_snapshot && !read_only {
            return Err(refuse_write(request.vdi, true));
        }
        metadata.read_only = read_only;
    }
    if let Some(incomplete) = request.incomplete {
        metadata.incomplete = incomplete;
    }
    for (key, value) in &request.keys {
        match value {
            Some(value) => metadata.keys.insert(key.clone(), value.clone()),
            None => metadata.keys.remove(key),
        };
    }
    // LVM refuses a permission that is so already, after it has done all else.
    let permission = match (vdi.volume.writable, metadata.read_only) {
        (true, true) => &["--permission", "r"][..],
        (false, false) => &["--permission", "rw"],
        _ => &[],
    };
    if !write(sr, cx, vdi.volume, &metadata, permission).await? {
        return already(&group, request.vdi);
    }
    step!("vdi_update.written");
    let info = metadata.info(request.vdi, vdi.volume.size, vdi.used());
    let health = vdi.info(&group).health;
    Ok(VdiDone { changed: Changed::Modified, vdi: VdiInfo { health, ..info } })
}

pub(crate) async fn snapshot(sr: &Sr, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
    let [spec] = request.snapshots.as_slice() else {
        return crate::lvm::group::snapshot(sr, cx, request).await;
    };
    let (_held, group) = sr.changing(cx).await?;
    let VdiDone { changed, vdi } = derive(sr, cx, group, spec.vdi, spec.uuid, |source| Metadata {
        name: spec.name.clone(),
        description: spec.description.clone(),
        is_a_snapshot: true,
        read_only: true,
        snapshot_of: Some(spec.vdi),
        snapshot_time: Some(request.time),
        ..source
    })
    .await?;
    Ok(VdisDone { changed, vdis: vec![vdi] })
}

pub(crate) async fn clone(sr: &Sr, cx: &Cx, request: &VdiClone) -> Result<VdiDone> {
    let (_held, group) = sr.changing(cx).await?;
    derive(sr, cx, group, request.vdi, request.uuid, |source| Metadata {
        name: request.name.clone(),
        description: request.description.clone(),
        is_a_snapshot: false,
        read_only: false,
        snapshot_of: None,
        snapshot_time: None,
        ..source
    })
    .await
}

/// Snapshot and clone are the same to LVM: a new volume that shares all blocks.
async fn derive(
    sr: &Sr,
    cx: &Cx,
    group: Group,
    source: VdiUuid,
    new: VdiUuid,
    change: impl FnOnce(Metadata) -> Metadata,
) -> Result<VdiDone> {
    let group = &thin::settled(sr, cx, group, &sr.names.volume(new)).await?;
    if let Ok(there) = find(group, new) {
        if there.metadata.as_ref().is_ok_and(|m| m.made_by == Some(cx.operation_id())) {
            return already(group, new);
        }
        return Err(Error::new(Kind::Exists, format!("VDI {new} exists already")).legacy(43));
    }
    let begun = group.volume(&sr.names.volume(new)).filter(|volume| is_being_made(volume));
    remove_begun(sr, cx, begun).await?;
    let source = sharable_blocks(group, source)?;
    pool::room(group)?;
    let metadata = change(Metadata {
        used: source.used(),
        made_by: Some(cx.operation_id()),
        changed_by: Vec::new(),
        ..source.metadata.clone()?
    });
    thin::share(sr, cx, source.volume, &sr.names.volume(new), &metadata).await?;
    step!("vdi_snapshot.volume_made");
    let (size, used) = (source.volume.size, metadata.used);
    Ok(VdiDone { changed: Changed::Created, vdi: metadata.info(new, size, used) })
}

/// The volume is replaced by one that shares all blocks with the snapshot: `revert-<vdi>` is made with
/// the VDI's tags, then the old one removed, then the new one gets its name. From the first of the
/// three on, it can only go forward.
pub(crate) async fn revert(sr: &Sr, cx: &Cx, request: &VdiRevert) -> Result<VdiDone> {
    let (_held, group) = sr.changing(cx).await?;
    let mut group = thin::settled(sr, cx, group, &Names::revert(request.vdi)).await?;
    if let Some(begun) = group.volume(&Names::revert(request.vdi)) {
        // Of this operation or an earlier one, cut.
        if is_being_made(begun) {
            sr.remove(cx, begun).await?;
        } else {
            sr.finish_revert(cx, &group, request.vdi).await?;
        }
        group = sr.group(cx).await?;
    }
    let vdi = find(&group, request.vdi)?;
    // One that is damaged can be put back as well, if what it is called can be read.
    let mut metadata = vdi.metadata.clone()?;
    if metadata.changed_by.contains(&cx.operation_id()) {
        return already(&group, request.vdi);
    }
    if metadata.read_only {
        return Err(refuse_write(request.vdi, metadata.is_a_snapshot));
    }
    if vdi.volume.active {
        return Err(Error::new(Kind::InUse, format!("VDI {} is active on this host", request.vdi))
            .legacy(24)
            .hint("detach it first"));
    }
    let snapshot = sharable_blocks(&group, request.snapshot)?;
    if snapshot.metadata.as_ref().is_ok_and(|m| m.snapshot_of != Some(request.vdi)) {
        return Err(Error::new(
            Kind::Limit,
            format!("VDI {} is not a snapshot of VDI {}", request.snapshot, request.vdi),
        )
        .legacy(66)
        .hint("clone it instead, which gives a new disk"));
    }
    pool::room(&group)?;
    metadata.remember(cx.operation_id());
    metadata.used = snapshot.used();
    metadata.incomplete = false;
    thin::share(sr, cx, snapshot.volume, &Names::revert(request.vdi), &metadata).await?;
    step!("vdi_revert.new_made");
    sr.finish_revert(&cx.shielded(), &group, request.vdi).await?;
    let (size, used) = (snapshot.volume.size, metadata.used);
    Ok(VdiDone { changed: Changed::Modified, vdi: metadata.info(request.vdi, size, used) })
}

pub(crate) async fn resize(sr: &Sr, cx: &Cx, request: &VdiResize) -> Result<VdiDone> {
    let (_held, group) = sr.changing(cx).await?;
    let vdi = usable(&group, request.vdi)?;
    let mut metadata = vdi.metadata.clone()?;
    if metadata.read_only {
        return Err(refuse_write(request.vdi, metadata.is_a_snapshot));
    }
    let size = size_of(&group, request.virtual_size)?;
    let volume = vdi.volume;
    let seen = metadata.changed_by.contains(&cx.operation_id());
    // What was recorded and not done is done now; a later one may have made it larger.
    if metadata.zeroed_to.is_none() && (volume.size == size || (seen && volume.size > size)) {
        return already(&group, request.vdi);
    }
    if volume.size > size {
        return Err(Error::new(
            Kind::Limit,
            format!("the VDI has {} and cannot shrink to {}", Bytes(volume.size), Bytes(size)),
        )
        .legacy_detail(79, "shrinking not allowed"));
    }
    pool::room(&group)?;
    if !seen {
        metadata.remember(cx.operation_id());
    }
    if !volume.is_thin {
        // The new part is other people's data until it is zeroed.
        metadata.zeroed_to.get_or_insert(volume.size);
    }
    // Recorded before it is done: a repetition after a later resize knows itself.
    write(sr, cx, volume, &metadata, &[]).await?;
    step!("vdi_resize.recorded");
    if volume.size < size {
        let words = ["--size", &format!("{size}b"), &sr.path(&volume.name)];
        if let Err(error) = sr.lvm.change(cx, "lvextend", &words).await {
            if error.kind == Kind::NoSpace && metadata.zeroed_to == Some(volume.size) {
                let tagged = Volume { tags: metadata.tags()?, ..volume.clone() };
                settle_tags(sr, cx, &tagged, &metadata).await?;
            }
            return Err(error);
        }
        step!("vdi_resize.extended");
    }
    if metadata.zeroed_to.is_some() {
        let group = sr.group(&cx.shielded()).await?;
        let grown = find(&group, request.vdi)?;
        zero(sr, cx, grown.volume).await?;
    }
    metadata.zeroed_to = None;
    let used = if volume.is_thin { vdi.used() } else { size };
    Ok(VdiDone { changed: Changed::Modified, vdi: metadata.info(request.vdi, size, used) })
}

pub(crate) async fn destroy(sr: &Sr, cx: &Cx, vdi: VdiUuid) -> Result<VdiDestroyed> {
    let (_held, group) = sr.changing(cx).await?;
    let mut changed = Changed::Already;
    for name in [sr.names.volume(vdi), Names::revert(vdi)] {
        let Some(volume) = group.volume(&name) else { continue };
        sr.remove(cx, volume).await.map_err(|error| match error.kind {
            Kind::InUse => {
                let mut busy =
                    Error::new(Kind::InUse, format!("VDI {vdi} is open on this host")).legacy(24);
                busy.backend.clone_from(&error.backend);
                busy.hint("lsof and lsblk show who has its device open")
            }
            _ => error,
        })?;
        step!("vdi_destroy.removed");
        changed = Changed::Modified;
    }
    Ok(VdiDestroyed { changed })
}

pub(crate) async fn forest(sr: &Sr, cx: &Cx) -> Result<VdiForest> {
    let group = sr.group(cx).await?;
    let all = vdis(&group);
    let mut parents: HashMap<VdiUuid, VdiUuid> = HashMap::new();
    for vdi in &all {
        // Nothing depends on it: what was the source may be destroyed.
        let origin = &vdi.volume.origin;
        let parent = group.names().vdi_of(origin).or_else(|| Names::reverted_of(origin));
        if let Some(parent) = parent.filter(|parent| all.iter().any(|v| v.uuid == *parent)) {
            parents.insert(vdi.uuid, parent);
        }
    }
    // Generations: a parent is nearer to its root. The number of steps ends circles.
    let depth = |vdi: &Vdi<'_>| {
        let mut at = vdi.uuid;
        (0..all.len())
            .take_while(|_| match parents.get(&at) {
                Some(parent) => {
                    at = *parent;
                    true
                }
                None => false,
            })
            .count()
    };
    let mut ordered: Vec<&Vdi<'_>> = all.iter().collect();
    ordered.sort_by_cached_key(|vdi| (depth(vdi), vdi.uuid));
    let node = |vdi: &Vdi<'_>| {
        let info = vdi.info(&group);
        TreeNode {
            uuid: info.uuid,
            parent: parents.get(&info.uuid).copied(),
            kind: if info.is_a_snapshot { NodeKind::Snapshot } else { NodeKind::Leaf },
            name: info.name,
            virtual_size: info.virtual_size,
            physical_utilisation: info.physical_utilisation,
            health: info.health,
        }
    };
    Ok(VdiForest { nodes: ordered.into_iter().map(node).collect() })
}

pub(crate) async fn check(sr: &Sr, cx: &Cx, vdi: VdiUuid) -> Result<VdiChecked> {
    let group = sr.group(cx).await?;
    let info = find(&group, vdi)?.info(&group);
    let mut findings = Vec::new();
    let mut add =
        |severity, object: String, text| findings.push(Finding { severity, object, text });
    match info.health {
        Health::Ok => {}
        Health::Degraded { reason } => add(Severity::Warning, format!("VDI {vdi}"), reason),
        Health::Quarantined { reason } => add(Severity::Error, format!("VDI {vdi}"), reason),
    }
    // It changes nothing without --updatemetadata.
    if let Err(error) = sr.lvm.change(cx, "vgck", &[&group.name]).await {
        let words = error.backend.clone().ok_or(error)?;
        add(Severity::Error, format!("group {}", group.name), words);
    }
    Ok(VdiChecked { findings })
}

/// Zeroes what a thick volume has got since it was last whole, and says that it is whole.
pub(crate) async fn zero(sr: &Sr, cx: &Cx, volume: &Volume) -> Result<()> {
    let metadata = Metadata::of(volume)?;
    let from = metadata.zeroed_to.unwrap_or(volume.size);
    let whole = Metadata { zeroed_to: None, ..metadata };
    if volume.active {
        zero_range(sr, cx, &volume.name, from, volume.size).await?;
        step!("vdi_resize.zeroed");
        return settle_tags(sr, cx, volume, &whole).await;
    }
    let path = sr.path(&volume.name);
    let words = ["--activate", "y", "--ignoreactivationskip", &path];
    sr.lvm.change(cx, "lvchange", &words).await?;
    zero_range(sr, cx, &volume.name, from, volume.size).await?;
    step!("vdi_resize.zeroed");
    settle(sr, cx, volume, &whole).await
}

/// Deactivates a volume that was active for us, and gives it its tags.
async fn settle(sr: &Sr, cx: &Cx, volume: &Volume, metadata: &Metadata) -> Result<()> {
    let cx = &cx.shielded();
    sr.lvm.change(cx, "lvchange", &["--activate", "n", &sr.path(&volume.name)]).await?;
    settle_tags(sr, cx, volume, metadata).await
}

async fn settle_tags(sr: &Sr, cx: &Cx, volume: &Volume, metadata: &Metadata) -> Result<()> {
    let whole = Metadata { zeroed_to: None, ..metadata.clone() };
    write(sr, &cx.shielded(), volume, &whole, &[]).await?;
    step!("vdi_create.whole");
    Ok(())
}

async fn zero_range(sr: &Sr, cx: &Cx, volume: &str, from: u64, to: u64) -> Result<()> {
    let path = crate::lvm::attach::device(sr, volume);
    cx.blocking(move |cx| {
        let failed = |error: std::io::Error| {
            let words = error.to_string();
            let kind = Error::from(error).kind.clone();
            Error::new(kind, format!("{path} cannot be zeroed")).backend(words)
        };
        let file = File::options().write(true).open(&path).map_err(failed)?;
        let mut at = from;
        while at < to {
            cx.check()?;
            let length = ZEROED_AT_ONCE.min(to - at);
            // The kernel has the disk do it where it can.
            rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, at, length)
                .map_err(|errno| failed(errno.into()))?;
            at += length;
            let done = (at - from).saturating_mul(1000).checked_div(to - from).unwrap_or(1000);
            cx.progress(done as u32, "zeroing");
        }
        file.sync_all().map_err(failed)
    })
    .await
}

/// Gives a volume these tags. Whether it had others.
pub(crate) async fn write(
    sr: &Sr,
    cx: &Cx,
    volume: &Volume,
    metadata: &Metadata,
    more: &[&str],
) -> Result<bool> {
    let difference = difference(&volume.tags, &metadata.tags()?);
    if difference.is_empty() && more.is_empty() {
        return Ok(false);
    }
    let path = sr.path(&volume.name);
    let mut words: Vec<&str> = more.to_vec();
    words.extend(difference.iter().map(String::as_str));
    words.push(&path);
    sr.lvm.change(cx, "lvchange", &words).await?;
    Ok(true)
}

/// Whether a volume is no VDI yet.
pub(crate) fn is_being_made(volume: &Volume) -> bool {
    Metadata::of(volume).is_ok_and(|metadata| metadata.zeroed_to == Some(0))
}

fn size_of(group: &Group, asked: Bytes) -> Result<u64> {
    let limit = |message: String| Error::new(Kind::Limit, message).legacy(79);
    if asked.0 == 0 {
        return Err(limit("the size of a VDI must be above 0".to_owned()));
    }
    group.rounded(asked.0).ok_or_else(|| limit(format!("{asked} is too large for a volume")))
}

fn missing(vdi: VdiUuid) -> Error {
    Error::not_found(format!("there is no VDI {vdi}")).legacy(144)
}

/// The VDI, whatever state it is in.
pub(crate) fn find(group: &Group, vdi: VdiUuid) -> Result<Vdi<'_>> {
    vdis(group).into_iter().find(|found| found.uuid == vdi).ok_or_else(|| missing(vdi))
}

/// A VDI that can be trusted.
pub(crate) fn usable(group: &Group, vdi: VdiUuid) -> Result<Vdi<'_>> {
    let found = find(group, vdi)?;
    if let Health::Quarantined { reason } = found.info(group).health {
        return Err(Error::new(Kind::Corrupt, format!("VDI {vdi} is quarantined: {reason}"))
            .legacy(65)
            .hint("smctl vdi check says what is wrong; nothing touches the disk until then"));
    }
    Ok(found)
}

/// A VDI whose blocks another one can share.
pub(crate) fn sharable_blocks(group: &Group, vdi: VdiUuid) -> Result<Vdi<'_>> {
    let source = usable(group, vdi)?;
    if !source.volume.is_thin {
        return Err(Error::unsupported(format!(
            "VDI {vdi} is a thick volume, which has no snapshots and clones"
        ))
        .hint("smctl vdi copy makes a full copy; an SR with allocation=thin has snapshots"));
    }
    if source.metadata.as_ref().is_ok_and(|metadata| metadata.incomplete) {
        return Err(Error::busy(format!(
            "VDI {vdi} is not complete: an import or copy is filling it, or was interrupted"
        ))
        .hint("smctl job list shows which"));
    }
    Ok(source)
}

pub(crate) fn refuse_write(vdi: VdiUuid, is_a_snapshot: bool) -> Error {
    let what = if is_a_snapshot { "a snapshot, which stays read-only" } else { "read-only" };
    Error::unsupported(format!("VDI {vdi} is {what}"))
        .legacy(46)
        .hint("clone it to get a disk that can be written")
}

fn already(group: &Group, vdi: VdiUuid) -> Result<VdiDone> {
    Ok(VdiDone { changed: Changed::Already, vdi: find(group, vdi)?.info(group) })
}
