//! `smctl vdi cbt`: which blocks change.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;
use sm_core::Sr;
use sm_model::vdi::{CHANGED_BLOCK, VdiChanges};
use sm_model::{Bytes, VdiUuid};

use crate::cli::vdi::CbtCommand;
use crate::errors::Result;
use crate::output::{Align, Report, Table, escape};
use crate::session::Session;
use crate::sr::changed_text;

/// Ranges that are printed; of more, their number is told. All are in the JSON.
const RANGES: usize = 50;

pub(crate) async fn run(session: &Session, sr: &Sr, command: &CbtCommand) -> Result<Report> {
    match command {
        CbtCommand::Enable(vdi) => set(session, sr, &vdi.vdi, true).await,
        CbtCommand::Disable(vdi) => set(session, sr, &vdi.vdi, false).await,
        CbtCommand::Diff { from, to, bitmap } => {
            let from = session.vdi(sr, from).await?;
            let to = session.vdi(sr, to).await?;
            let changes = sr.vdi_changed(&session.op, from, to).await?;
            diff(session, from, to, &changes, *bitmap)
        }
    }
}

async fn set(session: &Session, sr: &Sr, selector: &str, enabled: bool) -> Result<Report> {
    let vdi = session.vdi(sr, selector).await?;
    let done = sr.vdi_cbt(&session.op, vdi, enabled).await?;
    let what = if enabled { "are tracked" } else { "are not tracked any more" };
    Ok(Report::new(session.json, &done, || {
        changed_text(done.changed, &format!("changes of VDI {vdi} {what}"))
    }))
}

/// A range that changed.
#[derive(Serialize)]
struct Range {
    offset: u64,
    length: u64,
}

fn diff(
    session: &Session,
    from: VdiUuid,
    to: VdiUuid,
    changes: &VdiChanges,
    bitmap: bool,
) -> Result<Report> {
    let ranges = changes.ranges()?;
    let bits = VdiChanges::encode(&changes.bits()?);
    let sum: u64 = ranges.iter().map(|range| range.1).sum();
    let all: Vec<Range> =
        ranges.iter().map(|(offset, length)| Range { offset: *offset, length: *length }).collect();
    // One or the other: each may be long.
    let document = json!({
        "from": from,
        "to": to,
        "known": changes.known,
        "why": changes.why,
        "virtual_size": changes.virtual_size,
        "block_size": CHANGED_BLOCK,
        "changed": sum,
        "ranges": (!bitmap).then_some(all),
        "bitmap": bitmap.then_some(&bits),
    });
    let report = Report::new(session.json, &document, || {
        if bitmap {
            return format!("{bits}\n");
        }
        let mut table = Table::new(&[("OFFSET", Align::Right), ("LENGTH", Align::Right)]);
        for (offset, length) in ranges.iter().take(RANGES) {
            table.row([offset.to_string(), length.to_string()]);
        }
        let mut text = if ranges.is_empty() { String::new() } else { table.render(session.style) };
        if ranges.len() > RANGES {
            let _ = writeln!(text, "and {} more ranges", ranges.len() - RANGES);
        }
        let (count, size) = (ranges.len(), changes.virtual_size);
        let _ = writeln!(text, "{} of {size} changed, in {count} ranges", Bytes(sum));
        text
    });
    Ok(match unknown(changes) {
        Some(note) => report.note(session.json, note),
        None => report,
    })
}

fn unknown(changes: &VdiChanges) -> Option<String> {
    let why = changes.why.as_deref().unwrap_or("the driver does not say why");
    (!changes.known).then(|| {
        format!("smctl: it is not known what changed ({}); everything may have", escape(why))
    })
}

/// The bitmap that comes with an attachment.
#[derive(Serialize)]
pub(crate) struct Since {
    from: VdiUuid,
    context: String,
    known: bool,
    why: Option<String>,
    changed: u64,
}

impl Since {
    pub(crate) fn of(from: VdiUuid, changes: &VdiChanges) -> Result<Self> {
        Ok(Self {
            from,
            context: format!("qemu:dirty-bitmap:{from}"),
            known: changes.known,
            why: changes.why.clone(),
            changed: changes.ranges()?.iter().map(|range| range.1).sum(),
        })
    }

    pub(crate) fn text(&self) -> String {
        let (context, sum) = (&self.context, Bytes(self.changed));
        match &self.why {
            Some(why) if !self.known => format!(
                "smctl: {context} calls everything changed, because it is not known what did: {}",
                escape(why)
            ),
            _ => format!("smctl: {context} has {sum} that changed"),
        }
    }
}
