//! Operations on VDIs.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use plugin_sdk::model::access::BackingImage;
use plugin_sdk::model::sr::SrScanned;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{
    Finding, Health, NodeKind, Severity, TreeNode, VdiAttach, VdiAttached, VdiChecked, VdiClone,
    VdiCreate, VdiDestroyed, VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiResize, VdiRevert,
    VdiStat, VdiUpdate,
};
use plugin_sdk::model::{Access, AttachMode, Bytes, Changed, ImageFormat, Kind, VdiUuid};
use plugin_sdk::{Cx, Error, Result, Utf8PathBuf, step};
use vhd::tree::{self, Guard, Node, Outcome, Revert, Snapshot, Tree, Writer};

use crate::changes;
use crate::error::{from_vhd, is_read_only, size_limits};
use crate::maintain::{claim, with_room};
use crate::metadata::{Metadata, describe};
use crate::place::Place;
use crate::space::add_exclusive;
use crate::writer::{Told, refuse_elsewhere};

pub(crate) fn scan(place: &dyn Place) -> Result<SrScanned> {
    let tree = place.tree()?;
    let listing = tree.list().map_err(from_vhd)?;
    let leaves = listing.nodes.iter().filter(|node| node.kind == tree::Kind::Leaf);
    let mut vdis: Vec<VdiInfo> = leaves.map(describe).collect();
    add_exclusive(&mut vdis, &listing);
    changes::mark(&tree, &mut vdis)?;
    Ok(SrScanned { vdis, next: None })
}

pub(crate) fn stat(place: &dyn Place, request: &VdiStat) -> Result<VdiInfo> {
    let tree = place.tree()?;
    let node = disk(&tree, request.vdi)?;
    let mut info = describe(&node);
    changes::mark(&tree, std::slice::from_mut(&mut info))?;
    if request.space {
        // What shares with it can be any image of the folder.
        add_exclusive(std::slice::from_mut(&mut info), &tree.list().map_err(from_vhd)?);
        if node.is_ok() {
            info.reclaimable = Some(Bytes(tree.reclaimable(request.vdi.0).map_err(from_vhd)?));
        }
    }
    Ok(info)
}

pub(crate) fn create(place: &dyn Place, cx: &Cx, request: &VdiCreate) -> Result<VdiDone> {
    if request.virtual_size == Bytes(0) {
        return Err(Error::new(Kind::Limit, "the size of a VDI must be above 0")
            .legacy_detail(79, &size_limits()));
    }
    let format = match request.format.unwrap_or(ImageFormat::Vhd) {
        ImageFormat::Vhd => tree::Format::Vhd,
        ImageFormat::Raw => tree::Format::Raw,
    };
    let metadata = Metadata {
        name: request.name.clone(),
        description: request.description.clone(),
        vdi_type: request.vdi_type,
        sharable: request.sharable,
        keys: request.keys.clone(),
        incomplete: request.incomplete,
        ..Metadata::default()
    };
    let (tree, guard) = place.locked(cx)?;
    let size = request.virtual_size.0;
    let change = tree
        .create(&guard, request.uuid.0, format, size, &metadata.document()?)
        .map_err(from_vhd)?;
    done(&tree, request.uuid, change.outcome)
}

pub(crate) fn introduce(place: &dyn Place, cx: &Cx, request: &VdiIntroduce) -> Result<VdiDone> {
    let metadata = Metadata {
        name: request.name.clone(),
        description: request.description.clone(),
        vdi_type: request.vdi_type,
        keys: request.keys.clone(),
        ..Metadata::default()
    };
    let (tree, guard) = place.locked(cx)?;
    let change = tree.adopt(&guard, request.uuid.0, &metadata.document()?).map_err(from_vhd)?;
    done(&tree, request.uuid, change.outcome)
}

pub(crate) fn update(place: &dyn Place, cx: &Cx, request: &VdiUpdate) -> Result<VdiDone> {
    let (tree, guard) = place.locked(cx)?;
    let mut metadata = Metadata::of(&disk(&tree, request.vdi)?)?;
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
            return Err(Error::unsupported(format!(
                "VDI {} is a snapshot, which stays read-only",
                request.vdi
            ))
            .hint("clone it to get a disk that can be written"));
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
    let change =
        tree.set_metadata(&guard, request.vdi.0, &metadata.document()?).map_err(from_vhd)?;
    done(&tree, request.vdi, change.outcome)
}

pub(crate) fn resize(place: &dyn Place, cx: &Cx, request: &VdiResize) -> Result<VdiDone> {
    let (tree, guard) = place.locked(cx)?;
    let node = usable(&tree, request.vdi)?;
    let metadata = Metadata::of(&node)?;
    refuse_read_only(request.vdi, &metadata)?;
    // A smaller size is refused by the tree, which knows the operations that were done: one that
    // comes late, after the disk has grown further, is no shrinking.
    let told = Told::to_close(&tree, &guard, cx, request.vdi)?;
    let writer = told.as_ref().map(|told| told as &dyn Writer);
    let (op, size) = (cx.operation_id().0, request.virtual_size.0);
    let change = tree
        .resize_written(&guard, op, request.vdi.0, size, &metadata.document()?, writer)
        .map_err(from_vhd)?;
    done(&tree, request.vdi, change.outcome)
}

pub(crate) fn clone(place: &dyn Place, cx: &Cx, request: &VdiClone) -> Result<VdiDone> {
    with_room(place, cx, &[request.vdi], |tree, guard| {
        let node = usable(tree, request.vdi)?;
        let source = Metadata::of(&node)?;
        let metadata = Metadata {
            name: request.name.clone(),
            description: request.description.clone(),
            is_a_snapshot: false,
            read_only: false,
            snapshot_of: None,
            snapshot_time: None,
            ..source
        };
        if metadata.incomplete {
            return Err(incomplete(request.vdi));
        }
        // On disk the same as a snapshot: a new leaf beside the old one. The log of changes stays
        // with the source.
        let snapshot = Snapshot {
            op: cx.operation_id().0,
            source: request.vdi.0,
            new: request.uuid.0,
            new_metadata: &metadata.document()?,
            allow_copy: true,
        };
        let total = node.virtual_size;
        let told = Told::of(tree, guard, cx, request.vdi)?;
        let writer = told.as_ref().map(|told| told as &dyn Writer);
        let change = tree
            .snapshot_written(guard, &snapshot, writer, &mut progress(cx, total, "copying"))
            .map_err(from_vhd)?;
        done(tree, request.uuid, change.outcome)
    })
}

pub(crate) fn revert(place: &dyn Place, cx: &Cx, request: &VdiRevert) -> Result<VdiDone> {
    // It is the snapshot's chain that grows, if the snapshot holds data of its own.
    with_room(place, cx, &[request.snapshot], |tree, guard| {
        let metadata = Metadata::of(&disk(tree, request.vdi)?)?;
        refuse_read_only(request.vdi, &metadata)?;
        refuse_writer(tree, guard, cx, request.vdi)?;
        let snapshot = Metadata::of(&usable(tree, request.snapshot)?)?;
        if snapshot.snapshot_of != Some(request.vdi) {
            return Err(Error::new(
                Kind::Limit,
                format!("VDI {} is not a snapshot of VDI {}", request.snapshot, request.vdi),
            )
            .legacy(66)
            .hint("clone it instead, which gives a new disk"));
        }
        let revert = Revert {
            op: cx.operation_id().0,
            vdi: request.vdi.0,
            snapshot: request.snapshot.0,
            metadata: &metadata.document()?,
            allow_copy: true,
        };
        let total = tree.get(request.snapshot.0).map_err(from_vhd)?.virtual_size;
        // Before it is so: if it comes to nothing, that was too careful.
        changes::spoil(tree, guard, request.vdi)?;
        step!("vdi_revert.log_spoiled");
        let change =
            tree.revert(guard, &revert, &mut progress(cx, total, "copying")).map_err(from_vhd)?;
        done(tree, request.vdi, change.outcome)
    })
}

pub(crate) fn destroy(place: &dyn Place, cx: &Cx, vdi: VdiUuid) -> Result<VdiDestroyed> {
    let (tree, guard) = place.locked(cx)?;
    refuse_elsewhere(&tree, cx, vdi)?;
    let change = tree.delete(&guard, vdi.0).map_err(from_vhd)?;
    // The host has made sure that nobody here has it open; what such a claim would say is past.
    for holder in tree.claims(vdi.0).map_err(from_vhd)? {
        tree.unclaim(&guard, vdi.0, &holder).map_err(from_vhd)?;
    }
    changes::forget(&tree, &guard, vdi)?;
    let changed = match change.outcome {
        Outcome::Already => Changed::Already,
        _ => Changed::Modified,
    };
    Ok(VdiDestroyed { changed })
}

pub(crate) fn forest(place: &dyn Place) -> Result<VdiForest> {
    let nodes = place.tree()?.list().map_err(from_vhd)?.nodes;
    let mut children: HashMap<Option<Uuid>, Vec<&Node>> = HashMap::new();
    let known: std::collections::HashSet<Uuid> = nodes.iter().map(|node| node.uuid).collect();
    for node in &nodes {
        // A node whose parent is gone is shown as a root, with the reason it is quarantined for.
        let parent = node.parent.filter(|parent| known.contains(parent));
        children.entry(parent).or_default().push(node);
    }
    let mut ordered = Vec::with_capacity(nodes.len());
    let mut next: Vec<&Node> = children.remove(&None).unwrap_or_default();
    while let Some(node) = next.pop() {
        next.extend(children.remove(&Some(node.uuid)).unwrap_or_default());
        ordered.push(tree_node(node));
    }
    // Cycles have no root: they are quarantined and come last.
    let mut circular: Vec<&Node> = children.into_values().flatten().collect();
    circular.sort_by_key(|node| node.uuid);
    ordered.extend(circular.into_iter().map(tree_node));
    Ok(VdiForest { nodes: ordered })
}

fn tree_node(node: &Node) -> TreeNode {
    let info = describe(node);
    let kind = match node.kind {
        tree::Kind::Base => NodeKind::BaseCopy,
        tree::Kind::Leaf if info.is_a_snapshot => NodeKind::Snapshot,
        tree::Kind::Leaf => NodeKind::Leaf,
    };
    TreeNode {
        uuid: info.uuid,
        parent: node.parent.map(Into::into),
        kind,
        name: info.name,
        virtual_size: info.virtual_size,
        physical_utilisation: info.physical_utilisation,
        health: info.health,
    }
}

pub(crate) fn check(place: &dyn Place, vdi: VdiUuid) -> Result<VdiChecked> {
    let tree = place.tree()?;
    let node = disk(&tree, vdi)?;
    let mut findings = Vec::new();
    if let Health::Quarantined { reason } = describe(&node).health {
        findings.push(Finding {
            severity: Severity::Error,
            object: format!("VDI {vdi}"),
            text: reason,
        });
    }
    match tree.expose(vdi.0, false) {
        Ok(paths) => {
            let layers: Vec<vhd::Layer<'_>> = paths
                .iter()
                .map(
                    |path| if is_raw(path) { vhd::Layer::Raw(path) } else { vhd::Layer::Vhd(path) },
                )
                .collect();
            for finding in vhd::check::check_chain(&layers) {
                findings.push(Finding {
                    severity: match finding.severity {
                        vhd::check::Severity::Note => Severity::Note,
                        vhd::check::Severity::Warning => Severity::Warning,
                        vhd::check::Severity::Error => Severity::Error,
                    },
                    object: finding.path.display().to_string(),
                    text: finding.text,
                });
            }
        }
        // The quarantine has said why.
        Err(_) if !findings.is_empty() => {}
        Err(error) => return Err(from_vhd(error)),
    }
    Ok(VdiChecked { findings })
}

pub(crate) fn attach(place: &dyn Place, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
    let tree = place.tree()?;
    // Locked: the images that are answered are those that are claimed.
    let guard = match tree.lock(cx.deadline()) {
        // Where nothing can be written, nothing will be rewritten either.
        Err(error) if request.mode == AttachMode::ReadOnly && is_read_only(&error) => None,
        other => Some(other.map_err(from_vhd)?),
    };
    cx.check()?;
    let node = usable(&tree, request.vdi)?;
    if request.mode == AttachMode::ReadWrite {
        refuse_read_only(request.vdi, &Metadata::of(&node)?)?;
        if let (Some(_), Some(guard)) = (node.needs_repair, &guard) {
            // A power cut left one of its two footers out. Whoever writes to the file needs both.
            tree.repair(guard, request.vdi.0).map_err(from_vhd)?;
        }
    }
    let write = request.mode == AttachMode::ReadWrite;
    if let Some(guard) = &guard {
        place.prepare(&tree, guard, request.vdi, write)?;
    }
    let access = access(&tree, request.vdi, write)?;
    if let Some(guard) = &guard {
        claim(&tree, guard, cx, request.vdi)?;
    }
    Ok(VdiAttached { access: vec![access] })
}

/// How a disk is reached: its image, and those it is based on.
pub(crate) fn access(tree: &Tree, vdi: VdiUuid, write: bool) -> Result<Access> {
    let mut images = Vec::new();
    for path in tree.expose(vdi.0, write).map_err(from_vhd)? {
        let format = if is_raw(&path) { ImageFormat::Raw } else { ImageFormat::Vhd };
        let path = Utf8PathBuf::from_path_buf(path)
            .map_err(|path| Error::unsupported(format!("{} is not valid UTF-8", path.display())))?;
        images.push(BackingImage { path, format });
    }
    let mut images = images.into_iter();
    let Some(leaf) = images.next() else {
        return Err(Error::internal(format!("VDI {vdi} has no image")));
    };
    // Only a data path can note what changes, and see that it must not write any more.
    let (mut changes, mut shut_out) = (None, None);
    if leaf.format == ImageFormat::Vhd {
        changes = changes::place(tree, vdi);
        let mark = tree.store().shut_out_mark();
        shut_out = mark.and_then(|mark| Utf8PathBuf::from_path_buf(mark).ok());
    }
    let (path, format, backing) = (leaf.path, leaf.format, images.collect());
    Ok(Access::File { path, format, backing, changes, shut_out })
}

/// The tree names its files by their format; the content is never asked.
fn is_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "raw")
}

/// A disk that a user may name: not a base copy.
pub(crate) fn disk(tree: &Tree, vdi: VdiUuid) -> Result<Node> {
    let node = tree.get(vdi.0).map_err(from_vhd)?;
    if node.kind == tree::Kind::Base {
        return Err(from_vhd(vhd::Error::NotALeaf { uuid: vdi.0 }));
    }
    Ok(node)
}

/// A disk that can be trusted.
pub(crate) fn usable(tree: &Tree, vdi: VdiUuid) -> Result<Node> {
    let node = disk(tree, vdi)?;
    if let Health::Quarantined { reason } = describe(&node).health {
        return Err(from_vhd(vhd::Error::Quarantined { uuid: vdi.0, reason }));
    }
    Ok(node)
}

/// For what even a writer that stops must not see.
fn refuse_writer(tree: &Tree, guard: &Guard, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    if Told::of(tree, guard, cx, vdi)?.is_none() {
        return Ok(());
    }
    let holder = "it is being written on this host".to_owned();
    Err(from_vhd(vhd::Error::InUse { uuid: vdi.0, holder }))
}

fn refuse_read_only(vdi: VdiUuid, metadata: &Metadata) -> Result<()> {
    if !metadata.read_only {
        return Ok(());
    }
    let what =
        if metadata.is_a_snapshot { "a snapshot, which stays read-only" } else { "read-only" };
    Err(Error::unsupported(format!("VDI {vdi} is {what}"))
        .legacy(46)
        .hint("clone it to get a disk that can be written"))
}

pub(crate) fn incomplete(vdi: VdiUuid) -> Error {
    Error::busy(format!(
        "VDI {vdi} is not complete: an import or copy is filling it, or was interrupted"
    ))
    .hint("smctl job list shows which")
}

pub(crate) fn done(tree: &Tree, vdi: VdiUuid, outcome: Outcome) -> Result<VdiDone> {
    let changed = match outcome {
        Outcome::Created => Changed::Created,
        Outcome::Already => Changed::Already,
        Outcome::Modified | Outcome::Deleted => Changed::Modified,
    };
    let mut info = describe(&tree.get(vdi.0).map_err(from_vhd)?);
    changes::mark(tree, std::slice::from_mut(&mut info))?;
    Ok(VdiDone { changed, vdi: info })
}

pub(crate) fn progress(
    cx: &Cx,
    total: u64,
    stage: &'static str,
) -> impl FnMut(u64) -> ControlFlow<()> {
    let cx = cx.clone();
    move |done| {
        let permille = done.saturating_mul(1000).checked_div(total).unwrap_or(1000);
        cx.progress(permille.min(1000) as u32, stage);
        if cx.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
