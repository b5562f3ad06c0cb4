//! What a dead process leaves to the next one: attachments that were cut, recoveries that were
//! themselves killed, and wishes that come again much later or from another host.

use std::fs::{File, FileTimes, OpenOptions};
use std::time::{Duration, SystemTime};

use sm_loader::{Call, DriverPort as _, port};
use sm_model::AttachMode::ReadWrite;
use sm_model::sr::{SrAttach, SrMaintain};
use sm_model::vdi::{VdiActivate, VdiAttach, VdiCreate, VdiDeactivate, VdiDetach, VdiSnapshot};
use sm_model::{Changed, Error, Kind, Operation, OperationId, VdiUuid};

use super::crash::{Cut, STEPS, cuts, each, killed, passed, sm_step_log};
use super::hosts::{host, on};
use super::trees::history;
use super::{Check, DATA, Needs, Setup, TREES};
use crate::oracle::Content;
use crate::verdict::{Stop, Verdict, must, said, same};
use crate::world::World;

const ATTACH: Needs = DATA.and(&["vdi_deactivate", "vdi_detach"]);

/// Steps of a recovery at which it is cut.
const CUTS: usize = 2;

/// Passes after which maintenance must have finished.
const PASSES: usize = 8;

/// What stands for a kill when everything has been answered.
const AFTER: &str = "the end";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "N06",
        needs: ATTACH,
        sentences: &["DRV-CRASH-1", "DRV-CRASH-3", "DRV-IDEM-1", "DRV-ATT-5", "DRV-ATT-6"],
        explain: "The driver is killed at each step of an attach and an activate that it marks, and \
            once when both have been answered. Then, once, the same wishes come again, and the disk \
            can be written; and once, it is deactivated and detached: that succeeds, and leaves \
            nothing that keeps the disk from being used or destroyed. Steps are drawn as for N03.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let steps = passed(world, |world| {
                let ids = [world.new_operation(), world.new_operation()];
                attach(world, ids, vdi)
            })?;
            let ids = [world.new_operation(), world.new_operation()];
            detach(world, ids, vdi)?;
            let cuts = and_after(cuts(world, steps));
            let mut generation = 1;
            each(&cuts, |step, again| {
                generation += 1;
                let ids = [world.new_operation(), world.new_operation()];
                cut(world, step, |world| attach(world, ids, vdi))?;
                if again {
                    attach(world, ids, vdi)?;
                    world.fill(vdi, &mut content, &[generation % 8], generation)?;
                } else {
                    let ids = [world.new_operation(), world.new_operation()];
                    detach(world, ids, vdi)?;
                }
                world.verify(vdi, &content, "a disk whose attach was cut")
            })?;
            world.destroy(vdi)
        },
    },
    Check {
        id: "N07",
        needs: ATTACH,
        sentences: &["DRV-CRASH-1", "DRV-CRASH-3", "DRV-IDEM-1", "DRV-ATT-4", "DRV-ATT-5"],
        explain: "As N06, of a deactivate and a detach of a disk that has been written: when the \
            same wishes come again they succeed; when nobody asks again the disk can be attached, \
            written and detached as any other.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, _) = world.filled("disk")?;
            let ids = [world.new_operation(), world.new_operation()];
            attach(world, ids, vdi)?;
            let steps = passed(world, |world| {
                let ids = [world.new_operation(), world.new_operation()];
                detach(world, ids, vdi)
            })?;
            let cuts = and_after(cuts(world, steps));
            world.destroy(vdi)?;
            each(&cuts, |step, again| {
                // What is left of one is seen only when it is gone.
                let (vdi, mut content) = world.filled("cut")?;
                let disk = world.open(vdi, ReadWrite)?;
                world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
                world.services.forget(vdi);
                disk.close().map_err(Stop::Fail)?;
                let ids = [world.new_operation(), world.new_operation()];
                cut(world, step, |world| detach(world, ids, vdi))?;
                if again {
                    detach(world, ids, vdi)?;
                } else {
                    world.fill(vdi, &mut content, &[2, 3], 3)?;
                }
                world.verify(vdi, &content, "a disk whose detach was cut")?;
                world.destroy(vdi)?;
                let left = world.left_over()?;
                must(left.is_empty(), || format!("a leak: {} is left", left.join(", ")))
            })
        },
    },
    Check {
        id: "N10",
        needs: DATA,
        sentences: &["DRV-CRASH-2", "DRV-CRASH-1", "DRV-CRASH-3", "DRV-SR-2"],
        explain: "An operation (a snapshot, or else a create) is killed at one of its steps, chosen \
            by chance; the recovery after it is killed too, twice in a row, at one of its own. The \
            third must bring all in order: nothing is left to do, every disk is well, and the \
            wish, uttered again, is done once.",
        setup: Setup::Sr,
        run: recoveries,
    },
    Check {
        id: "N08",
        needs: TREES.and(&["sr_maintain"]),
        sentences: &["DRV-CRASH-1", "DRV-CRASH-3", "DRV-MAINT-1", "DRV-MAINT-4"],
        explain: "Maintenance, with a past of snapshots that came and went, is killed at three of \
            its steps, chosen by chance. After the next attach every disk reads as before, and \
            maintenance goes on until it is finished, after which they still do.",
        setup: Setup::Sr,
        run: |world| {
            let first = history(world)?;
            let mut steps = passed(world, |world| world.call(SrMaintain::default()).map(drop))?;
            world.verify_all(&first, "a VDI after maintenance")?;
            for (vdi, _) in first {
                world.destroy(vdi)?;
            }
            world.dice.shuffle(&mut steps);
            for step in steps.into_iter().take(STEPS - 1) {
                let all = history(world)?;
                killed(world, &step, |world| world.call(SrMaintain::default()).map(drop))?;
                world.verify_all(&all, &format!("a VDI after maintenance was killed at {step}"))?;
                for _ in 0..PASSES {
                    if world.call(SrMaintain::default())?.finished {
                        break;
                    }
                }
                world.verify_all(&all, &format!("a VDI whose maintenance was cut at {step}"))?;
                for (vdi, _) in all {
                    world.destroy(vdi)?;
                }
            }
            Ok(())
        },
    },
    Check {
        id: "G19",
        needs: DATA,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-7", "DRV-CRASH-1", "DRV-CRASH-3"],
        explain: "The host that makes a snapshot (or else a disk) dies at one of the operation's \
            steps, chosen by chance, and does not come back. Another host attaches the SR and \
            brings the same wish: it is done once, and nothing that the dead host has begun is \
            left.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let act = Act::new(world, vdi);
            let mut steps = passed(world, |world| {
                let id = world.new_operation();
                act.call(world, id)
            })?;
            world.destroy(act.makes())?;
            world.dice.shuffle(&mut steps);
            for step in steps.into_iter().take(STEPS) {
                let act = Act::new(world, vdi);
                let id = world.new_operation();
                world.reopen_with(vec![("SM_STEP_KILL", step.clone())])?;
                let _ = act.call(world, id);
                world.close()?;
                let other = host(world, "b")?;
                on(world, Some(&other), &SrAttach {})?;
                let call = Call::new(act.operation(), id, world.bench.config.call_budget());
                let done = act.call_on(world, &other, call);
                world.bench.runtime.block_on(other.close(Duration::from_secs(5)));
                done.map_err(|e| Stop::Fail(format!("killed at {step}: {}", said(&e))))?;
                world.reopen()?;
                same("VDIs in the listing", world.list()?.len(), 2)?;
                act.is_whole(world, &content)?;
                world.verify(vdi, &content, "the disk of a host that died")?;
                world.destroy(act.makes())?;
            }
            world.destroy(vdi)?;
            let left = world.left_over()?;
            must(left.is_empty(), || format!("of a host that died is left: {}", left.join(", ")))
        },
    },
    Check {
        id: "K08",
        needs: ATTACH,
        sentences: &["DRV-IDEM-1", "DRV-ATT-1", "DRV-ATT-6"],
        explain: "The answers to an attach and an activate are lost with the process; the same \
            wishes come again in the next one: the same ways, a disk that can be written, and one \
            deactivate and one detach are enough for it to be destroyed.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let ids = [world.new_operation(), world.new_operation()];
            let mode = ReadWrite;
            let first = world.call_as(ids[0], &VdiAttach { vdi, mode })?;
            world.call_as(ids[1], &VdiActivate { vdi, mode, tracked: false })?;
            world.kill()?;
            world.reopen()?;
            world.call(SrAttach {})?;
            let again = world.call_as(ids[0], &VdiAttach { vdi, mode })?;
            same("the ways of an attach that comes again", &again.access, &first.access)?;
            let done = world.call_as(ids[1], &VdiActivate { vdi, mode, tracked: false })?;
            let access = if done.access.is_empty() { again.access } else { done.access };
            let disk = world.open_access(vdi, &access, mode)?;
            world.verify_open(&disk, &content, "a disk whose attach came twice")?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.shut(vdi, disk)?;
            world.verify(vdi, &content, "a disk whose attach came twice")?;
            world.destroy(vdi)
        },
    },
    Check {
        id: "K09",
        needs: ATTACH,
        sentences: &["DRV-IDEM-1", "DRV-ATT-5", "DRV-ATT-4"],
        explain: "The answers to a deactivate and a detach are lost with the process; the same \
            wishes come again in the next one, and once more when the disk has been destroyed: \
            success each time, and what was written is there.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, mut content) = world.filled("disk")?;
            let disk = world.open(vdi, ReadWrite)?;
            world.fill_open(&disk, vdi, &mut content, &[1, 2], 2)?;
            world.services.forget(vdi);
            disk.close().map_err(Stop::Fail)?;
            let ids = [world.new_operation(), world.new_operation()];
            detach(world, ids, vdi)?;
            world.kill()?;
            world.reopen()?;
            world.call(SrAttach {})?;
            detach(world, ids, vdi)?;
            world.verify(vdi, &content, "a disk whose detach came twice")?;
            world.destroy(vdi)?;
            detach(world, ids, vdi)?;
            same("VDIs in the listing", world.list()?.len(), 0)
        },
    },
    Check {
        id: "K15",
        needs: TREES,
        sentences: &["DRV-IDEM-1", "DRV-IDEM-5"],
        explain: "A snapshot and a clone are asked for again after a day: all files of the backend \
            are made 25 hours older, or the clock of a simulated array is moved on by as much. \
            Both wishes must still be known. It does not apply to a volume group, whose records \
            have no times that could be moved.",
        setup: Setup::Sr,
        run: |world| {
            let (vdi, content) = world.filled("disk")?;
            let (first, taken) = (world.new_operation(), world.snapshot_of(vdi));
            let snapshot = world.call_as(first, &taken)?.vdis.first().map(|vdi| vdi.uuid);
            let (second, cloned) = (world.new_operation(), world.clone_of(vdi));
            let clone = world.call_as(second, &cloned)?.vdi.uuid;
            let mut of_clone = content.clone();
            world.fill(clone, &mut of_clone, &[3], 2)?;
            world.close()?;
            age(world)?;
            world.reopen()?;
            world.call(SrAttach {})?;
            let again = world.call_as(first, &taken)?.changed;
            same("changed of a snapshot after a day", again, Changed::Already)?;
            let again = world.call_as(second, &cloned)?.changed;
            same("changed of a clone after a day", again, Changed::Already)?;
            same("VDIs in the listing", world.list()?.len(), 3)?;
            if let Some(snapshot) = snapshot {
                world.verify(snapshot, &content, "a snapshot of the day before")?;
            }
            world.verify(clone, &of_clone, "a clone of the day before")
        },
    },
];

/// And when everything has been answered.
fn and_after(cuts: Vec<Cut>) -> Vec<Cut> {
    let after = [true, false].map(|again| (AFTER.to_owned(), again));
    cuts.into_iter().chain(after).collect()
}

fn attach(world: &mut World<'_>, ids: [OperationId; 2], vdi: VdiUuid) -> Result<(), Error> {
    let mode = ReadWrite;
    world.call_as(ids[0], &VdiAttach { vdi, mode })?;
    world.call_as(ids[1], &VdiActivate { vdi, mode, tracked: false }).map(drop)
}

fn detach(world: &mut World<'_>, ids: [OperationId; 2], vdi: VdiUuid) -> Result<(), Error> {
    world.call_as(ids[0], &VdiDeactivate { vdi })?;
    world.call_as(ids[1], &VdiDetach { vdi }).map(drop)
}

/// A call whose process dies at a step, or when all is answered, and the attach after it.
fn cut(
    world: &mut World<'_>,
    step: &str,
    call: impl FnOnce(&mut World<'_>) -> Result<(), Error>,
) -> Verdict {
    if step != AFTER {
        return killed(world, step, call).map(drop);
    }
    call(world)?;
    world.kill()?;
    world.reopen()?;
    world.call(SrAttach {})?;
    Ok(())
}

/// What is cut.
enum Act {
    Snapshot(VdiSnapshot),
    Create(VdiCreate),
}

impl Act {
    fn new(world: &mut World<'_>, vdi: VdiUuid) -> Self {
        if world.can("vdi_snapshot") {
            Self::Snapshot(world.snapshot_of(vdi))
        } else {
            Self::Create(world.disk("new"))
        }
    }

    fn operation(&self) -> Operation {
        match self {
            Self::Snapshot(_) => Operation::VdiSnapshot,
            Self::Create(_) => Operation::VdiCreate,
        }
    }

    /// The VDI that it makes.
    fn makes(&self) -> VdiUuid {
        match self {
            Self::Snapshot(request) => {
                request.snapshots.first().map_or_else(VdiUuid::random, |spec| spec.uuid)
            }
            Self::Create(request) => request.uuid,
        }
    }

    fn call(&self, world: &mut World<'_>, id: OperationId) -> Result<(), Error> {
        match self {
            Self::Snapshot(request) => world.call_as(id, request).map(drop),
            Self::Create(request) => world.call_as(id, request).map(drop),
        }
    }

    fn call_on(
        &self,
        world: &mut World<'_>,
        port: &std::sync::Arc<sm_loader::ProcessPort>,
        call: Call,
    ) -> Result<(), Error> {
        match self {
            Self::Snapshot(request) => world.call_on(port, call, request).map(drop),
            Self::Create(request) => world.call_on(port, call, request).map(drop),
        }
    }

    fn is_whole(&self, world: &mut World<'_>, source: &Content) -> Verdict {
        let nothing = Content::default();
        let content = if matches!(self, Self::Snapshot(_)) { source } else { &nothing };
        world.verify(self.makes(), content, "what was made after a death")
    }
}

/// See N10.
fn recoveries(world: &mut World<'_>) -> Verdict {
    let (vdi, content) = world.filled("disk")?;
    let act = Act::new(world, vdi);
    let mut steps = passed(world, |world| {
        let id = world.new_operation();
        act.call(world, id)
    })?;
    world.destroy(act.makes())?;
    world.dice.shuffle(&mut steps);
    for step in steps.into_iter().take(STEPS) {
        let log = world.bench.steps_log();
        let _ = std::fs::remove_file(&log);
        let path = log.to_string_lossy().into_owned();
        let act = Act::new(world, vdi);
        let id = world.new_operation();
        cut_once(world, &step, &act, id)?;
        world.reopen_with(vec![(sm_step_log(), path)])?;
        world.call(SrAttach {})?;
        act.call(world, id)?;
        world.destroy(act.makes())?;
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let mut inner: Vec<String> = text.lines().map(str::to_owned).collect();
        inner.sort();
        inner.dedup();
        // Some that are of the repetition or the destroy: then the recovery is not cut by them.
        inner.retain(|step| !step.starts_with("vdi_destroy") && !step.starts_with("vdi_delete"));
        world.dice.shuffle(&mut inner);
        inner.truncate(CUTS);
        if inner.is_empty() {
            inner.push(AFTER.into());
        }
        for inner in inner {
            twice(world, vdi, &content, &step, &inner).map_err(|stop| match stop {
                Stop::Fail(why) => {
                    Stop::Fail(format!("killed at {step}, and its recovery at {inner}: {why}"))
                }
                other => other,
            })?;
        }
    }
    Ok(())
}

fn cut_once(world: &mut World<'_>, step: &str, act: &Act, id: OperationId) -> Verdict {
    world.reopen_with(vec![("SM_STEP_KILL", step.to_owned())])?;
    match act.call(world, id) {
        Err(error) if error.kind != Kind::Unknown => Err(error.into()),
        _ => Ok(()),
    }
}

/// An operation that is cut, two recoveries that are cut, and what must be so after the third.
fn twice(
    world: &mut World<'_>,
    vdi: VdiUuid,
    content: &Content,
    step: &str,
    inner: &str,
) -> Verdict {
    let act = Act::new(world, vdi);
    let id = world.new_operation();
    cut_once(world, step, &act, id)?;
    for _ in 0..2 {
        if inner == AFTER {
            world.reopen()?;
            at_some_instant(world)?;
        } else {
            world.reopen_with(vec![("SM_STEP_KILL", inner.to_owned())])?;
            match world.call(SrAttach {}) {
                Err(error) if error.kind != Kind::Unknown => return Err(error.into()),
                _ => {}
            }
        }
    }
    world.reopen()?;
    world.call(SrAttach {})?;
    let idle = world.call(SrAttach {})?;
    must(idle.completed.is_empty() && idle.undone.is_empty() && idle.removed.is_empty(), || {
        format!("the attach after a recovery still recovers: {idle:?}")
    })?;
    let listed = world.list()?;
    let ill = listed.values().find(|vdi| vdi.health != sm_model::vdi::Health::Ok);
    must(ill.is_none(), || format!("after recovery a VDI is not well: {ill:?}"))?;
    world.verify(vdi, content, "the disk of a call that was cut")?;
    act.call(world, id)?;
    same("VDIs in the listing", world.list()?.len(), 2)?;
    act.is_whole(world, content)?;
    world.destroy(act.makes())
}

/// An attach of the SR whose process dies while it runs, where a recovery marks no steps.
fn at_some_instant(world: &mut World<'_>) -> Verdict {
    let port = world.port()?;
    let call = Call::new(Operation::SrAttach, world.new_operation(), Duration::from_secs(60));
    let task = world
        .bench
        .runtime
        .spawn(async move { port::call(port.as_ref(), call, &SrAttach {}).await.map(drop) });
    world.kill()?;
    let ended = world.bench.runtime.block_on(task);
    match ended.map_err(|error| Stop::NotTestable(format!("a call broke: {error}")))? {
        Err(error) if error.kind != Kind::Unknown => Err(error.into()),
        _ => Ok(()),
    }
}

/// A day goes by on the backend.
fn age(world: &World<'_>) -> Verdict {
    const DAY: Duration = Duration::from_secs(25 * 3600);
    if let Some(simulator) = world.bench.simulator() {
        let millis = u64::try_from(DAY.as_millis()).unwrap_or(u64::MAX);
        let body = format!("{{\"advance\": {millis}}}");
        return simulator.admin("POST", "/clock", &body).map(drop).map_err(Stop::NotTestable);
    }
    let Some(root) = world.bench.directory() else {
        let why = "the records of a volume group have no times that could be moved";
        return Err(Stop::NotApplicable(why.into()));
    };
    let then = SystemTime::now() - DAY;
    let times = FileTimes::new().set_accessed(then).set_modified(then);
    for file in world.own_files()? {
        let path = root.join(file);
        let opened: std::io::Result<File> = OpenOptions::new().write(true).open(&path);
        opened
            .and_then(|file| file.set_times(times))
            .map_err(|error| Stop::NotTestable(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}
