//! Deep and wide trees, and what maintenance makes of them.

use std::collections::{BTreeMap, BTreeSet};

use sm_model::sr::SrMaintain;
use sm_model::vdi::{NodeKind, VdiTree};
use sm_model::{Changed, Kind, VdiUuid};

use super::{CLONES, Check, SNAPSHOTS, Setup, TREES};
use crate::oracle::Content;
use crate::verdict::{Stop, Verdict, fail, must, said};
use crate::world::World;

/// Chains of drivers that declare no limit are tried to this depth.
const DEEP: u64 = 12;

/// Clones of one image.
const WIDE: usize = 12;

/// Calls of maintenance after which a tree must be at rest.
const PASSES: usize = 8;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "E06",
        needs: SNAPSHOTS,
        sentences: &["DRV-SNAP-9", "DRV-LOAD-5"],
        explain: "A disk is written and snapshotted again and again, past the depth that the \
            driver declares (12 where it declares none, 6 where it is slow: P03 goes to the end). \
            Each snapshot must keep its content; \
            where the driver refuses, it must be with `limit`, and nothing may be changed by it.",
        setup: Setup::Sr,
        run: |world| {
            let declared = world.manifest().capability("max_chain").and_then(|c| c.limit);
            let (vdi, mut content) = world.filled("deep")?;
            let mut taken = Vec::new();
            let slow = world.bench.config.suite.slow.is_some();
            let deep = if slow { DEEP / 2 } else { declared.unwrap_or(DEEP).min(64) };
            for generation in 2..deep + 4 {
                let request = world.snapshot_of(vdi);
                let uuid = request.snapshots.first().map(|spec| spec.uuid);
                match world.call(request) {
                    Ok(_) => taken.extend(uuid.map(|uuid| (uuid, content.clone()))),
                    Err(error) if error.kind == Kind::Limit && declared.is_some() => {
                        must(generation >= declared.unwrap_or(0), || {
                            format!("a chain of {generation} is refused, declared is {declared:?}")
                        })?;
                        break;
                    }
                    Err(error) => return fail(format!("snapshot {generation}: {}", said(&error))),
                }
                world.fill(vdi, &mut content, &[generation, 0], generation)?;
            }
            world.verify(vdi, &content, "a disk with a deep chain")?;
            for (snapshot, then) in taken.iter().step_by(5) {
                world.verify(*snapshot, then, "a snapshot in a deep chain")?;
            }
            Ok(())
        },
    },
    Check {
        id: "E07",
        needs: CLONES,
        sentences: &["DRV-SNAP-8", "DRV-LIST-1"],
        explain: "A dozen clones of one image (four where `suite.slow` is set), each written in \
            another place: all are listed, all have their own content, and the image is as it was.",
        setup: Setup::Sr,
        run: |world| {
            let (image, content) = world.filled("image")?;
            let mut clones = Vec::new();
            let wide = if world.bench.config.suite.slow.is_some() { WIDE / 3 } else { WIDE };
            for number in 0..wide {
                let clone = world.clone(image)?.uuid;
                let mut own = content.clone();
                world.fill(clone, &mut own, &[number as u64 + 1], 7)?;
                clones.push((clone, own));
            }
            let listed = world.list()?.len();
            must(listed == wide + 1, || {
                format!("{listed} VDIs are listed, {} are there", wide + 1)
            })?;
            for (clone, own) in clones.iter().chain([&(image, content)]) {
                world.verify(*clone, own, "one of many clones, or their image")?;
            }
            Ok(())
        },
    },
    Check {
        id: "E19",
        needs: TREES.and(&["vdi_tree"]),
        sentences: &["DRV-LIST-4", "DRV-SNAP-1", "DRV-VDI-7"],
        explain: "After every step of a small history: each node's parent exists and comes before \
            it, there is no cycle, nothing is a snapshot of itself, every VDI that is listed is in \
            the tree, a base copy is in no listing and cannot be attached or destroyed as a disk.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("root")?;
            invariants(world)?;
            let snapshot = world.snapshot(vdi)?.uuid;
            invariants(world)?;
            world.fill(vdi, &mut content, &[2], 2)?;
            let clone = world.clone(snapshot)?.uuid;
            invariants(world)?;
            world.snapshot(vdi)?;
            world.clone(clone)?;
            invariants(world)?;
            world.destroy(snapshot)?;
            invariants(world)?;
            world.destroy(clone)?;
            invariants(world)?;
            world.verify(vdi, &content, "the root of a tree")
        },
    },
    Check {
        id: "E20",
        needs: TREES.and(&["sr_maintain"]),
        sentences: &["DRV-MAINT-1", "DRV-MAINT-2"],
        explain: "Maintenance after snapshots were destroyed, with a disk that was attached and \
            detached between them, one that is attached meanwhile, and clones beside: every VDI \
            must read the same before and after.",
        setup: Setup::Sr,
        run: |world| {
            let mut all = history(world)?;
            let (busy, mut content) =
                all.pop().ok_or_else(|| Stop::NotTestable("no disk".into()))?;
            let disk = world.open(busy, sm_model::AttachMode::ReadWrite)?;
            world.fill_open(&disk, busy, &mut content, &[11, 12], 20)?;
            world.call(SrMaintain::default())?;
            world.fill_open(&disk, busy, &mut content, &[12, 13], 21)?;
            world.verify_open(&disk, &content, "a disk that was open during maintenance")?;
            world.shut(busy, disk)?;
            all.push((busy, content));
            world.verify_all(&all, "a VDI after maintenance")?;
            world.call(SrMaintain::default())?;
            world.verify_all(&all, "a VDI after the second maintenance")
        },
    },
    Check {
        id: "E21",
        needs: TREES.and(&["sr_maintain"]),
        sentences: &["DRV-MAINT-7"],
        explain: "Maintenance must come to an end: a dry run changes nothing, a few passes finish, \
            and one more answers `already`.",
        setup: Setup::Sr,
        run: |world| {
            let all = history(world)?;
            let files = world.files()?;
            world.call(SrMaintain { dry_run: true, ..SrMaintain::default() })?;
            must(files == world.files()?, || "a dry run changed the backend".into())?;
            for _ in 0..PASSES {
                if world.call(SrMaintain::default())?.finished {
                    let last = world.call(SrMaintain::default())?;
                    must(last.changed == Changed::Already && last.remaining == 0, || {
                        format!("maintenance was finished, and again answers {last:?}")
                    })?;
                    world.verify_all(&all, "a VDI after maintenance")?;
                    return Ok(());
                }
            }
            fail(format!("maintenance is not finished after {PASSES} passes"))
        },
    },
    Check {
        id: "E22",
        needs: SNAPSHOTS.and(&["sr_maintain"]),
        sentences: &["DRV-MAINT-4"],
        explain: "When all snapshots of a disk are gone and maintenance has run, the backend must \
            hold no more than for a disk that never had one, within a quarter.",
        setup: Setup::Sr,
        run: |world| {
            world.must_see_files()?;
            let all: Vec<u64> = (0..world.size() / crate::oracle::BLOCK).collect();
            let vdi = world.create("disk")?.uuid;
            let mut content = Content::default();
            world.fill(vdi, &mut content, &all, 1)?;
            let alone = world.taken()?;
            let mut taken = Vec::new();
            for generation in 2..4 {
                taken.push(world.snapshot(vdi)?.uuid);
                world.fill(vdi, &mut content, &all, generation)?;
            }
            for snapshot in taken {
                world.destroy(snapshot)?;
            }
            for _ in 0..PASSES {
                if world.call(SrMaintain::default())?.finished {
                    break;
                }
            }
            world.verify(vdi, &content, "a disk whose snapshots were merged")?;
            let now = world.taken()?;
            must(now <= alone + alone / 4, || {
                format!("{now} bytes are taken after maintenance, {alone} before the snapshots")
            })
        },
    },
];

/// Disks with a past: snapshots that came and went, with attaches between.
pub(super) fn history(world: &mut World<'_>) -> Verdict<Vec<(VdiUuid, Content)>> {
    let (vdi, mut content) = world.filled("disk")?;
    let mut gone = Vec::new();
    for generation in 2..6 {
        gone.push(world.snapshot(vdi)?.uuid);
        world.fill(vdi, &mut content, &[generation, 0], generation)?;
    }
    let clone = world.clone(vdi)?.uuid;
    let mut of_clone = content.clone();
    let kept = world.snapshot(vdi)?.uuid;
    let of_kept = content.clone();
    world.fill(vdi, &mut content, &[1, 8], 8)?;
    world.fill(clone, &mut of_clone, &[9], 9)?;
    for snapshot in gone {
        world.destroy(snapshot)?;
    }
    Ok(vec![(kept, of_kept), (clone, of_clone), (vdi, content)])
}

/// What is true of every tree.
pub(super) fn invariants(world: &mut World<'_>) -> Verdict {
    let listed = world.list()?;
    let nodes = world.call(VdiTree {})?.nodes;
    let mut seen = BTreeSet::new();
    let mut children: BTreeMap<VdiUuid, usize> = BTreeMap::new();
    for node in &nodes {
        if let Some(parent) = node.parent {
            must(seen.contains(&parent), || {
                format!("{} is based on {parent}, which is not there, or comes later", node.uuid)
            })?;
            *children.entry(parent).or_default() += 1;
        }
        must(seen.insert(node.uuid), || format!("{} is in the tree twice", node.uuid))?;
        let is_listed = listed.contains_key(&node.uuid);
        must(is_listed == (node.kind != NodeKind::BaseCopy), || {
            format!("{} is {:?} in the tree, and listed: {is_listed}", node.uuid, node.kind)
        })?;
    }
    for (uuid, vdi) in &listed {
        must(seen.contains(uuid), || format!("{uuid} is listed and not in the tree"))?;
        must(vdi.snapshot_of != Some(*uuid), || format!("{uuid} is a snapshot of itself"))?;
    }
    for base in nodes.iter().filter(|node| node.kind == NodeKind::BaseCopy) {
        must(children.contains_key(&base.uuid), || {
            format!("the base copy {} is needed by nothing", base.uuid)
        })?;
        let mode = sm_model::AttachMode::ReadOnly;
        let answer = world.call(sm_model::vdi::VdiAttach { vdi: base.uuid, mode });
        must(answer.is_err(), || format!("the base copy {} was attached", base.uuid))?;
        let request = world.clone_of(base.uuid);
        must(world.call(request).is_err(), || format!("the base copy {} was cloned", base.uuid))?;
    }
    Ok(())
}
