//! What an array does by itself: no content crosses the host.
//!
//! Disks are filled and read by the admin port of the simulated array, so that no disk is attached.

use std::collections::BTreeSet;

use serde_json::Value;
use sm_model::vdi::VdiRevert;
use sm_model::{Bytes, VdiUuid};

use super::{Check, DISKS, Needs, Setup};
use crate::inventory::{self, Simulator};
use crate::oracle::{self, BLOCK, Mark};
use crate::verdict::{Stop, Verdict, must};
use crate::world::World;

const OFFLOAD: Needs = DISKS.and(&["offload", "vdi_snapshot", "vdi_clone"]);

/// A large disk is so many times as large as a usual one, and of forty parts of it seven are written.
const LARGE: u64 = 10;
const PARTS: u64 = 40;
const WRITTEN: u64 = 7;

/// Requests that the clone of a large disk may take beyond those of a small one.
const MORE: u64 = 8;

/// What is no matter, in bytes.
const SLACK: u64 = 1 << 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "I01",
        needs: OFFLOAD,
        sentences: &["DRV-SNAP-16", "DRV-SNAP-5", "DRV-SNAP-6"],
        explain: "A disk is full. It is snapshotted, reverted where the driver can, and cloned, and \
            its snapshot is cloned: the array must see no byte read or written by an \
            initiator, and the driver's process, with those that it starts, may read and write half \
            of the disk's size at most by the kernel's count. The clones hold what the disk does. \
            Only a simulated array counts; its admin port fills the disk.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let size = world.size();
            let (vdi, source) = made(world, &array, size)?;
            let content = fill(&array, &source, size, 1)?;
            let before = Moved::look(world, &array)?;
            let snapshot = world.snapshot(vdi)?.uuid;
            // First of all: later there are clones, for which it may be refused.
            if world.can("vdi_revert") {
                world.call(VdiRevert { vdi, snapshot })?;
            }
            let known = volumes(&array)?;
            world.clone(vdi)?;
            world.clone(snapshot)?;
            let clones = volumes(&array)?;
            before.compare(world, &array, size / 2)?;
            for clone in clones.difference(&known) {
                let found = array.get(clone, content.len()).map_err(Stop::NotTestable)?;
                must(found == content, || format!("{clone} is a clone, and holds something else"))?;
            }
            Ok(())
        },
    },
    Check {
        id: "I03",
        needs: OFFLOAD,
        sentences: &["DRV-SNAP-16"],
        explain: "A disk ten times as large as usual, of which seven fortieths are written, is \
            cloned, and a small one that is empty: eight requests more at most, no byte by the data \
            path, and no more space than what is written and 1 MiB.",
        setup: Setup::SrOfSimulator,
        run: |world| {
            let array = simulator(world)?;
            let small = world.create("small")?.uuid;
            // What is looked up once of a disk.
            world.clone(small)?;
            let few = requests_of_clone(world, &array, small)?;
            let (size, written) = (world.size() * LARGE, world.size() * LARGE * WRITTEN / PARTS);
            let (vdi, source) = made(world, &array, size)?;
            let content = fill(&array, &source, written, 2)?;
            world.clone(vdi)?;
            let before = (Moved::look(world, &array)?, world.taken()?);
            let many = requests_of_clone(world, &array, vdi)?;
            before.0.compare(world, &array, u64::MAX)?;
            must(many <= few + MORE, || {
                format!("a clone takes {few} requests of a small disk, {many} of a large one")
            })?;
            let (taken, most) = (world.taken()?.saturating_sub(before.1), written + SLACK);
            must(taken <= most, || {
                format!("{} bytes are written, a clone takes {taken}", content.len())
            })
        },
    },
];

/// Bytes that have moved: by the data path, and through the driver's process if the kernel counts.
struct Moved {
    by_data_path: u64,
    by_driver: Option<u64>,
}

impl Moved {
    fn look(world: &World<'_>, array: &Simulator) -> Verdict<Self> {
        let counts = array.admin("GET", "/moved", "").map_err(Stop::NotTestable)?;
        let count = |name: &str| counts.get(name).and_then(Value::as_u64).unwrap_or(0);
        let by_data_path = count("read") + count("written");
        let by_driver = world.port()?.process_id().and_then(inventory::moved);
        Ok(Self { by_data_path, by_driver })
    }

    /// Nothing has moved since, but for what a driver has to read to do its work.
    fn compare(&self, world: &mut World<'_>, array: &Simulator, most: u64) -> Verdict {
        let now = Self::look(world, array)?;
        let crossed = now.by_data_path.saturating_sub(self.by_data_path);
        must(crossed == 0, || format!("the array does it, and {crossed} bytes crossed the host"))?;
        let (Some(before), Some(after)) = (self.by_driver, now.by_driver) else { return Ok(()) };
        let moved = after.saturating_sub(before);
        world.note("bytes of the driver's process", &moved.to_string(), "");
        must(moved <= most, || {
            format!("the array does it, and the driver read and wrote {moved} bytes")
        })
    }
}

fn simulator(world: &World<'_>) -> Verdict<Simulator> {
    let none = || Stop::NotApplicable("only a simulated array counts what moves".into());
    world.bench.simulator().ok_or_else(none)
}

fn volumes(array: &Simulator) -> Verdict<BTreeSet<String>> {
    array.volumes().map_err(Stop::NotTestable)
}

/// A disk, and the array's volume of it.
fn made(world: &mut World<'_>, array: &Simulator, size: u64) -> Verdict<(VdiUuid, String)> {
    let before = volumes(array)?;
    let mut request = world.disk("source");
    request.virtual_size = Bytes(size);
    let vdi = world.create_as(request)?.uuid;
    let after = volumes(array)?;
    let new: Vec<&String> = after.difference(&before).collect();
    let [volume] = new.as_slice() else {
        return Err(Stop::NotTestable(format!("a disk is {} volumes of the array", new.len())));
    };
    Ok((vdi, (*volume).clone()))
}

/// Writes the first bytes of a volume, and answers what they are.
fn fill(array: &Simulator, volume: &str, bytes: u64, generation: u64) -> Verdict<Vec<u8>> {
    let mark = Mark { disk: 1, generation };
    let content: Vec<u8> = (0..bytes / BLOCK).flat_map(|lba| oracle::block(mark, lba)).collect();
    array.put(volume, &content).map_err(Stop::NotTestable)?;
    Ok(content)
}

fn requests_of_clone(world: &mut World<'_>, array: &Simulator, vdi: VdiUuid) -> Verdict<u64> {
    let asked = || -> Verdict<u64> {
        let counts = array.admin("GET", "/counts", "").map_err(Stop::NotTestable)?;
        let calls = counts.as_object().into_iter().flatten();
        Ok(calls.filter_map(|(_, count)| count.as_u64()).sum())
    };
    let before = asked()?;
    world.clone(vdi)?;
    Ok(asked()?.saturating_sub(before))
}
