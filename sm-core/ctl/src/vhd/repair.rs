//! `smctl vhd repair`

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;
use sm_model::{Error, Kind};
use vhd::check::Severity;

use super::errors::failure;
use super::{documents, line, shown};
use crate::errors::Result;
use crate::output::{Align, Report, Style, Table, escape};

pub(super) fn repair(file: &Path, dry_run: bool, json: bool, style: Style) -> Result<Report> {
    let done = if dry_run { vhd::repair::plan(file) } else { vhd::repair::repair(file) };
    let done = done.map_err(failure)?;
    if done.refused {
        let mut errors = done.before.iter().filter(|f| f.severity == Severity::Error);
        let first = errors.next().map(|finding| finding.text.clone()).unwrap_or_default();
        let more = match errors.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let message =
            format!("{}: cannot be repaired, nothing was changed: {first}{more}", file.display());
        let resize = done.before.iter().any(|f| f.code == vhd::check::Code::InterruptedResize);
        let hint = if resize {
            "the journal of the tool that resized it can: vhd-util revert -n FILE -j JOURNAL"
                .to_owned()
        } else {
            let file = crate::shell::quote(&file.to_string_lossy());
            format!("smctl vhd check {file} says all that is wrong; a backup may be the way")
        };
        return Err(Error::new(Kind::Corrupt, message).hint(hint).into());
    }
    let steps: Vec<_> = done
        .steps
        .iter()
        .map(|step| {
            json!({
                "code": step.code.as_str(),
                "offset": step.offset,
                "length": step.bytes.len(),
                "text": step.text,
            })
        })
        .collect();
    let document = json!({
        "path": file.to_string_lossy(),
        "dry_run": dry_run,
        "steps": steps,
        "before": documents(&done.before),
        "after": documents(&done.after),
    });
    Ok(Report::new(json, &document, || {
        let mut text = String::new();
        if done.steps.is_empty() {
            let _ = writeln!(text, "{}: nothing to repair", shown(file));
        } else {
            let mut table = Table::new(&[
                ("OFFSET", Align::Right),
                ("BYTES", Align::Right),
                ("REPAIRS", Align::Left),
                (if dry_run { "WOULD WRITE" } else { "WRITTEN" }, Align::Left),
            ]);
            for step in &done.steps {
                table.row([
                    step.offset.to_string(),
                    step.bytes.len().to_string(),
                    step.code.to_string(),
                    escape(&step.text),
                ]);
            }
            text.push_str(&table.render(style));
        }
        let left: Vec<_> = done.after.iter().filter(|f| f.severity > Severity::Note).collect();
        if !left.is_empty() {
            text.push_str("\nnot repaired:\n");
        }
        for finding in left {
            text.push_str(&line(finding));
            text.push('\n');
        }
        text
    }))
}
