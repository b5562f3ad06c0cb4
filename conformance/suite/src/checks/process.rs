//! What the driver's process takes of the host.

use std::time::{Duration, Instant};

use sm_model::sr::SrStat;
use sm_model::vdi::VdiStat;

use super::{Check, DISKS, Setup};
use crate::inventory::{Spent, processes, resident, spent};
use crate::verdict::{Stop, Verdict, must};
use crate::world::World;

/// How long a driver is left alone.
const IDLE: Duration = Duration::from_secs(2);

/// The processor time that it may take then: 5 % of one.
const WORK: Duration = Duration::from_millis(100);

/// How often its threads may wake up then: 50 times in a second.
const WAKEUPS: u64 = 100;

/// Calls before its memory is looked at for the first time: what is kept once has been made.
const WARM: usize = 50;

/// Calls until it is looked at again.
const CALLS: usize = 400;

/// The longest that these go on, where a call takes long.
const LONGEST: Duration = Duration::from_secs(10);

/// What they may leave in memory, in bytes.
const GROWTH: u64 = 4 << 20;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "R05",
        needs: DISKS,
        sentences: &["DRV-PROC-5"],
        explain: "For two seconds nobody calls the driver, which has an SR attached and a disk. Its \
            process and those that it has started may use 100 ms of a processor and wake up a \
            hundred times: a driver waits for what is to happen, it does not look again and again.",
        setup: Setup::Sr,
        run: |world| {
            world.create("kept")?;
            let driver = world.port()?.process_id().ok_or_else(unseen)?;
            let all = || {
                let below = processes(driver).into_iter().map(|(pid, _)| pid);
                below.chain([driver]).filter_map(spent).collect::<Vec<_>>()
            };
            let before = all();
            std::thread::sleep(IDLE);
            let sum = |all: &[Spent]| {
                all.iter().fold((Duration::ZERO, 0), |(time, wakeups), spent| {
                    (time + spent.time, wakeups + spent.wakeups)
                })
            };
            let ((busy, woken), (busy_before, woken_before)) = (sum(&all()), sum(&before));
            let (busy, woken) =
                (busy.saturating_sub(busy_before), woken.saturating_sub(woken_before));
            must(busy <= WORK && woken <= WAKEUPS, || {
                format!(
                    "in 2 s without a call it worked {} ms and woke up {woken} times",
                    busy.as_millis()
                )
            })
        },
    },
    Check {
        id: "R06",
        needs: DISKS.and(&["vdi_stat", "sr_stat"]),
        sentences: &["DRV-PROC-6"],
        explain: "After fifty calls that only ask, four hundred more (or as many as come in 10 s) \
            may leave at most 4 MiB in the memory of the driver's process: it runs for months.",
        setup: Setup::Sr,
        run: |world| {
            let vdi = world.create("asked")?.uuid;
            let driver = world.port()?.process_id().ok_or_else(unseen)?;
            for _ in 0..WARM / 2 {
                ask(world, vdi)?;
            }
            let before = resident(driver).ok_or_else(unseen)?;
            let (began, mut calls) = (Instant::now(), 0);
            while calls < CALLS && began.elapsed() < LONGEST {
                ask(world, vdi)?;
                calls += 2;
            }
            let after = resident(driver).ok_or_else(unseen)?;
            must(after <= before + GROWTH, || {
                format!("{calls} calls that only ask left {} bytes in memory", after - before)
            })
        },
    },
];

/// What nobody has looked at is not said to hold.
fn unseen() -> Stop {
    Stop::NotTestable("the driver's process is not seen in /proc".into())
}

fn ask(world: &mut World<'_>, vdi: sm_model::VdiUuid) -> Verdict {
    world.call(VdiStat::of(vdi))?;
    world.call(SrStat {})?;
    Ok(())
}
