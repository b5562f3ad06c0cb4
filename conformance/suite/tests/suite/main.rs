//! The suite is itself tested: good drivers pass it whole, of the faulty ones none gets by, and what
//! the program promises of its reports and of its cleaning up is so.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod arrays;
mod drivers;
mod pages;
mod program;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use conformance::built;
use sm_conformance::Certificate;

/// A folder in memory, that the user nobody can go through.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("conformance").tempdir_in("/dev/shm").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

/// The driver with the defects, built as a dependency of this test.
fn faulty_driver() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libfaulty.so");
    assert!(path.exists(), "{} was not built as a dev-dependency", path.display());
    path
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sm-conformance"));
    command.env("SM_DRIVER_HOST", built::artefact("sm-driver-host"));
    command
}

/// What is given to a driver beside its place.
fn config(more: &str) -> String {
    format!(
        "[device-config]\nlocation = \"{{scratch}}\"\n{more}\n\
         [backend]\ndirectory = \"{{scratch}}\"\n[suite]\ncall-seconds = 60\n"
    )
}

/// What a run said, and its certificate if there is one.
type Ran = (Output, Option<Certificate>);

/// Runs the program on a driver, in a folder of the run's own.
fn run(at: &Path, driver: &Path, config: &str, more: &[&str]) -> Ran {
    std::fs::create_dir_all(at).unwrap();
    let sr = at.join("sr.toml");
    std::fs::write(&sr, config).unwrap();
    let out = at.join("out");
    let mut command = program();
    command.arg("run").arg("--driver").arg(driver).arg("--config").arg(sr);
    command.arg("--out").arg(&out).arg("--scratch").arg(at).args(more);
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o711)).unwrap();
    let output = command.output().unwrap();
    let text = std::fs::read_to_string(out.join("certificate.json"));
    (output, text.ok().map(|text| Certificate::verify(&text).unwrap()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
