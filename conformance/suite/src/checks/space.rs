//! How much is said to be taken, and how much is.

use sm_model::sr::SrStat;

use super::{Check, DATA, Setup};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{must, same};

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
            request.virtual_size = sm_model::Bytes(world.size() * 64);
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
            let Some(usage) = told.usage else { return Ok(()) };
            let each: u64 = listed.values().map(|vdi| vdi.physical_utilisation.0).sum();
            same("the part of the VDIs", usage.vdis.0, each)?;
            if world.files()?.is_none() {
                return Ok(());
            }
            let taken = world.taken()?;
            must(usage.total().0.abs_diff(taken) <= SLACK, || {
                format!("{} are said to be taken, the backend holds {taken} bytes", usage.total())
            })
        },
    },
];
