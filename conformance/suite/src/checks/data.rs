//! What is written is what is read, and nothing else ever is.

use sm_model::AttachMode::{ReadOnly, ReadWrite};
use sm_model::sr::{SrAttach, SrDetach};

use super::{Check, DATA, Setup};
use crate::oracle::{BLOCK, Content};
use crate::verdict::{Stop, Verdict, must};
use crate::world::World;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "D01",
        needs: DATA,
        sentences: &["DRV-ATT-1", "DRV-ATT-4"],
        explain: "Fills every block of a disk with content that names its disk, place and \
            generation, and reads all of it. A block that is lost, moved, or stale is named.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("all")?;
            let all: Vec<u64> = (0..vdi.virtual_size.0 / BLOCK).collect();
            let mut content = Content::default();
            world.fill(vdi.uuid, &mut content, &all, 1)?;
            world.verify(vdi.uuid, &content, "after every block was written")
        },
    },
    Check {
        id: "C02",
        needs: DATA,
        sentences: &["DRV-VDI-1"],
        explain: "A new disk must read as zeros in whole, also when it takes over space that \
            another disk has just given back: what one tenant has left is not for the next.",
        setup: Setup::Sr,
        run: |world| {
            for round in 0..3 {
                let vdi = world.create("fresh")?;
                world.verify(vdi.uuid, &Content::default(), "a disk that was just made")?;
                let all: Vec<u64> = (0..vdi.virtual_size.0 / BLOCK).collect();
                world.fill(vdi.uuid, &mut Content::default(), &all, round)?;
                world.destroy(vdi.uuid)?;
            }
            let vdi = world.create("after")?;
            world.verify(vdi.uuid, &Content::default(), "a disk made of space that was used")
        },
    },
    Check {
        id: "Q07",
        needs: DATA,
        sentences: &["DRV-VDI-1"],
        explain: "The same UUID, made again after it was destroyed, must be a new disk: of the \
            old one nothing may be read.",
        setup: Setup::Sr,
        run: |world| {
            let mut request = world.disk("again");
            world.create_as(request.clone())?;
            let blocks = world.blocks(request.virtual_size.0, 16);
            world.fill(request.uuid, &mut Content::default(), &blocks, 1)?;
            world.destroy(request.uuid)?;
            request.name.push_str("-2");
            world.create_as(request.clone())?;
            world.verify(request.uuid, &Content::default(), "a disk of a UUID that was used before")
        },
    },
    Check {
        id: "D02",
        needs: DATA,
        sentences: &["DRV-ATT-4", "DRV-ATT-1"],
        explain: "What was written before a detach must be there after the next attach, each time.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("kept")?;
            for generation in 2..5 {
                let blocks = world.blocks(world.size(), 8);
                world.fill(vdi, &mut content, &blocks, generation)?;
                world.verify(vdi, &content, "after a detach")?;
            }
            Ok(())
        },
    },
    Check {
        id: "D03",
        needs: DATA.and(&["sr_detach"]),
        sentences: &["DRV-IDEM-7"],
        explain: "Content must survive a detach of the whole SR, and a new session in a new process.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("kept")?;
            world.call(SrDetach {})?;
            world.reopen()?;
            world.call(SrAttach {})?;
            world.verify(vdi, &content, "after the SR was detached and attached")
        },
    },
    Check {
        id: "D04",
        needs: DATA,
        sentences: &["DRV-IDEM-7", "DRV-CRASH-1"],
        explain: "The driver's process is killed between two calls. Content and listing must be \
            there in the next one: what a restart would lose must not be kept elsewhere than on \
            the backend.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("kept")?;
            let before = world.list()?;
            world.kill()?;
            world.call(SrAttach {})?;
            let after = world.list()?;
            must(before == after, || {
                format!("the listing after a kill is {after:?}, and was {before:?}")
            })?;
            world.verify(vdi, &content, "after the driver was killed")
        },
    },
    Check {
        id: "D05",
        needs: DATA,
        sentences: &["DRV-ATT-10"],
        explain: "A VDI that is attached for reading is written to all the same. Its device, or its \
            server, must refuse that, and what was there must still be there. An image in a file is \
            opened by the host, for reading.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("kept")?.uuid;
            let mut content = Content::default();
            let disk = world.open(vdi, ReadWrite)?;
            let is_image = disk.drive().is_some();
            world.fill_open(&disk, vdi, &mut content, &[0, 1], 1)?;
            world.shut(vdi, disk)?;
            if is_image {
                let why = "its disks are images, which the host opens for reading";
                return Err(Stop::NotApplicable(why.into()));
            }
            let disk = world.open(vdi, ReadOnly)?;
            let written = disk.force(0, &[0xee; BLOCK as usize]);
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "after a write through an attachment for reading")?;
            let why = written.err();
            let why = why.ok_or_else(|| {
                Stop::Fail("a write through an attachment for reading has succeeded".into())
            })?;
            world.note("a write through an attachment for reading", &vdi.to_string(), &why);
            Ok(())
        },
    },
    Check {
        id: "G17",
        needs: DATA,
        sentences: &["DRV-ATT-6"],
        explain: "A disk is attached and written while the driver's process is killed and a new \
            session begins. The I/O must go on as if nothing had happened, and a later detach \
            must work.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("in use")?;
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[1, 3], 2)?;
            world.kill()?;
            world.fill_open(&disk, vdi, &mut content, &[2, 3], 3)?;
            world.reopen()?;
            world.call(SrAttach {})?;
            world.fill_open(&disk, vdi, &mut content, &[3, 4], 4)?;
            world.verify_open(
                &disk,
                &content,
                "through an attachment that outlived two sessions",
            )?;
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "after the detach")
        },
    },
    Check {
        id: "D08",
        needs: DATA,
        sentences: &["DRV-ATT-1"],
        explain: "Reads and writes of 512 bytes up to a mebibyte, at odd sectors and across the \
            borders of 2 MiB where images have their blocks, must change exactly what they name.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("odd")?;
            let size = vdi.virtual_size.0;
            let disk = world.open(vdi.uuid, ReadWrite)?;
            let mut model = vec![0_u8; size as usize];
            let border = (2 << 20).min(size / 2);
            let mut ranges = vec![(0, 512), (size - 512, 512), (border - 1536, 4096)];
            for length in [512, 1024, 4608, 65_536, 1 << 20] {
                ranges.push((world.dice.below((size - length) / 512) * 512, length));
            }
            for (number, (offset, length)) in (1_u8..).zip(ranges) {
                let bytes: Vec<u8> = (0..length).map(|at| number ^ (at / 512) as u8).collect();
                disk.write(offset, &bytes).map_err(Stop::Fail)?;
                let range = offset as usize..(offset + length) as usize;
                if let Some(part) = model.get_mut(range) {
                    part.copy_from_slice(&bytes);
                }
            }
            world.shut(vdi.uuid, disk)?;
            let disk = world.open(vdi.uuid, ReadOnly)?;
            let mut found = vec![0; size as usize];
            disk.read(0, &mut found).map_err(Stop::Fail)?;
            world.shut(vdi.uuid, disk)?;
            let first = found.iter().zip(&model).position(|(found, wanted)| found != wanted);
            must(first.is_none(), || format!("byte {first:?} differs after writes of odd sizes"))
        },
    },
    Check {
        id: "D11",
        needs: DATA,
        sentences: &["DRV-VDI-6", "DRV-CRASH-1"],
        explain: "Writes to several disks, mixed, must never show in another one, and a destroy of \
            one must leave the others as they are.",
        setup: Setup::Sr,
        run: |world| {
            let mut disks = Vec::new();
            for name in ["a", "b", "c", "d"] {
                let (vdi, content) = world.filled(name)?;
                disks.push((vdi, content));
            }
            for generation in 2..4 {
                let blocks = world.blocks(world.size(), 10);
                for (vdi, content) in &mut disks {
                    world.fill(*vdi, content, &blocks, generation)?;
                }
            }
            if let Some((gone, _)) = disks.pop() {
                world.destroy(gone)?;
            }
            world.verify_all(&disks, "with other disks written in between")
        },
    },
    Check {
        id: "D13",
        needs: DATA,
        sentences: &["DRV-VDI-2"],
        explain: "The size of the device that a guest gets must be the virtual size that the \
            driver reports, to the byte.",
        setup: Setup::Sr,
        run: |world| {
            for size in [world.size(), world.size() + 512, world.size() * 2 + 4096] {
                let mut request = world.disk("sized");
                request.virtual_size = sm_model::Bytes(size);
                let vdi = world.create_as(request)?;
                let disk = world.open(vdi.uuid, ReadOnly)?;
                let (found, said) = (disk.size(), vdi.virtual_size.0);
                world.shut(vdi.uuid, disk)?;
                must(found == said, || format!("the device has {found} bytes, said are {said}"))?;
            }
            Ok(())
        },
    },
    Check {
        id: "C21",
        needs: DATA,
        sentences: &["DRV-VDI-2"],
        explain: "The last sector of a disk can be written and read, at an ordinary size and at \
            the largest that the driver declares.",
        setup: Setup::Sr,
        run: |world| {
            let largest = world.manifest().capability("max_vdi_size").and_then(|c| c.limit);
            for size in [Some(world.size()), largest].into_iter().flatten() {
                last_sector(world, size)?;
            }
            Ok(())
        },
    },
];

/// Makes a disk of a size, and uses its end.
pub(super) fn last_sector(world: &mut World<'_>, size: u64) -> Verdict {
    let mut request = world.disk("end");
    request.virtual_size = sm_model::Bytes(size);
    let vdi = world.create_as(request)?;
    let disk = world.open(vdi.uuid, ReadWrite)?;
    let end = disk.size() - 512;
    disk.write(end, &[0xe5; 512]).map_err(Stop::Fail)?;
    disk.flush().map_err(Stop::Fail)?;
    world.shut(vdi.uuid, disk)?;
    let disk = world.open(vdi.uuid, ReadOnly)?;
    let mut found = [0; 512];
    disk.read(end, &mut found).map_err(Stop::Fail)?;
    world.shut(vdi.uuid, disk)?;
    must(found == [0xe5; 512], || format!("the last sector of {size} bytes was not kept"))?;
    world.destroy(vdi.uuid)
}
