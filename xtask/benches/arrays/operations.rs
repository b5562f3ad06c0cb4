//! How many requests an operation takes, and how long it takes beside them.

use std::time::Instant;

use sm_core::Op;
use sm_core::model::Bytes;

use crate::table::{Bar, Row, Table, median};
use crate::world::{Vendor, World, milliseconds, number};
use crate::{LATENCY, Result, Setting};

const GIB: u64 = 1 << 30;

/// An operation's name in the tables of the drivers' documents, and whether its time has a bar.
const OPERATIONS: [(&str, bool); 8] = [
    ("vdi create", true),
    ("vdi snapshot", true),
    ("vdi clone of a disk", true),
    ("vdi clone of a snapshot", true),
    ("vdi resize", false),
    ("vdi revert", false),
    ("vdi destroy of a snapshot", false),
    ("vdi destroy", false),
];

/// Requests, and milliseconds beside them, of each round of an operation.
#[derive(Default)]
struct Taken {
    requests: Vec<f64>,
    beside: Vec<f64>,
    wall: Vec<f64>,
}

pub(crate) async fn measure(setting: &Setting, vendor: Vendor, table: &mut Table) -> Result<()> {
    let world = World::new(setting, vendor, "operations").await?;
    world.latency(LATENCY)?;
    let mut taken: [Taken; OPERATIONS.len()] = Default::default();
    for round in 0..if setting.quick { 3 } else { 12 } {
        let times = Box::pin(one_round(&world)).await?;
        for (own, (requests, at_array, wall)) in taken.iter_mut().zip(times) {
            // The first logs in and warms up.
            if round > 0 {
                own.requests.push(requests);
                own.beside.push(wall - at_array);
                own.wall.push(wall);
            }
        }
    }
    for ((name, has_bar), own) in OPERATIONS.iter().zip(taken) {
        let most = vendor.documented(name).ok_or_else(|| {
            format!("the document of {} does not say how many requests {name} takes", vendor.name())
        })?;
        table.push(Row {
            name: format!("{}: {name}, requests", vendor.name()),
            unit: "",
            ours: own.requests.clone(),
            peer: None,
            bar: Some(Bar::Most(most)),
            note: String::new(),
        });
        let (requests, wall) = (median(&own.requests), median(&own.wall));
        table.push(Row {
            name: format!("{}: {name}, time beside its requests", vendor.name()),
            unit: "ms",
            ours: own.beside,
            peer: None,
            bar: has_bar.then_some(Bar::Most(5.0)),
            note: format!("{wall:.1} ms in all, {requests} x {LATENCY} ms are latency"),
        });
    }
    world.close().await;
    Ok(())
}

/// Of each operation: its requests, milliseconds at the array, milliseconds in all.
async fn one_round(world: &World) -> Result<[(f64, f64, f64); OPERATIONS.len()]> {
    let sr = &world.sr;
    let (disk, create) = timed(world, world.create("disk", GIB)).await?;
    let (snapshot, snap) = timed(world, world.snapshot(&disk)).await?;
    let cloning = async { Ok(sr.vdi_clone(&Op::new(), disk.uuid, "clone", "").await?) };
    let (of_disk, clone_disk) = timed(world, cloning).await?;
    let cloning = async { Ok(sr.vdi_clone(&Op::new(), snapshot.uuid, "clone", "").await?) };
    let (of_snapshot, clone_snapshot) = timed(world, cloning).await?;
    let resizing = async { Ok(sr.vdi_resize(&Op::new(), disk.uuid, Bytes(2 * GIB)).await?) };
    let (_, resize) = timed(world, resizing).await?;
    // What stands between a revert and its snapshot: the clones, and what they hang on.
    for clone in [of_disk.vdi.uuid, of_snapshot.vdi.uuid] {
        sr.vdi_destroy(&Op::new(), clone).await?;
    }
    world.asked();
    let reverting = async { Ok(sr.vdi_revert(&Op::new(), disk.uuid, snapshot.uuid).await?) };
    let (_, revert) = timed(world, reverting).await?;
    let destroying = async { Ok(sr.vdi_destroy(&Op::new(), snapshot.uuid).await?) };
    let (_, destroy_snapshot) = timed(world, destroying).await?;
    let destroying = async { Ok(sr.vdi_destroy(&Op::new(), disk.uuid).await?) };
    let (_, destroy) = timed(world, destroying).await?;
    Ok([create, snap, clone_disk, clone_snapshot, resize, revert, destroy_snapshot, destroy])
}

async fn timed<T>(
    world: &World,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, (f64, f64, f64))> {
    world.asked();
    let start = Instant::now();
    let done = work.await?;
    let wall = milliseconds(start.elapsed());
    let asked = world.asked();
    let at_array = asked.iter().map(|one| f64::from(one.microseconds) / 1e3).sum();
    Ok((done, (number(asked.len()), at_array, wall)))
}
