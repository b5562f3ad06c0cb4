//! What the README shows first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use conformance::built::artefact;

#[test]
fn the_demo_passes_and_leaves_nothing() {
    let xtask = artefact("xtask");
    let work = tempfile::tempdir().unwrap();
    let output = Command::new(&xtask)
        .args(["demo", "--product"])
        .arg(xtask.parent().unwrap())
        .env("TMPDIR", work.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().last().unwrap().starts_with("demo passed: "), "{said}");
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 0);
}
