//! `smctl vhd`: tools for files that belong to no SR. They need no storage manager, and neither
//! read nor make a state directory.

mod convert;
mod create;
mod diff;
mod errors;
mod info;
mod repair;

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use vhd::check::{Finding, Severity, worst};
use vhd::folder::Parents;

use crate::cli::Global;
use crate::cli::vhd::{ParentArgs, VhdCommand};
use crate::errors::{Result, Status};
use crate::output::{Report, Style, escape};

/// The exit status of a check whose worst finding is an error: as `qemu-img check` and `fsck` have
/// one of their own for "looked, and it is not sound".
const DAMAGED: Status = Status(1);

/// The exit status of a check whose worst finding is a warning; no class of error has it.
const WARNINGS: Status = Status(18);

pub(crate) fn run(command: &VhdCommand, global: &Global) -> Result<Report> {
    let style = Style::choose(global.color, &std::io::stdout());
    match command {
        VhdCommand::Info { file, chain, parents } => {
            info::info(file, *chain, places(parents), global.json, style)
        }
        VhdCommand::Check { file, parents } => check(file, places(parents), global.json),
        VhdCommand::Repair { file, dry_run } => repair::repair(file, *dry_run, global.json, style),
        VhdCommand::Create(args) => create::create(args, global.json),
        VhdCommand::Convert(args) => convert::convert(args, global),
        VhdCommand::Diff { left, right, content, parents } => {
            diff::diff([left, right], *content, places(parents), global, style)
        }
    }
}

fn places(args: &ParentArgs) -> Parents<'_> {
    Parents { dir: args.parents.as_deref(), raw: args.raw_parent.as_deref() }
}

fn check(file: &Path, parents: Parents<'_>, json: bool) -> Result<Report> {
    // What is not there was not checked.
    std::fs::symlink_metadata(file)
        .map_err(|error| crate::errors::file_error(shown(file), error))?;
    let examined = vhd::folder::examine_chain(file, parents, vhd::check::Depth::Bitmaps);
    let worst = worst(&examined.findings);
    let links: Vec<Value> = examined
        .links
        .iter()
        .map(|(link, _)| json!({"path": link.path.to_string_lossy(), "raw": link.raw}))
        .collect();
    let document = json!({
        "path": file.to_string_lossy(),
        "worst": worst.map(Severity::as_str),
        "chain": links,
        "findings": documents(&examined.findings),
    });
    let status = match worst {
        Some(Severity::Error) => DAMAGED,
        Some(Severity::Warning) => WARNINGS,
        Some(Severity::Note) | None => Status::OK,
    };
    let report = Report::new(json, &document, || {
        let mut text = String::new();
        for finding in &examined.findings {
            text.push_str(&line(finding));
            text.push('\n');
        }
        let files = match links.len() {
            1 => "1 file examined".to_owned(),
            several => format!("{several} files examined"),
        };
        let _ = writeln!(text, "{files}: {}", counts(&examined.findings));
        text
    });
    let repairable =
        examined.findings.iter().find(|f| f.severity > Severity::Note && f.code.is_repairable());
    let report = match repairable {
        Some(finding) => report.note(json, format!("\nhint: {}", repair_command(&finding.path))),
        None => report,
    };
    Ok(report.status(status))
}

/// The command that says what a repair would do.
fn repair_command(file: &Path) -> String {
    let file = file.to_string_lossy();
    let words = ["smctl", "vhd", "repair", "--dry-run", &file];
    format!("{} says what can be repaired", crate::shell::join(words))
}

/// `sound`, or how many findings there are of each severity.
fn counts(findings: &[Finding]) -> String {
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let words: Vec<String> = [Severity::Error, Severity::Warning, Severity::Note]
        .into_iter()
        .map(|severity| (severity, count(severity)))
        .filter(|(_, count)| *count > 0)
        .map(|(severity, count)| {
            let plural = if count == 1 { "" } else { "s" };
            format!("{count} {severity}{plural}")
        })
        .collect();
    let sound = worst(findings).is_none_or(|severity| severity == Severity::Note);
    match (sound, words.is_empty()) {
        (true, true) => "sound".to_owned(),
        (true, false) => format!("sound, {}", words.join(", ")),
        _ => words.join(", "),
    }
}

/// `error: overlapping-blocks: disk.vhd: blocks 0 and 1 overlap`
fn line(finding: &Finding) -> String {
    let Finding { path, code, severity, text } = finding;
    format!("{severity}: {code}: {}: {}", shown(path), escape(text))
}

/// A path on one line, which cannot steer a terminal.
fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn documents(findings: &[Finding]) -> Vec<Value> {
    findings
        .iter()
        .map(|finding| {
            json!({
                "code": finding.code.as_str(),
                "severity": finding.severity.as_str(),
                "path": finding.path.to_string_lossy(),
                "text": finding.text,
                "repairable": finding.code.is_repairable(),
            })
        })
        .collect()
}
