//! `cargo xtask bench`: builds the product and the benchmark for release, and runs it.
//!
//! The benchmark is a program of its own (`benches/control`), because it needs the engine and
//! xtask should not.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::project::{cargo, target};
use crate::setup;

/// Time for the whole benchmark; most of it is making the images of the largest SR.
const ALL: Duration = Duration::from_secs(30 * 60);

/// What can be measured alone.
const PARTS: [&str; 4] = ["commands", "calls", "scan", "load"];

pub(crate) fn run(options: &[&str]) -> Result<ExitCode> {
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let known = match *word {
            "--json" | "--quick" => true,
            "--only" => words.next().is_some_and(|part| PARTS.contains(part)),
            _ => false,
        };
        if !known {
            return Err(Failure::new(format!("bench control does not understand {word:?}"))
                .hint(format!("--json, --quick, --only {}", PARTS.join("|"))));
        }
    }
    setup::ensure()?;
    let program = build()?;
    let status = crate::tool::Tool::new(program)
        .arg("--product")
        .arg(target().join("release"))
        .args(options)
        .deadline(ALL)
        .show()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In one command, so that all of it is built with the same features.
fn build() -> Result<PathBuf> {
    let mut words =
        vec!["build", "--release", "--quiet", "--message-format=json-render-diagnostics"];
    for package in ["smctl", "sm-driver-host", "sm-driver-file", "xtask"] {
        words.extend(["--package", package]);
    }
    words.extend(["--lib", "--bins", "--example", "noop", "--bench", "control"]);
    let printed = cargo().args(words).run()?;
    let program = printed.stdout.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let of_bench = message.pointer("/target/kind/0")?.as_str()? == "bench";
        let program = message.get("executable")?.as_str()?;
        of_bench.then(|| PathBuf::from(program))
    });
    program.ok_or_else(|| Failure::new("cargo has built no benchmark program"))
}
