//! `cargo xtask bench`: builds the product and the benchmark for release, and runs it.
//!
//! The benchmarks are programs of their own (`benches/control`, `benches/vhd`,
//! `benches/datapath`, `benches/arrays`, `benches/lab`), because some need the engine, and xtask
//! should not.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::project::{cargo, target};
use crate::setup;

/// Time for a whole benchmark; most of it is making the images of the largest SR.
const ALL: Duration = Duration::from_secs(30 * 60);

pub(crate) fn control(options: &[&str]) -> Result<ExitCode> {
    understood("control", &["commands", "calls", "scan", "load"], options)?;
    setup::ensure()?;
    let packages = ["smctl", "sm-driver-host", "sm-driver-file", "xtask"];
    let words = ["--lib", "--bins", "--example", "noop", "--bench", "control"];
    measure(build(&packages, &words)?, "--product", options)
}

pub(crate) fn vhd(options: &[&str]) -> Result<ExitCode> {
    understood("vhd", &["merge", "snapshot", "check", "convert"], options)?;
    setup::ensure()?;
    // On the disk that the product is built on: a temporary directory can be memory.
    measure(build(&["xtask"], &["--bench", "vhd"])?, "--work", options)
}

pub(crate) fn datapath(options: &[&str]) -> Result<ExitCode> {
    let parts = [
        "random",
        "sequential",
        "mixed",
        "first",
        "chain",
        "disk",
        "attach",
        "memory",
        "snapshot",
        "coalesce",
        "mirror",
    ];
    understood("datapath", &parts, options)?;
    setup::ensure()?;
    let words = ["--lib", "--bins", "--example", "live", "--bench", "datapath"];
    let packages = ["smctl", "sm-driver-host", "sm-driver-file", "datapath", "xtask"];
    measure(build(&packages, &words)?, "--product", options)
}

pub(crate) fn arrays(options: &[&str]) -> Result<ExitCode> {
    understood("arrays", &["operations", "list", "clone", "parallel"], options)?;
    let packages = [
        "sm-driver-equallogic",
        "sm-driver-ontap",
        "sm-driver-powerstore",
        "sm-driver-purestorage",
        "sm-driver-truenas",
        "xtask",
    ];
    let words = ["--lib", "--bench", "arrays"];
    measure(build(&packages, &words)?, "--product", options)
}

pub(crate) fn quiesce(options: &[&str]) -> Result<ExitCode> {
    understood("quiesce", &["group", "single", "vhd"], options)?;
    let packages = [
        "sm-driver-equallogic",
        "sm-driver-truenas",
        "sm-driver-file",
        "datapath",
        "sm-quiesce",
        "xtask",
    ];
    let words = ["--lib", "--bins", "--bench", "quiesce"];
    measure(build(&packages, &words)?, "--product", options)
}

pub(crate) fn lab(options: &[&str]) -> Result<ExitCode> {
    understood("lab", &["lvm", "nfs", "lvmoiscsi"], options)?;
    setup::ensure()?;
    crate::lab::packages::ensure()?;
    let packages = [
        "sm-driver-lvm",
        "sm-driver-nfs",
        "sm-driver-lvmoiscsi",
        "sm-driver-host",
        "datapath",
        "lab",
        "xtask",
    ];
    let words = ["--lib", "--bins", "--bench", "lab"];
    measure(build(&packages, &words)?, "--product", options)
}

/// `parts` are what can be measured alone.
fn understood(name: &str, parts: &[&str], options: &[&str]) -> Result<()> {
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let known = match *word {
            "--json" | "--quick" => true,
            "--only" => words.next().is_some_and(|part| parts.contains(part)),
            _ => false,
        };
        if !known {
            return Err(Failure::new(format!("bench {name} does not understand {word:?}"))
                .hint(format!("--json, --quick, --only {}", parts.join("|"))));
        }
    }
    Ok(())
}

fn measure(program: PathBuf, place: &str, options: &[&str]) -> Result<ExitCode> {
    let status = crate::tool::Tool::new(program)
        .arg(place)
        .arg(target().join("release"))
        .args(options)
        .deadline(ALL)
        .show()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// In one command, so that all of it is built with the same features.
fn build(packages: &[&str], what: &[&str]) -> Result<PathBuf> {
    let mut words =
        vec!["build", "--release", "--quiet", "--message-format=json-render-diagnostics"];
    for package in packages {
        words.extend(["--package", *package]);
    }
    words.extend(what);
    let printed = cargo().args(words).run()?;
    let program = printed.stdout.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let of_bench = message.pointer("/target/kind/0")?.as_str()? == "bench";
        let program = message.get("executable")?.as_str()?;
        of_bench.then(|| PathBuf::from(program))
    });
    program.ok_or_else(|| Failure::new("cargo has built no benchmark program"))
}
