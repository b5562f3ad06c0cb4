//! Attach, activate, and back.

use sm_loader::DriverPort as _;
use sm_model::AttachMode::{ReadOnly, ReadWrite};
use sm_model::vdi::{VdiActivate, VdiAttach, VdiDeactivate, VdiDetach};

use super::{Check, DATA, Needs, Setup};
use crate::verdict::{must, same};
use crate::world::World;

const ATTACH: Needs = DATA.and(&["vdi_deactivate", "vdi_detach"]);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "G01",
        needs: ATTACH,
        sentences: &["DRV-ATT-1", "DRV-ATT-5", "DRV-ATT-4"],
        explain: "A disk is attached and detached ten times, in both modes; what was written is \
            there each time, and the driver's process holds no more files, sockets and threads \
            after the tenth time than after the second.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let mut after_second = None;
            for round in 0..10 {
                world.fill(vdi, &mut content, &[round], round + 2)?;
                world.verify(vdi, &content, "a disk that is attached again and again")?;
                if round == 1 {
                    after_second = held(world)?;
                }
            }
            let (Some(before), Some(after)) = (after_second, held(world)?) else { return Ok(()) };
            let grown = after.descriptors > before.descriptors + 3
                || after.sockets > before.sockets
                || after.threads > before.threads + 4;
            must(!grown, || format!("the driver's process holds {after:?}, and held {before:?}"))
        },
    },
    Check {
        id: "G02",
        needs: ATTACH,
        sentences: &["DRV-ERR-1"],
        explain: "The attach of a VDI that does not exist must be refused with `not_found`.",
        setup: Setup::Sr,
        run: |world| {
            world.create("other")?;
            let vdi = world.new_vdi();
            let answer = world.call(VdiAttach { vdi, mode: ReadOnly });
            World::refused("the attach of nothing", "not_found", answer).map(drop)
        },
    },
    Check {
        id: "G06",
        needs: ATTACH,
        sentences: &["DRV-ATT-1"],
        explain: "An attach that comes again on the same host must answer the same ways, and an \
            activate that comes again must succeed and not wipe what was written.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let first = world.call(VdiAttach { vdi, mode: ReadWrite })?;
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[4, 5], 2)?;
            let again = world.call(VdiAttach { vdi, mode: ReadWrite })?;
            same("the ways of a second attach", again.access, first.access)?;
            world.call(VdiActivate { vdi, mode: ReadWrite, tracked: false })?;
            world.fill_open(&disk, vdi, &mut content, &[5, 6], 3)?;
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "a disk that was attached twice")
        },
    },
    Check {
        id: "G09",
        needs: ATTACH,
        sentences: &["DRV-ATT-5"],
        explain: "Deactivate and detach of what is not active, not attached, or not there at all \
            must succeed: whoever cleans up after an accident does not know how far it went.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("idle")?.uuid;
            for vdi in [vdi, world.new_vdi()] {
                world.call(VdiDeactivate { vdi })?;
                world.call(VdiDetach { vdi })?;
            }
            same("VDIs in the listing", world.list()?.len(), 1)
        },
    },
    Check {
        id: "G03",
        needs: DATA.and(&["vdi_deactivate", "vdi_detach", "datapath"]),
        sentences: &["DRV-ATT-3"],
        explain: "While one host writes a disk, the activate for writing of another host must be \
            refused with `in_use`; after the first has let go it must succeed.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let disk = world.open(vdi, ReadWrite)?;
            let other = world.other(world.sr, "conformance-host-b")?;
            let call = |world: &mut World<'_>, operation| {
                sm_loader::Call::new(
                    operation,
                    world.new_operation(),
                    world.bench.config.call_budget(),
                )
            };
            let attach = call(world, sm_model::Operation::VdiAttach);
            world.call_on(&other, attach, &VdiAttach { vdi, mode: ReadWrite })?;
            let request = VdiActivate { vdi, mode: ReadWrite, tracked: false };
            let activate = call(world, sm_model::Operation::VdiActivate);
            let answer = world.call_on(&other, activate, &request);
            World::refused("a second host's activate for writing", "in_use", answer)?;
            world.fill_open(&disk, vdi, &mut content, &[7], 2)?;
            world.shut(vdi, disk)?;
            let activate = call(world, sm_model::Operation::VdiActivate);
            world.call_on(&other, activate, &request)?;
            let deactivate = call(world, sm_model::Operation::VdiDeactivate);
            world.call_on(&other, deactivate, &VdiDeactivate { vdi })?;
            let detach = call(world, sm_model::Operation::VdiDetach);
            world.call_on(&other, detach, &VdiDetach { vdi })?;
            world.bench.runtime.block_on(other.close(std::time::Duration::from_secs(5)));
            world.verify(vdi, &content, "a disk that two hosts wanted to write")
        },
    },
];

/// What the driver's process holds.
pub(super) fn held(world: &World<'_>) -> crate::verdict::Verdict<Option<crate::inventory::Held>> {
    Ok(world.port()?.process_id().and_then(crate::inventory::held))
}
