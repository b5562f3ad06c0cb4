//! Maintenance: shorter chains, space that comes back, and who has a disk open meanwhile.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::model::sr::{Merged, PlannedMerge, Skipped, SrMaintain, SrMaintained, Stopped};
use plugin_sdk::model::vdi::VdiReclaimed;
use plugin_sdk::model::{Bytes, Changed, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use vhd::tree::{self, Guard, Pace, Tree};

use crate::error::from_vhd;
use crate::live::{self, Served};
use crate::place::Place;
use crate::writer::Holder;

/// Each merge at the same time is a thread.
const MOST_PARALLEL: u32 = 64;

pub(crate) fn maintain(place: &dyn Place, cx: &Cx, request: &SrMaintain) -> Result<SrMaintained> {
    let tree = place.tree()?;
    let served = Served::of(&tree, cx)?;
    if request.dry_run {
        let mut planned = tree.plan_beside(&served).map_err(from_vhd)?;
        if place.merges_leaves() {
            live::plan(&tree, &served, &mut planned)?;
        }
        return Ok(answer(planned, cx));
    }
    let until = request.budget.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    release_stale(&tree, cx)?;
    let usual = tree::Budget::default();
    let budget = tree::Budget {
        bytes_per_second: request.budget.bytes_per_second.map(|bytes| bytes.0),
        wall: request.budget.seconds.map(Duration::from_secs),
        cpu_percent: request.budget.cpu_percent,
        parallel: request
            .budget
            .parallel
            .map_or(usual.parallel, |count| count.min(MOST_PARALLEL) as usize),
        ..usual
    };
    let progress = progress(cx, "merging");
    // What data paths merge comes after all else, and counts from the beginning.
    let leaves = if place.merges_leaves() {
        tree.live_leaves(&served).map_err(from_vhd)?
    } else {
        Vec::new()
    };
    let (to_come, count) = (leaves.iter().map(|leaf| leaf.bytes).sum::<u64>(), leaves.len());
    let watch = |pace: Pace| {
        let (bytes_total, merges_total) = (pace.bytes_total + to_come, pace.merges_total + count);
        progress(Pace { bytes_total, merges_total, ..pace })
    };
    let mut done =
        tree.maintain_beside(cx.deadline(), &budget, &watch, &served).map_err(from_vhd)?;
    if place.merges_leaves() {
        let work = live::Work { until, watch: &progress };
        live::merge_leaves(&tree, cx, request, &work, &mut done)?;
    }
    step!("sr_maintain.done");
    Ok(answer(done, cx))
}

fn answer(done: tree::Maintained, cx: &Cx) -> SrMaintained {
    let nothing = done.merged.is_empty()
        && done.collected.is_empty()
        && (done.bytes_copied, done.freed) == (0, 0);
    let stopped = done.stopped.map(|why| match why {
        // What ended it was the time of the call, not a wish of the caller's.
        tree::Stopped::Cancelled if !cx.is_cancelled() => Stopped::OutOfTime,
        tree::Stopped::Cancelled => Stopped::Cancelled,
        tree::Stopped::OutOfTime => Stopped::OutOfTime,
    });
    let planned: Vec<PlannedMerge> = done
        .planned
        .iter()
        .map(|merge| PlannedMerge {
            node: merge.node.into(),
            into: merge.into.into(),
            bytes: Bytes(merge.bytes),
            live: merge.live,
        })
        .collect();
    SrMaintained {
        changed: if nothing { Changed::Already } else { Changed::Modified },
        collected: done.collected.into_iter().map(Into::into).collect(),
        merged: done
            .merged
            .iter()
            .map(|merge| Merged {
                node: merge.node.into(),
                into: merge.into.into(),
                bytes_copied: Bytes(merge.bytes),
                live: merge.live,
            })
            .collect(),
        skipped: done
            .skipped
            .into_iter()
            .map(|skipped| Skipped { node: skipped.uuid.into(), reason: skipped.reason })
            .collect(),
        remaining: planned.len() as u64,
        bytes_copied: Bytes(done.bytes_copied),
        freed: Bytes(done.freed),
        finished: planned.is_empty() && stopped.is_none(),
        planned,
        stopped,
    }
}

pub(crate) fn reclaim(place: &dyn Place, cx: &Cx, vdi: VdiUuid) -> Result<VdiReclaimed> {
    let tree = place.tree()?;
    crate::vdis::usable(&tree, vdi)?;
    release_stale(&tree, cx)?;
    let progress = progress(cx, "looking for zeros");
    let done = tree.reclaim(cx.deadline(), vdi.0, &progress).map_err(from_vhd)?;
    step!("vdi_reclaim.done");
    Ok(VdiReclaimed {
        changed: if done.freed == 0 { Changed::Already } else { Changed::Modified },
        freed: Bytes(done.freed),
        scanned: Bytes(done.scanned),
    })
}

/// Does work that makes a chain longer; if the chain has reached its limit, makes it shorter first.
pub(crate) fn with_room<T>(
    place: &dyn Place,
    cx: &Cx,
    sources: &[VdiUuid],
    work: impl Fn(&Tree, &Guard) -> Result<T>,
) -> Result<T> {
    /// SMAPI's number for a chain that is too long.
    const TOO_LONG: u16 = 109;
    let attempt = || {
        let (tree, guard) = place.locked(cx)?;
        work(&tree, &guard)
    };
    let full = match attempt() {
        Err(error) if error.legacy_code() == TOO_LONG => error,
        other => return other,
    };
    // It takes the lock by itself, for moments.
    let tree = place.tree()?;
    release_stale(&tree, cx)?;
    let hint = format!(
        "smctl sr maintain {} merges what can be merged, and says why the rest cannot; vdi copy \
         makes a disk without a chain",
        place.sr()
    );
    let mut shorter = Ok(false);
    for source in sources {
        // Of several, those that have reached the limit.
        if shorter.is_ok() && tree.get(source.0).map_err(from_vhd)?.depth >= tree::MAX_DEPTH {
            let done = tree.shorten(cx.deadline(), source.0, &progress(cx, "merging"));
            shorter = shorter.and_then(|before| Ok(done? || before));
        }
    }
    match shorter {
        Ok(true) => attempt().map_err(|error| {
            if error.legacy_code() == TOO_LONG { error.hint(hint) } else { error }
        }),
        Ok(false) => Err(full.hint(hint)),
        Err(vhd::Error::Stopped { .. }) => {
            if cx.is_cancelled() {
                cx.check()?;
            }
            // What is merged by now stays so; what was asked for is still not possible.
            Err(full.hint(format!("there was not time enough to make it shorter; {hint}")))
        }
        Err(error) => Err(full.hint(hint).source(&error)),
    }
}

/// Claims a disk for this host: from now on nothing rewrites what its users have open.
pub(crate) fn claim(tree: &Tree, guard: &Guard, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    tree.claim(guard, vdi.0, &Holder::here(cx)?.name()).map_err(from_vhd)?;
    step!("vdi_attach.claimed");
    Ok(())
}

/// Ends the claims of this host; none is fine, and so is a disk or an SR that is gone.
pub(crate) fn release(place: &dyn Place, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    let tree = match place.tree_to_leave() {
        Err(error) if error.kind == plugin_sdk::model::Kind::NotFound => return Ok(()),
        other => other?,
    };
    place.give_back(cx, vdi)?;
    let here = Holder::here(cx)?;
    let mut claims = tree.claims(vdi.0).map_err(from_vhd)?;
    claims.retain(|claim| Holder::of(claim).is_some_and(|by| by.is_at(&here)));
    if claims.is_empty() {
        return Ok(());
    }
    let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
    for claim in &claims {
        tree.unclaim(&guard, vdi.0, claim).map_err(from_vhd)?;
    }
    step!("vdi_detach.released");
    Ok(())
}

/// The disks that this host has open, by whichever installation.
pub(crate) fn open_here(tree: &Tree, cx: &Cx) -> Result<Vec<VdiUuid>> {
    let here = Holder::here(cx)?;
    let mut open = Vec::new();
    for node in tree.open_disks().map_err(from_vhd)? {
        let claims = tree.claims(node).map_err(from_vhd)?;
        if claims.iter().any(|claim| Holder::of(claim).is_some_and(|by| by.shares_devices(&here))) {
            open.push(node.into());
        }
    }
    Ok(open)
}

/// Ends the claims of this host that are of an earlier boot: whoever had the disk open is gone.
pub(crate) fn release_stale(tree: &Tree, cx: &Cx) -> Result<()> {
    let here = Holder::here(cx)?;
    let mut guard = None;
    for disk in tree.open_disks().map_err(from_vhd)? {
        for claim in tree.claims(disk).map_err(from_vhd)? {
            if !Holder::of(&claim).is_some_and(|by| by.is_gone(&here)) {
                continue;
            }
            let guard = match &mut guard {
                Some(guard) => guard,
                none => none.insert(tree.lock(cx.deadline()).map_err(from_vhd)?),
            };
            tree.unclaim(guard, disk, &claim).map_err(from_vhd)?;
            step!("sr_maintain.claim_released");
        }
    }
    Ok(())
}

/// Tells the host how far the work is; ends it when the call should end.
fn progress(cx: &Cx, what: &'static str) -> impl Fn(Pace) -> ControlFlow<()> + Sync {
    let cx = cx.clone();
    let told = Mutex::new(None);
    move |pace: Pace| {
        let done = pace.bytes_done.saturating_mul(1000).checked_div(pace.bytes_total).unwrap_or(0);
        let merges = (pace.merges_total > 1).then_some(pace.merges_done);
        {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            // More work may show up on the way, but progress does not fall.
            let before = told.map_or(0, |(permille, _)| permille);
            let now = (done.min(1000).max(before), merges);
            if *told != Some(now) {
                *told = Some(now);
                let stage = match merges {
                    Some(n) => format!("{what} {} of {}", n + 1, pace.merges_total.max(n + 1)),
                    None => what.to_owned(),
                };
                cx.progress(now.0 as u32, &stage);
            }
        }
        if cx.check().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
