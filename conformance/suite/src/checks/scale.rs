//! How work grows with the number of disks, and how deep a chain may be.

use std::time::{Duration, Instant};

use serde_json::Value;
use sm_model::sr::{SrAttach, SrMaintain};
use sm_model::{Error, Kind, VdiUuid};

use super::{Check, DISKS, SNAPSHOTS, Setup};
use crate::inventory;
use crate::oracle::Content;
use crate::verdict::{Stop, Verdict, fail, must, said};
use crate::world::World;

/// How many times as many disks there are the second time.
const MORE: usize = 4;

/// How many times as much work that may be; and what may be more whatever the number of disks.
const GROWTH: u64 = 6;
const ROUND: u64 = 32;

/// Calls of which the median is taken, where only time can be measured.
const CALLS: usize = 9;

/// Least time that is told from no time, in microseconds.
const MOMENT: u64 = 20_000;

/// Passes of maintenance after which a chain must be as short as it gets.
const PASSES: usize = 8;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "P07",
        needs: DISKS,
        sentences: &["DRV-TIME-7"],
        explain: "What a listing costs is looked at with eight disks and with thirty-two (three and \
            twelve where the configuration says that the driver is slow here): the requests to a \
            simulated array, and the reads of the driver's process as the kernel counts them, may be \
            six times as many, and 32 more. Where neither can be counted it is the median time of \
            nine listings, and nothing where times are not judged.",
        setup: Setup::Sr,
        run: |world| {
            grows(world, "a listing", |world| costs(world, |world| world.list().map(drop)))
        },
    },
    Check {
        id: "N18",
        needs: DISKS,
        sentences: &["DRV-TIME-7", "DRV-SR-2"],
        explain: "As P07, of the attach of an SR after the driver was killed while it made a disk: \
            what recovery costs must not grow faster than the number of disks, of which nearly all \
            are well.",
        setup: Setup::Sr,
        run: |world| {
            let mut step = None;
            grows(world, "an attach after a kill", |world| after_a_kill(world, &mut step))
        },
    },
    Check {
        id: "P03",
        needs: SNAPSHOTS.and(&["max_chain"]),
        sentences: &["DRV-LOAD-5", "DRV-SNAP-9", "DRV-SNAP-1"],
        explain: "Snapshots of a disk are taken, and all kept, until the chain is as long as the \
            driver declares, images from the disk to its root counted with both. The next one must \
            be refused with `limit` and SMAPI's 109, or the driver has found a way to make the chain \
            shorter, and so the next three. Every snapshot has its content (every tenth is written \
            and read where the driver is slow). When two are destroyed there must be room for \
            another one, at the latest when maintenance has run.",
        setup: Setup::Sr,
        run: deepest,
    },
];

/// What a call has cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Requests to a simulated array.
    requests: Option<u64>,
    /// Reads of the driver's process, and of those that it has waited for.
    reads: Option<u64>,
    /// Where none of these is known.
    microseconds: Option<u64>,
}

impl Cost {
    /// Each with its name, and how much more of it is no matter.
    fn parts(self) -> [(&'static str, Option<u64>, u64); 3] {
        [
            ("requests", self.requests, ROUND),
            ("reads", self.reads, ROUND),
            ("microseconds", self.microseconds, MOMENT),
        ]
    }
}

/// Work with some disks, and with four times as many.
fn grows(
    world: &mut World<'_>,
    what: &str,
    mut cost: impl FnMut(&mut World<'_>) -> Verdict<Cost>,
) -> Verdict {
    let few = if world.bench.config.suite.slow.is_some() { 3 } else { 8 };
    let mut costs = Vec::new();
    let mut there = 0;
    for disks in [few, few * MORE] {
        for _ in there..disks {
            world.create("one-of-many")?;
        }
        there = disks;
        costs.push(cost(world)?);
    }
    world.note(what, &format!("{few} disks, then {there}"), &format!("{costs:?}"));
    let &[small, large] = costs.as_slice() else { return Ok(()) };
    let mut counted = false;
    for ((name, small, slack), (_, large, _)) in small.parts().into_iter().zip(large.parts()) {
        let (Some(small), Some(large)) = (small, large) else { continue };
        counted = true;
        must(large <= small * GROWTH + slack, || {
            format!("{what} takes {small} {name} with {few} disks, {large} with {there}")
        })?;
    }
    if counted {
        return Ok(());
    }
    let why = world.bench.config.suite.slow.clone();
    Err(Stop::NotApplicable(why.unwrap_or_else(|| "nothing is counted here".into())))
}

/// Requests to the array so far, if it is a simulated one.
fn requests(world: &World<'_>) -> Verdict<Option<u64>> {
    let Some(array) = world.bench.simulator() else { return Ok(None) };
    let counts = array.admin("GET", "/counts", "").map_err(Stop::NotTestable)?;
    let calls = counts.as_object().into_iter().flatten();
    Ok(Some(calls.filter_map(|(_, count)| Value::as_u64(count)).sum()))
}

/// Reads of the driver's process so far, if the kernel counts them.
fn reads(world: &World<'_>) -> Verdict<Option<u64>> {
    Ok(world.port()?.process_id().and_then(inventory::reads))
}

/// What a call costs that is made again and again; the first time is another matter.
fn costs(world: &mut World<'_>, call: impl Fn(&mut World<'_>) -> Verdict) -> Verdict<Cost> {
    call(world)?;
    let cost = once(world, &call)?;
    let judged = world.bench.config.suite.slow.is_none();
    if cost.requests.is_some() || cost.reads.is_some() || !judged {
        return Ok(cost);
    }
    let mut times = Vec::new();
    for _ in 0..CALLS {
        let began = Instant::now();
        call(world)?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let median = times.get(CALLS / 2).map(Duration::as_micros);
    Ok(Cost { microseconds: median.and_then(|time| u64::try_from(time).ok()), ..cost })
}

fn once(world: &mut World<'_>, call: impl Fn(&mut World<'_>) -> Verdict) -> Verdict<Cost> {
    let before = (requests(world)?, reads(world)?);
    call(world)?;
    let after = (requests(world)?, reads(world)?);
    let more = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?));
    let (requests, reads) = (more(before.0, after.0), more(before.1, after.1));
    Ok(Cost { requests, reads, microseconds: None })
}

/// The attach after a create that was cut, at the step in the middle of those that it passes, or of a
/// driver that marks none, after a kill while nothing was under way.
fn after_a_kill(world: &mut World<'_>, step: &mut Option<String>) -> Verdict<Cost> {
    if world.bench.inspection.steps.is_empty() {
        world.kill()?;
    } else {
        if step.is_none() {
            let request = world.disk("one-of-many");
            world.own_vdi(request.uuid)?;
            let steps = super::crash::passed(world, |world| world.call(request).map(drop))?;
            *step = steps.get(steps.len() / 2).cloned();
        }
        world.reopen_with(vec![("SM_STEP_KILL", step.clone().unwrap_or_default())])?;
        let request = world.disk("cut");
        world.own_vdi(request.uuid)?;
        let answer = world.call(request);
        if let Err(error) = answer
            && error.kind != Kind::Unknown
        {
            return fail(format!("the call that was cut: {}", said(&error)));
        }
    }
    world.reopen()?;
    once(world, |world| Ok(world.call(SrAttach {}).map(drop)?))
}

fn deepest(world: &mut World<'_>) -> Verdict {
    let declared = world.manifest().capability("max_chain").and_then(|found| found.limit);
    let Some(declared) = declared else { return fail("max_chain is declared without a limit") };
    // A snapshot freezes an image and adds one.
    let (least, most) = (declared.saturating_sub(1), declared + 2);
    let stride = if world.bench.config.suite.slow.is_some() { 10 } else { 1 };
    let (vdi, mut content) = world.filled("deep")?;
    let mut taken: Vec<(VdiUuid, Content)> = Vec::new();
    let mut refused = None;
    while (taken.len() as u64) < most {
        let number = taken.len() as u64;
        match snapshot(world, vdi)? {
            Ok(uuid) => taken.push((uuid, content.clone())),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
        if number.is_multiple_of(stride) {
            let block = number % (world.size() / crate::oracle::BLOCK);
            world.fill(vdi, &mut content, &[0, block], number + 2)?;
        }
    }
    if let Some(error) = &refused {
        let many = taken.len() as u64;
        must(many >= least, || {
            format!("snapshot {} is refused, a chain of {declared} is declared", many + 1)
        })?;
        let fits =
            error.kind == Kind::Limit && error.legacy.as_ref().is_some_and(|n| n.code == 109);
        must(fits, || {
            format!(
                "a chain at its end must be refused with limit and SMAPI's 109: {}",
                said(error)
            )
        })?;
    }
    world.verify(vdi, &content, "a disk whose chain is at its limit")?;
    for (uuid, then) in taken.iter().step_by(stride as usize) {
        world.verify(*uuid, then, "a snapshot in a chain at its limit")?;
    }
    for _ in 0..2 {
        if taken.len() > 2 {
            let (gone, _) = taken.remove(taken.len() / 2);
            world.destroy(gone)?;
        }
    }
    let mut again = snapshot(world, vdi)?;
    for _ in 0..PASSES {
        if again.is_ok() || !world.can("sr_maintain") {
            break;
        }
        let done = world.call(SrMaintain::default())?;
        again = snapshot(world, vdi)?;
        if done.finished {
            break;
        }
    }
    match again {
        Ok(uuid) => taken.push((uuid, content.clone())),
        Err(error) => {
            return fail(format!("two snapshots of a chain are gone, and {}", said(&error)));
        }
    }
    world.verify(vdi, &content, "a disk whose chain has become shorter")?;
    for (uuid, then) in taken.iter().rev().step_by(stride as usize).take(2) {
        world.verify(*uuid, then, "a snapshot in a chain that has become shorter")?;
    }
    Ok(())
}

/// A snapshot, or why it is refused.
fn snapshot(world: &mut World<'_>, vdi: VdiUuid) -> Verdict<Result<VdiUuid, Error>> {
    let request = world.snapshot_of(vdi);
    let Some(uuid) = request.snapshots.first().map(|spec| spec.uuid) else {
        return fail("a request without a snapshot");
    };
    world.own_vdi(uuid)?;
    Ok(world.call(request).map(|_| uuid))
}
