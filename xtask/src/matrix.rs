//! `docs/drivers/matrix.md`: what each driver says that it can do, from the manifests in the
//! libraries that were built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::Value;
use sm_model::manifest::feature;
use sm_model::operation::OPERATIONS;
use sm_model::{Bytes, Manifest};

use crate::failure::{Doing, Failure, Result};
use crate::project;
use crate::stats;
use crate::tool::Tool;

const HEAD: &str = "\
<!-- Written by `cargo xtask docs` from the manifests of the drivers. Change those, not this. -->

# What each driver can do

As the drivers say it themselves: `smctl driver info NAME` shows the same of a driver that is
installed. An operation that a driver does not have is refused as `unsupported`. How well they keep to
what they say is in `docs/drivers/conformance.md`.

";

/// The features, in the order of the table, with what they mean.
const FEATURES: &[(&str, &str)] = &[
    (feature::RAW, "disks of format `raw`"),
    (feature::VHD, "disks of format `vhd`"),
    (feature::THIN, "space is taken only when written"),
    (feature::OFFLOAD, "the storage copies, snapshots and clones by itself"),
    (feature::GROUP_SNAPSHOT, "snapshots of several disks at one point in time"),
    (feature::LIVE_SNAPSHOT, "snapshots while the disk is written"),
    (feature::LIVE_RESIZE, "growth while the disk is attached"),
    (feature::DATAPATH, "snapshots while a data path of the host writes the disk"),
    (feature::CHANGED_BLOCKS, "blocks that change are tracked"),
    (feature::QOS_OPERATIONS, "requests per second can be limited by the storage"),
    (feature::QOS_BYTES, "bytes per second can be limited by the storage"),
    (feature::QOS_BURST, "such limits can have a burst"),
    (feature::MAX_VDI_SIZE, "the largest disk"),
    (feature::MAX_CHAIN, "most images between a disk and its root"),
];

pub(crate) fn file() -> PathBuf {
    project::root().join("docs/drivers/matrix.md")
}

/// The manifests of the drivers of this repository, by name. Builds them.
fn manifests() -> Result<BTreeMap<String, Manifest>> {
    let mut names = Vec::new();
    for folder in stats::folder(&project::root().join("drivers"))? {
        if folder.join("Cargo.toml").is_file() {
            let name = folder.file_name().unwrap_or_default();
            names.push(name.to_string_lossy().into_owned());
        }
    }
    // All, which the tests will need, too.
    let built = project::build_all()?;
    let mut manifests = BTreeMap::new();
    for name in names {
        let library = built.join(format!("libsm_driver_{name}.so"));
        let shown = Tool::new(built.join("smctl"))
            .args(["--json", "driver", "inspect"])
            .arg(&library)
            .run()?;
        let reading = || format!("read what smctl says of {}", library.display());
        let mut shown: Value = serde_json::from_str(&shown.stdout).doing(reading)?;
        let manifest: Manifest = serde_json::from_value(shown["manifest"].take()).doing(reading)?;
        manifests.insert(manifest.name.clone(), manifest);
    }
    Ok(manifests)
}

pub(crate) fn document() -> Result<String> {
    Ok(table(&manifests()?))
}

fn table(manifests: &BTreeMap<String, Manifest>) -> String {
    let mut text = String::from(HEAD);
    let names: Vec<&str> = manifests.keys().map(String::as_str).collect();
    let head = |text: &mut String, first: &str| {
        let _ = writeln!(text, "| {first} | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
    };
    text.push_str("## Features and limits\n\n");
    head(&mut text, "feature");
    let operations: BTreeSet<&str> = OPERATIONS.iter().map(|row| row.name).collect();
    let known: BTreeSet<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
    let others: BTreeSet<&str> = manifests
        .values()
        .flat_map(|manifest| &manifest.capabilities)
        .map(|capability| capability.name.as_str())
        .filter(|name| !operations.contains(name) && !known.contains(name))
        .collect();
    let others = others.into_iter().map(|name| (name, "of this driver alone"));
    for (name, meaning) in FEATURES.iter().copied().chain(others) {
        let cells = manifests.values().map(|manifest| cell(manifest, name));
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| `{name}`: {meaning} | {} |", cells.join(" | "));
    }
    text.push_str("\n## Operations\n\n");
    head(&mut text, "operation");
    for row in OPERATIONS {
        let cells = manifests.values().map(|manifest| cell(manifest, row.name));
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| `{}` | {} |", row.name, cells.join(" | "));
    }
    text.push_str("\n## Where limits come from\n\n| driver | limit | source |\n|---|---|---|\n");
    for (name, manifest) in manifests {
        for capability in &manifest.capabilities {
            if let Some(source) = &capability.source {
                let limit = cell(manifest, &capability.name);
                let _ = writeln!(text, "| {name} | `{}`: {limit} | {source} |", capability.name);
            }
        }
    }
    text.push_str("\n## What runs them\n\n| driver | root | process of its own |\n|---|---|---|\n");
    for (name, manifest) in manifests {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let process = manifest.isolation == sm_model::manifest::Isolation::Process;
        let _ = writeln!(text, "| {name} | {} | {} |", yes(manifest.needs_root), yes(process));
    }
    text
}

/// What a table says of a capability.
fn cell(manifest: &Manifest, name: &str) -> String {
    match manifest.capability(name) {
        None => "-".to_owned(),
        Some(capability) => match capability.limit {
            // Exact: a limit is compared with.
            Some(limit) if name.ends_with("size") || name == feature::QOS_BYTES => {
                format!("{} ({limit})", Bytes(limit))
            }
            Some(limit) => limit.to_string(),
            None => "yes".to_owned(),
        },
    }
}

/// Whether the document in the repository is the one the drivers give.
pub(crate) fn is_current() -> Result<bool> {
    let written = std::fs::read_to_string(file()).unwrap_or_default();
    let made = document()?;
    if written == made {
        return Ok(true);
    }
    let line = written.lines().zip(made.lines()).take_while(|(a, b)| a == b).count() + 1;
    let failure = Failure::new(format!(
        "docs/drivers/matrix.md is not what the drivers say (first difference in line {line})"
    ));
    eprintln!("xtask: {}", failure.hint("cargo xtask docs writes it anew"));
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_and_operation_has_a_row_and_what_is_not_there_a_dash() {
        let json = serde_json::json!({
            "name": "demo", "title": "", "version": "1", "abi": "1.0", "sdk": "1", "panic": "unwind",
            "capabilities": [
                { "name": "sr_scan" },
                { "name": "max_vdi_size", "limit": 1_u64 << 40, "source": "its manual" },
                { "name": "colour" },
            ],
        });
        let manifest: Manifest = serde_json::from_value(json).unwrap();
        let text = table(&[("demo".to_owned(), manifest)].into());
        assert!(text.contains("| `sr_scan` | yes |"), "{text}");
        assert!(text.contains("| `vdi_qos` | - |"), "{text}");
        assert!(text.contains("the largest disk | 1TiB (1099511627776) |"), "{text}");
        assert!(text.contains("| `colour`: of this driver alone | yes |"), "{text}");
        assert!(text.contains("| demo | `max_vdi_size`: 1TiB (1099511627776) | its manual |"));
        for row in OPERATIONS {
            assert!(text.contains(&format!("| `{}` |", row.name)), "{}", row.name);
        }
    }
}
