//! Killed, or refused by the storage, at system calls: of drivers that mark no steps too.

use std::path::Path;

use sm_model::sr::SrAttach;
use sm_model::vdi::VdiDestroy;
use sm_model::{Error, Kind, VdiUuid};

use super::crash::{Act, Wish};
use super::{Check, DATA, Needs, Setup};
use crate::strace::{Does, Event, Harm, Point, Trace, points};
use crate::verdict::{Stop, Verdict, fail, must, said};
use crate::world::World;

const BASE: Needs = DATA.and(&["vdi_stat"]);

/// Points of an operation that are tried, and where `suite.slow` is set.
const POINTS: [usize; 2] = [6, 2];

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "N09",
        needs: BASE,
        sentences: &["DRV-CRASH-1", "DRV-CRASH-3", "DRV-IDEM-1", "DRV-ERR-5"],
        explain: "A create, a snapshot and a destroy under strace: what the driver's process and its \
            programs ask of the kernel is counted once, and then the process is killed at one of \
            these calls, before or after it is carried out, chosen by chance among those that \
            change a file, a folder or a device \
            (write, pwrite64, fsync, fallocate, openat with O_CREAT, rename, link, unlink, mkdir, \
            ioctl of device-mapper ...) or send to an array: at six of an operation, or two where \
            `suite.slow` is set. In turns the same wish comes again, or \
            nobody asks again: then as N03. strace counts each call of each thread by itself: the \
            third pwrite64 is that of the first thread that comes so far, and where a driver runs \
            programs it is mostly the program that dies, to which the driver has to find an answer.",
        setup: Setup::Sr,
        run: killed,
    },
    Check {
        id: "O10",
        needs: BASE,
        sentences: &["DRV-ERR-1", "DRV-ERR-5", "DRV-IDEM-1", "DRV-CRASH-3", "DRV-CRASH-5"],
        explain: "As N09, but one call that writes to a file or a device, makes or renames one, or \
            syncs it, is not carried out and answers EIO. The process lives. The operation may have \
            another way and succeed, but not where a sync has failed and what it was to make safe \
            was not written again: such a success would not survive a power cut. An error must not \
            be called a defect (`internal`), nor a fact about the disk (`not_found`, `exists`, \
            `limit`, `no_space` ...), where the call was the driver's own and in `backend.directory`; \
            of a program that fails the driver sees an exit status only. The same wish without the \
            fault is then done, once, and syncs again what could not be synced; or nobody asks again, \
            and the SR is attached.",
        setup: Setup::Sr,
        run: |world| refused(world, "EIO"),
    },
    Check {
        id: "O11",
        needs: BASE,
        sentences: &["DRV-ERR-1", "DRV-ERR-5", "DRV-VDI-2", "DRV-IDEM-1", "DRV-CRASH-3"],
        explain: "As O10, with ENOSPC, which must be `no_space`. Nothing is left over of what was \
            begun.",
        setup: Setup::Sr,
        run: |world| refused(world, "ENOSPC"),
    },
];

type Make = fn(&mut World<'_>, VdiUuid) -> Act;

/// What is disturbed.
fn acts(world: &World<'_>) -> Vec<(&'static str, Make)> {
    let mut acts: Vec<(&'static str, Make)> = vec![
        ("vdi_create", |world, _| Act::Create(world.disk("new"))),
        ("vdi_destroy", |_, vdi| Act::Destroy(VdiDestroy { vdi })),
    ];
    if world.can("vdi_snapshot") {
        acts.insert(1, ("vdi_snapshot", |world, vdi| Act::Snapshot(world.snapshot_of(vdi))));
    }
    acts
}

/// The driver's process, which a call has started if it was not there.
fn trace(world: &World<'_>, harm: Option<(&Point, Harm)>) -> Verdict<Trace> {
    let process = world.port()?.process_id();
    let process = process.ok_or_else(|| Stop::NotTestable("the driver has no process".into()))?;
    Trace::attach(process, world.bench.scratch.join("syscalls"), harm)
}

/// What an operation asks of the kernel when nothing goes wrong.
struct Passed {
    act: Make,
    events: Vec<Event>,
    /// The VDIs that it was about.
    names: Vec<String>,
}

impl Passed {
    /// The same operation on another disk, to be disturbed at one of its points.
    fn again(&self, world: &mut World<'_>, point: &Point) -> Verdict<(Wish, Point)> {
        let wish = Wish::new(world, self.act)?;
        let names = self.names.iter().cloned().zip(wish.names());
        let point = point.renamed(names);
        Ok((wish, point))
    }
}

fn passed(world: &mut World<'_>, act: Make) -> Verdict<Passed> {
    let wish = Wish::new(world, act)?;
    let trace = trace(world, None)?;
    let answer = wish.call(world);
    let events = trace.end()?;
    answer?;
    wish.settle(world, true)?;
    Ok(Passed { act, events, names: wish.names() })
}

/// Some of the points, by chance; at least one of those at which something is sent, if there are any.
fn some(world: &mut World<'_>, (mut files, mut sent): (Vec<Point>, Vec<Point>)) -> Vec<Point> {
    let count = POINTS[usize::from(world.bench.config.suite.slow.is_some())];
    world.dice.shuffle(&mut files);
    world.dice.shuffle(&mut sent);
    if !files.is_empty() {
        sent.truncate(1);
    }
    sent.extend(files);
    sent.truncate(count);
    sent
}

/// See N09.
fn killed(world: &mut World<'_>) -> Verdict {
    let (mut tried, mut hit) = (0, 0);
    let all = [Does::Write, Does::Sync, Does::Other];
    for (name, act) in acts(world) {
        let passed = passed(world, act)?;
        let points = some(world, points(&passed.events, &all));
        world.note("killed at", name, &format!("{points:?}"));
        must(!points.is_empty(), || format!("{name} changes nothing that strace could see"))?;
        for (at, point) in points.iter().enumerate() {
            let told = |why| format!("{name} killed at {point}: {why}");
            let done = cut(world, &passed, point, at % 2 == 0);
            tried += 1;
            hit += usize::from(done.map_err(|stop| said_of(stop, told))?);
        }
    }
    came(hit, tried)
}

/// Whether anything was disturbed at all: threads may have taken another turn.
fn came(hit: usize, tried: usize) -> Verdict {
    if hit > 0 {
        return Ok(());
    }
    Err(Stop::NotTestable(format!("of {tried} calls that were to be disturbed none came again")))
}

/// Whether it was cut.
fn cut(world: &mut World<'_>, passed: &Passed, point: &Point, again: bool) -> Verdict<bool> {
    let (wish, point) = passed.again(world, point)?;
    let trace = trace(world, Some((&point, Harm::Kill)))?;
    let answer = wish.call(world);
    trace.end()?;
    match &answer {
        // Its threads took another turn this time, or a program that died did not matter.
        Ok(()) => wish.done(world)?,
        Err(error) if error.kind == Kind::Unknown => {}
        // A program died, and not the driver.
        Err(_) if world.port()?.process_id().is_some() => {}
        Err(error) => return fail(format!("the call that was cut: {}", said(error))),
    }
    // Another process, as after any death.
    world.kill()?;
    world.call(SrAttach {})?;
    wish.settle(world, again)?;
    Ok(answer.is_err())
}

/// See O10.
fn refused(world: &mut World<'_>, errno: &'static str) -> Verdict {
    let (mut tried, mut hit) = (0, 0);
    for (name, act) in acts(world) {
        let passed = passed(world, act)?;
        let (files, _) = points(&passed.events, &[Does::Write, Does::Sync]);
        let points = some(world, (files, Vec::new()));
        world.note(errno, name, &format!("{points:?}"));
        for (at, point) in points.iter().enumerate() {
            tried += 1;
            let told = |why| format!("{name}, {errno} at {point}: {why}");
            let done = hurt(world, &passed, point, errno, at % 2 == 0);
            hit += usize::from(done.map_err(|stop| said_of(stop, told))?);
        }
    }
    if tried == 0 {
        let why = "the driver's process writes to no file and to no device";
        return Err(Stop::NotApplicable(why.into()));
    }
    came(hit, tried)
}

fn hurt(
    world: &mut World<'_>,
    passed: &Passed,
    point: &Point,
    errno: &'static str,
    again: bool,
) -> Verdict<bool> {
    let (wish, point) = passed.again(world, point)?;
    let trace = trace(world, Some((&point, Harm::Error(errno))))?;
    let answer = wish.call(world);
    let events = trace.end()?;
    let mut unsynced = None;
    // Another thread may have been the first this time.
    let found = events.iter().position(|event| event.injected && event.is_of_a_file());
    let hit = found.is_some();
    if let Some((event, later)) = found.and_then(|at| events.get(at..)?.split_first()) {
        must(world.port()?.process_id().is_some(), || {
            format!("the driver's process died of {errno} at {}", event.target)
        })?;
        let folder = world.bench.images();
        if folder.is_some_and(|folder| Path::new(&event.target).starts_with(folder)) {
            judge(&answer, event, later, errno)?;
            unsynced = is_sync(event).then(|| event.target.clone());
        }
    }
    if answer.is_ok() {
        wish.done(world)?;
    }
    if !again {
        world.call(SrAttach {})?;
    } else if let Some(unsynced) = unsynced {
        synced_at_last(world, &wish, &unsynced)?;
    }
    wish.settle(world, again)?;
    Ok(hit)
}

/// The same wish, after a sync has failed: what was not made safe then is now.
fn synced_at_last(world: &mut World<'_>, wish: &Wish, target: &str) -> Verdict {
    let trace = trace(world, None)?;
    let answer = wish.call(world);
    let events = trace.end()?;
    answer?;
    let synced = |event: &Event| event.target == target && is_sync(event);
    must(!Path::new(target).exists() || events.iter().any(synced), || {
        format!(
            "a sync of {target} had failed, and the same wish succeeded without another one: what it \
             said is done need not be on the storage"
        )
    })
}

fn is_sync(event: &Event) -> bool {
    event.does() == Some(Does::Sync)
}

/// Whether an answer fits to what the storage has said to the driver.
fn judge(answer: &Result<(), Error>, hit: &Event, later: &[Event], errno: &str) -> Verdict {
    let (call, target) = (&hit.call, &hit.target);
    match answer {
        Ok(()) => {
            let anew = later.iter().any(|event| event.target == *target && !is_sync(event));
            must(!is_sync(hit) || anew, || {
                format!(
                    "{call} of {target} answered {errno}, and the call success: what it said is done \
                     need not be on the storage"
                )
            })
        }
        Err(error) => {
            let fits = if errno == "ENOSPC" {
                error.kind == Kind::NoSpace
            } else {
                matches!(error.kind, Kind::Unreachable | Kind::Corrupt | Kind::Unknown)
            };
            must(fits, || {
                let must = if errno == "ENOSPC" { "no_space" } else { "unreachable or corrupt" };
                format!("{call} of {target} answered {errno}, which is {must}: {}", said(error))
            })
        }
    }
}

fn said_of(stop: Stop, told: impl FnOnce(String) -> String) -> Stop {
    match stop {
        Stop::Fail(why) => Stop::Fail(told(why)),
        other => other,
    }
}
