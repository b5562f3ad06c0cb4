//! Growth, and the refusal of the reverse.

use sm_model::vdi::VdiResize;
use sm_model::{Bytes, Changed, VdiUuid};

use super::{Check, DATA, Needs, SNAPSHOTS, Setup};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{Verdict, must, same};
use crate::world::World;

const RESIZES: Needs = DATA.and(&["vdi_resize"]);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "F03",
        needs: RESIZES,
        sentences: &["DRV-VDI-5"],
        explain: "A disk grows twice. Every block that was written must still be there, and it \
            can be written to its new end.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            for factor in [2, 3] {
                let size = grow(world, vdi, factor)?;
                world.verify(vdi, &content, "a disk that has grown")?;
                world.fill(vdi, &mut content, &[0, size / BLOCK - 1], factor)?;
            }
            world.verify(vdi, &content, "a disk that has grown twice")
        },
    },
    Check {
        id: "F04",
        needs: RESIZES,
        sentences: &["DRV-VDI-5"],
        explain: "The part that a growth adds must read as zeros, also where the backend's space \
            was another disk's a moment ago.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let other = world.create("other")?;
            let all: Vec<u64> = (0..other.virtual_size.0 / BLOCK).collect();
            world.fill(other.uuid, &mut Content::default(), &all, 1)?;
            world.destroy(other.uuid)?;
            grow(world, vdi, 3)?;
            world.verify(vdi, &content, "a disk that has grown into space that was used")
        },
    },
    Check {
        id: "F01",
        needs: RESIZES,
        sentences: &["DRV-VDI-5", "DRV-LIST-7"],
        explain: "After a growth the reply, the description, the listing and the device must all \
            have the new size, which is at least what was asked for.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("disk")?.uuid;
            let wanted = world.size() * 2;
            let done = world.call(VdiResize { vdi, virtual_size: Bytes(wanted) })?;
            same("changed", done.changed, Changed::Modified)?;
            let size = done.vdi.virtual_size;
            must(size.0 >= wanted, || format!("{wanted} bytes were asked for, {size:?} answered"))?;
            same("the size that vdi_stat tells", world.stat(vdi)?.virtual_size, size)?;
            let listed = world.list()?.get(&vdi).map(|vdi| vdi.virtual_size);
            same("the size that is listed", listed, Some(size))?;
            let disk = world.open(vdi, sm_model::AttachMode::ReadOnly)?;
            let device = disk.size();
            world.shut(vdi, disk)?;
            same("the size of the device", Bytes(device), size)
        },
    },
    Check {
        id: "F05",
        needs: RESIZES,
        sentences: &["DRV-VDI-5", "DRV-ERR-4"],
        explain: "A disk of twice the usual size: a resize to the usual one, which the format can have, must \
            be refused with `limit`, and the disk must keep its size and its last block.",
        setup: Setup::Sr,
        run: |world| {
            let usual = world.size();
            beyond(world, usual * 2, Bytes(usual), "a resize to half the size")
        },
    },
    Check {
        id: "F06",
        needs: RESIZES,
        sentences: &["DRV-VDI-5", "DRV-IDEM-2"],
        explain: "A resize to the size that the disk has is success, and says `already`.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let size = world.stat(vdi)?.virtual_size;
            let done = world.call(VdiResize { vdi, virtual_size: size })?;
            same("changed", done.changed, Changed::Already)?;
            same("the size", done.vdi.virtual_size, size)?;
            world.verify(vdi, &content, "a disk that was to stay as it is")
        },
    },
    Check {
        id: "F07",
        needs: DATA.and(&["vdi_resize", "max_vdi_size"]),
        sentences: &["DRV-LOAD-5", "DRV-VDI-2"],
        explain: "A growth past the declared limit must be refused with `limit`; the size stays.",
        setup: Setup::Sr,
        run: |world| {
            let limit = world.manifest().capability("max_vdi_size").and_then(|c| c.limit);
            let usual = world.size();
            beyond(world, usual, Bytes(limit.unwrap_or(1 << 60) + 1), "a growth past the limit")
        },
    },
    Check {
        id: "F08",
        needs: SNAPSHOTS.and(&["vdi_resize"]),
        sentences: &["DRV-VDI-5", "DRV-SNAP-8"],
        explain: "A disk with a snapshot grows. The snapshot must keep its size and its content.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let snapshot = world.snapshot(vdi)?;
            grow(world, vdi, 2)?;
            let now = world.stat(snapshot.uuid)?.virtual_size;
            same("the size of a snapshot whose source has grown", now, snapshot.virtual_size)?;
            world.verify(snapshot.uuid, &content, "a snapshot whose source has grown")?;
            world.verify(vdi, &content, "a disk that has grown above a snapshot")
        },
    },
    Check {
        id: "F09",
        needs: RESIZES,
        sentences: &["DRV-IDEM-7", "DRV-LIST-7"],
        explain: "The new size must be on the backend: a new session in a new process tells it, in \
            description, listing and device.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("disk")?.uuid;
            let size = grow(world, vdi, 2)?;
            world.reopen()?;
            same("the size after a restart", world.stat(vdi)?.virtual_size, Bytes(size))?;
            let listed = world.list()?.get(&vdi).map(|vdi| vdi.virtual_size);
            same("the size that is listed after a restart", listed, Some(Bytes(size)))?;
            let disk = world.open(vdi, sm_model::AttachMode::ReadOnly)?;
            let device = disk.size();
            world.shut(vdi, disk)?;
            same("the size of the device after a restart", device, size)
        },
    },
    Check {
        id: "F10",
        needs: RESIZES,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-6"],
        explain: "A resize whose answer was lost comes again with its operation id, at once and \
            after a later resize: it must succeed, never grow twice, and never undo the later one.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("disk")?.uuid;
            let (first, second) = (world.new_operation(), world.new_operation());
            let to = |factor: u64, world: &World<'_>| VdiResize {
                vdi,
                virtual_size: Bytes(world.size() * factor),
            };
            let (small, large) = (to(2, world), to(3, world));
            let size = world.call_as(first, &small)?.vdi.virtual_size;
            world.reopen()?;
            let again = world.call_as(first, &small)?;
            same("the size after a retry", again.vdi.virtual_size, size)?;
            same("changed of a retry", again.changed, Changed::Already)?;
            let size = world.call_as(second, &large)?.vdi.virtual_size;
            world.reopen()?;
            let late = world.call_as(first, &small)?;
            same("the size that a late retry answers", late.vdi.virtual_size, size)?;
            same("the size after a late retry", world.stat(vdi)?.virtual_size, size)
        },
    },
];

/// Grows a disk to a multiple of the usual size; answers its size.
fn grow(world: &mut World<'_>, vdi: VdiUuid, factor: u64) -> Verdict<u64> {
    let wanted = world.size() * factor;
    let done = world.call(VdiResize { vdi, virtual_size: Bytes(wanted) })?;
    let size = done.vdi.virtual_size.0;
    must(size >= wanted, || format!("{wanted} bytes were asked for, {size} answered"))?;
    Ok(size)
}

/// A size that must be refused, and leave a disk of `of` bytes as it is.
fn beyond(world: &mut World<'_>, of: u64, virtual_size: Bytes, what: &str) -> Verdict {
    let mut request = world.disk("disk");
    request.virtual_size = Bytes(of);
    let vdi = world.create_as(request)?;
    let (vdi, size) = (vdi.uuid, vdi.virtual_size.0);
    let (mut content, blocks) = (Content::default(), world.blocks(size, 12));
    world.fill(vdi, &mut content, &blocks, 1)?;
    let before = world.stat(vdi)?.virtual_size;
    World::refused(what, "limit", world.call(VdiResize { vdi, virtual_size }))?;
    same("the size after a refusal", world.stat(vdi)?.virtual_size, before)?;
    world.verify(vdi, &content, &format!("a disk after {what} was refused"))
}
