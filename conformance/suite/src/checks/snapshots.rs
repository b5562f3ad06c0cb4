//! Snapshots, clones, revert: content that must not move.

use sm_model::AttachMode::{ReadOnly, ReadWrite};
use sm_model::vdi::{VdiAttach, VdiRevert, VdiSnapshot};
use sm_model::{Bytes, Changed, VdiUuid};

use super::{CLONES, Check, Needs, SNAPSHOTS, Setup, TREES};
use crate::oracle::Content;
use crate::verdict::{Verdict, fail, must, same};
use crate::world::World;

const REVERTS: Needs = SNAPSHOTS.and(&["vdi_revert"]);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "E01",
        needs: SNAPSHOTS,
        sentences: &["DRV-SNAP-1", "DRV-SNAP-4", "DRV-ATT-9"],
        explain: "A snapshot must read exactly as its source did at the call, block for block, \
            say that it is a snapshot and of what, and leave the source as it was. Where its attach is \
            `unsupported`, it is read through a clone, here and in all other checks.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("source")?;
            let before = world.stat(vdi)?;
            let snapshot = world.snapshot(vdi)?;
            same("is_a_snapshot", snapshot.is_a_snapshot, true)?;
            same("read_only", snapshot.read_only, true)?;
            same("snapshot_of", snapshot.snapshot_of, Some(vdi))?;
            same("virtual_size", snapshot.virtual_size, before.virtual_size)?;
            world.verify(snapshot.uuid, &content, "the snapshot")?;
            world.verify(vdi, &content, "the source after its snapshot")?;
            let after = world.stat(vdi)?;
            same("the name of the source", after.name, before.name)?;
            same("the keys of the source", after.keys, before.keys)?;
            same("read_only of the source", after.read_only, false)
        },
    },
    Check {
        id: "E02",
        needs: SNAPSHOTS,
        sentences: &["DRV-SNAP-8", "DRV-SNAP-1"],
        explain: "What is written to the source after a snapshot must never show in the snapshot, \
            nor in an older one.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let mut taken: Vec<(VdiUuid, Content)> = Vec::new();
            for generation in 2..5 {
                taken.push((world.snapshot(vdi)?.uuid, content.clone()));
                let blocks = world.blocks(world.size(), 10);
                world.fill(vdi, &mut content, &blocks, generation)?;
            }
            world.verify_all(&taken, "a snapshot after its source was written")?;
            world.verify(vdi, &content, "the source of three snapshots")
        },
    },
    Check {
        id: "E03",
        needs: SNAPSHOTS,
        sentences: &["DRV-ATT-2"],
        explain: "An attach of a snapshot for writing must be refused, and the snapshot stays as it is.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("source")?;
            let snapshot = world.snapshot(vdi)?.uuid;
            let answer = world.call(VdiAttach { vdi: snapshot, mode: ReadWrite });
            must(answer.is_err(), || "a snapshot was attached for writing".into())?;
            world.verify(snapshot, &content, "the snapshot")
        },
    },
    Check {
        id: "E04",
        needs: SNAPSHOTS.and(&["datapath"]),
        sentences: &["DRV-SNAP-3", "DRV-SNAP-10"],
        explain: "A snapshot is taken while the disk is open for writing by a data path of this \
            host. It must hold all that was flushed before the call and nothing that was written \
            after it; the disk goes on, and what is written later is kept.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("live")?;
            let disk = world.open(vdi, ReadWrite)?;
            if disk.drive().is_none() {
                world.shut(vdi, disk)?;
                return Err(crate::verdict::Stop::NotTestable(
                    "the disk is reached by no data path of this host".into(),
                ));
            }
            let mut taken = Vec::new();
            for generation in 2..5 {
                let blocks = world.blocks(world.size(), 8);
                world.fill_open(&disk, vdi, &mut content, &blocks, generation)?;
                taken.push((world.snapshot(vdi)?.uuid, content.clone()));
            }
            world.fill_open(&disk, vdi, &mut content, &[0, 1, 2], 9)?;
            world.verify_open(&disk, &content, "the disk while it is in use")?;
            world.shut(vdi, disk)?;
            world.verify_all(&taken, "a snapshot of a disk in use")?;
            world.verify(vdi, &content, "the disk after its detach")
        },
    },
    Check {
        id: "E05",
        needs: TREES,
        sentences: &["DRV-SNAP-8", "DRV-SNAP-1", "DRV-SNAP-5"],
        explain: "A snapshot of a clone of a snapshot: at each depth the content is that of its own \
            time, and a write at one depth shows at no other.",
        setup: Setup::Sr,
        run: |world| {
            let (mut vdi, mut content) = world.filled("root")?;
            let mut all = vec![(vdi, content.clone())];
            for generation in 2..5 {
                let snapshot = world.snapshot(vdi)?.uuid;
                all.push((snapshot, content.clone()));
                vdi = world.clone(snapshot)?.uuid;
                world.fill(vdi, &mut content, &[0, generation], generation)?;
                all.push((vdi, content.clone()));
            }
            world.verify_all(&all, "a node of a chain of snapshots and clones")
        },
    },
    Check {
        id: "E08",
        needs: CLONES,
        sentences: &["DRV-SNAP-8", "DRV-SNAP-5", "DRV-SNAP-4"],
        explain: "A clone must begin with the content of its source; then a write to the source \
            must not show in the clone, nor the reverse, nor in a second clone.",
        setup: Setup::Sr,
        run: |world| {
            let (source, mut of_source) = world.filled("source")?;
            let one = world.clone(source)?;
            let two = world.clone(source)?.uuid;
            must(!one.read_only && !one.is_a_snapshot, || "a clone is not writable".into())?;
            let (one, mut of_one, of_two) = (one.uuid, of_source.clone(), of_source.clone());
            world.verify(one, &of_one, "a clone")?;
            let blocks = world.blocks(world.size(), 10);
            world.fill(source, &mut of_source, &blocks, 2)?;
            let blocks = world.blocks(world.size(), 10);
            world.fill(one, &mut of_one, &blocks, 3)?;
            world.verify(two, &of_two, "a clone that nobody wrote")?;
            world.verify(one, &of_one, "a clone that was written")?;
            world.verify(source, &of_source, "the source of two clones")
        },
    },
    Check {
        id: "E09",
        needs: TREES,
        sentences: &["DRV-SNAP-5", "DRV-SNAP-8"],
        explain: "A clone of a snapshot must have the content of the snapshot's time, whatever the \
            source holds now, and be a disk that can be written.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let snapshot = world.snapshot(vdi)?.uuid;
            let mut then = content.clone();
            let blocks = world.blocks(world.size(), 10);
            world.fill(vdi, &mut content, &blocks, 2)?;
            let clone = world.clone(snapshot)?;
            same("is_a_snapshot of a clone", clone.is_a_snapshot, false)?;
            world.verify(clone.uuid, &then, "a clone of a snapshot")?;
            let kept = then.clone();
            world.fill(clone.uuid, &mut then, &[1, 2], 3)?;
            world.verify(clone.uuid, &then, "a clone that was written")?;
            world.verify(snapshot, &kept, "a snapshot whose clone was written")
        },
    },
    Check {
        id: "E13",
        needs: SNAPSHOTS,
        sentences: &["DRV-VDI-6"],
        explain: "Of three snapshots the middle one is destroyed. The other two, and the disk, \
            must keep every block.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let mut taken = Vec::new();
            for generation in 2..5 {
                taken.push((world.snapshot(vdi)?.uuid, content.clone()));
                let blocks = world.blocks(world.size(), 8);
                world.fill(vdi, &mut content, &blocks, generation)?;
            }
            let (middle, _) = taken.remove(1);
            world.destroy(middle)?;
            world.verify_all(&taken, "a neighbour of a snapshot that was destroyed")?;
            world.verify(vdi, &content, "the disk whose snapshot was destroyed")
        },
    },
    Check {
        id: "E14",
        needs: TREES,
        sentences: &["DRV-VDI-6"],
        explain: "The source is destroyed. Its snapshots and clones must keep every block.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let snapshot = world.snapshot(vdi)?.uuid;
            let then = content.clone();
            world.fill(vdi, &mut content, &[0, 5], 2)?;
            let clone = world.clone(vdi)?.uuid;
            world.destroy(vdi)?;
            world.verify(snapshot, &then, "a snapshot whose source is gone")?;
            world.verify(clone, &content, "a clone whose source is gone")
        },
    },
    Check {
        id: "E15",
        needs: TREES,
        sentences: &["DRV-VDI-6", "DRV-CRASH-3"],
        explain: "A tree of five nodes is taken down in four orders, drawn by chance from all that \
            there are; two where `suite.slow` is set. After each destroy those that are left must keep their content, and at the end \
            nothing may be left over.",
        setup: Setup::Sr,
        run: |world| {
            let orders = if world.bench.config.suite.slow.is_some() { 2 } else { 4 };
            for _ in 0..orders {
                let (root, mut content) = world.filled("root")?;
                let one = world.snapshot(root)?.uuid;
                let mut nodes = vec![(one, content.clone())];
                world.fill(root, &mut content, &[0, 7], 2)?;
                let two = world.clone(root)?.uuid;
                nodes.push((two, content.clone()));
                let three = world.clone(one)?.uuid;
                let mut of_three =
                    nodes.first().map(|(_, content)| content.clone()).unwrap_or_default();
                world.fill(three, &mut of_three, &[3], 3)?;
                nodes.push((three, of_three));
                let four = world.snapshot(root)?.uuid;
                nodes.push((four, content.clone()));
                world.fill(root, &mut content, &[0, 1], 4)?;
                nodes.push((root, content));
                world.dice.shuffle(&mut nodes);
                while let Some((gone, _)) = nodes.pop() {
                    world.destroy(gone)?;
                    world.verify_all(&nodes, "a node of a tree that is taken down")?;
                }
                let left = world.left_over()?;
                must(left.is_empty(), || format!("all is destroyed, left is {}", left.join(", ")))?;
            }
            Ok(())
        },
    },
    Check {
        id: "E16",
        needs: REVERTS,
        sentences: &["DRV-SNAP-6", "DRV-SNAP-13"],
        explain: "A revert must bring back the content of the snapshot, in whole, and leave the \
            UUID, the name, the keys, and every other snapshot as they are. One that is refused \
            with `in_use` because there is a newer snapshot must change nothing, and succeed when \
            that is destroyed.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let (early, then) = (world.snapshot(vdi)?.uuid, content.clone());
            let blocks = world.blocks(world.size(), 10);
            world.fill(vdi, &mut content, &blocks, 2)?;
            let (late, later) = (world.snapshot(vdi)?.uuid, content.clone());
            world.fill(vdi, &mut content, &[1, 2, 3], 3)?;
            let before = world.stat(vdi)?;
            let revert = VdiRevert { vdi, snapshot: early };
            let mut newer = Some(late);
            let done = match world.call(revert.clone()) {
                Err(error) if error.kind == sm_model::Kind::InUse => {
                    world.verify(late, &later, "a newer snapshot after a refused revert")?;
                    world.verify(vdi, &content, "a disk after a refused revert")?;
                    world.destroy(late)?;
                    newer = None;
                    world.call(revert)?
                }
                answer => answer?,
            };
            same("the name after a revert", &done.vdi.name, &before.name)?;
            same("the keys after a revert", &done.vdi.keys, &before.keys)?;
            same("read_only after a revert", done.vdi.read_only, false)?;
            let mut now = then.clone();
            world.verify(vdi, &now, "a disk that was reverted")?;
            world.fill(vdi, &mut now, &[0, 4], 5)?;
            world.verify(early, &then, "the snapshot that was reverted to")?;
            if let Some(late) = newer {
                world.verify(late, &later, "a later snapshot after a revert")?;
            }
            world.verify(vdi, &now, "a disk that was reverted and written")
        },
    },
    Check {
        id: "E17",
        needs: SNAPSHOTS.and(&["vdi_revert", "vdi_resize"]),
        sentences: &["DRV-SNAP-6", "DRV-VDI-5"],
        explain: "After a growth a disk is reverted to a snapshot of before. It must have the \
            snapshot's size, and when it grows again the new part must be zeros, not what was \
            there the first time.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let size = world.stat(vdi)?.virtual_size;
            let snapshot = world.snapshot(vdi)?.uuid;
            let grown = Bytes(size.0 * 2);
            world.call(sm_model::vdi::VdiResize { vdi, virtual_size: grown })?;
            let last = grown.0 / crate::oracle::BLOCK - 1;
            world.fill(vdi, &mut content.clone(), &[last, last / 2 + 1], 2)?;
            let done = world.call(VdiRevert { vdi, snapshot })?;
            same("the size after a revert", done.vdi.virtual_size, size)?;
            world.verify(vdi, &content, "a disk that was grown and reverted")?;
            world.call(sm_model::vdi::VdiResize { vdi, virtual_size: grown })?;
            world.verify(vdi, &content, "a disk that has grown again after a revert")
        },
    },
    Check {
        id: "E23",
        needs: SNAPSHOTS,
        sentences: &["DRV-SNAP-1"],
        explain: "A snapshot must tell the time of the request, and still tell it after a restart.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, _) = world.filled("source")?;
            let request = world.snapshot_of(vdi);
            let time = request.time;
            let done = world.call(request)?;
            let Some(snapshot) = done.vdis.first() else { return fail("no VDI was answered") };
            same("snapshot_time", snapshot.snapshot_time, Some(time))?;
            world.reopen()?;
            let found = world.stat(snapshot.uuid)?.snapshot_time;
            same("snapshot_time after a restart", found, Some(time))
        },
    },
    Check {
        id: "E24",
        needs: SNAPSHOTS,
        sentences: &["DRV-LIST-1", "DRV-META-1"],
        explain: "Of two disks with three snapshots each, the listing must tell for every snapshot \
            whose it is, after a restart too.",
        setup: Setup::Sr,
        run: |world| {
            let mut wanted = std::collections::BTreeMap::new();
            for name in ["a", "b"] {
                let vdi = world.create(name)?.uuid;
                for _ in 0..3 {
                    wanted.insert(world.snapshot(vdi)?.uuid, vdi);
                }
            }
            world.reopen()?;
            let found: std::collections::BTreeMap<VdiUuid, VdiUuid> = world
                .list()?
                .into_iter()
                .filter_map(|(uuid, vdi)| Some((uuid, vdi.snapshot_of?)))
                .collect();
            same("the listing of snapshots", found, wanted)
        },
    },
    Check {
        id: "E25",
        needs: CLONES,
        sentences: &["DRV-IDEM-3", "DRV-IDEM-5"],
        explain: "A clone under a UUID that is already a clone of something else must be refused \
            with `exists`, and the one that is there must stay as it is: an array whose clone is \
            found by its name alone gives somebody else's data.",
        setup: Setup::Sr,
        run: |world| {
            let (one, of_one) = world.filled("one")?;
            let (two, _) = world.filled("two")?;
            let mut request = world.clone_of(one);
            world.call(request.clone())?;
            request.vdi = two;
            let uuid = request.uuid;
            World::refused(
                "a clone of another source under a UUID in use",
                "exists",
                world.call(request),
            )?;
            world.verify(uuid, &of_one, "the clone that was there")
        },
    },
    Check {
        id: "C19",
        needs: SNAPSHOTS,
        sentences: &["DRV-META-1", "DRV-ATT-2"],
        explain: "What is `sharable`, and what is `read_only`, must be on the backend and be told \
            again after a restart; and what is read-only is not attached for writing.",
        setup: Setup::Sr,
        run: |world| {
            let mut request = world.disk("shared");
            request.sharable = true;
            let vdi = world.create_as(request)?;
            same("sharable", vdi.sharable, true)?;
            let snapshot = world.snapshot(vdi.uuid)?.uuid;
            world.reopen()?;
            same("sharable after a restart", world.stat(vdi.uuid)?.sharable, true)?;
            same("read_only after a restart", world.stat(snapshot)?.read_only, true)?;
            let answer = world.call(VdiAttach { vdi: snapshot, mode: ReadWrite });
            must(answer.is_err(), || "what is read-only was attached for writing".into())
        },
    },
    Check {
        id: "J05",
        needs: SNAPSHOTS.and(&["group_snapshot"]),
        sentences: &["DRV-SNAP-2"],
        explain: "Two disks in one snapshot request: both parts are made, each with its own \
            content; and a group with one disk that does not exist is refused in whole, with no \
            part left.",
        setup: Setup::Sr,
        run: group,
    },
];

fn group(world: &mut World<'_>) -> Verdict {
    let (one, of_one) = world.filled("one")?;
    let (two, of_two) = world.filled("two")?;
    let (first, second) = (world.snapshot_of(one), world.snapshot_of(two));
    let snapshots = [first.snapshots, second.snapshots].concat();
    let done = world.call(VdiSnapshot { snapshots, time: first.time })?;
    let [a, b] = done.vdis.as_slice() else { return fail("a group of two has not two parts") };
    same("changed", done.changed, Changed::Created)?;
    world.verify(a.uuid, &of_one, "the first of a group")?;
    world.verify(b.uuid, &of_two, "the second of a group")?;
    let before = world.list()?;
    let absent = world.new_vdi();
    let (good, bad) = (world.snapshot_of(one), world.snapshot_of(absent));
    let snapshots = [good.snapshots, bad.snapshots].concat();
    let answer = world.call(VdiSnapshot { snapshots, time: first.time });
    World::refused("a group with a disk that is not there", "not_found", answer)?;
    let after = world.list()?;
    must(before.keys().eq(after.keys()), || "a part of a refused group was made".into())?;
    let disk = world.open(one, ReadOnly)?;
    world.shut(one, disk)
}
