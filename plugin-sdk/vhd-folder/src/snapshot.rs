//! Snapshots, of several disks at one point in time, and what of them is done ahead.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{
    SnapshotSpec, VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdisDone,
};
use plugin_sdk::model::{Changed, Kind, VdiUuid};
use plugin_sdk::{Cx, Result};
use serde_json::Value;
use vhd::tree::{Snapshot, Tree};

use crate::changes::{Member, Taking};
use crate::error::from_vhd;
use crate::maintain::with_room;
use crate::metadata::Metadata;
use crate::place::Place;
use crate::vdis::{done, incomplete, progress, usable};

/// How long a preparation waits for the folder.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a request asks for, looked at.
struct Wanted {
    op: Uuid,
    members: Vec<Member>,
    documents: Vec<Value>,
}

impl Wanted {
    fn of(tree: &Tree, cx: &Cx, specs: &[SnapshotSpec], time: u64) -> Result<Self> {
        let mut documents = Vec::with_capacity(specs.len());
        let mut members = Vec::with_capacity(specs.len());
        for spec in specs {
            let node = usable(tree, spec.vdi)?;
            let source = Metadata::of(&node)?;
            if source.incomplete {
                return Err(incomplete(spec.vdi));
            }
            let metadata = Metadata {
                name: spec.name.clone(),
                description: spec.description.clone(),
                is_a_snapshot: true,
                read_only: true,
                snapshot_of: Some(spec.vdi),
                snapshot_time: Some(time),
                ..source
            };
            documents.push(metadata.document()?);
            let (disk, snapshot) = (spec.vdi.0, spec.uuid.0);
            members.push(Member { disk, snapshot, size: node.virtual_size });
        }
        Ok(Self { op: cx.operation_id().0, members, documents })
    }

    fn requests(&self) -> Vec<Snapshot<'_>> {
        let pairs = self.members.iter().zip(&self.documents);
        pairs
            .map(|(member, document)| Snapshot {
                op: self.op,
                source: member.disk,
                new: member.snapshot,
                new_metadata: document,
                // Only raw images on a file system that cannot share blocks are copied; nobody
                // writes them meanwhile, the host has made sure.
                allow_copy: true,
            })
            .collect()
    }
}

/// Makes the new images ahead, or takes them back.
pub(crate) fn prepare(
    place: &dyn Place,
    cx: &Cx,
    request: &VdiSnapshotPrepare,
) -> Result<VdiSnapshotPrepared> {
    if request.abandon {
        let (tree, guard) = place.locked(cx)?;
        tree.recover(&guard).map_err(from_vhd)?;
        return Ok(VdiSnapshotPrepared::default());
    }
    // A hint: where somebody else works in the folder it is not waited for long. The snapshot makes
    // then what it needs.
    match place.locked(&cx.within(PATIENCE)).map(drop) {
        Err(error) if matches!(error.kind, Kind::Busy { .. } | Kind::DeadlineExceeded) => {
            return Ok(VdiSnapshotPrepared::default());
        }
        other => other?,
    }
    let sources: Vec<VdiUuid> = request.snapshots.iter().map(|spec| spec.vdi).collect();
    with_room(place, cx, &sources, |tree, guard| {
        // The time is that of the snapshot, which is not known yet.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let wanted = Wanted::of(tree, cx, &request.snapshots, now)?;
        tree.prepare_group(guard, &wanted.requests()).map_err(from_vhd)
    })?;
    Ok(VdiSnapshotPrepared::default())
}

pub(crate) fn snapshot(place: &dyn Place, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
    let sources: Vec<VdiUuid> = request.snapshots.iter().map(|spec| spec.vdi).collect();
    with_room(place, cx, &sources, |tree, guard| {
        let wanted = Wanted::of(tree, cx, &request.snapshots, request.time)?;
        let members = &wanted.members;
        let total = members.iter().map(|member| member.size).sum();
        let mut tell = progress(cx, total, "copying");
        let (mut before, mut last) = (0, 0);
        let mut copied = |done: u64| {
            // It begins anew with each image.
            before += if done < last { last } else { 0 };
            last = done;
            tell(before + done)
        };
        let taking = Taking::of(tree, guard, cx, members)?;
        let changes = tree
            .snapshot_group(guard, &wanted.requests(), taking.writer(), &mut copied)
            .inspect_err(|_| taking.give_up())
            .map_err(from_vhd)?;
        let mut vdis = Vec::with_capacity(members.len());
        let mut changed = Changed::Already;
        for (member, change) in members.iter().zip(changes) {
            let done = done(tree, member.snapshot.into(), change.outcome)?;
            if done.changed != Changed::Already {
                changed = done.changed;
            }
            vdis.push(done.vdi);
        }
        Ok(VdisDone { changed, vdis })
    })
}
