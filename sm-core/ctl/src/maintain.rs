//! `smctl sr maintain` and `smctl vdi reclaim`.

use std::fmt::Write as _;
use std::time::Duration;

use sm_core::Sr;
use sm_model::sr::{Budget, SrMaintain, SrMaintained, Stopped};
use sm_model::{Bytes, Changed, Kind, SrUuid, VdiUuid};

use crate::cli::sr::BudgetArgs;
use crate::errors::Result;
use crate::output::{Report, escape};
use crate::session::Session;
use crate::transfer::job;

/// Longer than any disk takes to be looked at.
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn maintain(
    session: &Session,
    sr: &Sr,
    budget: &BudgetArgs,
    dry_run: bool,
) -> Result<Report> {
    let request = SrMaintain {
        budget: Budget {
            bytes_per_second: budget.rate,
            // Part of a second is time all the same: no budget of nothing.
            seconds: budget.time.map(|time| time.as_secs().max(1)),
            cpu_percent: budget.cpu,
            parallel: budget.parallel,
        },
        dry_run,
    };
    let (done, _) = job(session, async |op| sr.maintain(&op, request).await).await?;
    Ok(Report::new(session.json, &done, || text(sr.uuid(), &done, dry_run)))
}

pub(crate) async fn reclaim(session: &Session, sr: &Sr, vdi: VdiUuid) -> Result<Report> {
    let done = job(session, async |op| {
        // How long it takes depends on the disk's size: as for a job, no limit unless one is said.
        let op = if session.timeout.is_none() { op.with_budget(DAY) } else { op };
        sr.vdi_reclaim(&op, vdi).await.map_err(|error| match error.kind {
            Kind::DeadlineExceeded | Kind::Cancelled => {
                error.hint("what was given back stays so; again, with more --timeout, for the rest")
            }
            _ => error,
        })
    });
    let (done, _) = done.await?;
    Ok(Report::new(session.json, &done, || match done.changed {
        Changed::Already => {
            format!("VDI {vdi} has nothing to give back; {} were looked at\n", done.scanned)
        }
        Changed::Created | Changed::Modified => {
            format!("VDI {vdi} gave back {}; {} were looked at\n", done.freed, done.scanned)
        }
    }))
}

/// What maintenance did and what is left, a line each; the last line is the sum.
pub(crate) fn text(sr: SrUuid, done: &SrMaintained, dry_run: bool) -> String {
    let mut text = String::new();
    for merge in &done.merged {
        let _ = writeln!(
            text,
            "merged: {} into {}, {} copied{}",
            merge.node,
            merge.into,
            merge.bytes_copied,
            in_use(merge.live)
        );
    }
    for node in &done.collected {
        let what = if dry_run { "would be deleted" } else { "deleted" };
        let _ = writeln!(text, "{what}: {node}, which nothing needs");
    }
    for skipped in &done.skipped {
        let _ = writeln!(text, "skipped: {}, {}", skipped.node, escape(&skipped.reason));
    }
    for merge in &done.planned {
        let what = if dry_run { "would merge" } else { "left" };
        let _ = writeln!(
            text,
            "{what}: {} into {}, {} to copy{}",
            merge.node,
            merge.into,
            merge.bytes,
            in_use(merge.live)
        );
    }
    text.push_str(&sum(sr, done, dry_run));
    text.push('\n');
    text
}

fn in_use(live: bool) -> &'static str {
    if live { ", while it is in use" } else { "" }
}

fn sum(sr: SrUuid, done: &SrMaintained, dry_run: bool) -> String {
    let skipped = match done.skipped.len() {
        0 => String::new(),
        count => format!("; {} skipped", count_of(count as u64, "image")),
    };
    let to_copy = Bytes(done.planned.iter().map(|merge| merge.bytes.0).sum());
    if dry_run {
        let what = count_of(done.remaining, "merge");
        return format!("SR {sr}: {what} to do, {to_copy} to copy{skipped}");
    }
    let mut text = format!("SR {sr}: ");
    if done.merged.is_empty() && done.collected.is_empty() && done.freed == Bytes(0) {
        text.push_str("nothing was merged or deleted");
    } else {
        let _ = write!(
            text,
            "{} done, {} deleted, {} copied, {} freed",
            count_of(done.merged.len() as u64, "merge"),
            count_of(done.collected.len() as u64, "base copy"),
            done.bytes_copied,
            done.freed
        );
    }
    text.push_str(&skipped);
    if done.remaining > 0 {
        let why = match done.stopped {
            Some(Stopped::OutOfTime) => ", the time was over",
            Some(Stopped::Cancelled) => ", it was cancelled",
            None => "",
        };
        let left = count_of(done.remaining, "merge");
        let _ = write!(text, "; {left} left, {to_copy} to copy{why}: smctl sr maintain {sr}");
    }
    text
}

fn count_of(count: u64, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        _ => format!("{count} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use sm_model::sr::{Merged, PlannedMerge, Skipped};

    use super::*;

    fn uuid(n: u128) -> VdiUuid {
        uuid::Uuid::from_u128(n).into()
    }

    fn nothing() -> SrMaintained {
        SrMaintained {
            changed: Changed::Already,
            collected: vec![],
            merged: vec![],
            skipped: vec![],
            planned: vec![],
            remaining: 0,
            bytes_copied: Bytes(0),
            freed: Bytes(0),
            finished: true,
            stopped: None,
        }
    }

    #[test]
    fn what_was_done_and_what_is_left_is_said() {
        let sr = uuid::Uuid::from_u128(9).into();
        let done = SrMaintained {
            changed: Changed::Modified,
            collected: vec![uuid(1), uuid(2)],
            merged: vec![Merged {
                node: uuid(3),
                into: uuid(4),
                bytes_copied: Bytes::mib(2),
                live: true,
            }],
            skipped: vec![Skipped { node: uuid(5), reason: "is attached".into() }],
            planned: vec![PlannedMerge {
                node: uuid(6),
                into: uuid(7),
                bytes: Bytes::mib(4),
                live: false,
            }],
            remaining: 1,
            bytes_copied: Bytes::mib(3),
            freed: Bytes::gib(1),
            finished: false,
            stopped: Some(Stopped::OutOfTime),
        };
        let said = text(sr, &done, false);
        let expected = format!(
            "merged: {} into {}, 2MiB copied, while it is in use\n\
             deleted: {}, which nothing needs\n\
             deleted: {}, which nothing needs\n\
             skipped: {}, is attached\n\
             left: {} into {}, 4MiB to copy\n\
             SR {sr}: 1 merge done, 2 base copies deleted, 3MiB copied, 1GiB freed; 1 image skipped; \
             1 merge left, 4MiB to copy, the time was over: smctl sr maintain {sr}\n",
            uuid(3),
            uuid(4),
            uuid(1),
            uuid(2),
            uuid(5),
            uuid(6),
            uuid(7)
        );
        assert_eq!(said, expected);
        let dry = SrMaintained { planned: done.planned, remaining: 1, ..nothing() };
        assert_eq!(
            text(sr, &dry, true),
            format!(
                "would merge: {} into {}, 4MiB to copy\nSR {sr}: 1 merge to do, 4MiB to copy\n",
                uuid(6),
                uuid(7)
            )
        );
    }

    #[test]
    fn nothing_to_do_is_said_in_a_line() {
        let sr = uuid::Uuid::from_u128(9).into();
        let said = text(sr, &nothing(), false);
        assert_eq!(said, format!("SR {sr}: nothing was merged or deleted\n"));
    }
}
