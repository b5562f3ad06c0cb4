//! The same wish twice: because the answer was lost, because somebody died, because of nothing.

use sm_loader::{Call, DriverPort as _};
use sm_model::sr::{SrAttach, SrCreate, SrUpdate};
use sm_model::vdi::{VdiDestroy, VdiResize, VdiRevert};
use sm_model::{Bytes, Changed, Operation};

use super::{CLONES, Check, DATA, DISKS, Needs, SNAPSHOTS, Setup};
use crate::verdict::{fail, must, same};
use crate::world::World;

const REVERTS: Needs = SNAPSHOTS.and(&["vdi_revert"]);

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "K05",
        needs: SNAPSHOTS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2", "DRV-IDEM-5"],
        explain: "The answer to a snapshot is lost; the source is written meanwhile; the same wish \
            comes again, in a new process. It must find the snapshot that it made, with the \
            content of then, and not take another.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let (id, request) = (world.new_operation(), world.snapshot_of(vdi));
            let made = world.call_as(id, &request)?;
            let then = content.clone();
            world.fill(vdi, &mut content, &[0, 1, 2], 2)?;
            world.reopen()?;
            let again = world.call_as(id, &request)?;
            same("changed of a retry", again.changed, Changed::Already)?;
            let uuids = |vdis: &[sm_model::vdi::VdiInfo]| -> Vec<_> {
                vdis.iter().map(|vdi| (vdi.uuid, vdi.snapshot_of, vdi.snapshot_time)).collect()
            };
            same("the snapshot of a retry", uuids(&again.vdis), uuids(&made.vdis))?;
            same("VDIs in the listing", world.list()?.len(), 2)?;
            for snapshot in &made.vdis {
                world.verify(snapshot.uuid, &then, "a snapshot that was asked for twice")?;
            }
            world.verify(vdi, &content, "the source of a snapshot that was asked for twice")
        },
    },
    Check {
        id: "K06",
        needs: CLONES,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2", "DRV-IDEM-5"],
        explain: "The answer to a clone is lost; the clone is written; the same wish comes again, \
            in a new process. What was written must still be there.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("source")?;
            let (id, request) = (world.new_operation(), world.clone_of(vdi));
            let made = world.call_as(id, &request)?.vdi;
            world.fill(made.uuid, &mut content, &[3, 4], 2)?;
            world.reopen()?;
            let again = world.call_as(id, &request)?;
            same("changed of a retry", again.changed, Changed::Already)?;
            same("VDIs in the listing", world.list()?.len(), 2)?;
            world.verify(made.uuid, &content, "a clone that was asked for twice")
        },
    },
    Check {
        id: "K03",
        needs: DATA,
        sentences: &["DRV-IDEM-1", "DRV-VDI-3"],
        explain: "The answer to a create is lost; the disk is written; the same wish comes again, \
            in a new process: one disk, with what was written.",
        setup: Setup::Sr,
        run: |world| {
            let (id, request) = (world.new_operation(), world.disk("once"));
            let made = world.call_as(id, &request)?.vdi;
            let mut content = crate::oracle::Content::default();
            world.fill(made.uuid, &mut content, &[0, 9], 1)?;
            world.reopen()?;
            let again = world.call_as(id, &request)?;
            same("changed of a retry", again.changed, Changed::Already)?;
            same("VDIs in the listing", world.list()?.len(), 1)?;
            world.verify(made.uuid, &content, "a disk that was asked for twice")
        },
    },
    Check {
        id: "K04",
        needs: DISKS,
        sentences: &["DRV-IDEM-1", "DRV-VDI-6"],
        explain: "The answer to a destroy is lost, and the same wish comes again in a new process: \
            success, and only that VDI is gone.",
        setup: Setup::Sr,
        run: |world| {
            let (one, two) = (world.create("one")?.uuid, world.create("two")?.uuid);
            let id = world.new_operation();
            world.call_as(id, &VdiDestroy { vdi: one })?;
            world.reopen()?;
            let again = world.call_as(id, &VdiDestroy { vdi: one })?.changed;
            same("changed of a retry", again, Changed::Already)?;
            let listed: Vec<_> = world.list()?.into_keys().collect();
            same("the listing", listed, vec![two])
        },
    },
    Check {
        id: "T02",
        needs: REVERTS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-6"],
        explain: "The answer to a revert is lost; the disk is written; the same wish comes again. \
            It must not throw away what was written after it was done.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let snapshot = world.snapshot(vdi)?.uuid;
            world.fill(vdi, &mut content.clone(), &[1], 2)?;
            let id = world.new_operation();
            world.call_as(id, &VdiRevert { vdi, snapshot })?;
            let mut now = content.clone();
            world.fill(vdi, &mut now, &[2, 3], 3)?;
            world.reopen()?;
            world.call_as(id, &VdiRevert { vdi, snapshot })?;
            world.verify(vdi, &now, "a disk whose revert was asked for twice")?;
            world.verify(snapshot, &content, "a snapshot that was reverted to twice")
        },
    },
    Check {
        id: "K14",
        needs: REVERTS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-6", "DRV-IDEM-7"],
        explain: "The host that asked for a revert dies before the answer, and the disk is used \
            elsewhere; then another host brings the same wish. It must be recognised there too: \
            what was written since must not be thrown away. The same of a snapshot, which must not \
            be taken twice.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let (first, taken) = (world.new_operation(), world.snapshot_of(vdi));
            let made = world.call_as(first, &taken)?;
            let Some(snapshot) = made.vdis.first().map(|vdi| vdi.uuid) else {
                return fail("vdi_snapshot answered no VDI");
            };
            world.fill(vdi, &mut content.clone(), &[1], 2)?;
            let (second, revert) = (world.new_operation(), VdiRevert { vdi, snapshot });
            world.call_as(second, &revert)?;
            let mut now = content.clone();
            world.fill(vdi, &mut now, &[2, 3], 3)?;
            world.close()?;
            let other = world.other(world.sr, "conformance-host-b")?;
            let budget = world.bench.config.call_budget();
            let attach = Call::new(Operation::SrAttach, world.new_operation(), budget);
            world.call_on(&other, attach, &SrAttach {})?;
            let again = Call::new(Operation::VdiSnapshot, first, budget);
            let again = world.call_on(&other, again, &taken)?;
            same(
                "changed of a snapshot that another host repeats",
                again.changed,
                Changed::Already,
            )?;
            let again = Call::new(Operation::VdiRevert, second, budget);
            world.call_on(&other, again, &revert)?;
            world.bench.runtime.block_on(other.close(std::time::Duration::from_secs(5)));
            world.reopen()?;
            same("VDIs in the listing", world.list()?.len(), 2)?;
            world.verify(vdi, &now, "a disk whose revert another host asked for again")?;
            world.verify(snapshot, &content, "the snapshot")
        },
    },
    Check {
        id: "K07",
        needs: DATA.and(&["vdi_resize"]),
        sentences: &["DRV-IDEM-1", "DRV-VDI-5"],
        explain: "The answer to a growth is lost; the new part is written; the same wish comes \
            again, in a new process: the size stays, and so does what was written.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let request = VdiResize { vdi, virtual_size: Bytes(world.size() * 2) };
            let id = world.new_operation();
            let size = world.call_as(id, &request)?.vdi.virtual_size;
            world.fill(vdi, &mut content, &[size.0 / crate::oracle::BLOCK - 1], 2)?;
            world.reopen()?;
            let again = world.call_as(id, &request)?;
            same("changed of a retry", again.changed, Changed::Already)?;
            same("the size after a retry", again.vdi.virtual_size, size)?;
            world.verify(vdi, &content, "a disk whose growth was asked for twice")
        },
    },
    Check {
        id: "K10",
        needs: DISKS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2", "DRV-SR-1"],
        explain: "The answer to the create of the SR is lost, and the same wish comes again when \
            there are VDIs in it: `already`, and the VDIs stay.",
        setup: Setup::Nothing,
        run: |world| {
            world.own_sr()?;
            world.reopen()?;
            let (id, request) = (
                world.new_operation(),
                SrCreate { name: world.name("sr"), description: String::new() },
            );
            same("changed", world.call_as(id, &request)?.changed, Changed::Created)?;
            world.call(SrAttach {})?;
            let vdi = world.create("kept")?.uuid;
            world.reopen()?;
            same("changed of a retry", world.call_as(id, &request)?.changed, Changed::Already)?;
            must(world.list()?.contains_key(&vdi), || "a VDI is gone after a retry".into())?;
            world.destroy(vdi)
        },
    },
    Check {
        id: "K01",
        needs: DISKS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2"],
        explain: "Every changing operation that the driver declares is called twice with the same \
            operation id and request, one after the other: both succeed, and after the second \
            the listing is as after the first.",
        setup: Setup::Sr,
        run: |world| twice(world, 2),
    },
    Check {
        id: "K02",
        needs: DISKS,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-2"],
        explain: "As K01, ten times, or four where `suite.slow` is set.",
        setup: Setup::Sr,
        run: |world| {
            let slow = world.bench.config.suite.slow.is_some();
            twice(world, if slow { 4 } else { 10 })
        },
    },
    Check {
        id: "K13",
        needs: CLONES,
        sentences: &["DRV-IDEM-3"],
        explain: "A create under the UUID of a clone, and a clone under the UUID of a disk, are \
            not the same wish again: both must be refused with `exists`, and nothing may change.",
        setup: Setup::Sr,
        run: |world| {
            let (source, _) = world.filled("source")?;
            let (disk, of_disk) = world.filled("disk")?;
            let mut request = world.clone_of(source);
            request.uuid = disk;
            let answer = world.call(request);
            World::refused("a clone under the UUID of a disk", "exists", answer)?;
            world.verify(disk, &of_disk, "a disk that was to become a clone")
        },
    },
];

fn twice(world: &mut World<'_>, times: usize) -> crate::verdict::Verdict {
    /// Calls the same thing several times, and compares the listing after the first with the last.
    macro_rules! repeat {
        ($what:literal, $request:expr) => {{
            let (id, request) = (world.new_operation(), $request);
            world.call_as(id, &request)?;
            let first = world.list()?;
            for _ in 1..times {
                world.call_as(id, &request)?;
            }
            let last = world.list()?;
            must(first == last, || {
                format!(
                    "{} changed the listing when it came again: {last:?}, and was {first:?}",
                    $what
                )
            })?;
        }};
    }
    let request = world.disk("first");
    let vdi = request.uuid;
    repeat!("vdi_create", request);
    if world.can("vdi_update") {
        repeat!(
            "vdi_update",
            sm_model::vdi::VdiUpdate {
                vdi,
                name: Some(world.name("renamed")),
                description: None,
                vdi_type: None,
                read_only: None,
                keys: [("k".to_owned(), Some("v".to_owned()))].into(),
                incomplete: None,
            }
        );
    }
    if world.can("vdi_resize") {
        let virtual_size = Bytes(world.size() * 2);
        repeat!("vdi_resize", VdiResize { vdi, virtual_size });
    }
    if world.can("vdi_snapshot") {
        let request = world.snapshot_of(vdi);
        let taken = request.snapshots.first().map(|spec| spec.uuid);
        repeat!("vdi_snapshot", request);
        if let Some(snapshot) = taken
            && world.can("vdi_revert")
        {
            repeat!("vdi_revert", VdiRevert { vdi, snapshot });
        }
    }
    if world.can("vdi_clone") {
        repeat!("vdi_clone", world.clone_of(vdi));
    }
    if world.can("sr_update") {
        let name = Some(world.name("renamed"));
        repeat!("sr_update", SrUpdate { name, description: None });
    }
    if world.can("sr_recover") {
        repeat!("sr_recover", sm_model::sr::SrRecover {});
    }
    repeat!("sr_attach", SrAttach {});
    repeat!("vdi_destroy", VdiDestroy { vdi });
    Ok(())
}
