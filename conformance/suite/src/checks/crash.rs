//! Killed at every step that it marks, and asked again.

use std::collections::BTreeMap;

use sm_model::vdi::{VdiClone, VdiCreate, VdiDestroy, VdiInfo, VdiResize, VdiRevert, VdiSnapshot};
use sm_model::{Bytes, Error, Kind, OperationId, VdiUuid};

use super::{CLONES, Check, DATA, DISKS, Needs, SNAPSHOTS, Setup};
use crate::oracle::Content;
use crate::verdict::{Stop, Verdict, fail, must, said, same};
use crate::world::World;

/// Steps of an operation at which it is cut, where each cut takes long.
pub(super) const STEPS: usize = 4;

const BASE: Needs = DATA.and(&["vdi_stat"]);

macro_rules! crash {
    ($id:literal, $needs:expr, $act:expr, $explain:literal) => {
        Check {
            id: $id,
            needs: $needs,
            sentences: &["DRV-CRASH-1", "DRV-CRASH-3", "DRV-IDEM-1", "DRV-IDEM-8", "DRV-SR-2"],
            explain: $explain,
            setup: Setup::Sr,
            run: |world| everywhere(world, $act),
        }
    };
}

pub(super) const CHECKS: &[Check] = &[
    crash!(
        "N03",
        SNAPSHOTS.and(&["vdi_stat"]),
        |world, vdi| Act::Snapshot(world.snapshot_of(vdi)),
        "The driver is killed at each step of a snapshot that it marks. Then, once, the same wish \
         comes again, and must make exactly one snapshot with the right content; and once, \
         nobody asks again: after an attach the SR is as before or as after, a second attach \
         finds nothing to do, and what is left over at the end is a leak. Where `suite.slow` is \
         set, four of the steps are drawn by chance, and the wish comes again after every other."
    ),
    crash!(
        "N04",
        CLONES.and(&["vdi_stat"]),
        |world, vdi| Act::Clone(world.clone_of(vdi)),
        "As N03, of a clone: a half-made clone that is found by its name and called done is the \
         classic loss of data."
    ),
    crash!(
        "N05",
        DATA.and(&["vdi_stat", "vdi_resize"]),
        |world, vdi| { Act::Resize(VdiResize { vdi, virtual_size: Bytes(world.size() * 2) }) },
        "As N03, of a growth."
    ),
    crash!("N02", BASE, |_, vdi| Act::Destroy(VdiDestroy { vdi }), "As N03, of a destroy."),
    crash!("N01", BASE, |world, _| Act::Create(world.disk("new")), "As N03, of a create."),
    Check {
        id: "T03",
        needs: SNAPSHOTS.and(&["vdi_revert"]),
        sentences: &["DRV-CRASH-1", "DRV-IDEM-1", "DRV-SNAP-6"],
        explain: "As N03, of a revert. When nobody asks again the disk must be as it was or as the \
            snapshot is, and no mixture; the snapshot stays whole in any case.",
        setup: Setup::Sr,
        run: reverts,
    },
    Check {
        id: "N11",
        needs: DISKS.and(&["sr_recover"]),
        sentences: &["DRV-SR-5", "DRV-CRASH-2"],
        explain: "Recovery three times, when there is nothing to recover, must answer nothing and \
            change nothing.",
        setup: Setup::Sr,
        run: |world| {
            world.create("kept")?;
            let (listed, files) = (world.list()?, world.files()?);
            for _ in 0..3 {
                let done = world.call(sm_model::sr::SrRecover {})?;
                same("what a recovery did", done, sm_model::sr::SrRecovered::default())?;
            }
            same("the listing after recoveries", world.list()?, listed)?;
            same("the backend after recoveries", world.files()?, files)
        },
    },
];

/// What is cut.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Create(VdiCreate),
    Destroy(VdiDestroy),
    Snapshot(VdiSnapshot),
    Clone(VdiClone),
    Resize(VdiResize),
}

impl Act {
    fn call(&self, world: &mut World<'_>, id: OperationId) -> Result<(), Error> {
        match self {
            Self::Create(request) => world.call_as(id, request).map(drop),
            Self::Destroy(request) => world.call_as(id, request).map(drop),
            Self::Snapshot(request) => world.call_as(id, request).map(drop),
            Self::Clone(request) => world.call_as(id, request).map(drop),
            Self::Resize(request) => world.call_as(id, request).map(drop),
        }
    }

    /// The VDI that it makes.
    fn makes(&self) -> Option<VdiUuid> {
        match self {
            Self::Create(request) => Some(request.uuid),
            Self::Clone(request) => Some(request.uuid),
            Self::Snapshot(request) => request.snapshots.first().map(|spec| spec.uuid),
            Self::Destroy(_) | Self::Resize(_) => None,
        }
    }

    /// What must be true when it is done; the content is the source's.
    fn done(&self, world: &mut World<'_>, source: VdiUuid, content: &Content) -> Verdict {
        if let Some(made) = self.makes() {
            let content =
                if matches!(self, Self::Create(_)) { &Content::default() } else { content };
            world.verify(made, content, "what was made by a call that was cut")?;
        }
        match self {
            Self::Destroy(_) => {
                must(!world.list()?.contains_key(&source), || "the destroyed VDI is listed".into())
            }
            Self::Resize(request) => {
                let size = world.stat(source)?.virtual_size;
                must(
                    size >= request.virtual_size && size.0 < request.virtual_size.0 * 3 / 2,
                    || format!("{} were asked for, {size} are there", request.virtual_size),
                )
            }
            _ => Ok(()),
        }
    }
}

/// The act, cut at each step it passes, each time upon a new disk.
fn everywhere(world: &mut World<'_>, act: fn(&mut World<'_>, VdiUuid) -> Act) -> Verdict {
    let (vdi, _) = world.filled("log")?;
    let other = world.filled("other")?;
    let first = act(world, vdi);
    let steps = passed(world, |world| {
        let id = world.new_operation();
        first.call(world, id)
    })?;
    world.verify(other.0, &other.1, "a disk beside")?;
    let cuts = cuts(world, steps);
    each(&cuts, |step, again| cut(world, act, step, again))
}

/// A step at which the driver is killed, and whether the same wish then comes again.
pub(super) type Cut = (String, bool);

/// Each of the steps, with a repetition and without; where that takes long, some, in turns.
pub(super) fn cuts(world: &mut World<'_>, mut steps: Vec<String>) -> Vec<Cut> {
    if world.bench.config.suite.slow.is_none() {
        return steps.into_iter().flat_map(|step| [(step.clone(), true), (step, false)]).collect();
    }
    world.dice.shuffle(&mut steps);
    steps.into_iter().take(STEPS).zip([true, false].into_iter().cycle()).collect()
}

/// Something for each cut.
pub(super) fn each(cuts: &[Cut], mut cut: impl FnMut(&str, bool) -> Verdict) -> Verdict {
    for (step, again) in cuts {
        cut(step, *again).map_err(|stop| match stop {
            Stop::Fail(why) => Stop::Fail(format!("killed at {step}: {why}")),
            other => other,
        })?;
    }
    Ok(())
}

/// The steps that a call passes.
pub(super) fn passed(
    world: &mut World<'_>,
    call: impl FnOnce(&mut World<'_>) -> Result<(), Error>,
) -> Verdict<Vec<String>> {
    if world.bench.inspection.steps.is_empty() {
        return Err(Stop::NotTestable("the driver marks no crash points (`step!`)".into()));
    }
    let log = world.bench.steps_log();
    let _ = std::fs::remove_file(&log);
    let path = log.to_string_lossy().into_owned();
    world.reopen_with(vec![(sm_step_log(), path)])?;
    call(world)?;
    world.reopen()?;
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let mut steps: Vec<String> = text.lines().map(str::to_owned).collect();
    steps.sort();
    steps.dedup();
    Ok(steps)
}

/// A call whose process dies at a step, and the attach after it. It may have got through, if its
/// threads took another turn this time.
pub(super) fn killed(
    world: &mut World<'_>,
    step: &str,
    call: impl FnOnce(&mut World<'_>) -> Result<(), Error>,
) -> Verdict<sm_model::sr::SrRecovered> {
    world.reopen_with(vec![("SM_STEP_KILL", step.to_owned())])?;
    match call(world) {
        Err(error) if error.kind != Kind::Unknown => {
            return fail(format!("the call that was cut: {}", said(&error)));
        }
        _ => {}
    }
    world.reopen()?;
    Ok(world.call(sm_model::sr::SrAttach {})?)
}

fn reverts(world: &mut World<'_>) -> Verdict {
    let (vdi, then) = world.filled("disk")?;
    let snapshot = world.snapshot(vdi)?.uuid;
    let request = VdiRevert { vdi, snapshot };
    world.fill(vdi, &mut then.clone(), &[0, 1, 2], 2)?;
    let steps = passed(world, |world| world.call(request.clone()).map(drop))?;
    let cuts = cuts(world, steps);
    each(&cuts, |step, again| {
        world.call(request.clone())?;
        let mut now = then.clone();
        world.fill(vdi, &mut now, &[0, 1, 5], 3)?;
        let id = world.new_operation();
        killed(world, step, |world| world.call_as(id, &request).map(drop))?;
        if again {
            world.call_as(id, &request)?;
            world.verify(vdi, &then, "a disk whose revert was cut and asked for again")?;
        } else {
            let disk = world.open(vdi, sm_model::AttachMode::ReadOnly)?;
            let before = disk.compare(&now).map_err(Stop::Fail)?;
            let after = disk.compare(&then).map_err(Stop::Fail)?;
            world.shut(vdi, disk)?;
            must(before.is_empty() || after.is_empty(), || {
                format!("the disk is neither as before nor as the snapshot: {}", after.join("; "))
            })?;
        }
        world.verify(snapshot, &then, "a snapshot that was being reverted to")
    })
}

fn cut(
    world: &mut World<'_>,
    act: fn(&mut World<'_>, VdiUuid) -> Act,
    step: &str,
    again: bool,
) -> Verdict {
    let wish = Wish::new(world, act)?;
    world.reopen_with(vec![("SM_STEP_KILL", step.to_owned())])?;
    match wish.call(world) {
        // Threads took another turn this time.
        Ok(()) => return wish.done(world),
        Err(error) if error.kind == Kind::Unknown => {}
        Err(error) => return fail(format!("the call that was cut: {}", said(&error))),
    }
    world.reopen()?;
    world.call(sm_model::sr::SrAttach {})?;
    wish.settle(world, again)
}

/// An act on a disk of its own, that is cut.
pub(super) struct Wish {
    act: Act,
    vdi: VdiUuid,
    content: Content,
    /// What there was before.
    before: BTreeMap<VdiUuid, VdiInfo>,
    id: OperationId,
}

impl Wish {
    pub(super) fn new(
        world: &mut World<'_>,
        act: fn(&mut World<'_>, VdiUuid) -> Act,
    ) -> Verdict<Self> {
        let (vdi, content) = world.filled("cut")?;
        let before = world.list()?;
        let act = act(world, vdi);
        Ok(Self { act, vdi, content, before, id: world.new_operation() })
    }

    /// The VDIs that it is about, as they are named.
    pub(super) fn names(&self) -> Vec<String> {
        let vdis = [Some(self.vdi), self.act.makes()];
        vdis.into_iter().flatten().map(|vdi| vdi.to_string()).collect()
    }

    pub(super) fn call(&self, world: &mut World<'_>) -> Result<(), Error> {
        self.act.call(world, self.id)
    }

    /// What must be true when it is done.
    pub(super) fn done(&self, world: &mut World<'_>) -> Verdict {
        self.act.done(world, self.vdi, &self.content)
    }

    /// What must be true after it was cut, when it comes again, and when nobody asks again but the SR
    /// has been attached. In the end all that it was about is removed.
    pub(super) fn settle(&self, world: &mut World<'_>, again: bool) -> Verdict {
        let Self { act, vdi, content, before, id } = self;
        let is_done = if again {
            act.call(world, *id)?;
            true
        } else {
            let second = world.call(sm_model::sr::SrAttach {})?;
            let idle = second.completed.is_empty()
                && second.undone.is_empty()
                && second.removed.is_empty();
            must(idle, || format!("a second attach still recovers: {second:?}"))?;
            let now = world.list()?;
            let ill = now.values().find(|vdi| vdi.health != sm_model::vdi::Health::Ok);
            must(ill.is_none(), || format!("after recovery a VDI is not well: {ill:?}"))?;
            let expected = before.len() + usize::from(act.makes().is_some());
            match act {
                Act::Destroy(_) => !now.contains_key(vdi),
                Act::Resize(_) => {
                    now.get(vdi).map(|vdi| vdi.virtual_size)
                        != before.get(vdi).map(|v| v.virtual_size)
                }
                _ => now.len() == expected,
            }
        };
        if is_done {
            self.done(world)?;
        }
        if !(is_done && matches!(act, Act::Destroy(_))) {
            world.verify(*vdi, content, "the disk of a call that was cut")?;
        }
        let now = world.list()?;
        for other in before.keys().filter(|uuid| *uuid != vdi) {
            must(now.contains_key(other), || format!("{other}, which nobody touched, is gone"))?;
        }
        for gone in [act.makes(), Some(*vdi)].into_iter().flatten() {
            world.call(VdiDestroy { vdi: gone })?;
        }
        Ok(())
    }
}

/// The variable that names a file for the steps that are passed.
pub(super) const fn sm_step_log() -> &'static str {
    "SM_STEP_LOG"
}
