//! How much is said to be taken, and how much is.

use sm_model::sr::SrStat;
use sm_model::{Bytes, VdiUuid};

use super::{Check, DATA, SNAPSHOTS, Setup, TREES};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{Stop, Verdict, must, same};
use crate::world::World;

/// What the metadata of a few disks may take, in bytes.
const SLACK: u64 = 1 << 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "H01",
        needs: DATA.and(&["thin"]),
        sentences: &["DRV-VDI-11", "DRV-SR-8"],
        explain: "A driver that says it is thin must make an empty disk of 64 times the usual size \
            with less than 1 MiB, by its own word and by the backend's.",
        setup: Setup::Sr,
        run: |world| {
            let before = world.taken()?;
            let mut request = world.disk("empty");
            request.virtual_size = Bytes(world.size() * 64);
            let vdi = world.create_as(request)?;
            let said = vdi.physical_utilisation.0;
            must(said < SLACK, || format!("an empty disk is said to take {said} bytes"))?;
            let taken = world.taken()?.saturating_sub(before);
            must(taken < SLACK, || format!("an empty disk takes {taken} bytes"))
        },
    },
    Check {
        id: "H02",
        needs: DATA.and(&["vdi_stat"]),
        sentences: &["DRV-VDI-10", "DRV-SR-8"],
        explain: "When every block of a disk has been written, what it is said to take must be at \
            least that, and no more than a tenth and 4 MiB above it (8 MiB in a volume group, whose \
            volumes have whole extents).",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("full")?;
            let all: Vec<u64> = (0..vdi.virtual_size.0 / BLOCK).collect();
            world.fill(vdi.uuid, &mut Content::default(), &all, 1)?;
            let told = world.stat(vdi.uuid)?.physical_utilisation.0;
            let written = all.len() as u64 * BLOCK;
            // In a volume group, an extent for an image's own tables and one for what is rounded up.
            let extents = if world.bench.config.backend.volume_groups { 2 } else { 1 };
            let most = written + written / 10 + extents * (4 << 20);
            must(told >= written && told <= most, || {
                format!("{written} bytes are written, {told} are said to be taken")
            })
        },
    },
    Check {
        id: "H04",
        needs: DATA,
        sentences: &["DRV-VDI-10", "DRV-CRASH-3", "DRV-VDI-6"],
        explain: "What a disk took on the backend must be given back by its destroy.",
        setup: Setup::Sr,
        run: |world| {
            let before = world.taken()?;
            let vdi = world.create("full")?;
            let all: Vec<u64> = (0..vdi.virtual_size.0 / BLOCK).collect();
            world.fill(vdi.uuid, &mut Content::default(), &all, 1)?;
            world.destroy(vdi.uuid)?;
            let after = world.taken()?;
            must(after <= before + SLACK / 4, || {
                format!("{after} bytes are taken after a destroy, {before} before the create")
            })
        },
    },
    Check {
        id: "H05",
        needs: SNAPSHOTS.and(&["thin"]),
        sentences: &["DRV-SNAP-15", "DRV-VDI-11"],
        explain: "A driver that says it is thin takes a snapshot of a disk of which every block is \
            written: the backend must hold at most 1 MiB more then, and `sr_stat`, where there is \
            one, say so. In a volume group the disk is of 32 MiB, and two extents are allowed.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, _) = full(world)?;
            let (held, told) = (world.taken()?, used(world)?);
            world.snapshot(vdi)?;
            let more = world.taken()?.saturating_sub(held);
            let most = slack(world);
            must(more <= most, || format!("a snapshot of a full disk takes {more} bytes"))?;
            let said = used(world)?.saturating_sub(told);
            must(said <= most, || format!("a snapshot of a full disk is said to take {said} bytes"))
        },
    },
    Check {
        id: "H11",
        needs: TREES.and(&["vdi_stat", "sr_stat"]),
        sentences: &["DRV-SR-8", "DRV-VDI-10"],
        explain: "Of a full disk a snapshot is taken, a quarter of the disk is written anew, and a \
            quarter of a clone of the snapshot. What `sr_stat` tells in `usage` must add up before \
            and after: the VDIs' part is the sum of what each is said to take, disk and clone take \
            a quarter at least, and all parts together are what the backend holds, within 1 MiB, so \
            that what is shared counts once. It does not apply where no `usage` is told.",
        setup: Setup::Sr,
        run: |world| {
            if world.call(SrStat {})?.usage.is_none() {
                let why = "sr_stat tells no usage, which is optional";
                return Err(Stop::NotApplicable(why.into()));
            }
            let (vdi, all) = full(world)?;
            let snapshot = world.snapshot(vdi)?.uuid;
            adds_up(world)?;
            let clone = world.clone(snapshot)?.uuid;
            let quarter = all.get(..all.len() / 4).unwrap_or_default();
            for written in [vdi, clone] {
                world.fill(written, &mut Content::default(), quarter, 2)?;
                let told = world.stat(written)?.physical_utilisation.0;
                let least = quarter.len() as u64 * BLOCK;
                must(told >= least, || {
                    format!("{least} bytes of a VDI are its own, {told} are said to be taken")
                })?;
            }
            adds_up(world)
        },
    },
    Check {
        id: "B18",
        needs: DATA.and(&["vdi_stat", "sr_stat"]),
        sentences: &["DRV-SR-6", "DRV-SR-8"],
        explain: "What `sr_stat` tells must be true: how many VDIs there are, the sum of their \
            sizes, a size that is not below what is used; and where it tells `usage`, the VDIs' \
            part must be the sum of what each is said to take, and the whole must be what the \
            backend holds, within 1 MiB.",
        setup: Setup::Sr,
        run: |world| {
            world.filled("one")?;
            world.filled("two")?;
            let listed = world.list()?;
            let told = world.call(SrStat {})?;
            same("uuid", told.uuid, world.sr)?;
            same("vdis", told.vdis, listed.len() as u64)?;
            let sizes: u64 = listed.values().map(|vdi| vdi.virtual_size.0).sum();
            same("virtual_allocation", told.virtual_allocation.0, sizes)?;
            must(told.physical_size >= told.physical_utilisation, || {
                format!("{} of {} are used", told.physical_utilisation, told.physical_size)
            })?;
            must(told.physical_size.0 > 0, || "the backend is said to have no size".into())?;
            adds_up(world)
        },
    },
];

/// A disk of which every block is written, and these blocks.
fn full(world: &mut World<'_>) -> Verdict<(VdiUuid, Vec<u64>)> {
    let mut request = world.disk("full");
    if world.bench.config.backend.volume_groups {
        // An extent of it is no matter.
        request.virtual_size = Bytes(request.virtual_size.0.max(32 << 20));
    }
    let vdi = world.create_as(request)?;
    let all: Vec<u64> = (0..vdi.virtual_size.0 / BLOCK).collect();
    world.fill(vdi.uuid, &mut Content::default(), &all, 1)?;
    Ok((vdi.uuid, all))
}

/// Where `usage` is told, its parts are what is said of each VDI, and what the backend holds.
fn adds_up(world: &mut World<'_>) -> Verdict {
    let listed = world.list()?;
    let Some(usage) = world.call(SrStat {})?.usage else { return Ok(()) };
    let each = listed.values().map(|vdi| vdi.physical_utilisation.0).sum();
    same("the part of the VDIs", usage.vdis.0, each)?;
    if world.files()?.is_none() {
        return Ok(());
    }
    let taken = world.taken()?;
    must(usage.total().0.abs_diff(taken) <= SLACK, || {
        format!("{} are said to be taken, the backend holds {taken} bytes", usage.total())
    })
}

/// What is said to be taken in all; nothing where nobody says it.
fn used(world: &mut World<'_>) -> Verdict<u64> {
    if !world.can("sr_stat") {
        return Ok(0);
    }
    Ok(world.call(SrStat {})?.physical_utilisation.0)
}

/// What a snapshot may take for itself.
fn slack(world: &World<'_>) -> u64 {
    if world.bench.config.backend.volume_groups { 8 << 20 } else { SLACK }
}
