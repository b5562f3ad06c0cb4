//! `smctl driver`

use camino::Utf8Path;
use serde_json::{Value, json};
use sm_core::Inspection;
use sm_model::manifest::{FieldKind, Isolation, Manifest, PanicStrategy};
use sm_model::{Bytes, Error};

use crate::cli::driver::DriverCommand;
use crate::errors::Result;
use crate::output::{Align, Block, Report, Style, Table, escape, yes};
use crate::session::Session;

/// The commands that need the storage manager; `inspect` does not.
pub(crate) fn run(session: &Session, command: &DriverCommand) -> Result<Report> {
    match command {
        DriverCommand::List => Ok(list(session)),
        DriverCommand::Info { name } => {
            let found = session.manager.driver(name)?;
            Ok(show(&found, session.json, session.style))
        }
        DriverCommand::Inspect { file } => inspect(file, session.json, session.style),
    }
}

/// Shows the manifest of a file. Nothing of the file is run.
pub(crate) fn inspect(file: &Utf8Path, json: bool, style: Style) -> Result<Report> {
    let found = sm_loader::inspect::inspect(file).map_err(Error::from)?;
    Ok(show(&found, json, style))
}

/// Names for a sentence.
pub(crate) fn name_list(mut names: Vec<String>) -> String {
    names.sort();
    names.dedup();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn list(session: &Session) -> Report {
    let mut drivers = Vec::new();
    let mut refused = Vec::new();
    for found in session.manager.drivers() {
        match found {
            Ok(found) => drivers.push(found),
            Err(error) => refused.push(Error::from(error)),
        }
    }
    let document = json!({
        "drivers": drivers.iter().map(document).collect::<Vec<_>>(),
        "refused": refused,
    });
    let report = Report::new(session.json, &document, || {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("VERSION", Align::Left),
            ("TITLE", Align::Left),
            ("FILE", Align::Left),
        ]);
        for found in &drivers {
            let manifest = &found.manifest;
            table.row([
                escape(&manifest.name),
                escape(&manifest.version),
                escape(&manifest.title),
                escape(&found.path.to_string_lossy()),
            ]);
        }
        table.render(session.style)
    });
    let mut notes: Vec<String> =
        refused.iter().map(|error| format!("smctl: not used: {}", error.message)).collect();
    if drivers.is_empty() {
        notes.push("smctl: no driver found; say --driver-dir DIR or --driver FILE.so".to_owned());
    }
    if notes.is_empty() { report } else { report.note(session.json, notes.join("\n")) }
}

fn document(found: &Inspection) -> Value {
    json!({
        "path": found.path.to_string_lossy(),
        "size": found.size,
        "manifest": found.manifest,
        "steps": found.steps,
    })
}

fn show(found: &Inspection, json: bool, style: Style) -> Report {
    Report::new(json, &document(found), || {
        let manifest = &found.manifest;
        let mut block = Block::default();
        block
            .text("name", &manifest.name)
            .text("title", &manifest.title)
            .text("version", &manifest.version)
            .text("vendor", &manifest.vendor)
            .text("file", &found.path.to_string_lossy())
            .line("size", Bytes(found.size).to_string())
            .line("interface", escape(&manifest.abi))
            .line("sdk", escape(&manifest.sdk))
            .line(
                "runs",
                match (manifest.isolation, manifest.panic) {
                    (Isolation::Process, _) => "in a child process only",
                    (Isolation::Any, PanicStrategy::Abort) => {
                        "in a child process only (a panic ends the process)"
                    }
                    (Isolation::Any, PanicStrategy::Unwind) => "in a child process or in process",
                },
            )
            .line("needs root", yes(manifest.needs_root));
        if !manifest.services.is_empty() {
            block.text("services", &manifest.services.join(", "));
        }
        let mut text = block.render();
        text.push('\n');
        text.push_str(&config_table(manifest).render(style));
        text.push('\n');
        text.push_str(&capability_table(manifest).render(style));
        text
    })
}

fn config_table(manifest: &Manifest) -> Table {
    let mut table = Table::new(&[
        ("KEY", Align::Left),
        ("TYPE", Align::Left),
        ("NEEDED", Align::Left),
        ("SECRET", Align::Left),
        ("DEFAULT", Align::Left),
        ("MEANING", Align::Left),
    ]);
    for field in &manifest.config {
        let kind = match field.kind {
            FieldKind::Text => "text",
            FieldKind::Path => "path",
            FieldKind::Integer => "integer",
            FieldKind::Boolean => "boolean",
            FieldKind::Size => "size",
        };
        table.row([
            escape(&field.name),
            kind.to_owned(),
            yes(field.required).to_owned(),
            yes(field.secret).to_owned(),
            escape(field.default.as_deref().unwrap_or("-")),
            escape(&field.help),
        ]);
    }
    table
}

/// A limit is compared with, so it is not rounded: 2040GiB, not 1.99TiB.
fn exact_size(bytes: u64) -> String {
    let units = [(50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

fn capability_table(manifest: &Manifest) -> Table {
    let mut table = Table::new(&[
        ("CAPABILITY", Align::Left),
        ("LIMIT", Align::Right),
        ("SOURCE OF THE LIMIT", Align::Left),
    ]);
    for capability in &manifest.capabilities {
        // The model says which limits are bytes: those whose name says size.
        let limit = capability.limit.map(|limit| {
            if capability.name.ends_with("size") { exact_size(limit) } else { limit.to_string() }
        });
        table.row([
            escape(&capability.name),
            limit.unwrap_or_else(|| "-".to_owned()),
            escape(capability.source.as_deref().unwrap_or("")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_not_rounded() {
        assert_eq!(exact_size(2040 << 30), "2040GiB");
        assert_eq!(exact_size(1 << 40), "1TiB");
        assert_eq!(exact_size(1_000_001), "1000001B");
        assert_eq!(exact_size(0), "0B");
    }
}
